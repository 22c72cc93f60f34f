"""The captioner reads each photo once, learns the labelled tokens, draws texts by their probability, and refuses bad
input.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from prompts_and_pictures import PROMPTS, SHORT, random_pictures
from tiny import SIDE
from tiny_language import KINDS, byte_tokenizer, save_tiny_captioner, tiny_captioner

from engine.blip2 import captioner
from engine.blip2.generation import GenerationOptions
from engine.blip2.language_tokens import IGNORED, LanguageBatch, LanguageTokenizer
from engine.models.caption_model import CaptionModel
from engine.models.loading import load_captioner


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> CaptionModel:
    return load_captioner(
        str(save_tiny_captioner("opt", tmp_path_factory.mktemp("opt"))), device="cpu", dtype="float32"
    )


@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_gives_what_each_photo_gives_alone(model: CaptionModel, beams: int) -> None:
    """A text does not change when prompts of other lengths stand beside its own in the batch."""
    photos, options = random_pictures(3), GenerationOptions(max_new_tokens=8, num_beams=beams)
    together = model.generate(photos, PROMPTS, options)
    alone = [model.generate(photos[n : n + 1], PROMPTS[n : n + 1], options)[0] for n in range(3)]
    assert together == alone and len(set(together)) > 1


def test_the_photo_decides(model: CaptionModel) -> None:
    assert len(set(model.generate(random_pictures(8), ["a"], SHORT))) > 1


def test_the_prompt_decides(model: CaptionModel) -> None:
    """Many prompts about one photo give the texts that each prompt gives alone."""
    together = model.generate(random_pictures(1), PROMPTS, SHORT)
    assert together == [model.generate(random_pictures(1), [prompt], SHORT)[0] for prompt in PROMPTS]
    assert len(set(together)) > 1


def test_greedy_is_the_likeliest_token_each_time(opt: CaptionModel) -> None:
    """Greedy texts equal those of a search that reads everything anew, without a cache."""
    net, soft = opt.net, opt.net.read_photos(opt.encode_patches(random_pictures(2)))
    ids, mask = opt.tokenizer.encode_prompts(["a red", "the"], 6)
    actual = net.generate(soft, ids, mask, GenerationOptions(max_new_tokens=6))
    for row in range(2):
        text = ids[row][mask[row]].tolist()
        start = len(text)
        while len(text) < start + 6 and opt.config.language.end_id not in text[start:]:
            ids_BT = torch.tensor([[*text, 0]])
            batch = LanguageBatch(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool), ids_BT)
            text.append(int(net.compute_logits(soft[row : row + 1], batch)[0, -1].argmax()))
        assert actual[row].tolist()[: len(text) - start] == text[start:]


@contextmanager
def ending(model: CaptionModel, bias: float) -> Iterator[None]:
    """Let a language model end its texts sooner while the block runs."""
    head = model.net.language.lm_head
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    head.bias.data[model.config.language.end_id] = bias
    yield
    head.bias = None


def test_at_least_and_at_most(opt: CaptionModel) -> None:
    soft = opt.net.read_photos(opt.encode_patches(random_pictures(8)))
    ids, mask = (t.expand(8, -1) for t in opt.tokenizer.encode_prompts(["a"], 8))
    with ending(opt, 1e4):  # it would end at once
        free = opt.net.generate(soft, ids, mask, GenerationOptions(max_new_tokens=8))
        held = opt.net.generate(soft, ids, mask, GenerationOptions(max_new_tokens=8, min_new_tokens=5))
    assert free.shape[1] == 1 and (free == opt.config.language.end_id).all()
    assert (held == opt.config.language.end_id).long().argmax(dim=1).tolist() == [5] * 8
    assert opt.tokenizer.decode(free) == [""] * 8


def test_sampling_is_a_function_of_the_seed(opt: CaptionModel) -> None:
    photos = random_pictures(4)

    def drawn(**changes: Any) -> list[str]:
        return opt.generate(
            photos, ["a"], GenerationOptions(**{"max_new_tokens": 12, "top_p": 0.95} | changes)
        )

    before = torch.random.get_rng_state()
    assert drawn() == drawn() != drawn(seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert drawn(top_p=1e-6) == drawn(top_p=None) == drawn(temperature=1e-4)
    assert drawn(temperature=5.0) != drawn()


def test_several_texts_of_each_photo(opt: CaptionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples of a photo follow each other, its picture is read once, and a tiny top_p gives the greedy text."""
    photos, reads = random_pictures(20), []
    keys = opt.net.qformer.compute_photo_keys
    monkeypatch.setattr(
        opt.net.qformer, "compute_photo_keys", lambda patches: reads.append(len(patches)) or keys(patches)
    )
    options = GenerationOptions(max_new_tokens=8, top_p=0.95, num_samples=3)
    texts = opt.generate(photos, ["a"], options)
    assert len(texts) == 60 and sum(reads) == 20
    assert sum(len(set(texts[n : n + 3])) > 1 for n in range(0, 60, 3)) > 10
    same = opt.generate(np.repeat(photos[:1], 20, axis=0), ["a"], options)
    assert len({tuple(same[n : n + 3]) for n in range(0, 60, 3)}) > 10  # each photo has draws of its own
    greedy = opt.generate(photos, ["a"], SHORT)
    certain = GenerationOptions(max_new_tokens=8, top_p=1e-6, num_samples=3)
    assert opt.generate(photos, ["a"], certain) == [text for text in greedy for _ in range(3)]
    assert len(set(greedy)) > 1


