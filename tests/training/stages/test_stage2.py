"""Test stage 2: it learns eight captions by heart, but not shuffled ones; frozen parts stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from eight_pairs import (
    COLOURS,
    language_model,
    put_before_language_model,
    stage1_net,
    word_tokenizer,
    write_colour_shard,
)
from torch import Tensor

from engine.blip2.captioner import Captioner
from engine.blip2.generation import GenerationOptions
from engine.blip2.language_tokens import LanguageTokenizer
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.language_folder import read_language_config
from engine.checkpoints.saving import save_checkpoint
from engine.datasets.captioned_pictures import CaptionedPicture
from engine.datasets.captioned_sets import SourceConfig
from engine.errors import CheckpointError, DataError, QseekError, TrainingError
from engine.models.loading import load_captioner
from training.batches.batch_source import Batch
from training.batches.encoded_views import EncodedViews, encode_views
from training.batches.pair_draws import TorchDraws
from training.distributed.world import World
from training.loop.optimizer import OptimConfig
from training.loop.train_loop import train
from training.recipes.recipe_catalogue import VQA
from training.stages.stage2 import Stage2Task, normalise_samples, run_stage2
from training.stages.stage2_config import Stage2Config, check_writing
from training.stages.starts import check_language
from ui.cli.main import main

TEXTS = [(f"the wall is {colour}",) for colour in COLOURS]
GREEDY = GenerationOptions(max_new_tokens=8)
Parts = tuple[Captioner, LanguageTokenizer, TextTokenizer | None, Tensor, list[CaptionedPicture]]


def config(**changes: Any) -> Stage2Config:
    optim = OptimConfig(steps=150, batch=8, lr=5e-3, warmup=10, weight_decay=0.0, clip=1.0, log_every=50)
    default_config = Stage2Config((SourceConfig("s-*.tar"),), optim, "first", views=1, smallest_crop=0.6)
    return replace(default_config, **changes)


def make_eight_pairs(kind: str, chosen: Stage2Config) -> Parts:
    """Build a captioner and its tokenizers, encode eight noise pictures, and give each a caption."""
    retriever, text_tokenizer = stage1_net()
    language = language_model(kind)
    language_config = read_language_config(
        language.config, word_tokenizer(kind), Path("x"), reads_prompt=chosen.reads_prompt
    )
    net = put_before_language_model(retriever, language, language_config)
    pictures = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    samples = [CaptionedPicture(colour, b"", texts) for colour, texts in zip(COLOURS, TEXTS, strict=True)]
    prompt_tokenizer = TextTokenizer(text_tokenizer, 16) if chosen.reads_prompt else None
    return (
        net,
        LanguageTokenizer(word_tokenizer(kind), language_config, 4),
        prompt_tokenizer,
        encode_views(net, pictures, chosen),
        samples,
    )


def make_task(
    parts: Parts,
    chosen: Stage2Config,
    source_class: type[EncodedViews] = EncodedViews,
    task_class: type[Stage2Task] = Stage2Task,
) -> Stage2Task:
    """Build a training task on the patches of `make_eight_pairs`."""
    *network, patches, samples = parts
    source = source_class(patches, normalise_samples(samples), chosen.optim, draws_from_torch=True)
    return task_class(*network, source, chosen)


def write_captions(parts: Parts, prompt: str) -> list[str]:
    """Write a caption of each of the eight pictures."""
    net, tokenizer, prompt_tokenizer, patches, _ = parts
    with torch.no_grad():
        patches = net.eval().vision_norm(patches[:, 0].float())
        if prompt_tokenizer is None:
            soft = net.read_photos(patches)
        else:
            prompt_ids, prompt_mask, _ = prompt_tokenizer([prompt] * 8)
            soft = net.read_with_prompts(patches, prompt_ids, prompt_mask)
    ids, mask = (tensor.expand(8, -1) for tensor in tokenizer.encode_prompts([prompt], 8))
    return tokenizer.decode(net.generate(soft, ids, mask, GREEDY))


@pytest.mark.parametrize("kind", ["opt", "t5", "llama"])
def test_eight_captions_are_learned_by_heart(tmp_path: Path, kind: str) -> None:
    chosen = config(reads_prompt=kind == "llama")
    if kind == "t5":  # it learns more slowly than the others
        chosen = replace(chosen, optim=replace(chosen.optim, steps=300))
    parts = make_eight_pairs(kind, chosen)
    net = parts[0]
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    frozen = {name: value for name, value in weights.items() if name.startswith(("vision.", "language."))}
    before = {name: value for name, value in weights.items() if name not in frozen}
    rows = train(make_task(parts, chosen), chosen.optim, tmp_path)
    assert rows[-1]["loss"] < 0.4 * rows[0]["loss"]
    assert write_captions(parts, "a photo of") == [text for (text,) in TEXTS]
    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    unchanged = {name for name, value in before.items() if torch.equal(after[name], value)}
    # A Q-Former that reads the prompt gives its queries alone: nothing reads what the last layer makes of the prompt.
    assert all(name.startswith("qformer.layers.1.text_mlp.") for name in unchanged)
    assert bool(unchanged) == chosen.reads_prompt


def test_shuffled_captions_are_not_learned(tmp_path: Path) -> None:
    chosen = config()
    parts = make_eight_pairs("opt", chosen)

    class Shuffled(EncodedViews):
        def __getitem__(self, step: int) -> Batch:
            self.views = self.views[torch.randperm(8)]
            return super().__getitem__(step)

    rows = train(make_task(parts, chosen, Shuffled), chosen.optim, tmp_path)
    # Five tokens, four of them the same in all captions, one of eight: ln 8 / 5 = 0.42 is what chance leaves.
    assert rows[-1]["loss"] > 0.4
    captions = write_captions(parts, "a photo of")
    assert sum(caption == text for caption, (text,) in zip(captions, TEXTS, strict=True)) <= 4


class InterruptedTask(Stage2Task):
    """Training that is interrupted at step 7."""

    def losses(self, step: int) -> dict[str, Tensor]:
        if step == 7:
            raise KeyboardInterrupt
        return super().losses(step)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stopped_run_goes_on_with_the_same_losses(tmp_path: Path, dtype: str) -> None:
    chosen = config(prompts=("", "a photo of"), prefix_share=0.5)
    chosen = replace(chosen, optim=replace(chosen.optim, steps=14, log_every=1, batch=4, dtype=dtype))
    expected = [
        row["loss"]
        for row in train(make_task(make_eight_pairs("t5", chosen), chosen), chosen.optim, tmp_path / "a")
    ]
    with pytest.raises(KeyboardInterrupt):
        train(
            make_task(make_eight_pairs("t5", chosen), chosen, task_class=InterruptedTask),
            chosen.optim,
            tmp_path / "b",
        )
    actual = [
        row["loss"]
        for row in train(make_task(make_eight_pairs("t5", chosen), chosen), chosen.optim, tmp_path / "b")
    ]
    assert actual == expected[7:] and len(set(expected)) == 14


def test_captions_are_cut_in_two_after_any_word() -> None:
    """In prefix language modelling the beginning goes to the encoder, and the rest is learned."""
    chosen = config(prompts=("a photo of", ""), prefix_share=0.5)
    task = make_task(make_eight_pairs("t5", chosen), chosen)
    torch.manual_seed(0)
    pairs = {task._choose_prompt_and_text("", TEXTS[0][0], TorchDraws()) for _ in range(400)}
    words = TEXTS[0][0].split()
    cuts = [("", TEXTS[0][0])] + [(" ".join(words[:n]), " ".join(words[n:])) for n in range(1, 4)]
    assert pairs == {
        (f"{prompt} {prefix}".strip(), suffix) for prompt in ("a photo of", "") for prefix, suffix in cuts
    }


def test_a_run_reads_shards_and_writes_a_model(tmp_path: Path) -> None:
    runs, language = tmp_path / "runs", tmp_path / "opt"
    write_colour_shard(tmp_path / "s-000.tar")
    retriever, tokenizer = stage1_net()
    save_checkpoint(runs / "first" / "model", retriever, tokenizer)
    language_model("llama").save_pretrained(language, max_shard_size="10KB")
    word_tokenizer("llama").save(str(language / "tokenizer.json"))
    assert len(list(language.glob("*.safetensors"))) > 1
    chosen = config(reads_prompt=True)
    chosen = replace(chosen, optim=replace(chosen.optim, steps=3, batch=4))
    run_stage2(chosen, tmp_path, runs, language, runs / "out")
    model = load_captioner(str(runs / "out" / "model"), device="cpu", dtype="float32")
    assert model.config.language.reads_prompt and model.image_size == 32
    pictures = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    assert len(model.caption(pictures, options=GREEDY)) == 2
    for path in language.glob("*.safetensors"):
        assert (runs / "out" / "model" / "language" / path.name).read_bytes() == path.read_bytes()
    expected = retriever.state_dict()
    for name, value in model.net.vision.state_dict().items():
        # Weights are saved in float16.
        torch.testing.assert_close(value, expected[f"vision.{name}"], atol=1e-3, rtol=1e-3)
    with pytest.raises(CheckpointError, match=r"nowhere is not a language model's folder: config\.json"):
        run_stage2(chosen, tmp_path, runs, tmp_path / "nowhere", runs / "other")
    with pytest.raises(DataError, match=r"There is no model to start from: .* no model 'second'"):
        run_stage2(replace(chosen, start="second"), tmp_path, runs, language, runs / "other")


REFUSED = {
    "no caption": ("opt", {}, ("red", ()), r"1 pictures have no caption \(first: red\)"),
    "empty caption": ("opt", {}, ("red", (" ",)), r"1 pictures have no caption \(first: red\)"),
    "no prompts": ("opt", {"prompts": ()}, None, "has no prompts"),
    "prefix": ("opt", {"prefix_share": 0.5}, None, "is a decoder, which learns whole captions"),
    "empty prompt": ("llama", {"reads_prompt": True, "prompts": ("",)}, None, "one of the recipe's prompts is empty"),
    "few": ("opt", {"optim": OptimConfig(steps=1, batch=9, lr=1e-3)}, None, "8 pictures are fewer than a batch of 9"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_settings_and_captions_that_cannot_be_learned_are_refused(case: str) -> None:
    kind, changes, first_sample, message = REFUSED[case]
    chosen = config(**changes)
    *parts, samples = make_eight_pairs(kind, chosen)
    if first_sample is not None:
        samples[0] = CaptionedPicture(first_sample[0], b"", first_sample[1])
    error: type[QseekError] = TrainingError if first_sample is None and case != "few" else DataError
    with pytest.raises(error, match=message):
        check_writing(chosen)
        check_language(chosen, parts[0].config.language)
        make_task((*parts, samples), chosen)


def test_questions_and_a_trained_encoder_need_pictures_in_every_step() -> None:
    with pytest.raises(TrainingError, match="train_encoder is set and views is 1"):
        check_writing(config(train_encoder=True))
    with pytest.raises(TrainingError, match="views is 2, but the sets hold questions"):
        check_writing(replace(VQA["mini-vqa"](), views=2))


def test_patches_train_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def join_process_group() -> Iterator[tuple[World, torch.device]]:
        yield World(0, 2), torch.device("cpu")

    monkeypatch.setattr("training.stages.stage2.join_process_group", join_process_group)
    with pytest.raises(TrainingError, match="views is 1 and 2 processes share the batch"):
        run_stage2(config(), tmp_path, tmp_path, tmp_path, tmp_path / "out")


def test_the_command_asks_for_a_language_model(tmp_path: Path) -> None:
    arguments = ["train", "stage2", "--recipe", "mini-captioner", "--data", str(tmp_path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code != 0 and isinstance(result.exception, DataError | SystemExit)
    assert "needs --language" in result.output + str(result.exception)
    assert "mini-captioner" in CliRunner().invoke(main, ["train", "stage2"]).output
