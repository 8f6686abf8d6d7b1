"""`accord findings`: what needs somebody, and the answer to it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from consent.errors import Invalid
from ops.checks import Checks
from ops.commands.arguments import Folder, Json, operator
from ops.console import speaks, tell, tell_table
from ops.findings import CHOICES, MAX_PAGE, Finding, Findings
from ops.foundation import Foundation, opened
from ops.sightings import Overseer, finding_json
from ops.sightings import tell as say


@speaks
def findings(
    folder: Folder,
    state: Annotated[str, typer.Option(help="living, open, acknowledged, resolved or all.")] = "living",
    acknowledge: Annotated[str | None, typer.Option(metavar="ID", help="Take this one on.")] = None,
    resolve: Annotated[str | None, typer.Option(metavar="ID", help="Close this one.")] = None,
    words: Annotated[str, typer.Option(help="What was found, or what is done about it.")] = "",
    as_json: Json = False,
) -> None:
    """List what needs somebody: refused devices, integrity faults, full disks, expiring certificates.

    Example: accord findings /srv/accord
    """
    if state not in CHOICES:
        raise Invalid("This state is not known.", mend=f"Use one of: {', '.join(CHOICES)}.")
    if acknowledge and resolve:
        raise Invalid("One answer at a time.", mend="Give either --acknowledge or --resolve.")
    answered = acknowledge or resolve
    found = asyncio.run(_run(folder, state, acknowledge, resolve, words))
    value: Any = [finding_json(one) for one in found]
    if answered:
        tell(f"{answered} is {found[0].state.value} now.", value[0], as_json=as_json)
    elif not found and not as_json:
        tell("Nothing needs somebody." if state == "living" else "None.", value, as_json=False)
    else:
        columns = ("id", "grade", "what", "about", "count", "last seen", "state")
        tell_table(columns, [_row(one) for one in found], value, as_json=as_json)
        if not as_json:
            tell("\n".join(_mends(found)), value, as_json=False)


async def _run(
    folder: Path, state: str, acknowledge: str | None, resolve: str | None, words: str
) -> list[Finding]:
    async with opened(folder) as node:
        kept = Findings(node.database, node.log, node.clock)
        if acknowledge:
            return [await kept.acknowledge(acknowledge, words, by=operator())]
        if resolve:
            return [await kept.resolve(resolve, words, by=operator())]
        await _look(node, kept)
        return await kept.list(states=CHOICES[state], limit=MAX_PAGE)


async def _look(node: Foundation, kept: Findings) -> None:
    """Bring the findings up to the log and to what can be seen without the running node's duties."""
    await Overseer(node.database, node.log, node.registry, kept).follow()
    await Checks.of(node.settings, kept, node.registry, node.log, node.clock).look()


def _row(one: Finding) -> list[str]:
    told = say(one)
    at = f"{one.last_seen.astimezone():%Y-%m-%d %H:%M}"
    return [one.id, one.severity.value, told.title, told.subject, str(one.count), at, one.state.value]


def _mends(found: list[Finding]) -> list[str]:
    """Each finding with its words and the way out, below the table."""
    lines = []
    for one in found:
        lines += ["", one.id] + [f"  {fault}\n    {mend}".rstrip() for fault, mend in say(one).words]
    return lines
