"""A pytest plugin that lets a run on CI fail when a test is skipped for a reason that is not allowed.

CI sets the environment variable CI to "true". Elsewhere skips are only printed with their reasons (-rs in
pyproject.toml), because a person's machine may lack more than CI does; the reasons say what is missing.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

ALLOWED = ("no GPU", "no Chromium", "needs Java")
"""Phrases of which the reason for a skip must contain one. What they name cannot be installed with `pip`."""

REFUSED = pytest.StashKey[dict[str, str]]()
"""Key under which pytest's config keeps the skips that are not allowed: the name of a test -> its reason."""


def is_allowed(reason: str) -> bool:
    """Return whether a test may be skipped on CI for this reason."""
    return any(phrase in reason for phrase in ALLOWED)


def pytest_configure(config: pytest.Config) -> None:
    """Watch for skips on CI, in the main process of a test run (it receives the reports of its workers)."""
    config.stash[REFUSED] = {}
    if os.environ.get("CI") == "true" and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipWatch(config.stash[REFUSED]), "skip-watch")


class SkipWatch:
    """A pytest plugin that collects tests and modules which were skipped for a reason that is not allowed."""

    def __init__(self, refused: dict[str, str]) -> None:
        """Create the plugin. refused: receives the reason of each such skip under the name of its test."""
        self.refused = refused

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note a test that was skipped. A test that fails as expected (xfail) does not count as skipped."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self.note(report)

    def pytest_collectreport(self, report: Any) -> None:
        """Note a module that was skipped as a whole."""
        if report.skipped:
            self.note(report)

    def note(self, report: Any) -> None:
        """Store the reason of a skip unless it is allowed."""
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not is_allowed(reason):
            self.refused[report.nodeid] = reason

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Make a run fail that would otherwise have passed."""
        if self.refused and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print which skips made the run fail, and what to do."""
        if not self.refused:
            return
        terminalreporter.section("skips that CI does not allow", red=True, bold=True)
        for test, reason in self.refused.items():
            terminalreporter.line(f"{test}: {reason}")
        terminalreporter.line(
            f"Make these tests run, or add their reason to ALLOWED in {os.path.relpath(__file__)}. "
            f"Allowed reasons contain: {', '.join(ALLOWED)}."
        )
