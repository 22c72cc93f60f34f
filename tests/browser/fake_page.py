"""The page with the colour model in the place of BLIP-2, for `streamlit run`."""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import fake_model  # noqa: E402

from ui import opening  # noqa: E402

opening.load_model = fake_model.load_fake
opening.make_searcher = fake_model.FakeSearcher
opening.load_writer = fake_model.load_fake_writer
opening.writer_of = fake_model.fake_writer_of
runpy.run_path(str(ROOT / "ui" / "app.py"), run_name="__main__")
