"""A captioner that is written for transformers gives equal logits there, and is the same model when it is read here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from lavis_networks import eva_captioner
from reference import draw_normal
from tiny import tiny_tokenizer
from tiny_language import byte_tokenizer, random_language, save_tiny_captioner
from transformers import Blip2ForConditionalGeneration, InstructBlipForConditionalGeneration

from engine.blip2.captioner import Captioner
from engine.blip2.config import CaptionerConfig
from engine.blip2.generation import GenerationOptions
from engine.blip2.language_tokens import LanguageTokenizer
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.saving import save_captioner
from engine.checkpoints.transformers_export import IMAGE_TOKEN
from engine.models.loading import load_captioner
from ui.cli.main import main

PROMPTS = ("a red dog", "the", "on the house a cat runs")


def captioner(kind: str) -> Captioner:
    """Make a captioner with transformers' epsilon of the last norm. LLaMA's has no free row for the image token."""
    net = eva_captioner(kind)
    net.config = replace(net.config, vision_norm_eps=1e-6)
    net.vision_norm.eps = 1e-6
    net.language = random_language(kind)
    if kind == "llama":
        net.language.resize_token_embeddings(byte_tokenizer(kind).get_vocab_size())
    return net


def converted(kind: str, folder: Path) -> tuple[Captioner, Path]:
    """Convert our folder with the command and return the folder that it wrote."""
    net = captioner(kind)
    save_captioner(folder / "ours", net, byte_tokenizer(kind), tiny_tokenizer() if kind == "llama" else None)
    asked = ["models", "convert", str(folder / "ours"), str(folder / "theirs"), "--to", "transformers"]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.output
    return net, folder / "theirs"


@pytest.mark.parametrize("kind", ["opt", "t5", "llama"])
def test_transformers_gives_the_same_logits(tmp_path: Path, kind: str) -> None:
    net, folder = converted(kind, tmp_path)
    automatic = InstructBlipForConditionalGeneration if kind == "llama" else Blip2ForConditionalGeneration
    theirs, info = automatic.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    config: CaptionerConfig = net.config
    words = LanguageTokenizer(byte_tokenizer(kind), config.language, config.qformer.num_queries)
    texts = words.encode_pairs(PROMPTS, ["a dog", "it is a cat in the snow", "no"], 60)
    pixels = draw_normal(1, (3, 3, 56, 56))
    extra = {}
    with torch.no_grad():
        patches = net.eval().encode_patches(pixels)
        if kind == "llama":
            ids, mask, _ = TextTokenizer(tiny_tokenizer(), 24)(PROMPTS)
            extra = {"qformer_input_ids": ids, "qformer_attention_mask": mask.long()}
            soft = net.read_with_prompts(patches, ids, mask)
        else:
            soft = net.read_photos(patches)
        ours = net.compute_logits(soft, texts)
        images = config.qformer.num_queries
        all_ids, all_mask = with_images_of(theirs, texts.ids, texts.mask, images)
        labels = {"labels": texts.labels} if kind == "t5" else {}
        actual = theirs.eval()(
            pixel_values=pixels, input_ids=all_ids, attention_mask=all_mask, **labels, **extra
        ).logits
    size = ours.shape[-1]
    if kind == "t5":
        real = texts.labels != -100
        torch.testing.assert_close(actual[real][:, :size], ours[real], atol=2e-5, rtol=0)
    else:
        actual = actual[:, images - 1 : -1, :size]
        torch.testing.assert_close(actual[texts.mask], ours[texts.mask], atol=2e-5, rtol=0)
    assert ours[:, 0].std(dim=0).mean() > 0.05
    assert (theirs.config.text_config.vocab_size > size) == (kind == "llama")


def with_images_of(theirs, ids, mask, count):  # type: ignore[no-untyped-def]
    images = torch.full((len(ids), count), theirs.config.image_token_index)
    return torch.cat([images, ids], dim=1), torch.cat([torch.ones_like(images), mask.long()], dim=1)


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_it_comes_back(tmp_path: Path, kind: str) -> None:
    net, folder = converted(kind, tmp_path)
    back = load_captioner(str(folder), device="cpu", dtype="float32")
    want = {n: t for n, t in net.state_dict().items() if not n.startswith("language.")}
    actual = back.net.state_dict()
    assert all(torch.equal(actual[name], value) for name, value in want.items())
    assert back.tokenizer.tokenizer.token_to_id(IMAGE_TOKEN) == byte_tokenizer(kind).get_vocab_size()
    assert back.config.language.reads_prompt == (kind == "llama")
    first = load_captioner(str(tmp_path / "ours"), device="cpu", dtype="float32")
    assert back.config.language.end_id == first.config.language.end_id
    options, blank = GenerationOptions(max_new_tokens=8), (torch.rand(2, 56, 56, 3) * 255).byte().numpy()
    if kind == "opt":
        assert back.caption(blank, "a dog", options) == first.caption(blank, "a dog", options)


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    save_tiny_captioner("opt", tmp_path / "ours")
    asked = ["models", "convert", str(tmp_path / "ours"), str(tmp_path / "out"), "--to", "transformers"]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 1 and "its image encoder is 'vit_tiny" in result.output
