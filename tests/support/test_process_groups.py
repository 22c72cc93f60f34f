"""Tests that share a fixture of their module are put into one group; others are free."""

from __future__ import annotations

from pathlib import Path

import pytest
from process_groups import pytest_collection_modifyitems

pytest_plugins = ["pytester"]
SUPPORT = Path(__file__).parent
MODULE = """
import pytest

@pytest.fixture(scope="module")
def index(request):
    with open(request.config.rootpath / "built", "a") as file:
        file.write("once ")

@pytest.fixture
def photo(index): return 2

def test_direct(index): pass
def test_through_another(photo): pass
def test_alone(tmp_path): pass

@pytest.mark.parametrize("number", range(6))
def test_many(index, number): pass

@pytest.mark.xdist_group("servers")
def test_with_a_group_of_its_own(photo): pass
"""


def groups_of(items: list[pytest.Item]) -> dict[str, str]:
    marks = {item.name: item.get_closest_marker("xdist_group") for item in items}
    return {name: mark.args[0] for name, mark in marks.items() if mark}


def test_users_of_a_module_fixture_are_a_group(pytester: pytest.Pytester) -> None:
    items = pytester.getitems(MODULE)
    pytest_collection_modifyitems(items)
    module = items[0].nodeid.split("::")[0]
    many = {f"test_many[{number}]": module for number in range(6)}
    assert groups_of(items) == {
        "test_direct": module,
        "test_through_another": module,
        "test_with_a_group_of_its_own": "servers",
        **many,
    }


@pytest.mark.parametrize(("options", "times"), [(("-p", "process_groups"), 1), ((), 2)])
def test_a_module_fixture_is_built_by_one_of_two_processes(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], times: int
) -> None:
    """Without the plugin both processes build it, so that the test shows something."""
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    pytester.makepyfile(MODULE.replace('@pytest.mark.xdist_group("servers")', ""))
    two = ("-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider")
    pytester.runpytest_subprocess(*options, *two).assert_outcomes(passed=10)
    assert (pytester.path / "built").read_text().count("once") == times
