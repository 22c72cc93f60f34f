"""Photos/s of mini's encoder with freed memory kept (`engine/models/malloc.py`) and without, in turns.

    python tests/bench/allocator_speed.py [--photos 512] [--rounds 4]

Every measurement is a process of its own: once the C library is told, it stays told.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from report import median, spread, table, write_report

PROGRAM = """
import sys, time
import numpy as np
from engine.models.loading import load_model
from engine.models.malloc import keep_freed_memory
from engine.models.photo_encoder import PhotoEncoder
if sys.argv[1] == "keep":
    keep_freed_memory()
encoder = PhotoEncoder(load_model(), "store")
pictures = np.random.default_rng(0).integers(0, 256, (int(sys.argv[2]), 192, 192, 3), dtype=np.uint8)
encoder.encode(pictures[:64])
started = time.perf_counter()
for start in range(0, len(pictures), 64):
    encoder.encode(pictures[start : start + 64])
print(len(pictures) / (time.perf_counter() - started))
"""


def rate(how: str, photos: int) -> float:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how, str(photos)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    found: dict[str, list[float]] = {"leave": [], "keep": []}
    for _ in range(args.rounds):
        for how, rates in found.items():
            rates.append(rate(how, args.photos))
    base = median(found["leave"])
    rows = [
        (title, spread(found[how], 1), f"{median(found[how]) / base:.2f}")
        for how, title in (("leave", "as the C library has it"), ("keep", "freed memory kept"))
    ]
    head = ("mini's encoder, patches and vectors", "photos/s: median (least-most)", "ratio")
    write_report("allocator_speed", [f"{args.photos} photos a process.", table(head, rows)])


if __name__ == "__main__":
    main()
