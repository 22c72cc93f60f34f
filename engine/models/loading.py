"""Load a model by name, folder or Hugging Face id: its source is read, its network built and put on a device."""

from __future__ import annotations

from engine.blip2.language_tokens import LanguageTokenizer
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.building import make_captioner, make_net
from engine.checkpoints.captioner_reading import read_captioner
from engine.checkpoints.retrieval_reading import read_folder
from engine.models.caption_model import CaptionModel
from engine.models.catalogue import DEFAULT, find_model, lasting_name
from engine.models.devices import choose_device
from engine.models.hub import digest_of
from engine.models.retrieval_model import RetrievalModel


def load_model(name: str = DEFAULT, *, device: str = "auto", dtype: str = "auto") -> RetrievalModel:
    """Load a checkpoint by name or folder.

    device: "auto" (a GPU when there is one), "cpu", "cuda", ... dtype: "auto" (bfloat16 where the processor has
    it in hardware), "bfloat16" or "float32". Raises CheckpointError for a missing, extra, misshapen or unreadable
    tensor, naming it, and for a config or tokenizer that does not fit; ValueError for an unknown dtype.
    """
    place, wanted = choose_device(device, dtype)
    folder = find_model(name)
    source = read_folder(folder)
    net = make_net(source, folder, wanted)
    return RetrievalModel(
        net,
        TextTokenizer(source.tokenizer, source.config.max_tokens),
        name=lasting_name(name, folder),
        digest=digest_of(source.files),
        folder=folder,
        device=place,
        dtype=wanted,
    )


def load_captioner(name: str, *, device: str = "auto", dtype: str = "auto") -> CaptionModel:
    """Load a generative checkpoint by name, folder or Hugging Face id of a downloaded one.

    device, dtype: see `load_model`. Raises CheckpointError as it does, and for a model without a language
    model, naming some that have one.
    """
    place, wanted = choose_device(device, dtype)
    folder = find_model(name)
    source = read_captioner(folder)
    net = make_captioner(source, folder, wanted)
    former = source.config.qformer
    prompts = None if source.tokenizer is None else TextTokenizer(source.tokenizer, former.max_positions)
    return CaptionModel(
        net,
        LanguageTokenizer(source.language.tokenizer, source.config.language, former.num_queries),
        prompts,
        name=lasting_name(name, folder),
        digest=digest_of(source.files),
        folder=folder,
        device=place,
        dtype=wanted,
    )
