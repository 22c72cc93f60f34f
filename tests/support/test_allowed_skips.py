"""A run on CI fails when a test is skipped for a reason that is not allowed, in one process and in two."""

from __future__ import annotations

from pathlib import Path

import pytest
from allowed_skips import is_allowed

pytest_plugins = ["pytester"]
SUPPORT = Path(__file__).parent

LACKS_A_PACKAGE = "import pytest\ndef test_a(): pytest.skip('could not import rawpy')\ndef test_b(): pass\n"
LACKS_A_GPU = "import pytest\ndef test_a(): pytest.skip('no GPU here')\ndef test_b(): pass\n"
WHOLE_MODULE = "import pytest\npytest.importorskip('no_such_package')\n"
FAILS_AS_EXPECTED = "import pytest\n@pytest.mark.xfail\ndef test_a(): assert False\n"


def run_with_plugin(pytester: pytest.Pytester, code: str, *options: str) -> pytest.RunResult:
    """Run a test file that holds `code`, with the plugin, in a separate process."""
    pytester.makepyfile(code)
    return pytester.runpytest_subprocess("-p", "allowed_skips", "-p", "no:cacheprovider", *options)


@pytest.fixture(autouse=True)
def plugin_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))


@pytest.mark.parametrize("options", [("-p", "no:xdist"), ("-n", "1")])
def test_a_skip_that_is_not_allowed_fails_on_ci(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CI", "true")
    result = run_with_plugin(pytester, LACKS_A_PACKAGE, *options)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*skips that CI does not allow*", "*::test_a: *could not import rawpy"])


def test_a_module_that_is_skipped_fails_on_ci(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    result = run_with_plugin(pytester, WHOLE_MODULE)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*could not import 'no_such_package'*"])


@pytest.mark.parametrize("code", [LACKS_A_GPU, FAILS_AS_EXPECTED])
def test_allowed_skips_and_expected_failures_pass_on_ci(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setenv("CI", "true")
    assert run_with_plugin(pytester, code).ret == pytest.ExitCode.OK


def test_every_skip_passes_outside_ci(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    assert run_with_plugin(pytester, LACKS_A_PACKAGE).ret == pytest.ExitCode.OK


def test_a_reason_is_allowed_when_it_contains_an_allowed_phrase() -> None:
    assert is_allowed("Skipped: no GPU here") and is_allowed("Stanford's tokenizer needs Java")
    assert not is_allowed("Skipped: one core") and not is_allowed("")
