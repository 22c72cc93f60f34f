"""Test `--set`: which settings it changes, and in which words it refuses."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from engine.datasets.captioned_sets import SourceConfig
from engine.datasets.question_sets import QuestionConfig
from engine.errors import TrainingError
from training.loop.optimizer import OptimConfig
from training.recipes.recipe_catalogue import BY_KIND, CAPTION, RETRIEVAL, STAGE1, STAGE2, VQA
from training.recipes.recipe_settings import apply_settings


@dataclass(frozen=True)
class Recipe:
    optim: OptimConfig
    sources: tuple[SourceConfig, ...]
    names: tuple[str, ...] = ("a",)
    shuffle: bool = True
    first: OptimConfig | None = None
    limit: int | None = None
    extra: dict[str, Any] | None = None


RECIPE = Recipe(
    OptimConfig(steps=10, batch=8, lr=1e-4), (SourceConfig("a.json"), SourceConfig("b.json", 2.0)), extra={}
)


@pytest.mark.parametrize(
    ("change", "read_setting", "expected"),
    [
        ("optim.batch=64", lambda c: c.optim.batch, 64),
        ("train.batch=64", lambda c: c.optim.batch, 64),
        ("optim.lr = 3e-5", lambda c: c.optim.lr, 3e-5),
        ("optim.lr=1", lambda c: c.optim.lr, 1.0),
        ("optim.betas=0.9,0.95", lambda c: c.optim.betas, (0.9, 0.95)),
        ("optim.betas.1=0.95", lambda c: c.optim.betas, (0.9, 0.95)),
        ("sources.1.weight=0.5", lambda c: c.sources[1], SourceConfig("b.json", 0.5)),
        ('sources=[{"path": "c.json", "weight": 3}]', lambda c: c.sources, (SourceConfig("c.json", 3.0),)),
        ("names=x,y", lambda c: c.names, ("x", "y")),
        ("shuffle=false", lambda c: c.shuffle, False),
        ("limit=3", lambda c: c.limit, 3),
        ("limit=none", lambda c: c.limit, None),
        (
            'first={"steps": 1, "batch": 2, "lr": 0.1}',
            lambda c: c.first,
            OptimConfig(steps=1, batch=2, lr=0.1),
        ),
        ("extra.depth=2", lambda c: c.extra, {"depth": 2}),
        ("extra.pad_type=same", lambda c: c.extra, {"pad_type": "same"}),
        ('extra={"depth": 2}', lambda c: c.extra, {"depth": 2}),
        ("names={},Question: {}", lambda c: c.names, ("{}", "Question: {}")),
        ("optim.betas=[0.9, 0.95]", lambda c: c.optim.betas, (0.9, 0.95)),
    ],
)
def test_a_setting_is_changed_to_a_value_of_its_type(
    change: str, read_setting: Any, expected: object
) -> None:
    setting = read_setting(apply_settings(RECIPE, [change]))
    assert setting == expected and type(setting) is type(expected)


def test_several_settings_are_changed_and_nothing_else() -> None:
    changed = apply_settings(RECIPE, ["optim.steps=3", "optim.batch=2"])
    assert changed.optim == OptimConfig(steps=3, batch=2, lr=1e-4) and changed.sources == RECIPE.sources
    assert RECIPE.optim.steps == 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optim.batch", "has no '='"),
        ("optim.bacth=3", r"no setting 'optim.bacth': OptimConfig has no 'bacth'; did you mean 'batch'\?"),
        ("optimm.batch=3", r"did you mean 'optim'\?"),
        ("zzz=3", "Recipe has no 'zzz'; its settings are: optim, sources"),
        ("optim.batch=6.5", "optim.batch should be a whole number, not '6.5'"),
        ("optim.lr=fast", "optim.lr should be a number, not 'fast'"),
        ("shuffle=maybe", "should be true or false, not 'maybe'"),
        ("optim.betas=0.9", r"optim.betas should have 2 values, not 1"),
        ("sources.7.weight=1", "there is no item '7' in a list of 2"),
        ('sources=[{"pth": "c"}]', r"SourceConfig has no 'pth'; did you mean 'path'\?"),
        (
            "sources=c.json",
            r'sources should be JSON for SourceConfig, such as \[{"path": ...}\], not \'c.json\'',
        ),
        ('sources=[{"path": "c", "weight": "x"}]', r"sources.0.weight should be a number, not 'x'"),
        ('sources=[{"weight": 2}]', r"sources.0: SourceConfig needs 'path', which '.*' leaves out"),
        ('sources=[{"path"', r"sources should be JSON for SourceConfig.*, which cannot be read as JSON"),
        ("optim.betas=0.9,0.95,1", r"optim.betas should have 2 values, not 3 \('0.9,0.95,1'\)"),
        ("optim.betas=0.9,x", r"optim.betas.1 should be a number, not 'x'"),
        ('first={"steps": 1, "pace": 2}', "first: OptimConfig has no 'pace'; its settings are: steps, batch"),
        ("extra=3", "extra should be a JSON object, not '3'"),
        ("optim=3", r'optim should be JSON for OptimConfig, such as {"steps": ...}, not \'3\''),
        ("first.lr=3", "first is none in this recipe"),
        ("optim.lr.x=3", "has no 'x' in it"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(change: str, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        apply_settings(RECIPE, [change])


def test_every_setting_of_every_recipe_can_be_written_as_json() -> None:
    """A field whose type pydantic cannot read would fail only when somebody sets it."""
    for recipes in BY_KIND.values():
        for make in recipes.values():
            recipe: Any = make()
            nested = {
                name: value for name, value in asdict(recipe).items() if isinstance(value, dict | tuple)
            }
            changes = [f"{name}={json.dumps(value)}" for name, value in nested.items()]
            assert changes
            assert apply_settings(recipe, changes) == recipe


@pytest.mark.parametrize("name", [*STAGE1, *RETRIEVAL])
def test_every_retrieval_recipe_takes_settings(name: str) -> None:
    recipe = {**STAGE1, **RETRIEVAL}[name]()
    changed = apply_settings(recipe, ["train.batch=64", "model.qformer.num_queries=16"])
    assert changed.optim.batch == 64 and changed.model.qformer.num_queries == 16


def test_the_recipes_have_the_papers_numbers() -> None:
    """The numbers are those of BLIP-2, section 3.4, tables 7 and 8."""
    recipes = {
        name: make() for name, make in {**STAGE2, **CAPTION, **VQA}.items() if not name.startswith("mini")
    }
    numbers = {
        name: (
            optim.batch,
            optim.lr,
            optim.min_lr,
            optim.warmup,
            optim.steps,
            optim.betas,
            optim.layer_decay,
            recipe.image_size,
            recipe.prompts,
        )
        for name, recipe in recipes.items()
        for optim in [recipe.optim]
    }
    stage2, fine = (1e-4, 5e-5, 2000, 80_000, (0.9, 0.98), 1.0, 0, ("",)), (1e-5, 0.0, 1000)
    betas, caption = (0.9, 0.999), ("a photo of",)
    prompt, short = ("Question: {} Answer:",), ("Question: {} Short answer:",)
    assert numbers == {
        "blip2-opt-2.7b": (1920, *stage2),
        "blip2-opt-6.7b": (1920, *stage2),
        "blip2-flan-t5-xl": (1520, *stage2),
        "coco-opt-2.7b": (256, *fine, 11_065, betas, 1.0, 364, caption),
        "coco-opt-6.7b": (256, *fine, 11_065, betas, 0.95, 364, caption),
        "coco-flan-t5-xl": (256, *fine, 11_065, betas, 1.0, 364, caption),
        "vqav2-opt-2.7b": (128, *fine, 82_165, betas, 0.95, 490, prompt),
        "vqav2-opt-6.7b": (128, *fine, 82_165, betas, 0.9, 490, prompt),
        "vqav2-flan-t5-xl": (128, *fine, 82_165, betas, 0.95, 490, short),
    }
    assert all(r.optim.weight_decay == 0.05 and r.optim.dtype == "auto" for r in recipes.values())
    fine_tuning = [recipes[name] for name in recipes if name in {**CAPTION, **VQA}]
    assert len(fine_tuning) == 6 and all(r.train_encoder and r.recompute_encoder for r in fine_tuning)
    assert all(recipes[name].reads_prompt == (name in VQA) for name in recipes)


@pytest.mark.parametrize("name", [*STAGE2, *CAPTION, *VQA])
def test_every_recipe_with_a_language_model_takes_settings(name: str) -> None:
    recipe = {**STAGE2, **CAPTION, **VQA}[name]()
    changed = apply_settings(recipe, ["train.batch=64", "start=x"])
    assert changed.optim.batch == 64 and changed.start == "x"


def test_the_question_sets_of_a_recipe_can_be_changed() -> None:
    changed = apply_settings(
        VQA["mini-vqa"](), ['sources=[{"path": "q.json", "annotations": "a.json"}]', "model=none"]
    )
    assert changed.sources == (QuestionConfig("q.json", annotations="a.json"),)
    with pytest.raises(TrainingError, match="QuestionConfig has no 'anotations'; did you mean 'annotations'"):
        apply_settings(VQA["mini-vqa"](), ['sources=[{"path": "q.json", "anotations": "a.json"}]'])


@pytest.mark.parametrize(
    ("change", "paths"),
    [
        ("pictures=a.tar, out/b-*.tar", ("a.tar", "out/b-*.tar")),
        ('pictures=["a.tar", "b.json"]', ("a.tar", "b.json")),
        ("pictures.0=c.tar", ("c.tar",)),
    ],
)
def test_sets_may_be_given_by_their_paths_alone(change: str, paths: tuple[str, ...]) -> None:
    assert apply_settings(STAGE1["mini"](), [change]).sources == tuple(map(SourceConfig, paths))
    with pytest.raises(TrainingError, match="Recipe has no 'picture'"):
        apply_settings(RECIPE, ["picture=a.tar"])


def test_the_start_of_a_recipe_can_be_removed() -> None:
    assert apply_settings(STAGE1["mini-tuned"](), ["start=none"]).start is None
