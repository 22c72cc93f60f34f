"""The masks equal those of figure 2, and the model's separate passes equal one joint pass under these masks."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_config, tiny_net, tiny_tokenizer
from torch import Tensor

from engine.blip2 import masks
from engine.blip2.retriever import Retriever
from engine.blip2.wordpiece import TextTokenizer

# Two queries; a text of three tokens, then one of two and a padding token.
TEXTS = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()


def drawn(*rows: str) -> Tensor:
    return torch.tensor([[mark == "x" for mark in row.replace(" ", "")] for row in rows])


def unimodal_mask(text_mask_BT: Tensor, num_queries: int) -> Tensor:
    """Return the ITC mask (B, 1, Q+T, Q+T) of one joint sequence: queries and text do not see each other.

    The model runs the two sides as separate passes instead: the same result with less work.
    """
    batch, tokens = text_mask_BT.shape
    total = num_queries + tokens
    mask = text_mask_BT.new_zeros(batch, total, total)
    mask[:, :num_queries, :num_queries] = True
    mask[:, num_queries:, num_queries:] = text_mask_BT[:, None, :]
    return mask[:, None]


def multimodal_causal_mask(text_mask_BT: Tensor, num_queries: int) -> Tensor:
    """Return the ITG mask (B, 1, Q+T, Q+T) of one joint sequence: queries see queries, text sees them and its past."""
    batch, tokens = text_mask_BT.shape
    total = num_queries + tokens
    mask = text_mask_BT.new_zeros(batch, 1, total, total)
    mask[:, :, :num_queries, :num_queries] = True
    mask[:, :, num_queries:] = masks.causal_text_mask(text_mask_BT, num_queries)
    return mask


def test_padding_mask() -> None:
    actual = masks.padding_mask(TEXTS)
    assert actual.shape == (2, 1, 1, 3)
    assert torch.equal(actual[:, 0, 0], drawn("xxx", "xx."))


def test_bidirectional_mask() -> None:
    actual = masks.bidirectional_mask(TEXTS, 2)
    assert actual.shape == (2, 1, 1, 5)
    assert torch.equal(actual[:, 0, 0], drawn("xx xxx", "xx xx."))


def test_causal_text_mask() -> None:
    actual = masks.causal_text_mask(TEXTS, 2)
    assert actual.shape == (2, 1, 3, 5)
    assert torch.equal(actual[0, 0], drawn("xx x..", "xx xx.", "xx xxx"))
    assert torch.equal(actual[1, 0], drawn("xx x..", "xx xx.", "xx xx."))


def test_unimodal_mask() -> None:
    actual = unimodal_mask(TEXTS, 2)
    assert actual.shape == (2, 1, 5, 5)
    assert torch.equal(actual[0, 0], drawn("xx ...", "xx ...", ".. xxx", ".. xxx", ".. xxx"))
    assert torch.equal(actual[1, 0], drawn("xx ...", "xx ...", ".. xx.", ".. xx.", ".. xx."))


def test_multimodal_causal_mask() -> None:
    actual = multimodal_causal_mask(TEXTS, 2)
    assert actual.shape == (2, 1, 5, 5)
    assert torch.equal(actual[0, 0], drawn("xx ...", "xx ...", "xx x..", "xx xx.", "xx xxx"))
    assert torch.equal(actual[1, 0], drawn("xx ...", "xx ...", "xx x..", "xx xx.", "xx xx."))


# One joint pass of queries and text, with the model's own layers, beside its separate passes.


@pytest.fixture(scope="module", params=[0, 1, 2])
def net(request: pytest.FixtureRequest) -> Retriever:
    """Return a network of three layers; the queries enter in the first, the second or the third one."""
    return tiny_net(tiny_config(first_query_layer=request.param)).requires_grad_(False)


@pytest.fixture(scope="module")
def patches() -> Tensor:
    return torch.randn(3, 17, 32, generator=torch.Generator().manual_seed(3))


def tokens() -> tuple[Tensor, Tensor]:
    ids, mask, _ = TextTokenizer(tiny_tokenizer(), 12)(["a red dog in the snow", "cat", "the blue house"])
    assert mask.sum(1).tolist() == [8, 3, 5]
    return ids, mask


def joint_pass(net: Retriever, patches: Tensor, ids: Tensor, mask_B1RR: Tensor) -> tuple[Tensor, Tensor]:
    """Read queries and text in one sequence under one mask; return the hidden states of the queries and of the text.

    The layers before the queries enter read the text alone, under the text's part of the mask.
    """
    former = net.qformer
    count = former.config.num_queries
    text = former.words(ids) + former.positions.weight[: ids.shape[1]]
    hidden = former.norm(torch.cat([former.queries.expand(len(ids), -1, -1), text], dim=1))
    mask_B1RR = mask_B1RR.expand(-1, -1, hidden.shape[1], -1)
    for layer in former.text_layers:
        read, text = hidden[:, :count], hidden[:, count:]
        mask_B1TT = mask_B1RR[:, :, count:, count:]
        text = layer.attention(text, layer.attention.compute_keys_values(text), mask_B1TT)
        hidden = torch.cat([read, layer.text_mlp(text)], dim=1)
    for layer in former.query_layers:
        hidden = layer.attention(hidden, layer.attention.compute_keys_values(hidden), mask_B1RR)
        read, text = hidden[:, :count], hidden[:, count:]
        if layer.cross_attention is not None:
            read = layer.cross_attention(read, layer.cross_attention.compute_keys_values(patches), None)
        hidden = torch.cat([layer.query_mlp(read), layer.text_mlp(text)], dim=1)
    return hidden[:, :count], hidden[:, count:]


def near(actual: Tensor, want: Tensor) -> None:
    assert actual.shape == want.shape
    torch.testing.assert_close(actual, want, atol=1e-5, rtol=0)


def test_itc_is_the_unimodal_pass(net: Retriever, patches: Tensor) -> None:
    ids, mask = tokens()
    queries, text = joint_pass(net, patches, ids, unimodal_mask(mask, 8))
    near(net.qformer.read_photos(net.compute_photo_keys(patches))[0], queries)
    near(net.qformer.read_texts(ids, mask)[mask], text[mask])
    near(net.qformer.read_texts(ids, mask, first_only=True), text[:, :1])


def test_itg_is_the_multimodal_causal_pass(net: Retriever, patches: Tensor) -> None:
    ids, mask = tokens()
    queries, text = joint_pass(net, patches, ids, multimodal_causal_mask(mask, 8))
    seen, past = net.qformer.read_photos(net.compute_photo_keys(patches))
    near(seen, queries)
    near(net.qformer.write_texts(past, ids, mask)[mask], text[mask])


def test_itm_is_the_bidirectional_pass(net: Retriever, patches: Tensor) -> None:
    ids, mask = tokens()
    queries, text = joint_pass(net, patches, ids, masks.bidirectional_mask(mask, 8))
    hidden = net.qformer.read_pairs(net.compute_photo_keys(patches), ids, mask)
    near(hidden[:, :8], queries)
    near(hidden[:, 8:][mask], text[mask])
    near(net.qformer.read_pairs(net.compute_photo_keys(patches), ids, mask, queries_only=True), queries)


def test_one_photo_or_one_text_serves_all_of_the_others(net: Retriever, patches: Tensor) -> None:
    """The start of texts and the keys of a photo may be computed once for many pairs without changing their logits."""
    ids, mask = tokens()
    keys, start = net.compute_photo_keys(patches), net.qformer.start_texts(ids, mask)
    for photo in range(len(patches)):
        keys_of_photo = [(k[photo : photo + 1], v[photo : photo + 1]) for k, v in keys]
        many = [(k.expand(len(ids), -1, -1, -1), v.expand(len(ids), -1, -1, -1)) for k, v in keys_of_photo]
        near(net.qformer.read_started_pairs(keys_of_photo, start), net.qformer.read_pairs(many, ids, mask))
        near(net.match_started_texts(keys_of_photo, start), net.match(many, ids, mask))
    for text in range(len(ids)):
        alone = ids[text : text + 1, : mask[text].sum()]  # without padding
        begun = start[torch.tensor([text])]
        assert begun.text.shape[1] == alone.shape[1]
        many_ids = alone.expand(len(patches), -1)
        want = net.qformer.read_pairs(keys, many_ids, torch.ones_like(many_ids, dtype=torch.bool))
        near(net.qformer.read_started_pairs(keys, begun), want)


def test_the_passes_differ(net: Retriever, patches: Tensor) -> None:
    """Each mask changes the result, without which the comparisons of this file would prove nothing."""
    ids, mask = tokens()
    mask_functions = [unimodal_mask, multimodal_causal_mask, masks.bidirectional_mask]
    texts = [joint_pass(net, patches, ids, mask_of(mask, 8))[1][mask] for mask_of in mask_functions]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (texts[first] - texts[second]).abs().max() > 0.1
