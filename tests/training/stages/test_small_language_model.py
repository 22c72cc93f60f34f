"""A small OPT learns its captions by heart, uses what stands before, and is read back as a stage-2 language model."""

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
    small: dict[str, Any] = dict(
        vocab_size=320, width=32, num_layers=2, num_heads=2, mlp_width=64, max_positions=64, dropout=0.0
    )
    return TrainLanguageConfig(("captions.tsv.gz",), optim, **small | changes)


def write_table(folder: Path, text: str | None = None) -> None:
    rows = "".join(f"{n}\t{t.capitalize()} .\n" for n, group in enumerate(GROUPS) for t in group)
    (folder / "captions.tsv.gz").write_bytes(gzip.compress((rows if text is None else text).encode()))


def test_tokenizer_begins_and_ends_as_published_opts_do() -> None:
    tokenizer = train_bpe((t for g in GROUPS for t in g), 320)
    ids = tokenizer.encode("a red dog runs").ids
    assert ids[0] == tokenizer.token_to_id("</s>") == 2
    assert tokenizer.token_to_id("<pad>") == 1
    assert tokenizer.decode(ids) == "a red dog runs"
    assert len(tokenizer.encode("\n", add_special_tokens=False).ids) == 1
    unseen = "Ünknown ☂ \n words"
    assert tokenizer.decode(tokenizer.encode(unseen).ids) == unseen


def test_documents_hold_every_caption_of_one_photo() -> None:
    tokenizer = train_bpe((t for g in GROUPS for t in g), 320)
    settings = config(prompt_share=0.5)
    task = LanguageTask(make_opt(settings, tokenizer.get_vocab_size()), tokenizer, GROUPS, settings)
    torch.manual_seed(3)
    seen = set()
    for _ in range(20):
        text = tokenizer.decode(task._draw_document(2), skip_special_tokens=False)
        lines = text.removesuffix("\n").split("\n")
        assert all(line.startswith("</s>") for line in lines)
        assert sorted(line.removeprefix("</s>").removeprefix("a photo of ") for line in lines) == sorted(
            GROUPS[2]
        )
        seen.add(text)
    assert len(seen) > 5, "order and prompts are drawn"


def test_losses_are_those_of_the_model_itself() -> None:
    """Padded and joined documents cost what each does alone by transformers' own loss."""
    tokenizer = train_bpe((t for g in GROUPS for t in g), 320)
    settings = config()
    torch.manual_seed(0)
    task = LanguageTask(make_opt(settings, tokenizer.get_vocab_size()), tokenizer, GROUPS, settings)
    documents = [task._draw_document(0), task._draw_document(1)[:7], task._draw_document(2)[:3]]
    losses, rows = task.document_losses(documents)
    for number, document in enumerate(documents):
        ids = torch.tensor([document])
        wanted = task.model(input_ids=ids, labels=ids).loss
        torch.testing.assert_close(losses[rows == number].mean(), wanted, atol=1e-5, rtol=1e-5)


def test_learns_to_say_what_was_said_before() -> None:
    """After one caption of a photo the other's colour is known; alone it is one of eight."""
    tokenizer = train_bpe((t for g in GROUPS for t in g), 320)
    settings = config(prompt_share=0.0, width=64, mlp_width=128)
    torch.manual_seed(0)
    task = LanguageTask(make_opt(settings, tokenizer.get_vocab_size()), tokenizer, GROUPS, settings)
    before = measure_held_out_loss(task)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-3)
    for step in range(400):
        torch.manual_seed(step)
        optimizer.zero_grad()
        task.losses(step)["loss"].backward()
        optimizer.step()
    alone, after = measure_held_out_loss(task)
    assert alone < before[0] - 2
    assert after < 0.5 * alone


def test_a_run_writes_what_stage_2_reads(tmp_path: Path) -> None:
    write_table(tmp_path)
    said: list[str] = []
    run_language(config(), tmp_path, tmp_path / "runs", say=said.append)
    assert said[0].startswith("24 captions of 8 photos")
    folder = tmp_path / "runs" / "language"
    source = read_language(folder)
    about = read_language_config(source.config, source.tokenizer, folder)
    newline = source.tokenizer.encode("\n", add_special_tokens=False).ids[0]
    assert (about.start_id, about.pad_id, about.end_id, about.width) == (2, 1, newline, 32)
    language = make_language(source.config, source.tensors, folder, torch.float32)
    words = LanguageTokenizer(source.tokenizer, about, num_queries=0)
    ids, _ = words.encode_prompts(["a green"], 8)
    written = language.generate(
        ids, max_new_tokens=6, do_sample=False, eos_token_id=about.end_id, pad_token_id=1
    )
    assert words.decode(written[:, ids.shape[1] :])[0] in ("dog runs", "animal")


def test_transformers_reads_the_folder(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_table(tmp_path)
    run_language(config(steps=1), tmp_path, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "language", dtype=torch.float32)
    source = read_language(tmp_path / "language")
    ours = make_language(source.config, source.tensors, tmp_path, torch.float32)
    ids = torch.tensor([source.tokenizer.encode("a red dog").ids])
    torch.testing.assert_close(theirs(ids).logits, ours(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "language")("a red dog")["input_ids"] == ids[0].tolist()


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        run_language(config(), tmp_path, tmp_path)
    write_table(tmp_path, "1\tone\n")
    with pytest.raises(DataError, match="1 photo with captions cannot fill a batch of 8"):
        run_language(config(), tmp_path, tmp_path)
    write_table(tmp_path, "1 one\n")
    with pytest.raises(DataError, match=r"line 1: 1 field instead of two"):
        run_language(config(), tmp_path, tmp_path / "b")


def test_the_command_lists_and_trains(tmp_path: Path) -> None:
    listed = CliRunner().invoke(main, ["train", "language"])
    assert listed.exit_code == 0 and listed.output.startswith("mini-language: ")
    write_table(tmp_path)
    changes = ["steps=2", "batch=8"]
    sets = [x for c in changes for x in ("--set", f"optim.{c}")]
    sets += ["--set", 'captions=["captions.tsv.gz"]', "--set", "width=32", "--set", "vocab_size=320"]
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
            *sets,
        ],
    )
    assert result.exit_code == 0, result.output
    assert Tokenizer.from_file(str(tmp_path / "mini-language" / "language" / "tokenizer.json"))
