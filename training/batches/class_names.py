"""Name the classes of ImageNet in many ways: synonyms, wordings, and broader words for several classes at once.

timm carries WordNet's names of the 1,000 classes, in the order in which classifiers give their probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from timm.data import ImageNetInfo

NUM_CLASSES = 1000
WORDINGS = (
    "a photo of {a}",
    "a photo of {a}",
    "{label}",
    "{a}",
    "there is {a} in the picture",
    "a picture of the {label}",
    "{a} in a photo",
)
"""The ways to word a name: {label} stands for the name, {a} for the name after its article."""
FIRST_NAME_SHARE = 0.6
"""The share of steps in which a class goes by its first name; else any of its names is drawn."""
BROADER_SHARE = 0.15
"""The share of steps in which a broader word takes the place of its classes."""

BROADER: Mapping[str, Sequence[str]] = {
    "dog": ["Chihuahua..Mexican hairless"],
    "cat": ["tabby..Egyptian cat"],
    "bird": ["cock..great grey owl", "black grouse..black swan", "white stork..albatross"],
    "fish": ["tench..tiger shark", "barracouta..puffer"],
    "snake": ["thunder snake..sidewinder"],
    "lizard": ["banded gecko..Komodo dragon"],
    "frog": ["bullfrog..tailed frog"],
    "turtle": ["loggerhead..box turtle"],
    "spider": ["black and gold garden spider..wolf spider"],
    "beetle": ["tiger beetle..weevil"],
    "butterfly": ["admiral..lycaenid"],
    "insect": ["tiger beetle..lycaenid"],
    "monkey": ["siamang..squirrel monkey"],
    "ape": ["orangutan..gibbon"],
    "bear": ["brown bear..sloth bear"],
    "fox": ["red fox..grey fox"],
    "wolf": ["timber wolf..red wolf"],
    "sheep": ["ram..bighorn"],
    "cow": ["ox"],
    "horse": ["sorrel"],
    "elephant": ["Indian elephant..African elephant"],
    "rabbit": ["wood rabbit..Angora"],
    "crab": ["Dungeness crab..king crab"],
    "animal": ["tench..puffer"],
    "boat": ["canoe", "fireboat", "gondola", "lifeboat", "schooner", "speedboat", "trimaran", "yawl"],
    "ship": ["aircraft carrier", "container ship", "liner", "pirate"],
    "car": ["beach wagon", "cab", "convertible", "jeep", "limousine", "minivan", "Model T", "racer", "sports car"],
    "truck": ["fire engine", "garbage truck", "moving van", "pickup", "tow truck", "trailer truck"],
    "bus": ["minibus", "school bus", "trolleybus"],
    "train": ["bullet train", "electric locomotive", "passenger car", "steam locomotive"],
    "bicycle": ["bicycle-built-for-two", "mountain bike"],
    "motorcycle": ["moped", "motor scooter"],
    "airplane": ["airliner", "warplane"],
    "rocket": ["missile"],
    "flower": ["daisy", "yellow lady's slipper"],
    "mushroom": ["coral fungus..bolete"],
    "fruit": ["Granny Smith..pomegranate"],
    "vegetable": ["head cabbage..cardoon"],
    "cup of coffee": ["espresso"],
    "cup": ["coffee mug", "cup"],
    "bottle": ["beer bottle", "pill bottle", "pop bottle", "water bottle", "wine bottle"],
    "hat": ["cowboy hat", "sombrero"],
    "helmet": ["crash helmet", "football helmet"],
    "dress": ["gown", "hoopskirt", "overskirt"],
    "shoe": ["clog", "cowboy boot", "Loafer", "running shoe", "sandal"],
    "bag": ["backpack", "mailbag", "plastic bag", "purse"],
    "ball": ["baseball", "basketball", "croquet ball", "golf ball", "ping-pong ball", "rugby ball", "soccer ball",
             "tennis ball", "volleyball"],
    "guitar": ["acoustic guitar", "electric guitar"],
    "piano": ["grand piano", "upright"],
    "clock": ["analog clock", "digital clock", "wall clock"],
    "telephone": ["cellular telephone", "dial telephone", "pay-phone"],
    "computer": ["desktop computer", "laptop", "notebook"],
    "screen": ["monitor", "screen", "television"],
    "camera": ["Polaroid camera", "reflex camera"],
    "chair": ["barber chair", "folding chair", "rocking chair"],
    "book": ["comic book", "book jacket"],
    "gun": ["assault rifle", "revolver", "rifle"],
    "tower": ["beacon", "water tower"],
    "bridge": ["steel arch bridge", "suspension bridge", "viaduct"],
    "temple": ["stupa"],
    "mountain": ["alp", "volcano"],
    "beach": ["sandbar", "seashore"],
}  # fmt: skip
"""Broader words, each with its classes by their first names; "first..last" is a run of classes in ImageNet's order."""


class ClassNames:
    """The names of ImageNet's classes, and the broader words with the numbers of their classes.

    names: for each class its names. broader: broader words with their classes.
    """

    def __init__(self) -> None:
        info = ImageNetInfo("imagenet-1k")
        self.names = [info.index_to_description(number).split(", ") for number in range(NUM_CLASSES)]
        first_names = [names[0] for names in self.names]
        self.broader = {
            word: [number for run in runs for number in _list_run(run, first_names)]
            for word, runs in BROADER.items()
        }

    def draw_texts(self, draws: torch.Generator) -> tuple[list[str], torch.Tensor]:
        """Draw a text for each class -> N texts, and the number of its text for each class, int64 (C,).

        Classes with one broader word share a text now and then. Whatever is drawn is decided by `draws`.
        """
        numbers = torch.full((NUM_CLASSES,), -1)
        texts: list[str] = []
        broader = list(self.broader.items())
        order = torch.randperm(len(broader), generator=draws).tolist()
        for (word, classes), draw in zip(
            [broader[place] for place in order],
            torch.rand(len(broader), generator=draws).tolist(),
            strict=True,
        ):
            if draw < BROADER_SHARE and bool((numbers[classes] < 0).all()):
                numbers[classes] = len(texts)
                texts.append(word)
        for number in (numbers < 0).nonzero()[:, 0].tolist():
            numbers[number] = len(texts)
            texts.append(self._draw_name(number, draws))
        choices = torch.randint(len(WORDINGS), (len(texts),), generator=draws).tolist()
        return [
            word_name(text, WORDINGS[choice]) for text, choice in zip(texts, choices, strict=True)
        ], numbers

    def _draw_name(self, number: int, draws: torch.Generator) -> str:
        names = self.names[number]
        chance, place = torch.rand(2, generator=draws).tolist()
        return names[0] if chance < FIRST_NAME_SHARE else names[int(place * len(names))]


def word_name(name: str, wording: str) -> str:
    """Return a name in a wording; see `WORDINGS`."""
    article = "an" if name[0].lower() in "aeiou" else "a"
    return wording.format(label=name, a=f"{article} {name}")


def _list_run(run: str, first_names: Sequence[str]) -> range:
    """Return the numbers of the classes of a run; see `BROADER`."""
    first, _, last = run.partition("..")
    return range(first_names.index(first), first_names.index(last or first) + 1)
