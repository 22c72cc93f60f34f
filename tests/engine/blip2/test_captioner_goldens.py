"""Stage 2 beside the original BLIP-2 code: its recorded losses, logits and token ids, fp32 (goldens g)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import draw_normal, draw_weight, load_golden, small_config
from torch import Tensor
from transformers import OPTConfig, T5Config

from engine.blip2.captioner import Captioner
from engine.blip2.config import CaptionerConfig, LanguageConfig
from engine.blip2.generation import GenerationOptions
from engine.blip2.language_tokens import LanguageBatch
from engine.checkpoints.filling import check_fits, put_tensors, without_storage
from engine.checkpoints.key_names import LAVIS_CAPTIONER, rename_tensors, split_language
from engine.checkpoints.language_folder import make_language
from engine.checkpoints.tensors import as_stored

OPT = LanguageConfig(False, 48, 128, start_id=2, end_id=50, pad_id=1)
T5 = LanguageConfig(True, 48, 512, start_id=None, end_id=1, pad_id=0)
# The length normalisation of transformers 4.33 counts other tokens than that of 5 (hf_check.json names these three).
OTHER_BEAMS = {
    ("g_opt_strong", "noprompt_gen_beam5_eos268"): [0],
    ("g_opt_strong", "prompt_gen_beam5_eos268"): [0],
    ("g_t5_std", "gen_texts_beam5_eos199"): [0, 1, 3],
}


@cache
def golden(case: str) -> tuple[Captioner, dict[str, Any], dict[str, Tensor], Tensor]:
    """Return (model, JSON, arrays, soft prompts of the golden's four photos); its weights are read by the key table."""
    info, want = load_golden(case)
    theirs = {
        name: as_stored(draw_weight(name, shape, info["w_scale"], info["b_scale"]))
        for name, shape in info["shapes"].items()
        if not name.endswith("position_ids")
    }
    other_tensors, words = split_language(theirs)
    values = dict(info["config"]["opt" if "opt" in case else "t5"])
    if "opt" in case:
        language, theirs_config = OPT, OPTConfig(**values)
    else:
        language, theirs_config = T5, T5Config(**values | {"dense_act_fn": "gelu"})
    small = small_config()
    config = CaptionerConfig(small.vision, small.qformer, language)
    with without_storage():
        net = Captioner(config, torch.nn.Identity())
    ours = rename_tensors(other_tensors, LAVIS_CAPTIONER)
    check_fits({name: tuple(value.shape) for name, value in net.state_dict().items()}, ours, Path(case))
    put_tensors(net, ours, torch.float32)
    net.language = make_language(theirs_config, words, Path(case), torch.float32)
    net = net.eval().requires_grad_(False)
    return net, info, want, net.read_photos(net.encode_patches(draw_normal(501, (4, 3, 56, 56))))


def assert_close(actual: Tensor, want: Tensor) -> None:
    assert actual.shape == want.shape
    torch.testing.assert_close(actual, want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("case", ["g_opt_std", "g_opt_strong", "g_t5_std"])
def test_soft_prompts(case: str) -> None:
    _, _, want, soft = golden(case)
    assert_close(soft, want["inputs_opt" if "opt" in case else "inputs_t5"])


@pytest.mark.parametrize("case", ["g_opt_std", "g_opt_strong"])
@pytest.mark.parametrize("prompt", ["noprompt", "prompt"])
def test_opt_loss_and_logits(case: str, prompt: str) -> None:
    net, _, want, soft = golden(case)
    num_queries = soft.shape[1]
    ids, mask = want[f"{prompt}_input_ids"], want[f"{prompt}_attention_mask"][:, num_queries:].bool()
    texts = LanguageBatch(ids, mask, want[f"{prompt}_labels"][:, num_queries:])
    assert_close(net.compute_loss(soft, texts), want[f"{prompt}_loss"])
    logits = net.compute_logits(soft, texts)
    assert_close(logits[mask], want[f"{prompt}_logits"][:, num_queries - 1 : -1][mask])


def test_t5_loss_and_logits() -> None:
    net, _, want, soft = golden("g_t5_std")
    mask = want["attention_mask"][:, soft.shape[1] :].bool()
    texts = LanguageBatch(want["input_ids"], mask, want["labels"])
    assert_close(net.compute_loss(soft, texts), want["loss"])
    written = want["decoder_attention_mask"].bool()
    assert_close(net.compute_logits(soft, texts)[written], want["logits"][written])


def generated(net: Captioner, soft: Tensor, ids: Tensor, mask: Tensor, options: dict[str, Any]) -> Tensor:
    """Return the options of a golden's JSON. For OPT, max_length there counts a placeholder that the model never
    sees.
    """
    end = options.get("eos", net.config.language.end_id)
    net.config = replace(net.config, language=replace(net.config.language, end_id=end))
    asked = GenerationOptions(
        max_new_tokens=options["max_length"] - (not net.config.language.encoder_decoder),
        num_beams=options["num_beams"],
        length_penalty=options["length_penalty"],
    )
    return net.generate(soft, ids, mask, asked)


def assert_same_ids(actual: Tensor, want: Tensor, pad_id: int, left_out: list[int]) -> None:
    compared_rows = [row for row in range(len(want)) if row not in left_out]
    longest = max(actual.shape[1], want.shape[1])
    rows = [
        [row + [pad_id] * (longest - len(row)) for row in ids[compared_rows].tolist()]
        for ids in (actual, want)
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("case", ["g_opt_std", "g_opt_strong"])
@pytest.mark.parametrize("prompt", ["noprompt", "prompt"])
def test_opt_generation(case: str, prompt: str) -> None:
    net, info, want, soft = golden(case)
    old_config = net.config
    ids = torch.tensor([[2, 60, 61, 62] if prompt == "prompt" else [2]] * 4)
    for name, options in info["gen"].items():
        actual = generated(net, soft, ids, torch.ones_like(ids, dtype=torch.bool), options)
        net.config = old_config
        key = f"{prompt}_gen_{name}"
        assert_same_ids(actual, want[key][:, 1:], 1, OTHER_BEAMS.get((case, key), []))


def test_t5_generation() -> None:
    net, info, want, soft = golden("g_t5_std")
    old_config = net.config
    texts = want["input_ids"], want["attention_mask"][:, soft.shape[1] :].bool()
    prompt = torch.tensor([[60, 61, 62, 1]] * 4)
    for name, options in info["gen"].items():
        ids, mask = texts if name.startswith("texts") else (prompt, torch.ones_like(prompt, dtype=torch.bool))
        actual = generated(net, soft, ids, mask, options)
        net.config = old_config
        assert_same_ids(
            actual, want[f"gen_{name}"][:, 1:], 0, OTHER_BEAMS.get(("g_t5_std", f"gen_{name}"), [])
        )
