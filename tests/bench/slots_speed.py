"""Measure searches of the FAISS slots on the CPU, and on a GPU if there is one, beside brute force; compare the ids.

    python tests/bench/slots_speed.py [--counts 20000 100000] [--kinds flat fp16 int8] [--devices cpu gpu]

Vectors are random: the sum of a photo's part, a slot's part and a part by itself (search_speed.py has real photos). So
this needs neither a model nor lancedb. Brute force is numpy on the CPU and torch on the GPU, over the same float16
values. Shapes: N photos, S slots, E embedding, M texts.
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
BATCH = 4096


def make_vectors(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float16 unit vectors (count, S, E) of photos, and float32 unit vectors (M, E) of texts near some
    photos.
    """
    draws = np.random.default_rng(SEED)
    slot_part = draws.standard_normal((1, SLOTS, WIDTH), dtype=np.float32)
    vectors = np.empty((count, SLOTS, WIDTH), np.float16)
    for start in range(0, count, BATCH):
        num_photos = min(BATCH, count - start)
        batch = draws.standard_normal((num_photos, 1, WIDTH), dtype=np.float32) + slot_part
        batch += 0.7 * draws.standard_normal((num_photos, SLOTS, WIDTH), dtype=np.float32)
        vectors[start : start + num_photos] = batch / np.linalg.norm(batch, axis=2, keepdims=True)
    near = vectors[draws.choice(count, TEXTS), draws.choice(SLOTS, TEXTS)].astype(np.float32)
    texts = near + draws.standard_normal((TEXTS, WIDTH), dtype=np.float32) / np.sqrt(WIDTH)
    return vectors, texts / np.linalg.norm(texts, axis=1, keepdims=True)


