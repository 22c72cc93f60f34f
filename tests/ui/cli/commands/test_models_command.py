"""`qseek models` lists the models of this computer and converts folders in both directions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from command_line import parse_json_lines, qseek

pytestmark = pytest.mark.usefixtures("colours")


def test_models_lists_the_present_and_the_published_models(monkeypatch):
    from engine.models import catalogue

    searching = catalogue.ModelInfo(
        name="mini",
        folder=Path("/m/mini"),
        digest="ab" * 16,
        num_parameters=19_400_000,
        num_bytes=38_800_000,
        image_size=160,
        writes=False,
    )
    sharing = replace(searching, name="writer", folder=Path("/m/writer"), writes=True, encoder="mini")
    monkeypatch.setattr(catalogue, "list_models", lambda: [searching, sharing])
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


def convert(*arguments):
    return qseek("models", "convert", *arguments)


def test_a_transformers_folder_is_converted_and_converted_back(tmp_path):
    from random_blip2 import random_retriever, save_retriever_folder
    from safetensors.torch import load_file

    save_retriever_folder(random_retriever(), tmp_path / "theirs")
    assert convert(tmp_path / "theirs", tmp_path / "ours").exit_code == 0
    assert convert(tmp_path / "ours", tmp_path / "back", "--to", "transformers").exit_code == 0
    first, last = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "back"))
    assert first.keys() == last.keys() and all(first[name].equal(last[name]) for name in first)


def test_convert_refuses_a_full_folder_a_damaged_file_and_options_of_other_kinds(tmp_path):
    from random_blip2 import random_retriever, save_retriever_folder

    save_retriever_folder(random_retriever(), tmp_path / "theirs")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    refused = convert(tmp_path / "theirs", tmp_path / "full")
    assert refused.exit_code == 1 and "is not empty. Give a new or empty folder." in refused.stderr
    (tmp_path / "text.pth").write_text("no checkpoint")
    words = tmp_path / "theirs" / "tokenizer.json"
    refused = convert(tmp_path / "text.pth", tmp_path / "new", "--vocabulary", words)
    assert refused.exit_code == 1 and "was refused" in refused.stderr and not (tmp_path / "new").exists()
    assert convert(tmp_path / "theirs", tmp_path / "new", "--pixels", 364).exit_code == 2
