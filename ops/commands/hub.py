"""`accord hub` and `accord join`: the region's hub, and entering a region with one file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from consent.errors import Conflict, Invalid, NotFound
from consent.vocabulary import EventKind, Role
from node.audit.log import Event
from node.config import new_settings
from node.durable import write_new
from ops.commands.arguments import Folder, Json, operator
from ops.console import speaks, tell
from ops.foundation import create_folder, opened
from ops.service import serve_hub

OPERATOR = "operator"
SEEN = {
    True: "The running node knows it.",
    False: "The running node does not show it yet: look at its output, or restart it.",
    None: "No node answers here now; it knows its region when it starts: accord serve {folder}",
}
"""What `accord join` says of the node that runs in the folder: whether it has seen the roster."""

hub = typer.Typer(help="The hub of a region.", no_args_is_help=True)


@hub.command("init")
@speaks
def init_hub(
    folder: Folder,
    region: Annotated[str, typer.Option(help="Short name of the region: a-z, 0-9 and '-'.")],
    name: Annotated[str, typer.Option(help="The hub's name as people read it.")] = "Regional hub",
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="Pages and API.")] = 9443,
    peer_port: Annotated[int, typer.Option(min=0, max=65535, help="For members.")] = 9444,
    as_json: Json = False,
) -> None:
    """Make a hub: its keys, the region's roster with the hub on it, and the operator's account.

    Example: accord hub init /srv/hub --region delta
    """
    from federation.roster import REGION

    if not REGION.fullmatch(region):
        raise Invalid(f"{region!r} cannot name a region.", mend="Use 2 to 64 of a-z, 0-9 and '-'.")
    settings = new_settings(
        folder,
        node={"id": "hub", "name": name, "kind": "hub"},
        http={"port": http_port},
        dicom={"port": 0, "plain_port": 0},
        peer={"port": peer_port},
    )
    create_folder(settings)
    once = asyncio.run(_found_region(folder, region))
    words = (
        f"Made {folder}: the hub of region {region}.\n"
        f"Operator: sign in as {OPERATOR!r} with the one-time password {once}\n"
        f"Next: accord hub serve {folder}, then accord hub invite {folder} --out invitation.accord"
    )
    tell(
        words, {"folder": str(folder), "region": region, "login": OPERATOR, "one_time": once}, as_json=as_json
    )


@hub.command("serve")
@speaks
def serve(folder: Folder, as_json: Json = False) -> None:
    """Run the hub until SIGTERM or Ctrl-C. Prints one line `ready` with its addresses.

    Example: accord hub serve /srv/hub
    """
    asyncio.run(serve_hub(folder, as_json=as_json))


@hub.command("invite")
@speaks
def invite(
    folder: Folder,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the invitation.")],
    note: Annotated[str, typer.Option(help="For whom it is.")] = "",
    hours: Annotated[float, typer.Option(help="How long it can be used.")] = 72.0,
    as_json: Json = False,
) -> None:
    """Write an invitation for one hospital: one signed file, good once.

    Example: accord hub invite /srv/hub --out general.accord --note "General Hospital"
    """
    if out.exists():
        raise Conflict(f"{out} is there already.", mend="Give another file name.")

    from ops.region import build_authority

    async def run() -> str:
        async with opened(folder) as base:
            authority, own = await build_authority(base)
            return (await authority.invite(own, note=note, hours=hours, by=operator())).token

    token = asyncio.run(run())
    write_new(out, token.encode() + b"\n")
    words = f"Wrote {out}. Hand it over yourself: whoever holds it can join, once, within {hours:g} hours."
    tell(words, {"file": str(out), "hours": hours}, as_json=as_json)


@speaks
def join(
    folder: Folder,
    invitation: Annotated[
        Path, typer.Argument(metavar="INVITATION", help="The file from the hub's operator.")
    ],
    as_json: Json = False,
) -> None:
    """Enter a region. The hub must be running; may be repeated when an answer was lost.

    A node that runs in DIR need not be restarted: the command ends when that node knows its region, or says so.

    Example: accord join /srv/accord general.accord
    """
    from federation.joining import MAX_INVITATION_BYTES, read_invitation
    from federation.roster import own_entry
    from ops.region import joining, seen_by_running_node

    if not invitation.is_file():
        raise NotFound(f"{invitation} is not there.")
    if invitation.stat().st_size > MAX_INVITATION_BYTES:
        raise Invalid(f"{invitation} is too large for an invitation.")
    text = invitation.read_text("ascii", errors="replace")

    async def run() -> tuple[bool, str, bool | None]:
        async with opened(folder) as base:
            signed = read_invitation(text, base.clock.now())
            own = own_entry(base.identity.public(), base.settings.peer_url)
            async with joining(base) as following:
                listed = await following.join(signed, own)
            await base.log.record(
                Event(
                    EventKind.MEMBER_JOINED,
                    operator(),
                    detail={"region": signed.body.anchor.region, "listed": listed},
                )
            )
            seen = await seen_by_running_node(base) if listed else None
            return listed, signed.body.anchor.region, seen

    listed, region, seen = asyncio.run(run())
    words = (
        f"Listed in region {region}. {SEEN[seen].format(folder=folder)}"
        if listed
        else f"Asked to join {region}: the region's keys have yet to sign. Then repeat this command."
    )
    tell(words, {"listed": listed, "region": region, "seen": seen}, as_json=as_json)


async def _found_region(folder: Path, region: str) -> str:
    from ops.region import build_authority

    async with opened(folder) as base:
        await base.log.record(
            Event(EventKind.NODE_INITIALISED, operator(), detail={"node": base.identity.node_id})
        )
        authority, own = await build_authority(base, region=region)
        await authority.found(own)
        await base.registry.add_person(OPERATOR, "Hub operator", Role.HUB_OPERATOR, by=operator())
        return await base.registry.create_one_time(OPERATOR, by=operator())
