"""What the fault tests count: each says it when it has ended, and `make faults` ends with a table of all.

`counts` is how a test tells. The columns of the table are those of docs/faults.md, so that a run's rows can be put there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from tests.faults.peers import attacked_node
from tests.support.requirements import PROPERTY
from tests.support.served import Served

COLUMNS = ("acknowledged", "lost", "corrupt", "hung")
_rows: list[tuple[str, str, dict[str, object]]] = []

Counts = Callable[..., None]


@pytest.fixture
def counts(
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> Counts:
    """Put figures on record, `counts(lost=0, kills=50)`, and print them at once."""

    def tell(**figures: object) -> None:
        for name, value in figures.items():
            record_property(name, value)
        with capsys.disabled():
            print(f"\n{request.node.name}: {_in_words(figures)}")

    return tell


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """One node for all attacks of a module: it has to survive them together."""
    async with attacked_node(tmp_path_factory.mktemp("hostile") / "node") as made:
        yield made


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    figures = {name: value for name, value in report.user_properties if name != PROPERTY}
    if report.when == "call" and figures:
        _rows.append((report.nodeid.rpartition("::")[2], report.outcome, figures))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _rows:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line(f"| test | {' | '.join(COLUMNS)} | also counted | outcome |")
    terminalreporter.write_line("| --- " * (len(COLUMNS) + 3) + "|")
    for name, outcome, figures in _rows:
        cells = [str(figures.get(column, "")) for column in COLUMNS]
        more = {name: value for name, value in figures.items() if name not in COLUMNS}
        terminalreporter.write_line(f"| `{name}` | {' | '.join(cells)} | {_in_words(more)} | {outcome} |")


def _in_words(figures: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in figures.items())
