"""The hub's tables of runs: what was launched, what each site reported in each round."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Column, ForeignKey, Integer, String, Table, Text, insert, select, update

from consent.errors import NotFound
from learning.progress import SiteReport
from node.database import Tx, UtcDateTime, metadata


class RunState(StrEnum):
    """Every run ends in one of the last three."""

    STARTING = "starting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


ENDED = frozenset({RunState.FINISHED, RunState.FAILED, RunState.STOPPED})

learning_run = Table(
    "learning_run",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("plan", String(64), nullable=False, index=True),
    Column("title", Text, nullable=False),
    Column("launched_by", String(128), nullable=False),
    Column("launched", UtcDateTime, nullable=False, index=True),
    Column("deadline", UtcDateTime, nullable=False),
    Column("ended", UtcDateTime),
    Column("state", String(16), nullable=False),
    Column("words", Text, nullable=False, default=""),
    Column("rounds", Integer, nullable=False),
    Column("rounds_done", Integer, nullable=False, default=0),
    Column("checkpoint", String(64)),
    Column("model", String(64)),
)

learning_report = Table(
    "learning_report",
    metadata,
    Column("run", String(32), ForeignKey("learning_run.id"), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("site", String(64), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("state", String(16), nullable=False),
    Column("words", Text, nullable=False),
    Column("examples", Integer, nullable=False),
    Column("metrics", Text, nullable=False),
)


@dataclass(frozen=True)
class Run:
    """One run as kept. `model` is the record id of the model that came of it; `words` say why it did not finish."""

    id: str
    plan: str
    title: str
    launched_by: str
    launched: datetime
    deadline: datetime
    state: RunState
    rounds: int
    rounds_done: int = 0
    ended: datetime | None = None
    words: str = ""
    checkpoint: str | None = None
    model: str | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ENDED


async def add_run(tx: Tx, run: Run) -> None:
    """Insert a new run."""
    await tx.execute(insert(learning_run).values(**(vars(run) | {"state": run.state.value})))


async def change_run(tx: Tx, run_id: str, **values: Any) -> None:
    """Update columns of a run."""
    await tx.execute(update(learning_run).where(learning_run.c.id == run_id).values(**values))


async def read_run(tx: Tx, run_id: str) -> Run:
    """Raises NotFound."""
    row = (await tx.execute(select(learning_run).where(learning_run.c.id == run_id))).first()
    if row is None:
        raise NotFound("There is no such run.", mend="Open the list of runs.")
    return _run(row)


async def read_runs(tx: Tx, *, limit: int = 200) -> tuple[Run, ...]:
    """Newest first."""
    query = select(learning_run).order_by(learning_run.c.launched.desc()).limit(limit)
    return tuple(_run(row) for row in (await tx.execute(query)).all())


async def add_reports(tx: Tx, run_id: str, reports: list[SiteReport], at: datetime) -> None:
    """Insert one round's reports."""
    rows = [
        {
            "run": run_id,
            "kind": report.kind,
            "round": report.round,
            "site": report.site,
            "at": at,
            "state": report.state,
            "words": report.words,
            "examples": report.examples,
            "metrics": json.dumps(dict(report.metrics)),
        }
        for report in reports
    ]
    if rows:
        await tx.execute(insert(learning_report), rows)


async def read_reports(tx: Tx, run_id: str) -> tuple[SiteReport, ...]:
    """Every report of a run, in order."""
    query = select(learning_report).where(learning_report.c.run == run_id)
    rows = (await tx.execute(query.order_by(learning_report.c.round, learning_report.c.site))).all()
    return tuple(
        SiteReport(row.round, row.kind, row.site, row.state, row.words, row.examples, _metrics(row.metrics))
        for row in rows
    )


def _run(row: Any) -> Run:
    values = dict(row._mapping)
    return Run(**(values | {"state": RunState(values["state"])}))


def _metrics(text: str) -> Mapping[str, float]:
    data = json.loads(text)
    return {str(name): float(value) for name, value in data.items()}
