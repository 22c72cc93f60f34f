"""The Q-Former starts as BERT: against transformers' BertModel with random weights, in every layout of a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_folders import save_bert_folder
from tiny import tiny_config
from transformers import BertForMaskedLM, BertModel

from engine.blip2.config import Blip2Config, QFormerConfig
from engine.blip2.retriever import Retriever
from engine.errors import DataError
from training.stages.bert_start import Bert, read_bert, start_from_bert

LIKE = QFormerConfig(num_queries=5, cross_attention_every=2, dropout=0.0)


def started(folder: Path) -> tuple[Retriever, Bert]:
    bert = read_bert(folder, LIKE)
    tiny = tiny_config()
    net = Retriever(Blip2Config(tiny.vision, bert.qformer, embed_dim=16, max_tokens=12)).eval()
    start_from_bert(net, bert)
    return net, bert


@pytest.mark.parametrize(
    ("kind", "pickled"), [(BertForMaskedLM, False), (BertModel, False), (BertModel, True)]
)
def test_reads_texts_as_transformers_bert(tmp_path: Path, kind: Any, pickled: bool) -> None:
    theirs = save_bert_folder(tmp_path, kind, pickled=pickled)
    net, bert = started(tmp_path)
    ids = torch.tensor([[2, 5, 9, 11, 3], [2, 30, 3, 0, 0]])
    mask = ids != 0
    with torch.no_grad():
        want = getattr(theirs, "bert", theirs)(ids, attention_mask=mask.long()).last_hidden_state
        got = net.qformer.read_texts(ids, mask)
    torch.testing.assert_close(got[mask], want[mask], atol=2e-5, rtol=0)
    assert want[mask].std() > 0.3
    assert bert.qformer.vocab_size == theirs.config.vocab_size + 1
    assert bert.tokenizer.token_to_id("[DEC]") == theirs.config.vocab_size


def test_the_queries_start_as_the_text(tmp_path: Path) -> None:
    save_bert_folder(tmp_path)
    net, _ = started(tmp_path)
    for layer in net.qformer.layers:
        for name, value in layer.text_mlp.state_dict().items():
            assert torch.equal(layer.query_mlp.state_dict()[name], value)
    crossing = [layer.cross_attention for layer in net.qformer.layers]
    assert [one is not None for one in crossing] == [True, False, True]
    assert float(crossing[0].query.weight.detach().std()) == pytest.approx(
        0.02, rel=0.2
    )  # random, as BERT initialises


def test_masked_words_head_becomes_the_caption_head(tmp_path: Path) -> None:
    theirs = save_bert_folder(tmp_path)
    net, _ = started(tmp_path)
    hidden = torch.randn(2, 3, 24)
    with torch.no_grad():
        want, got = theirs.cls(hidden), net.caption_head(hidden, net.qformer.words)
    torch.testing.assert_close(got[..., :-1], want, atol=2e-5, rtol=0)


def test_names_as_the_oldest_checkpoints_have_them(tmp_path: Path) -> None:
    """bert-base-uncased's own file says gamma and beta, and carries a next-sentence head."""
    theirs = save_bert_folder(tmp_path)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in theirs.state_dict().items()
    } | {"cls.seq_relationship.weight": torch.zeros(2, 24), "bert.pooler.dense.weight": torch.zeros(24, 24)}
    torch.save(old, tmp_path / "pytorch_model.bin")
    want = started(tmp_path)[0].qformer.state_dict()
    (tmp_path / "model.safetensors").unlink()
    got = started(tmp_path)[0].qformer.state_dict()
    for name in ("norm.weight", "layers.1.attention.norm.bias", "layers.2.query_mlp.norm.weight"):
        assert torch.equal(got[name], want[name])


def test_letter_case_is_the_folders(tmp_path: Path) -> None:
    save_bert_folder(tmp_path)
    read = read_bert(tmp_path, LIKE).tokenizer
    assert read.encode("A RED dog", add_special_tokens=False).tokens == ["a", "red", "dog"]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert "[UNK]" in read_bert(tmp_path, LIKE).tokenizer.encode("RED", add_special_tokens=False).tokens


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "roberta"}, "is not the config of a BERT: model_type is 'roberta'"),
        ({"hidden_size": None}, "missing: hidden_size"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"intermediate_size": 41}, r"layers\.0\.text_mlp.* is \(40, 24\), should be \(41, 24\)"),
        ({"num_hidden_layers": 4}, r"missing qformer\.layers\.3\."),
        ({"num_hidden_layers": 2}, r"unknown qformer\.layers\.2\."),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    save_bert_folder(tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match=words):
        started(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt"])
def test_a_folder_that_lacks_a_file(tmp_path: Path, name: str) -> None:
    save_bert_folder(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        started(tmp_path)
