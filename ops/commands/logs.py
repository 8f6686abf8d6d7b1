"""`accord log`: checking the log, and proof of one entry for somebody else."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from node.audit.log import Log
from ops.commands.people import Folder, Json
from ops.console import speaks, tell
from ops.foundation import opened

logs = typer.Typer(help="The tamper-evident log.", no_args_is_help=True)


@logs.command("verify")
@speaks
def verify_log(folder: Folder, as_json: Json = False) -> None:
    """Recompute every entry, hash and signed checkpoint; exits 1 and names what was altered.

    Example: accord log verify /srv/accord
    """

    async def run() -> tuple[int, tuple[str, ...]]:
        async with opened(folder) as node:
            return await _verification(node.log)

    size, faults = asyncio.run(run())
    value = {"ok": not faults, "entries": size, "faults": list(faults)}
    words = "\n".join(faults) or f"The log is whole: {size} entries, every checkpoint agrees."
    tell(words, value, as_json=as_json)
    if faults:
        raise typer.Exit(1)


@logs.command("prove")
@speaks
def prove_entry(
    folder: Folder,
    entry: Annotated[int, typer.Argument(metavar="ENTRY", help="Index of the entry, from 0.", min=0)],
    as_json: Json = False,
) -> None:
    """Print a proof file (C2SP tlog-proof) that anybody can check without this node.

    Example: accord log prove /srv/accord 42 > entry-42.tlog-proof
    """

    async def run() -> str:
        async with opened(folder) as node:
            await node.log.checkpoint()
            return await node.log.proof_file(entry)

    proof = asyncio.run(run())
    tell(proof.rstrip("\n"), {"entry": entry, "proof": proof}, as_json=as_json)


async def _verification(log: Log) -> tuple[int, tuple[str, ...]]:
    result = await log.verify()
    return result.size, tuple(result.faults)
