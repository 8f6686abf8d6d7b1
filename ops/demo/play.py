"""Playing the demonstration: set the region up, tell the story, and either stop or stay up until Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from consent.errors import AccordError
from ops.demo.region import PEOPLE, Region, founded
from ops.demo.report import Report, out
from ops.demo.story import Story


def play(*, check: bool, report: Path | None, folder: Path | None) -> int:
    """Play; return the exit code. With `check` stop after the story, else stay up."""
    with _folder(folder) as place:
        return asyncio.run(_play(place, check=check, report_file=report))


@contextmanager
def _folder(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        yield folder.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="accord-demo-") as place:
        yield Path(place)


async def _play(place: Path, *, check: bool, report_file: Path | None) -> int:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def stop() -> None:
        stopped.set()
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    report = Report()
    started = perf_counter()
    out.print(
        "Accord: a hub and three hospitals on this machine, each its own process, talking over TLS only.\n"
    )
    try:
        async with founded(place) as region:
            out.print(
                f"  up   {perf_counter() - started:6.1f} s  hub, {', '.join(s.name for s in region.hospitals)}\n"
            )
            await Story(region, report).play()
            if report_file is not None:
                report.write(report_file)
            _summary(report, perf_counter() - started)
            if not check:
                _invite(region)
                await asyncio.Event().wait()
    except AccordError as error:
        out.print(f"\nThe region did not start. {error}", markup=False, style="bold red")
        return 1
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise
        out.print("\nEnded everything that was started.")
    return 0 if report.ok else 1


def _summary(report: Report, seconds: float) -> None:
    held = sum(step.ok for step in report.steps)
    out.print(f"\n{held} of {len(report.steps)} steps held, {seconds:.0f} s.\n")


def _invite(region: Region) -> None:
    out.print("The region stays up. Portals (each shows a certificate of its own authority; accept it):")
    for site in region.sites:
        out.print(f"  {site.name:<18} {site.portal}")
    out.print("\nSign in as")
    for at, login, name, role in PEOPLE:
        out.print(
            f"  {role:<17} {login:<15} {region.passwords[at, login]:<18} at {region.site(at).name} ({name})"
        )
    out.print("\nCtrl-C ends everything.")
