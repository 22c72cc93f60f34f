"""Two processes (gloo) against one with the joined batch: losses, gradients, negatives, whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny import tiny_config, tiny_net, tiny_tokenizer
from torch import Tensor
from two_processes import run_in_two_processes

from engine.blip2.wordpiece import TextTokenizer
from engine.datasets.captioned_pictures import CaptionedPicture
from engine.errors import TrainingError
from training.batches.encoded_views import EncodedViews
from training.distributed.gathering import fetch_rows, gather, gather_texts
from training.distributed.world import World, current_world, join_process_group
from training.distributed.wrapping import NetworkWrapper, gather_full_tensors, wrap_with_ddp
from training.loop.optimizer import OptimConfig
from training.loop.train_loop import train
from training.losses.stage1_losses import stage1_losses
from training.stages.stage1 import ItcTask, Stage1Task
from training.stages.stage1_config import Stage1Config

pytestmark = pytest.mark.xdist_group("processes")
PAIRS = 6
FORCED = (torch.tensor([3, 5, 1, 0, 3, 2]), torch.tensor([4, 2, 5, 1, 0, 3]))


def inputs() -> dict[str, Tensor]:
    """Texts of unlike length, the longest with the second process: what is a mean over tokens must be weighed."""
    random = torch.Generator().manual_seed(3)
    lengths = torch.tensor([3, 4, 3, 9, 6, 5])
    ids = torch.randint(6, 40, (PAIRS, 9), generator=random)
    mask = torch.arange(9) < lengths[:, None]
    return {
        "patches": torch.randn(PAIRS, 5, 32, generator=random),
        "ids": ids * mask,
        "mask": mask,
        "image_ids": torch.tensor([7, 3, 7, 9, 3, 1]),
        "draws": torch.rand(2, PAIRS, generator=random),
    }


CASES: dict[str, dict[str, bool]] = {
    "forced": {"forced": True, "image_ids": False},
    "drawn": {"forced": False, "image_ids": False},
    "image ids": {"forced": False, "image_ids": True},
}


def step(case: str) -> dict[str, Any]:
    """This process's share of the step; gradients averaged as DDP does."""
    world, chosen, given = current_world(), CASES[case], inputs()
    net = tiny_net()
    net.vision.requires_grad_(False)
    longest = int(world.select_share(given["mask"]).sum(1).max())

    def work(model: Any) -> dict[str, Any]:
        losses = stage1_losses(
            model,
            model.vision_norm(world.select_share(given["patches"])),
            world.select_share(given["ids"])[:, :longest],
            world.select_share(given["mask"])[:, :longest],
            dec_id=4,
            image_ids=world.select_share(given["image_ids"]) if chosen["image_ids"] else None,
            negatives=(world.select_share(FORCED[0]), world.select_share(FORCED[1]))
            if chosen["forced"]
            else None,
            draws_2N=given["draws"],
        )
        parts = torch.stack([losses.itc, losses.itm, losses.itg])
        return {"loss": losses.total_loss, "parts": parts, "negatives": torch.stack(losses.negatives)}

    wrapper: Any = NetworkWrapper(net)
    wrapper = wrap_with_ddp(wrapper) if world.size > 1 else wrapper
    out = wrapper(work)
    out["loss"].backward()
    grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {"parts": out["parts"].detach(), "negatives": out["negatives"], "grads": grads}


def run(folder: Path, parallel: str, task: type[Stage1Task] = Stage1Task, **changes: Any) -> dict[str, Any]:
    """A run of four steps on eight pairs; the log and the weights after it."""
    optim = OptimConfig(
        steps=4, batch=8, lr=1e-3, log_every=1, clip=1.0, parallel=parallel, weight_decay=0.0, **changes
    )
    model = tiny_config(dropout=0.0)
    chosen = Stage1Config(model, (), optim, views=2, match_distillation=1.0, query_share=0.5, patch_share=0.5)
    tokenizer = TextTokenizer(tiny_tokenizer(), model.max_tokens)
    patches = torch.randn(8, 2, 17, 32, generator=torch.Generator().manual_seed(0))
    captions = [
        (f"a {a} {b} in the {c}", b)
        for a in ("red", "green")
        for b in ("dog", "cat")
        for c in ("snow", "house")
    ]
    samples = [CaptionedPicture(texts[0], b"", texts) for texts in captions]
    made = task(tiny_net(model), tokenizer, EncodedViews(patches, samples, optim), chosen)
    rows = train(made, optim, folder)
    return {"rows": rows, "weights": gather_full_tensors(made.net.state_dict())}


