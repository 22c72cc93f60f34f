"""Measure the photos/s of mini's image encoder in turns with freed memory kept and without (engine/models/malloc.py).

    python tests/bench/allocator_speed.py [--photos 512] [--rounds 4]

Every measurement is a separate process, because the setting of the C library cannot be taken back.
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


def measure_rate(setting: str, num_photos: int) -> float:
    """Return the photos/s of a fresh process. setting: "keep" keeps freed memory, "leave" does not."""
    command = [sys.executable, "-c", PROGRAM, setting, str(num_photos)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(process.stderr)
    return float(process.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=512, help="Number of photos that each process encodes.")
    parser.add_argument("--rounds", type=int, default=4, help="Number of processes for each setting.")
    args = parser.parse_args()
    rates: dict[str, list[float]] = {"leave": [], "keep": []}
    for _ in range(args.rounds):
        for setting in rates:
            rates[setting].append(measure_rate(setting, args.photos))
    base = median(rates["leave"])
    rows = [
        (title, spread(rates[setting], 1), f"{median(rates[setting]) / base:.2f}")
        for setting, title in (("leave", "as the C library has it"), ("keep", "freed memory kept"))
    ]
    head = ("mini's encoder, patches and vectors", "photos/s: median (least-most)", "ratio")
    parts = [f"Each process encoded {args.photos} photos.", table(head, rows)]
    write_report("allocator_speed", parts)


if __name__ == "__main__":
    main()
