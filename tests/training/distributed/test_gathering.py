"""Two processes (gloo) train as one process does with the joined batch: losses, gradients, negatives, runs."""

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


def make_inputs() -> dict[str, Tensor]:
    """Return a batch whose texts differ in length, so that a mean over tokens must be weighted by process."""
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


def compute_step(case: str) -> dict[str, Any]:
    """Compute this process's share of a step, with gradients averaged over processes as DDP does."""
    world, chosen, batch = current_world(), CASES[case], make_inputs()
    net = tiny_net()
    net.vision.requires_grad_(False)
    longest = int(world.select_share(batch["mask"]).sum(1).max())

    def work(model: Any) -> dict[str, Any]:
        losses = stage1_losses(
            model,
            model.vision_norm(world.select_share(batch["patches"])),
            world.select_share(batch["ids"])[:, :longest],
            world.select_share(batch["mask"])[:, :longest],
            dec_id=4,
            image_ids=world.select_share(batch["image_ids"]) if chosen["image_ids"] else None,
            negatives=(world.select_share(FORCED[0]), world.select_share(FORCED[1]))
            if chosen["forced"]
            else None,
            draws_2N=batch["draws"],
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
    """Train four steps on eight pairs, and return the log and the weights."""
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
    stage1_task = task(tiny_net(model), tokenizer, EncodedViews(patches, samples, optim), chosen)
    rows = train(stage1_task, optim, folder)
    return {"rows": rows, "weights": gather_full_tensors(stage1_task.net.state_dict())}


def in_one_of_two(rank: int, folder: Path) -> dict[str, Any]:
    with join_process_group() as (world, _):
        assert world == World(rank, 2)
        results: dict[str, Any] = {case: compute_step(case) for case in CASES}
        rows = torch.arange(6.0).view(3, 2) + 10 * rank
        fetched, place = fetch_rows(rows, torch.tensor([[4, 5, 4], [4, 0, 0]][rank]))
        results["fetched"] = torch.cat([rows, fetched])[place]
        results["none fetched"] = fetch_rows(rows, torch.tensor([[0, 1, 2], [3, 4, 5]][rank]))[0]
        results["texts"] = gather_texts(
            torch.ones(1, 2 + rank, dtype=torch.long), torch.ones(1, 2 + rank).bool()
        )
        results["gathered"] = gather(torch.full((1, 2), float(rank)))
        results["ddp"] = run(folder / "ddp", "ddp")
        results["itc"] = run(folder / "itc", "ddp", ItcTask)
        results["fsdp"] = run(folder / "fsdp", "fsdp")
        half = folder / "fsdp half"
        with pytest.raises(KeyboardInterrupt):
            run(half, "fsdp", StopsAfterTwo)
        results["fsdp again"] = run(half, "fsdp")
        with pytest.raises(TrainingError, match="parallel is 'dp'"):
            run(folder / "wrong", "dp")
    assert not dist.is_initialized()
    return results


class StopsAfterTwo(Stage1Task):
    def losses(self, step: int) -> dict[str, Tensor]:
        if step == 2:
            raise KeyboardInterrupt
        return super().losses(step)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Run both processes and return the results of each."""
    folder = tmp_path_factory.mktemp("both")
    return [results | {"folder": folder} for results in run_in_two_processes(in_one_of_two, folder)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one_with_the_joined_batch(both: list[dict[str, Any]], case: str) -> None:
    expected, results = compute_step(case), [result[case] for result in both]
    parts = (results[0]["parts"] + results[1]["parts"]) / 2
    torch.testing.assert_close(parts, expected["parts"], atol=2e-5, rtol=0)
    assert torch.equal(torch.cat([g["negatives"] for g in results], dim=1), expected["negatives"])
    across = torch.cat([results[0]["negatives"] >= 3, results[1]["negatives"] < 3])
    assert across.any(), "no negative lies with the other process: the test shows nothing"
    assert len(expected["grads"]) > 60 and results[0]["grads"].keys() == expected["grads"].keys()
    for name, grad in expected["grads"].items():
        for result in results:
            torch.testing.assert_close(result["grads"][name], grad, atol=2e-5, rtol=1e-5, msg=name)


def test_rows_are_fetched_from_their_owner(both: list[dict[str, Any]]) -> None:
    assert both[0]["fetched"].tolist() == [[12, 13], [14, 15], [12, 13]]
    assert both[1]["fetched"].tolist() == [[12, 13], [0, 1], [0, 1]]
    assert all(result["none fetched"].shape == (0, 2) for result in both)
    assert all(result["gathered"].tolist() == [[0, 0], [1, 1]] for result in both)
    ids, mask = both[0]["texts"]
    assert ids.tolist() == [[1, 1, 0], [1, 1, 1]] and mask.tolist() == [[True, True, False], [True] * 3]


@pytest.mark.parametrize("kind", ["ddp", "itc", "fsdp"])
def test_a_run_of_two_is_a_run_of_one(both: list[dict[str, Any]], kind: str, tmp_path: Path) -> None:
    expected = run(tmp_path, "ddp", ItcTask if kind == "itc" else Stage1Task)
    for result in both:
        for row, expected_row in zip(result[kind]["rows"], expected["rows"], strict=True):
            assert row["loss"] == pytest.approx(expected_row["loss"], abs=2e-5)
        for name, value in expected["weights"].items():
            # No loss depends on a key's bias: its gradient is rounding, which Adam makes a step of.
            if not name.endswith("key.bias"):
                torch.testing.assert_close(result[kind]["weights"][name], value, atol=1e-4, rtol=0, msg=name)
    assert len((both[0]["folder"] / kind / "log.jsonl").read_text().splitlines()) == 4  # one process wrote


def test_a_sharded_run_goes_on(both: list[dict[str, Any]]) -> None:
    assert [r["loss"] for r in both[0]["fsdp again"]["rows"]] == [
        r["loss"] for r in both[0]["fsdp"]["rows"][2:]
    ]


def test_a_batch_that_cannot_be_shared() -> None:
    with pytest.raises(TrainingError, match=r"A batch of 10 .* by 4 processes; use 8 or 12"):
        World(0, 4).select_share(torch.arange(10))


def test_a_task_without_a_wrapper_trains_in_one_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from toy_task import CONFIG, ToyTask

    monkeypatch.setattr("training.loop.train_loop.current_world", lambda: World(1, 2))
    with pytest.raises(TrainingError, match="ToyTask trains in one process"):
        train(ToyTask(), CONFIG, tmp_path)
