"""`accord access`: whether the rows that decide who may do what are those that this node wrote."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from consent.errors import Invalid
from ops.commands.arguments import Folder, Json, operator
from ops.console import speaks, tell
from ops.foundation import opened

MIN_REASON_CHARACTERS = 10
EVERYTHING = 2**62

access = typer.Typer(help="The sealed rows that decide who may do what.", no_args_is_help=True)


@access.command("verify")
@speaks
def verify_rows(folder: Folder, as_json: Json = False) -> None:
    """Compare every access row with its seal, its state and the log; exits 1 and names what does not fit.

    Example: accord access verify /srv/accord
    """

    async def run() -> dict[str, Any]:
        async with opened(folder) as node:
            swept = await node.access_rows.sweep(EVERYTHING)
            faults = [f"{fault.table}: {fault.row}" for fault in swept.faults]
            faults += [f"{fault.table}: {fault.row}" for fault in await node.access_rows.altered()]
            if swept.put_back:
                faults.append("The log knows of later access rows than there are: they were put back.")
            return {"ok": not faults, "rows": swept.rows, "changes": swept.changes, "faults": faults}

    value = asyncio.run(run())
    whole = f"The access rows are whole: {value['rows']} rows, {value['changes']} changes."
    tell("\n".join(value["faults"]) or whole, value, as_json=as_json)
    if not value["ok"]:
        raise typer.Exit(1)


@access.command("accept")
@speaks
def accept_rows(
    folder: Folder,
    reason: Annotated[
        str, typer.Option(help="What the inquiry found, and who decided; it goes into the log.")
    ],
    as_json: Json = False,
) -> None:
    """After an inquiry: believe the access rows as they are now. Rows that this node did not write stay refused.

    Whoever deleted rows or put old ones back has then had their way: look first at what the log says was there.

    Example: accord access accept /srv/accord --reason "Inquiry 2026-7: two withdrawn consents entered again"
    """
    if len(reason.strip()) < MIN_REASON_CHARACTERS:
        raise Invalid("Say what the inquiry found.", mend="Give --reason in a sentence.", code="reason")

    async def run() -> int:
        async with opened(folder) as node:
            return await node.access_rows.accept(operator(), reason.strip())

    count = asyncio.run(run())
    tell(f"{count} access rows are believed as they are. The log says so.", {"rows": count}, as_json=as_json)
