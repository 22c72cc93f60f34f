"""Run the page with the colour model in the place of BLIP-2; `streamlit run` runs this file."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import fake_model  # noqa: E402

from ui import session  # noqa: E402

session.load_model = fake_model.load_fake_model
session.make_searcher = fake_model.make_fake_searcher
session.load_photo_captioner = fake_model.load_fake_captioner
session.choose_captioner = fake_model.choose_fake_captioner
runpy.run_path(str(ROOT / "ui" / "page" / "page.py"), run_name="__main__")
