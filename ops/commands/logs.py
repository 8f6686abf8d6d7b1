"""`accord log`: checking the log, and proof of one entry for somebody else."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from consent.vocabulary import EventKind
from node.audit.log import Event
from node.audit.note import Verifier, cosigned_by
from node.deeds import log_altered
from ops.commands.arguments import Folder, Json, operator
from ops.console import speaks, tell
from ops.foundation import opened

logs = typer.Typer(help="The tamper-evident log.", no_args_is_help=True)


@logs.command("verify")
@speaks
def verify_log(folder: Folder, as_json: Json = False) -> None:
    """Recompute every entry, hash and signed checkpoint; exits 1 and names what was altered.

    Example: accord log verify /srv/accord
    """

    async def run() -> dict[str, Any]:
        async with opened(folder) as node:
            witnesses = [Verifier.from_vkey(one.log_vkey).as_cosigner() for one in node.members.others()]
            checked = await node.log.verify(witnesses)
            newest = await node.log.heads.latest()
            if not checked.ok:
                await node.log.record(log_altered(checked.faults, operator()))
            return {
                "ok": checked.ok,
                "entries": checked.size,
                "checkpoints": checked.checkpoints,
                "cosigned_entries": checked.cosigned,
                "cosigned_by": sorted(cosigned_by(newest, witnesses)) if newest else [],
                "faults": list(checked.faults),
            }

    value = asyncio.run(run())
    whole = f"The log is whole: {value['entries']} entries, {value['checkpoints']} checkpoints agree."
    if value["cosigned_by"]:
        whole += f"\nThe newest checkpoint is cosigned by {', '.join(value['cosigned_by'])}."
    tell("\n".join(value["faults"]) or whole, value, as_json=as_json)
    if not value["ok"]:
        raise typer.Exit(1)


@logs.command("prove")
@speaks
def prove_entry(
    folder: Folder,
    entry: Annotated[int, typer.Argument(metavar="ENTRY", help="Index of the entry, from 0.", min=0)],
    as_json: Json = False,
) -> None:
    """Print a proof file (C2SP tlog-proof) that anybody can check without this node.

    The file discloses the entry, so that it was made is on record too.

    Example: accord log prove /srv/accord 42 > entry-42.tlog-proof
    """

    async def run() -> str:
        async with opened(folder) as node:
            asked = Event(EventKind.LOG_READ, operator(), detail={"asked": {"entry": entry}, "proof": True})
            await node.log.record(asked)
            await node.log.checkpoint()
            return await node.log.proof_file(entry)

    proof = asyncio.run(run())
    tell(proof.rstrip("\n"), {"entry": entry, "proof": proof}, as_json=as_json)
