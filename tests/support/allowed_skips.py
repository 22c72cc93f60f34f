"""A pytest plugin: a skipped test makes the run fail on CI, unless its reason names what CI may lack.

CI sets the environment variable CI to "true". Elsewhere skips are only printed with their reasons (-rs in
pyproject.toml): a stranger's machine may lack more, and the reasons say what.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

ALLOWED = ("no GPU", "no Chromium", "needs Java")
"""What a reason for a skip must contain. These three cannot be installed with `pip`."""

REFUSED = pytest.StashKey[dict[str, str]]()


def is_allowed(reason: str) -> bool:
    """Return whether a test that is skipped for `reason` may be skipped on CI."""
    return any(words in reason for words in ALLOWED)


def pytest_configure(config: pytest.Config) -> None:
    """Begin to count skips where pytest-xdist has no other process that does."""
    config.stash[REFUSED] = {}
    if os.environ.get("CI") == "true" and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipWatch(config.stash[REFUSED]), "skip-watch")


class SkipWatch:
    """Collects the tests and modules that were skipped for a reason that is not allowed."""

    def __init__(self, refused: dict[str, str]) -> None:
        """refused: receives the reason of each such skip under the name of its test."""
        self.refused = refused

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note a test that was skipped; a test that fails as expected is none."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self.note(report)

    def pytest_collectreport(self, report: Any) -> None:
        """Note a module that was skipped as a whole."""
        if report.skipped:
            self.note(report)

    def note(self, report: Any) -> None:
        """Keep the reason of a skip if it is not allowed."""
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not is_allowed(reason):
            self.refused[report.nodeid] = reason

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Let a run that would have passed fail."""
        if self.refused and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say which skips made the run fail and what to do."""
        if not self.refused:
            return
        terminalreporter.section("skips that CI does not allow", red=True, bold=True)
        for test, reason in self.refused.items():
            terminalreporter.line(f"{test}: {reason}")
        terminalreporter.line(
            f"Make these tests run, or add the reason to ALLOWED in {os.path.relpath(__file__)}; "
            f"allowed now: {', '.join(ALLOWED)}."
        )
