"""A pytest plugin that runs tests which share an expensive fixture in the same pytest-xdist process.

`pytest -n 2 --dist loadgroup` hands each test to whichever process is free, except that the tests of one `xdist_group`
go to one process. Without this plugin both processes would build a fixture of module scope.
"""

from __future__ import annotations

import pytest


def has_module_fixture(item: pytest.Item) -> bool:
    """Return whether a test uses a fixture of module scope, from its file or from a conftest.py."""
    info = getattr(item, "_fixtureinfo", None)
    definitions = [fixtures[-1] for fixtures in info.name2fixturedefs.values()] if info else []
    return any(fixture.scope == "module" for fixture in definitions)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that use a fixture of module scope into a group that is named after the module."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None and has_module_fixture(item):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))
