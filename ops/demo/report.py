"""Steps of the story: run, timed, reported. A step holds when its body ends without a complaint."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

from rich.console import Console

from consent.errors import AccordError
from ops.demo.person import Refused

out = Console(highlight=False, soft_wrap=True)


class NotHeld(Exception):
    """What was observed is not what must be."""


@dataclass(frozen=True)
class Step:
    """One step as it went."""

    name: str
    requirements: tuple[str, ...]
    ok: bool
    seconds: float
    detail: str


class Report:
    """Runs steps in order and keeps what happened; a step that fails does not stop the story."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    @property
    def ok(self) -> bool:
        return bool(self.steps) and all(step.ok for step in self.steps)

    async def step(
        self, name: str, requirements: tuple[str, ...], body: Callable[[], Awaitable[str]]
    ) -> bool:
        """Run one step and print how it went."""
        if out.is_terminal:
            out.print(f"  …             {name}", end="\r", markup=False)
        started = perf_counter()
        try:
            detail, ok = await body(), True
        except (NotHeld, AccordError, Refused, TimeoutError, OSError) as error:
            detail, ok = f"{type(error).__name__}: {error}", False
        except (
            Exception
        ) as error:  # a defect of the story itself must show as a failed step, not end the report
            detail, ok = f"{type(error).__name__}: {error}", False
        seconds = perf_counter() - started
        self.steps.append(Step(name, requirements, ok, round(seconds, 2), detail))
        out.print(
            f"  {'ok ' if ok else 'NO '} {seconds:6.1f} s  {name}",
            markup=False,
            style=None if ok else "bold red",
        )
        if detail:
            out.print(f"                {detail}", markup=False, style="dim")
        return ok

    def write(self, file: Path) -> None:
        """Write the steps as JSON."""
        file.write_text(
            json.dumps({"steps": [asdict(step) for step in self.steps]}, indent=1, ensure_ascii=False),
            "utf-8",
        )


def hold(condition: object, complaint: str) -> None:
    """Raise NotHeld with `complaint` unless the condition is true."""
    if not condition:
        raise NotHeld(complaint)
