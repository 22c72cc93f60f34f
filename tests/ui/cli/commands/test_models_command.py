"""`qseek models` lists what is there and converts folders both ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from command_line import parse_json_lines, qseek

pytestmark = pytest.mark.usefixtures("colours")


def test_models_lists_what_is_there(monkeypatch):
    from engine.models import catalogue

    one = catalogue.ModelInfo(
        name="mini",
        folder=Path("/m/mini"),
        digest="ab" * 16,
        num_parameters=19_400_000,
        num_bytes=38_800_000,
        image_size=160,
        writes=False,
    )
    sharing = replace(one, name="writer", folder=Path("/m/writer"), writes=True, encoder="mini")
    monkeypatch.setattr(catalogue, "list_models", lambda: [one, sharing])
    table = [row.split() for row in qseek("models").stdout.splitlines()]
    assert table[1] == ["mini", "search", "19.4", "M", "38.8", "MB", "160", "px", "abababababab", "/m/mini"]
    assert " ".join(table[2]).endswith("/m/writer (with the image encoder of mini)")
    assert [row[:2] for row in table[3:6]] == [
        ["blip2-itm-vit-g", "search"],
        ["blip2-itm-vit-g-coco", "search"],
        ["blip2-opt-2.7b", "captions"],
    ]
    assert all("not here" in " ".join(row) for row in table[3:])
    assert parse_json_lines(qseek("models", "--json"))[0]["digest"] == "ab" * 16


def test_convert_both_ways(tmp_path):
    """A transformers folder becomes ours and goes back; what cannot be is said, and nothing is written over."""
    from random_blip2 import random_retriever, save_retriever_folder
    from safetensors.torch import load_file

    save_retriever_folder(random_retriever(), tmp_path / "theirs")
    assert qseek("models", "convert", tmp_path / "theirs", tmp_path / "ours").exit_code == 0
    assert (
        qseek("models", "convert", tmp_path / "ours", tmp_path / "back", "--to", "transformers").exit_code
        == 0
    )
    first, last = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "back"))
    assert first.keys() == last.keys() and all(first[name].equal(last[name]) for name in first)
    full = qseek("models", "convert", tmp_path / "theirs", tmp_path / "ours")
    assert full.exit_code == 1 and "is not empty" in full.stderr
    (tmp_path / "text.pth").write_text("no checkpoint")
    words = tmp_path / "theirs" / "tokenizer.json"
    bad = qseek("models", "convert", tmp_path / "text.pth", tmp_path / "new", "--vocabulary", words)
    assert bad.exit_code == 1 and "was refused" in bad.stderr and not (tmp_path / "new").exists()
    assert qseek("models", "convert", tmp_path / "theirs", tmp_path / "new", "--pixels", 364).exit_code == 2
