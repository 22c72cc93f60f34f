"""Tests that share a fixture of their module are put into one group; other tests are in no group."""

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
def test_with_another_group(photo): pass
"""


def read_groups(items: list[pytest.Item]) -> dict[str, str]:
    """Return the name of each test that is in a group -> the name of the group."""
    marks = {item.name: item.get_closest_marker("xdist_group") for item in items}
    return {name: mark.args[0] for name, mark in marks.items() if mark}


def test_tests_that_use_a_module_fixture_are_a_group(pytester: pytest.Pytester) -> None:
    items = pytester.getitems(MODULE)
    pytest_collection_modifyitems(items)
    module = items[0].nodeid.split("::")[0]
    parametrized = {f"test_many[{number}]": module for number in range(6)}
    assert read_groups(items) == {
        "test_direct": module,
        "test_through_another": module,
        "test_with_another_group": "servers",
        **parametrized,
    }


@pytest.mark.parametrize(("options", "num_builds"), [(("-p", "process_groups"), 1), ((), 2)])
def test_a_module_fixture_is_built_once_with_the_plugin_and_twice_without(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], num_builds: int
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    pytester.makepyfile(MODULE.replace('@pytest.mark.xdist_group("servers")', ""))
    two_processes = ("-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider")
    pytester.runpytest_subprocess(*options, *two_processes).assert_outcomes(passed=10)
    assert (pytester.path / "built").read_text().count("once") == num_builds