@pytest.mark.parametrize("copies", [{"num_beams": 4}, {"top_p": 1e-6, "num_samples": 3}])
def test_beams_share_one_reading_of_photo_and_prompt(
    model: CaptionModel, copies: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a photo once for all beams gives the texts of reading it for each beam, with prompts of unequal
    lengths.
    """
    photos, options = random_pictures(3), GenerationOptions(max_new_tokens=8, **copies)
    rows: list[int] = []

    def watch(_: Any, __: Any, given: dict[str, Any]) -> None:
        if given.get("inputs_embeds") is not None and given["inputs_embeds"].shape[1] > 1:
            rows.append(len(given["inputs_embeds"]))

    def written(saved_tokens: float) -> list[str]:
        monkeypatch.setattr(captioner, "SAVED_TOKENS", (saved_tokens,) * 2)
        rows.clear()
        return model.generate(photos, PROMPTS, options)

    hook = model.net.language.register_forward_pre_hook(watch, with_kwargs=True)
    together = written(0)
    if not model.config.language.encoder_decoder:
        assert rows == [3]
    alone = written(1e9)
    hook.remove()
    if not model.config.language.encoder_decoder:
        assert rows == [9 if options.num_samples == 3 else 12]
    assert together == alone and len(set(alone)) > 1


def test_repetition_and_length_penalties(opt: CaptionModel) -> None:
    photos = random_pictures(8)
    plain = opt.generate(photos, ["a"], GenerationOptions(max_new_tokens=20))
    varied = opt.generate(photos, ["a"], GenerationOptions(max_new_tokens=20, repetition_penalty=10.0))
    assert sum(len(set(t)) / max(1, len(t)) for t in varied) > sum(
        len(set(t)) / max(1, len(t)) for t in plain
    )
    config = replace(opt.config, language=replace(opt.config.language, repetition_penalty=10.0))
    with pytest.MonkeyPatch.context() as patch:  # a checkpoint's own is asked for by None alone
        patch.setattr(opt.net, "config", config)
        assert (
            opt.generate(photos, ["a"], GenerationOptions(max_new_tokens=20, repetition_penalty=None))
            == varied
        )
        assert opt.generate(photos, ["a"], GenerationOptions(max_new_tokens=20)) == plain
    assert opt.generate(photos, ["a"], GenerationOptions(max_new_tokens=20, repetition_penalty=None)) == plain
    with ending(opt, 5.0):
        short = opt.generate(
            photos, ["a"], GenerationOptions(max_new_tokens=20, num_beams=4, length_penalty=-4.0)
        )
        long = opt.generate(
            photos, ["a"], GenerationOptions(max_new_tokens=20, num_beams=4, length_penalty=4.0)
        )
    assert sum(map(len, short)) < sum(map(len, long))


def test_a_repetition_penalty_warns_of_nothing_and_leaves_the_filters_alone(opt: CaptionModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        opt.generate(random_pictures(1), ["a"], GenerationOptions(max_new_tokens=2, repetition_penalty=2.0))
        assert warnings.filters == before


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_of_the_target_alone(kind: str) -> None:
    """The loss equals one that is computed by hand from all logits; padding and the ids of the prompt are not
    learned.
    """
    net = tiny_captioner(kind).eval()
    tokenizer = LanguageTokenizer(byte_tokenizer(kind), net.config.language, 8)
    soft = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0))
    texts = tokenizer.encode_pairs(["a", "the red"], ["dog", "house on fire"], 64)
    log_probs = net.compute_logits(soft, texts).log_softmax(-1)
    taken = [
        float(log_probs[row, column, label])
        for row, labels in enumerate(texts.labels.tolist())
        for column, label in enumerate(labels)
        if label != IGNORED
    ]
    spaces = 0 if kind == "t5" else 2  # between prompt and text, in a decoder the text's first token
    assert len(taken) == len("dog") + len("house on fire") + 2 + spaces
    assert float(net.compute_loss(soft, texts)) == pytest.approx(-np.mean(taken), abs=1e-5)
    alone = [tokenizer.encode_pairs([p], [t], 64) for p, t in (("a", "dog"), ("the red", "house on fire"))]
    sums = [
        float(net.compute_loss(soft[n : n + 1], batch)) * int((batch.labels != IGNORED).sum())
        for n, batch in enumerate(alone)
    ]
    assert sum(sums) / len(taken) == pytest.approx(-np.mean(taken), abs=1e-5)


def test_only_what_stage_2_trains_gets_gradients() -> None:
    net = tiny_captioner("opt")
    net.requires_grad_(True)
    net.vision.requires_grad_(False)
    net.language.requires_grad_(False)
    net.train()
    assert not net.vision.training and not net.language.training and net.qformer.training
    texts = LanguageTokenizer(byte_tokenizer("opt"), net.config.language, 8).encode_pairs(["a"], ["dog"], 64)
    patches = net.encode_patches(torch.randn(1, 3, SIDE, SIDE))
    net.compute_loss(net.read_photos(patches), texts).backward()
    for name, parameter in net.named_parameters():
        frozen = name.startswith(("vision.", "language."))
        assert (parameter.grad is None) == frozen, name