def in_one_of_two(rank: int, folder: Path) -> dict[str, Any]:
    with join_process_group() as (world, _):
        assert world == World(rank, 2)
        found: dict[str, Any] = {case: step(case) for case in CASES}
        rows = torch.arange(6.0).view(3, 2) + 10 * rank
        fetched, place = fetch_rows(rows, torch.tensor([[4, 5, 4], [4, 0, 0]][rank]))
        found["fetched"] = torch.cat([rows, fetched])[place]
        found["none fetched"] = fetch_rows(rows, torch.tensor([[0, 1, 2], [3, 4, 5]][rank]))[0]
        found["texts"] = gather_texts(
            torch.ones(1, 2 + rank, dtype=torch.long), torch.ones(1, 2 + rank).bool()
        )
        found["gathered"] = gather(torch.full((1, 2), float(rank)))
        found["ddp"] = run(folder / "ddp", "ddp")
        found["itc"] = run(folder / "itc", "ddp", ItcTask)
        found["fsdp"] = run(folder / "fsdp", "fsdp")
        half = folder / "fsdp half"
        with pytest.raises(KeyboardInterrupt):
            run(half, "fsdp", StopsAfterTwo)
        found["fsdp again"] = run(half, "fsdp")
        with pytest.raises(TrainingError, match="parallel is 'dp'"):
            run(folder / "wrong", "dp")
    assert not dist.is_initialized()
    return found


class StopsAfterTwo(Stage1Task):
    def losses(self, step: int) -> dict[str, Tensor]:
        if step == 2:
            raise KeyboardInterrupt
        return super().losses(step)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("both")
    return [found | {"folder": folder} for found in run_in_two_processes(in_one_of_two, folder)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one_with_the_joined_batch(both: list[dict[str, Any]], case: str) -> None:
    want, got = step(case), [one[case] for one in both]
    parts = (got[0]["parts"] + got[1]["parts"]) / 2
    torch.testing.assert_close(parts, want["parts"], atol=2e-5, rtol=0)
    assert torch.equal(torch.cat([g["negatives"] for g in got], dim=1), want["negatives"])
    across = torch.cat([got[0]["negatives"] >= 3, got[1]["negatives"] < 3])
    assert across.any(), "no negative lies with the other process: the test shows nothing"
    assert len(want["grads"]) > 60 and got[0]["grads"].keys() == want["grads"].keys()
    for name, grad in want["grads"].items():
        for one in got:
            torch.testing.assert_close(one["grads"][name], grad, atol=2e-5, rtol=1e-5, msg=name)


def test_rows_are_fetched_from_their_owner(both: list[dict[str, Any]]) -> None:
    assert both[0]["fetched"].tolist() == [[12, 13], [14, 15], [12, 13]]
    assert both[1]["fetched"].tolist() == [[12, 13], [0, 1], [0, 1]]
    assert all(one["none fetched"].shape == (0, 2) for one in both)
    assert all(one["gathered"].tolist() == [[0, 0], [1, 1]] for one in both)
    ids, mask = both[0]["texts"]
    assert ids.tolist() == [[1, 1, 0], [1, 1, 1]] and mask.tolist() == [[True, True, False], [True] * 3]


@pytest.mark.parametrize("way", ["ddp", "itc", "fsdp"])
def test_a_run_of_two_is_a_run_of_one(both: list[dict[str, Any]], way: str, tmp_path: Path) -> None:
    want = run(tmp_path, "ddp", ItcTask if way == "itc" else Stage1Task)
    for one in both:
        for row, wanted in zip(one[way]["rows"], want["rows"], strict=True):
            assert row["loss"] == pytest.approx(wanted["loss"], abs=2e-5)
        for name, value in want["weights"].items():
            # No loss depends on a key's bias: its gradient is rounding, which Adam makes a step of.
            if not name.endswith("key.bias"):
                torch.testing.assert_close(one[way]["weights"][name], value, atol=1e-4, rtol=0, msg=name)
    assert len((both[0]["folder"] / way / "log.jsonl").read_text().splitlines()) == 4  # one process wrote


def test_a_sharded_run_goes_on(both: list[dict[str, Any]]) -> None:
    assert [r["loss"] for r in both[0]["fsdp again"]["rows"]] == [
        r["loss"] for r in both[0]["fsdp"]["rows"][2:]
    ]


def test_a_batch_that_cannot_be_shared() -> None:
    with pytest.raises(TrainingError, match=r"A batch of 10 .* by 4 processes; use 8 or 12"):
        World(0, 4).select_share(torch.arange(10))


def test_a_task_without_a_door_trains_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from toy_task import CONFIG, Toy

    monkeypatch.setattr("training.loop.train_loop.current_world", lambda: World(1, 2))
    with pytest.raises(TrainingError, match="Toy trains in one process"):
        train(Toy(), CONFIG, tmp_path)
