"""Pytest plug-in: which requirement IDs does a passing test prove, and which does none?

A test claims IDs by `@pytest.mark.requirement("V2")`. An ID is proved when at least one test that claims it
passed and none that claims it failed. Unknown IDs fail the run at collection.
"""

from __future__ import annotations

import tomllib
from collections.abc import Generator
from pathlib import Path

import pytest

KNOWN: dict[str, str] = tomllib.loads(
    (Path(__file__).parents[2] / "docs" / "requirements.toml").read_text("utf-8")
)
PROPERTY = "requirements"
_passed: set[str] = set()
_failed: set[str] = set()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The long ones first: begun last, one of them would keep a single worker busy while the others are done.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        for requirement in _claimed(item):
            if requirement not in KNOWN:
                raise pytest.UsageError(
                    f"{item.nodeid} claims {requirement!r}, which docs/requirements.toml lacks"
                )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # On the report, so that it reaches the one process that sums up when several run the tests.
    report.user_properties.append((PROPERTY, sorted(_claimed(item))))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    claimed = {name for key, names in report.user_properties if key == PROPERTY for name in names}
    if report.failed:
        _failed.update(claimed)
    elif report.when == "call" and report.passed:
        _passed.update(claimed)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--requirements", action="store_true", help="end with the requirement IDs that no test proves"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.getoption("--requirements"):
        return
    proved = _passed - _failed
    unproved = [name for name in KNOWN if name not in proved]
    terminalreporter.section("requirements")
    terminalreporter.write_line(f"proved by a passing test: {len(KNOWN) - len(unproved)} of {len(KNOWN)}")
    for name in unproved:
        terminalreporter.write_line(f"  not proved  {name:<4} {KNOWN[name]}")


def _claimed(item: pytest.Item) -> set[str]:
    return {str(name) for marker in item.iter_markers("requirement") for name in marker.args}
