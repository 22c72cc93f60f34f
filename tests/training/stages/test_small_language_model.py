"""Test the small OPT: it learns captions by heart, uses the text before them, and stage 2 reads it."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer

from engine.blip2.language_tokens import LanguageTokenizer
from engine.checkpoints.language_folder import make_language, read_language, read_language_config
from engine.errors import DataError
from training.loop.optimizer import OptimConfig
from training.stages.small_language_model import (
    LanguageTask,
    TrainLanguageConfig,
    make_opt,
    measure_held_out_loss,
    run_language,
    train_bpe,
)
from ui.cli.main import main

COLOURS = ("red", "green", "blue", "white", "black", "brown", "pink", "grey")
GROUPS = [[f"a {colour} dog runs", f"the dog is {colour}", f"a {colour} animal"] for colour in COLOURS]


def config(steps: int = 150, **changes: Any) -> TrainLanguageConfig:
    optim = OptimConfig(steps=steps, batch=8, lr=5e-3, warmup=10, weight_decay=0.0, clip=1.0)
    sizes: dict[str, Any] = dict(
        vocab_size=320, width=32, num_layers=2, num_heads=2, mlp_width=64, max_positions=64, dropout=0.0
    )
    return TrainLanguageConfig(("captions.tsv.gz",), optim, **sizes | changes)


def write_table(folder: Path, text: str | None = None) -> None:
    rows = "".join(f"{n}\t{t.capitalize()} .\n" for n, group in enumerate(GROUPS) for t in group)
    (folder / "captions.tsv.gz").write_bytes(gzip.compress((rows if text is None else text).encode()))


def test_texts_begin_and_end_as_in_published_opts() -> None:
    tokenizer = train_bpe((t for g in GROUPS for t in g), 320)
    ids = tokenizer.encode("a red dog runs").ids
    assert ids[0] == tokenizer.token_to_id("</s>") == 2
    assert tokenizer.token_to_id("<pad>") == 1
    assert tokenizer.decode(ids) == "a red dog runs"
    assert len(tokenizer.encode("\n", add_special_tokens=False).ids) == 1
    unseen = "Ünknown ☂ \n words"
    assert tokenizer.decode(tokenizer.encode(unseen).ids) == unseen


def test_a_document_holds_every_caption_of_one_photo() -> None:
    tokenizer = train_bpe((t for g in GROUPS for t in g), 320)
    settings = config(prompt_share=0.5)
    task = LanguageTask(make_opt(settings, tokenizer.get_vocab_size()), tokenizer, GROUPS, settings)
    torch.manual_seed(3)
    texts = set()
    for _ in range(20):
        text = tokenizer.decode(task._draw_document(2), skip_special_tokens=False)
        lines = text.removesuffix("\n").split("\n")
        assert all(line.startswith("</s>") for line in lines)
        assert sorted(line.removeprefix("</s>").removeprefix("a photo of ") for line in lines) == sorted(
            GROUPS[2]
        )
        texts.add(text)
    assert len(texts) > 5, "order and prompts are drawn"


def test_the_losses_are_those_of_transformers() -> None:
    """Documents that are padded and joined have the losses that transformers computes for each alone."""
    tokenizer = train_bpe((t for g in GROUPS for t in g), 320)
    settings = config()
    torch.manual_seed(0)
    task = LanguageTask(make_opt(settings, tokenizer.get_vocab_size()), tokenizer, GROUPS, settings)
    documents = [task._draw_document(0), task._draw_document(1)[:7], task._draw_document(2)[:3]]
    losses, rows = task.document_losses(documents)
    for number, document in enumerate(documents):
        ids = torch.tensor([document])
        expected = task.model(input_ids=ids, labels=ids).loss
        torch.testing.assert_close(losses[rows == number].mean(), expected, atol=1e-5, rtol=1e-5)


def test_the_model_learns_to_use_the_caption_before() -> None:
    """After a caption of the photo the colour is known; in a caption alone it is one of eight."""
    tokenizer = train_bpe((t for g in GROUPS for t in g), 320)
    settings = config(prompt_share=0.0, width=64, mlp_width=128)
    torch.manual_seed(0)
    task = LanguageTask(make_opt(settings, tokenizer.get_vocab_size()), tokenizer, GROUPS, settings)
    untrained_alone, _ = measure_held_out_loss(task)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-3)
    for step in range(400):
        torch.manual_seed(step)
        optimizer.zero_grad()
        task.losses(step)["loss"].backward()
        optimizer.step()
    alone, after = measure_held_out_loss(task)
    assert alone < untrained_alone - 2
    assert after < 0.5 * alone


def test_stage_2_reads_what_a_run_writes(tmp_path: Path) -> None:
    write_table(tmp_path)
    lines: list[str] = []
    run_language(config(), tmp_path, tmp_path / "runs", say=lines.append)
    assert lines[0].startswith("24 captions of 8 photos")
    folder = tmp_path / "runs" / "language"
    source = read_language(folder)
    language_config = read_language_config(source.config, source.tokenizer, folder)
    newline = source.tokenizer.encode("\n", add_special_tokens=False).ids[0]
    assert (
        language_config.start_id,
        language_config.pad_id,
        language_config.end_id,
        language_config.width,
    ) == (2, 1, newline, 32)
    language = make_language(source.config, source.tensors, folder, torch.float32)
    tokenizer = LanguageTokenizer(source.tokenizer, language_config, num_queries=0)
    ids, _ = tokenizer.encode_prompts(["a green"], 8)
    written = language.generate(
        ids, max_new_tokens=6, do_sample=False, eos_token_id=language_config.end_id, pad_token_id=1
    )
    assert tokenizer.decode(written[:, ids.shape[1] :])[0] in ("dog runs", "animal")


def test_transformers_reads_the_folder(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_table(tmp_path)
    run_language(config(steps=1), tmp_path, tmp_path)
    loaded_by_transformers = AutoModelForCausalLM.from_pretrained(tmp_path / "language", dtype=torch.float32)
    source = read_language(tmp_path / "language")
    loaded_by_us = make_language(source.config, source.tensors, tmp_path, torch.float32)
    ids = torch.tensor([source.tokenizer.encode("a red dog").ids])
    torch.testing.assert_close(loaded_by_transformers(ids).logits, loaded_by_us(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "language")("a red dog")["input_ids"] == ids[0].tolist()


def test_missing_tables_few_photos_and_bad_lines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        run_language(config(), tmp_path, tmp_path)
    write_table(tmp_path, "1\tone\n")
    with pytest.raises(DataError, match="1 photo with captions cannot fill a batch of 8"):
        run_language(config(), tmp_path, tmp_path)
    write_table(tmp_path, "1 one\n")
    with pytest.raises(DataError, match=r"line 1: 1 field instead of two"):
        run_language(config(), tmp_path, tmp_path / "b")


def test_the_command_lists_the_recipe_and_trains(tmp_path: Path) -> None:
    listed = CliRunner().invoke(main, ["train", "language"])
    assert listed.exit_code == 0 and listed.output.startswith("mini-language: ")
    write_table(tmp_path)
    changes = ["--set", "optim.steps=2", "--set", "optim.batch=8"]
    changes += ["--set", 'captions=["captions.tsv.gz"]', "--set", "width=32", "--set", "vocab_size=320"]
    result = CliRunner().invoke(
        main,
        [
            "train",
            "language",
            "--recipe",
            "mini-language",
            "--data",
            str(tmp_path),
            "--runs",
            str(tmp_path),
            *changes,
        ],
    )
    assert result.exit_code == 0, result.output
    assert Tokenizer.from_file(str(tmp_path / "mini-language" / "language" / "tokenizer.json"))
