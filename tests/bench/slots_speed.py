"""Milliseconds of the FAISS slots on the CPU, and on a GPU where there is one, beside brute force; ids compared.

    python tests/bench/slots_speed.py [--counts 20000 100000] [--kinds flat fp16 int8] [--devices cpu gpu]

Vectors are made up (a part of the photo, a part of the slot, a part of neither; real photos: search_speed.py), so it
needs neither a model nor lancedb. Brute force is numpy on the CPU and torch on the GPU, over the same float16 values.
"""

from __future__ import annotations

import argparse
import time

import faiss
import numpy as np
from report import median, spread, table, write_report

from engine.vectors.slot_index import SlotIndex

SLOTS, WIDTH, K, TEXTS, SEED = 32, 256, 128, 10, 5
TIE = 1e-5
ROWS = 4096


def made_up(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, S, E) float16 unit vectors, and (M, E) float32 unit queries near some of them."""
    draw = np.random.default_rng(SEED)
    slot = draw.standard_normal((1, SLOTS, WIDTH), dtype=np.float32)
    vectors = np.empty((count, SLOTS, WIDTH), np.float16)
    for start in range(0, count, ROWS):
        rows = min(ROWS, count - start)
        some = draw.standard_normal((rows, 1, WIDTH), dtype=np.float32) + slot
        some += 0.7 * draw.standard_normal((rows, SLOTS, WIDTH), dtype=np.float32)
        vectors[start : start + rows] = some / np.linalg.norm(some, axis=2, keepdims=True)
    near = vectors[draw.choice(count, TEXTS), draw.choice(SLOTS, TEXTS)].astype(np.float32)
    queries = near + draw.standard_normal((TEXTS, WIDTH), dtype=np.float32) / np.sqrt(WIDTH)
    return vectors, queries / np.linalg.norm(queries, axis=1, keepdims=True)


def brute_numpy(flat: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """flat: (N * S, E) float32 -> the best K rows and their scores."""
    scores = (flat @ query).reshape(-1, SLOTS).max(axis=1)
    rows = np.argpartition(-scores, K)[:K]
    rows = rows[np.lexsort((rows, -scores[rows]))]
    return rows, scores[rows]


def time_torch(vectors: np.ndarray, queries: np.ndarray) -> list[float]:
    """Seconds of brute force on the GPU, float16 products, a text each."""
    import torch

    flat = torch.from_numpy(vectors).cuda().flatten(0, 1)
    seconds = []
    for query in (queries[0], *queries):
        started = time.perf_counter()
        scores = (flat @ torch.from_numpy(query).cuda().half()).view(-1, SLOTS).amax(dim=1)
        scores.float().topk(K)[1].cpu()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def measure(count: int, kinds: list[str], devices: list[str]) -> list[tuple[object, ...]]:
    vectors, queries = made_up(count)
    ids = np.arange(count)
    allowed = (
        np.delete(ids, np.s_[::50]) if count < 2048 * 40 else ids
    )  # a GPU hides at most 2048 - fetched rows
    flat = vectors.reshape(-1, WIDTH).astype(np.float32)
    truth = [brute_numpy(flat, query) for query in queries]
    hidden = np.setdiff1d(ids, allowed)
    lacks_hidden = [not np.isin(rows, hidden).any() for rows, _ in truth]
    rows: list[tuple[object, ...]] = []
    for kind in kinds:
        for device in devices:
            index = SlotIndex(SLOTS, WIDTH, kind, device, read_vectors=lambda wanted: vectors[wanted])
            for start in range(0, count, ROWS):
                index.add(ids[start : start + ROWS], vectors[start : start + ROWS])
            started = time.perf_counter()
            index.search(queries[:1], K, ids)
            first = time.perf_counter() - started
            ours, brute, same, apart = [], [], 0, 0.0
            for query, (wanted, wanted_scores) in zip(queries, truth, strict=True):
                started = time.perf_counter()
                found, scores = index.search(query[None], K, ids)
                ours.append(time.perf_counter() - started)
                started = time.perf_counter()
                brute_numpy(flat, query)
                brute.append(time.perf_counter() - started)
                off = np.abs(scores[0] - wanted_scores)
                apart = max(apart, float(off.max()))
                same += bool(off.max() <= TIE and (off[found[0] != wanted] <= TIE).all())
            started = time.perf_counter()
            index.search(queries, K, ids)
            together = (time.perf_counter() - started) / len(queries)
            masked = _masked_right(index, vectors, queries, allowed) if not all(lacks_hidden) else "not tried"
            rows.append(
                (
                    f"{count:,} {kind} {device}", f"{1000 * first:.0f}", spread(ours), f"{1000 * together:.2f}",
                    spread(brute), f"{median(brute) / median(ours):.2f}", f"{same} of {len(queries)}",
                    f"{apart:.0e}", masked,
                )
            )  # fmt: skip
    if "gpu" in devices:
        rows.append(
            (f"{count:,} torch brute force, gpu", "", spread(time_torch(vectors, queries))) + ("",) * 6
        )
    return rows


def _masked_right(index: SlotIndex, vectors: np.ndarray, queries: np.ndarray, allowed: np.ndarray) -> str:
    """Whether rows that may not be found are left out, and the right ones come in their place."""
    flat = vectors[allowed].reshape(-1, WIDTH).astype(np.float32)
    right = 0
    for query in queries:
        _, wanted = brute_numpy(flat, query)
        found, scores = index.search(query[None], K, allowed)
        right += bool(np.isin(found[0], allowed).all() and np.abs(scores[0] - wanted).max() <= TIE)
    return f"{right} of {len(queries)}"


def main() -> None:
    on_gpu = faiss.get_num_gpus() > 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--kinds", nargs="+", default=["flat", "fp16", "int8"])
    parser.add_argument("--devices", nargs="+", default=["cpu", "gpu"] if on_gpu else ["cpu"])
    args = parser.parse_args()
    rows = [row for count in args.counts for row in measure(count, args.kinds, args.devices)]
    head = (
        "photos, kind, device", "first ms", "one text ms", f"of {TEXTS} at once ms", "numpy ms", "times as fast",
        "same ids (but ties)", "scores apart", "same with 2% hidden",
    )  # fmt: skip
    parts = [
        f"Made-up vectors, {SLOTS} slots of {WIDTH}, top {K}, {TEXTS} texts. FAISS sees {faiss.get_num_gpus()} "
        "GPUs; on one, the first search uploads.",
        table(head, rows),
    ]
    write_report("slots_speed", parts)


if __name__ == "__main__":
    main()
