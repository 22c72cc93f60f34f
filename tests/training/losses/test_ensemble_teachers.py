"""Teachers' scores are averaged over their temperatures, and a student's loss is least where it agrees with them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tiny import tiny_net, tiny_tokenizer

from engine.blip2.retriever import itc_scores
from engine.blip2.wordpiece import TextTokenizer
from training.losses.ensemble_teachers import TeacherVectors, mean_scores, ranking_loss, read_teacher


def test_scores_are_the_mean_over_teachers_of_those_of_the_named_photos() -> None:
    draws = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> torch.Tensor:
        return F.normalize(torch.randn(*shape, generator=draws), dim=-1).half()

    teachers = [
        TeacherVectors([unit(3, 2, 4), unit(5, 2, 4)], unit(6, 4), 0.5),
        TeacherVectors([unit(3, 7, 9), unit(5, 7, 9)], unit(6, 9), 0.1),
    ]
    actual = mean_scores(teachers, (1, 0), (4, 2), torch.tensor([5, 0, 1]))
    want = torch.zeros(2, 3)
    for teacher in teachers:
        for row, (set_number, photo) in enumerate(((1, 4), (0, 2))):
            for column, caption in enumerate((5, 0, 1)):
                cosines = teacher.photos[set_number][photo].float() @ teacher.captions[caption].float()
                want[row, column] += cosines.max() / teacher.temperature / 2
    torch.testing.assert_close(actual, want)


def test_a_teacher_encodes_first_views_and_captions_as_the_model_does() -> None:
    net, tokenizer = tiny_net(), TextTokenizer(tiny_tokenizer(), 12)
    views = torch.randn(3, 2, 17, 32, generator=torch.Generator().manual_seed(1))
    captions = ["a red dog", "the blue house in the snow"]
    teacher = read_teacher(net, tokenizer, [views], captions)
    ids, mask, _ = tokenizer(captions)
    with torch.no_grad():
        photos = net.encode_photos(net.compute_photo_keys(net.vision_norm(views[:, 0])))
        want = itc_scores(photos, net.encode_texts(ids, mask))
    actual = itc_scores(teacher.photos[0].float(), teacher.captions.float())
    torch.testing.assert_close(actual, want, atol=2e-3, rtol=0)
    assert teacher.temperature == float(net.temperature.detach().clamp(min=0.01))


def test_the_loss_is_least_where_the_student_agrees() -> None:
    targets = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    agreed, shifted = ranking_loss(targets, targets), ranking_loss(targets + 3, targets)
    torch.testing.assert_close(agreed, shifted)
    for seed in range(3):
        noise = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed + 1))
        assert ranking_loss(targets + 0.3 * noise, targets) > agreed