def search_with_numpy(flat: np.ndarray, text_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (K,) of the best photos and their scores (K,) by brute force. flat: (N * S, E) float32."""
    scores = (flat @ text_E).reshape(-1, SLOTS).max(axis=1)
    rows = np.argpartition(-scores, K)[:K]
    rows = rows[np.lexsort((rows, -scores[rows]))]
    return rows, scores[rows]


def time_torch(vectors: np.ndarray, texts_ME: np.ndarray) -> list[float]:
    """Return the seconds of brute force for each text on the GPU, with float16 products."""
    import torch

    flat = torch.from_numpy(vectors).cuda().flatten(0, 1)
    seconds = []
    for text_E in (texts_ME[0], *texts_ME):
        started = time.perf_counter()
        scores = (flat @ torch.from_numpy(text_E).cuda().half()).view(-1, SLOTS).amax(dim=1)
        scores.float().topk(K)[1].cpu()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def measure(count: int, kinds: list[str], devices: list[str]) -> list[tuple[object, ...]]:
    """Return the rows of the report's table for `count` photos: a row for each kind of slots and device."""
    vectors, texts_ME = make_vectors(count)
    flat = vectors.reshape(-1, WIDTH).astype(np.float32)
    expected = [search_with_numpy(flat, text_E) for text_E in texts_ME]
    rows = []
    for kind in kinds:
        for device in devices:
            index = SlotIndex(SLOTS, WIDTH, kind, device, read_vectors=lambda ids: vectors[ids])
            for start in range(0, count, BATCH):
                batch = slice(start, min(start + BATCH, count))
                index.add(np.arange(batch.start, batch.stop), vectors[batch])
            cells = measure_index(index, vectors, flat, texts_ME, expected)
            rows.append((f"{count:,} {kind} {device}", *cells))
    if "gpu" in devices:
        rows.append(
            (f"{count:,} torch brute force, gpu", "", spread(time_torch(vectors, texts_ME))) + ("",) * 6
        )
    return rows


def measure_index(
    index: SlotIndex,
    vectors: np.ndarray,
    flat: np.ndarray,
    texts_ME: np.ndarray,
    expected: list[tuple[np.ndarray, np.ndarray]],
) -> tuple[str, ...]:
    """Return the cells of an index's row in the report.

    flat: the vectors as float32 (N * S, E). expected: (ids, scores) of each text by brute force.
    """
    ids = np.arange(len(vectors))
    started = time.perf_counter()
    index.search(texts_ME[:1], K, ids)
    first = time.perf_counter() - started
    ours, brute, num_same, largest_difference = [], [], 0, 0.0
    for text_E, (expected_ids, expected_scores) in zip(texts_ME, expected, strict=True):
        started = time.perf_counter()
        hits, scores = index.search(text_E[None], K, ids)
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        search_with_numpy(flat, text_E)
        brute.append(time.perf_counter() - started)
        differences = np.abs(scores[0] - expected_scores)
        largest_difference = max(largest_difference, float(differences.max()))
        num_same += bool(differences.max() <= TIE and (differences[hits[0] != expected_ids] <= TIE).all())
    started = time.perf_counter()
    index.search(texts_ME, K, ids)
    together = (time.perf_counter() - started) / len(texts_ME)
    return (
        f"{1000 * first:.0f}",
        spread(ours),
        f"{1000 * together:.2f}",
        spread(brute),
        f"{median(brute) / median(ours):.2f}",
        f"{num_same} of {len(texts_ME)}",
        f"{largest_difference:.0e}",
        compare_with_hidden_photos(index, vectors, texts_ME, expected),
    )


def compare_with_hidden_photos(
    index: SlotIndex,
    vectors: np.ndarray,
    texts_ME: np.ndarray,
    expected: list[tuple[np.ndarray, np.ndarray]],
) -> str:
    """Return for how many texts an index leaves out hidden photos and has the right others in their places.

    Every fiftieth photo is hidden, unless there are too many photos: a GPU hides at most 2048 - K photos.
    """
    ids = np.arange(len(vectors))
    allowed = np.delete(ids, np.s_[::50]) if len(ids) < 2048 * 40 else ids
    hidden = np.setdiff1d(ids, allowed)
    if not any(np.isin(expected_ids, hidden).any() for expected_ids, _ in expected):
        return "not tried"
    flat = vectors[allowed].reshape(-1, WIDTH).astype(np.float32)
    num_right = 0
    for text_E in texts_ME:
        _, expected_scores = search_with_numpy(flat, text_E)
        hits, scores = index.search(text_E[None], K, allowed)
        is_close = np.abs(scores[0] - expected_scores).max() <= TIE
        num_right += bool(np.isin(hits[0], allowed).all() and is_close)
    return f"{num_right} of {len(texts_ME)}"


def main() -> None:
    has_gpu = faiss.get_num_gpus() > 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--counts",
        type=int,
        nargs="+",
        default=[20_000, 100_000],
        help="Numbers of photos; each more than 128.",
    )
    parser.add_argument(
        "--kinds", nargs="+", default=["flat", "fp16", "int8"], help="Kinds of slots: flat, fp16, int8."
    )
    parser.add_argument(
        "--devices", nargs="+", default=["cpu", "gpu"] if has_gpu else ["cpu"], help="Devices: cpu, gpu."
    )
    args = parser.parse_args()
    rows = [row for count in args.counts for row in measure(count, args.kinds, args.devices)]
    head = (
        "photos, kind, device",
        "first ms",
        "one text ms",
        f"of {TEXTS} at once ms",
        "numpy ms",
        "times as fast",
        "same ids (but ties)",
        "scores apart",
        "same with 2% hidden",
    )
    parts = [
        f"Vectors are random: {SLOTS} slots of width {WIDTH}. Each search brings the best {K} photos for one of "
        f"{TEXTS} texts. FAISS sees {faiss.get_num_gpus()} GPUs; on a GPU the first search uploads the vectors.",
        table(head, rows),
    ]
    write_report("slots_speed", parts)


if __name__ == "__main__":
    main()
