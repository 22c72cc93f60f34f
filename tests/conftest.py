"""Settings of every test run: one thread, no network, no GPU unless QSEEK_TEST_GPU names one; two plugins of pytest."""

from __future__ import annotations

import os

# This must be set before torch or numpy is imported; processes that tests start inherit it. The models of the tests
# have a few thousand weights: threads would wait for each other far longer than they compute.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[name] = "1"
# The settings of the person who runs the tests must not change them.
for name in ("QSEEK_INDEX", "QSEEK_MODEL", "QSEEK_MODELS"):
    os.environ.pop(name, None)
os.environ.setdefault("CUDA_VISIBLE_DEVICES", os.environ.get("QSEEK_TEST_GPU", ""))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest_plugins = ["allowed_skips", "process_groups"]
