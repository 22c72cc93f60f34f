"""Load a model by its name, folder or Hugging Face id: read its source, build its network, put it on a device."""

from __future__ import annotations

from engine.blip2.language_tokens import LanguageTokenizer
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.building import make_captioner, make_net
from engine.checkpoints.captioner_reading import read_captioner
from engine.checkpoints.retrieval_reading import read_folder
from engine.models.caption_model import CaptionModel
from engine.models.catalogue import DEFAULT, choose_lasting_name, find_model
from engine.models.devices import choose_device
from engine.models.hub import compute_digest
from engine.models.retrieval_model import RetrievalModel


def load_model(name: str = DEFAULT, *, device: str = "auto", dtype: str = "auto") -> RetrievalModel:
    """Load a retrieval model by its name, its folder, or the Hugging Face id of a downloaded one.

    device: "auto" (a GPU when there is one), "cpu", "cuda", ... dtype: "auto" (bfloat16 where the hardware computes
    it), "bfloat16" or "float32". Raises CheckpointError for a tensor that is missing, unknown, unreadable or of a wrong
    shape, and for a config or tokenizer that does not fit; ValueError for an unknown dtype.
    """
    torch_device, torch_dtype = choose_device(device, dtype)
    folder = find_model(name)
    source = read_folder(folder)
    net = make_net(source, folder, torch_dtype)
    return RetrievalModel(
        net,
        TextTokenizer(source.tokenizer, source.config.max_tokens),
        name=choose_lasting_name(name, folder),
        digest=compute_digest(source.files),
        folder=folder,
        device=torch_device,
        dtype=torch_dtype,
    )


def load_captioner(name: str, *, device: str = "auto", dtype: str = "auto") -> CaptionModel:
    """Load a model with a language model by its name, its folder, or the Hugging Face id of a downloaded one.

    device, dtype: see `load_model`. Raises CheckpointError as `load_model` does, and for a checkpoint without a
    language model.
    """
    torch_device, torch_dtype = choose_device(device, dtype)
    folder = find_model(name)
    source = read_captioner(folder)
    net = make_captioner(source, folder, torch_dtype)
    former = source.config.qformer
    prompts = None if source.tokenizer is None else TextTokenizer(source.tokenizer, former.max_positions)
    return CaptionModel(
        net,
        LanguageTokenizer(source.language.tokenizer, source.config.language, former.num_queries),
        prompts,
        name=choose_lasting_name(name, folder),
        digest=compute_digest(source.files),
        folder=folder,
        device=torch_device,
        dtype=torch_dtype,
    )
