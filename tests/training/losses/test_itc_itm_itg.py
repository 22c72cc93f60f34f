"""The stage-1 losses: against the original's numbers and gradients (goldens e, f), and against arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from caption_logits import caption_logits
from reference import load_golden, normal, small_config, small_state

from engine.blip2.retriever import Retriever
from engine.checkpoints.key_names import LAVIS, to_our_name
from engine.errors import TrainingError
from training.losses import itc_itm_itg
from training.losses.stage1_losses import stage1_losses


@pytest.mark.parametrize(
    "case", ["e_stage1_std", "e_stage1_strong", "f_coco_retrieval_std", "f_coco_retrieval_strong"]
)
def test_equal_to_the_original(case: str) -> None:
    info, want = load_golden(case)
    model = Retriever(small_config()).eval()
    model.load_state_dict(small_state(info))
    model.vision.requires_grad_(False)
    ids, mask = want["input_ids"], want["attention_mask"].bool()
    got = stage1_losses(
        model,
        model.encode_patches(normal(301, (4, 3, 56, 56))),
        ids,
        mask,
        dec_id=30522,
        image_ids=want.get("image_id"),
        negatives=(want["neg_image_for_text"], want["neg_text_for_image"]),
    )
    for name, value in (
        ("loss", got.total_loss),
        ("loss_itc", got.itc),
        ("loss_itm", got.itm),
        ("loss_lm", got.itg),
    ):
        torch.testing.assert_close(value.detach(), want[name], atol=2e-5, rtol=0)
    torch.testing.assert_close(got.match_logits.detach(), want["itm_logits"], atol=2e-5, rtol=0)
    got.total_loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    checked = 0
    for key in (k for k in want if k.startswith("gradfull:")):
        ours = grads[to_our_name(key.removeprefix("gradfull:"), LAVIS)]
        torch.testing.assert_close(ours.reshape(want[key].shape), want[key], atol=2e-5, rtol=1e-5)
        checked += 1
    for key, norm in info["grad_norms_full"].items():
        name = to_our_name(key, LAVIS)
        if name is not None:
            assert float(grads[name].norm()) == pytest.approx(norm, abs=2e-5, rel=1e-5), key
            checked += 1
    assert checked > 100


@pytest.mark.parametrize("case", ["e_stage1_strong", "f_coco_retrieval_strong"])
def test_negative_weights_equal_the_original(case: str) -> None:
    info, want = load_golden(case)
    model = Retriever(small_config()).eval().requires_grad_(False)
    model.load_state_dict(small_state(info))
    keys = model.compute_photo_keys(model.encode_patches(normal(301, (4, 3, 56, 56))))
    photos = model.encode_photos(keys)
    texts = model.encode_texts(want["input_ids"], want["attention_mask"].bool())
    ids = want.get("image_id", torch.arange(4))
    same = ids[:, None] == ids[None]
    sims = itc_itm_itg.itc_similarities(photos, texts, photos, texts, model.temperature)
    for scores, name in ((sims.text_to_photo, "weights_t2i"), (sims.photo_to_text, "weights_i2t")):
        torch.testing.assert_close(itc_itm_itg.negative_weights(scores, same), want[name], atol=2e-5, rtol=0)


def unit(*rows: list[float]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)


def test_itc_by_hand_and_worse_when_shuffled() -> None:
    photos = torch.stack([unit([1, 0], [0, 1])[[0]], unit([0, 1])])  # (2, 1, 2)
    texts = unit([1, 0], [0, 1])
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
    """The sum over each text of what its own tokens predict, in texts of unlike length, with and without smoothing."""
    torch.manual_seed(0)
    model = Retriever(small_config()).eval().requires_grad_(False)
    patches = torch.randn(2, 5, 88)
    ids = torch.tensor([[101, 7, 8, 102, 0, 0], [101, 9, 102, 0, 0, 0]])
    mask = ids != 0
    for smoothing in (0.0, 0.1):
        got = stage1_losses(model, patches, ids, mask, dec_id=30522, label_smoothing=smoothing).itg
        want = []
        for row, length in enumerate(mask.sum(1).tolist()):
            _, past = model.qformer.read_photos(model.compute_photo_keys(patches[row : row + 1]))
            read = torch.cat([torch.tensor([30522]), ids[row, 1:length]])[None]
            log_probs = caption_logits(
                model, past, read, torch.ones_like(read, dtype=torch.bool)
            ).log_softmax(-1)[0]
            for place in range(length - 1):
                own = log_probs[place, ids[row, place + 1]]
                want.append(-(1 - smoothing) * own - smoothing * log_probs[place].mean())
        torch.testing.assert_close(got, torch.stack(want).mean(), atol=1e-5, rtol=1e-5)


def test_a_batch_of_one_is_refused() -> None:
    model = Retriever(small_config())
    one = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(TrainingError, match="no negatives"):
        stage1_losses(model, torch.zeros(1, 5, 88), one, one.bool(), dec_id=2)


def test_match_distillation_by_hand() -> None:
    """Two pairs, their negatives each other: from ITC's softmax over three scores to that of ITM's margins."""
    similarities = itc_itm_itg.Similarities(
        torch.tensor([[3.0, 1.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [1.0, 2.0]])
    )
    other = torch.tensor([1, 0])
    margins = torch.tensor(
        [2.0, 0.0, -1.0, 1.0, 0.5, -0.5]
    )  # pairs, texts' wrong photos, photos' wrong texts
    logits = torch.stack([torch.zeros(6), margins], dim=1).requires_grad_()
    got = itc_itm_itg.match_distillation_loss(logits, similarities, other, other)
    rows = (((3.0, 0.0, 1.0), (2.0, -1.0, 0.5)), ((2.0, 1.0, 0.0), (0.0, 1.0, -0.5)))
    want = 0.0
    for scores, found in rows:
        aim = [math.exp(s) / sum(map(math.exp, scores)) for s in scores]
        want -= sum(
            a * math.log(math.exp(f) / sum(map(math.exp, found))) for a, f in zip(aim, found, strict=True)
        )
    assert float(got.detach()) == pytest.approx(want / 2, abs=1e-6)


def test_match_distillation_teaches_itm_alone() -> None:
    to_text, to_photo = torch.randn(2, 3, 3).requires_grad_()
    logits = torch.randn(9, 2).requires_grad_()
    numbers = torch.tensor([1, 2, 0])
    loss = itc_itm_itg.match_distillation_loss(
        logits, itc_itm_itg.Similarities(to_text, to_photo), numbers, numbers
    )
    assert torch.autograd.grad(loss, [logits, to_text], allow_unused=True)[1] is None
