"""`accord findings`: what needs somebody, and the answer to it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from consent.errors import Invalid
from ops.checks import Checks
from ops.commands.arguments import Folder, Json, operator
from ops.console import speaks, tell
from ops.findings import MAX_PAGE, Findings
from ops.findingtables import CHOICES, Finding
from ops.findingwords import finding_json
from ops.findingwords import tell as say
from ops.foundation import Foundation, opened
from ops.sightings import Overseer


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
    found = asyncio.run(_run(folder, state, acknowledge, resolve, words))
    value: Any = [finding_json(one) for one in found]
    if answered := acknowledge or resolve:
        tell(f"{answered} is {found[0].state.value} now.", value[0], as_json=as_json)
    else:
        nothing = "Nothing needs somebody." if state == "living" else "There is none."
        tell("\n\n".join(map(_lines, found)) or nothing, value, as_json=as_json)


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
        return await kept.listed(states=CHOICES[state], limit=MAX_PAGE)


async def _look(node: Foundation, kept: Findings) -> None:
    """Bring the findings up to the log and to what can be seen without the running node's duties."""
    await Overseer(node.database, node.log, node.registry, kept).follow()
    await Checks.of(node.settings, kept, node.registry, node.log, node.clock).look()


def _lines(one: Finding) -> str:
    """One finding: what it is and where it stands, then each fault with its way out."""
    told = say(one)
    at = f"{one.last_seen.astimezone():%Y-%m-%d %H:%M}"
    often = f"{one.count} times, last " if one.count > 1 else ""
    lines = [f"{one.severity.value}: {told.title}, {told.subject} ({often}{at}; {one.state.value}) {one.id}"]
    for fault, mend in told.words:
        lines += [f"  {fault}", f"  → {mend}"] if mend else [f"  {fault}"]
    return "\n".join(lines)
