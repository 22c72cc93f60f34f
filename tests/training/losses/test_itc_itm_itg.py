"""The losses of stage 1 equal the original's, with their gradients (goldens e, f), and those computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from caption_logits import caption_logits
from reference import draw_normal, load_golden, small_config, small_state

from engine.blip2.retriever import Retriever
from engine.checkpoints.key_names import LAVIS, to_our_name
from engine.errors import TrainingError
from training.losses import itc_itm_itg
from training.losses.stage1_losses import stage1_losses


@pytest.mark.parametrize(
    "case", ["e_stage1_std", "e_stage1_strong", "f_coco_retrieval_std", "f_coco_retrieval_strong"]
)
def test_losses_and_gradients_equal_the_original(case: str) -> None:
    info, expected = load_golden(case)
    model = Retriever(small_config()).eval()
    model.load_state_dict(small_state(info))
    model.vision.requires_grad_(False)
    ids, mask = expected["input_ids"], expected["attention_mask"].bool()
    actual = stage1_losses(
        model,
        model.encode_patches(draw_normal(301, (4, 3, 56, 56))),
        ids,
        mask,
        dec_id=30522,
        image_ids=expected.get("image_id"),
        negatives=(expected["neg_image_for_text"], expected["neg_text_for_image"]),
    )
    for name, value in (
        ("loss", actual.total_loss),
        ("loss_itc", actual.itc),
        ("loss_itm", actual.itm),
        ("loss_lm", actual.itg),
    ):
        torch.testing.assert_close(value.detach(), expected[name], atol=2e-5, rtol=0)
    torch.testing.assert_close(actual.match_logits.detach(), expected["itm_logits"], atol=2e-5, rtol=0)
    actual.total_loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    checked = 0
    for key in (k for k in expected if k.startswith("gradfull:")):
        ours = grads[to_our_name(key.removeprefix("gradfull:"), LAVIS)]
        torch.testing.assert_close(ours.reshape(expected[key].shape), expected[key], atol=2e-5, rtol=1e-5)
        checked += 1
    for key, norm in info["grad_norms_full"].items():
        name = to_our_name(key, LAVIS)
        if name is not None:
            assert float(grads[name].norm()) == pytest.approx(norm, abs=2e-5, rel=1e-5), key
            checked += 1
    assert checked > 100


@pytest.mark.parametrize("case", ["e_stage1_strong", "f_coco_retrieval_strong"])
def test_negative_weights_equal_the_original(case: str) -> None:
    info, expected = load_golden(case)
    model = Retriever(small_config()).eval().requires_grad_(False)
    model.load_state_dict(small_state(info))
    keys = model.compute_photo_keys(model.encode_patches(draw_normal(301, (4, 3, 56, 56))))
    photos = model.encode_photos(keys)
    texts = model.encode_texts(expected["input_ids"], expected["attention_mask"].bool())
    ids = expected.get("image_id", torch.arange(4))
    same = ids[:, None] == ids[None]
    sims = itc_itm_itg.itc_similarities(photos, texts, photos, texts, model.temperature)
    for scores, name in ((sims.text_to_photo, "weights_t2i"), (sims.photo_to_text, "weights_i2t")):
        torch.testing.assert_close(
            itc_itm_itg.negative_weights(scores, same), expected[name], atol=2e-5, rtol=0
        )


def normalise_rows(*rows: list[float]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)


def test_itc_by_hand_and_worse_when_shuffled() -> None:
    photos = torch.stack([normalise_rows([1, 0], [0, 1])[[0]], normalise_rows([0, 1])])  # (2, 1, 2)
    texts = normalise_rows([1, 0], [0, 1])
    temperature = torch.tensor(1.0)
    loss = itc_itm_itg.itc_loss(
        itc_itm_itg.itc_similarities(photos, texts, photos, texts, temperature), label_smoothing=0.0
    )
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)
    wrong = texts.flip(0)
    shuffled = itc_itm_itg.itc_loss(
        itc_itm_itg.itc_similarities(photos, wrong, photos, wrong, temperature), label_smoothing=0.0
    )
    assert float(shuffled) == pytest.approx(math.log(1 + math.e), abs=1e-6)


def test_soft_targets_spread_over_the_same_photo() -> None:
    scores = itc_itm_itg.Similarities(torch.zeros(2, 2), torch.zeros(2, 2))
    same = torch.ones(2, 2, dtype=torch.bool)
    assert float(itc_itm_itg.itc_loss(scores, same_photo_BN=same)) == pytest.approx(math.log(2))
    sharp = itc_itm_itg.Similarities(
        torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    )
    # Both texts describe both photos, so being sure of one is punished.
    assert float(itc_itm_itg.itc_loss(sharp, same_photo_BN=same)) > 4.0


def test_negatives_are_never_the_pair_and_follow_the_scores() -> None:
    torch.manual_seed(0)
    scores = torch.tensor([[9.0, 2.0, 0.0]] * 2000)
    positive = torch.zeros(2000, 3, dtype=torch.bool)
    positive[:, 0] = True
    drawn = itc_itm_itg.draw_negatives(scores, positive)
    assert not (drawn == 0).any()
    assert float((drawn == 1).float().mean()) == pytest.approx(math.exp(2) / (math.exp(2) + 1), abs=0.03)


def test_captioning_ignores_padding_and_shifts() -> None:
    """The loss is the mean over the tokens that each text predicts alone, with smoothing and without."""
    torch.manual_seed(0)
    model = Retriever(small_config()).eval().requires_grad_(False)
    patches = torch.randn(2, 5, 88)
    ids = torch.tensor([[101, 7, 8, 102, 0, 0], [101, 9, 102, 0, 0, 0]])
    mask = ids != 0
    for smoothing in (0.0, 0.1):
        actual = stage1_losses(model, patches, ids, mask, dec_id=30522, label_smoothing=smoothing).itg
        expected = []
        for row, length in enumerate(mask.sum(1).tolist()):
            _, past = model.qformer.read_photos(model.compute_photo_keys(patches[row : row + 1]))
            read_ids = torch.cat([torch.tensor([30522]), ids[row, 1:length]])[None]
            log_probs = caption_logits(
                model, past, read_ids, torch.ones_like(read_ids, dtype=torch.bool)
            ).log_softmax(-1)[0]
            for position in range(length - 1):
                next_log_prob = log_probs[position, ids[row, position + 1]]
                expected.append(-(1 - smoothing) * next_log_prob - smoothing * log_probs[position].mean())
        torch.testing.assert_close(actual, torch.stack(expected).mean(), atol=1e-5, rtol=1e-5)


def test_a_batch_of_one_is_refused() -> None:
    model = Retriever(small_config())
    ids = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(TrainingError, match="no negatives"):
        stage1_losses(model, torch.zeros(1, 5, 88), ids, ids.bool(), dec_id=2)


def test_match_distillation_by_hand() -> None:
    """Two pairs are each other's negatives: the loss goes from ITC's softmax of three scores to ITM's of margins."""
    similarities = itc_itm_itg.Similarities(
        torch.tensor([[3.0, 1.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [1.0, 2.0]])
    )
    other = torch.tensor([1, 0])
    # The pairs, then the texts' wrong photos, then the photos' wrong texts.
    margins = torch.tensor([2.0, 0.0, -1.0, 1.0, 0.5, -0.5])
    logits = torch.stack([torch.zeros(6), margins], dim=1).requires_grad_()
    actual = itc_itm_itg.match_distillation_loss(logits, similarities, other, other)
    rows = (((3.0, 0.0, 1.0), (2.0, -1.0, 0.5)), ((2.0, 1.0, 0.0), (0.0, 1.0, -0.5)))
    expected = 0.0
    for scores, row_margins in rows:
        target = [math.exp(s) / sum(map(math.exp, scores)) for s in scores]
        expected -= sum(
            share * math.log(math.exp(margin) / sum(map(math.exp, row_margins)))
            for share, margin in zip(target, row_margins, strict=True)
        )
    assert float(actual.detach()) == pytest.approx(expected / 2, abs=1e-6)


def test_match_distillation_teaches_itm_alone() -> None:
    to_text, to_photo = torch.randn(2, 3, 3).requires_grad_()
    logits = torch.randn(9, 2).requires_grad_()
    numbers = torch.tensor([1, 2, 0])
    loss = itc_itm_itg.match_distillation_loss(
        logits, itc_itm_itg.Similarities(to_text, to_photo), numbers, numbers
    )
    assert torch.autograd.grad(loss, [logits, to_text], allow_unused=True)[1] is None


def test_residual_match_adds_itcs_scores_to_the_logits_of_a_match() -> None:
    """The order is that of the logits: pairs, texts with wrong photos, photos with wrong texts; ITC learns nothing."""
    to_text, to_photo = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    similarities = itc_itm_itg.Similarities(to_text, to_photo)
    logits = torch.randn(9, 2).requires_grad_()
    photos, texts = torch.tensor([1, 2, 0]), torch.tensor([4, 3, 1])
    summed = itc_itm_itg.add_itc_scores(logits, similarities, photos, texts, offset=2)
    scores = [to_text[row, row + 2] for row in range(3)]
    scores += [to_photo[row, photos[row]] for row in range(3)]
    scores += [to_text[row, texts[row]] for row in range(3)]
    torch.testing.assert_close(summed[:, 1] - logits[:, 1], torch.stack(scores))
    assert torch.equal(summed[:, 0], logits[:, 0])
    loss = itc_itm_itg.itm_loss(summed, 3)
    assert torch.autograd.grad(loss, [logits, to_text], allow_unused=True)[1] is None
