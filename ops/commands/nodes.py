"""`accord init`, `accord serve`, `accord doctor`: one hospital's node from an empty folder to a running service."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Annotated

import typer

from consent.vocabulary import EventKind, Role
from node.audit.log import Event
from node.config import new_settings
from ops.commands.arguments import Folder, Json, operator
from ops.console import JSON_OPTION, speaks, tell
from ops.doctor import Step, examine
from ops.foundation import create_folder, opened
from ops.service import serve_node

ADMINISTRATOR = "admin"


@speaks
def init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="The hospital's name as people read it.")],
    ae_title: Annotated[str, typer.Option(help="The AE title that devices call.")],
    node_id: Annotated[
        str, typer.Option(help="Short name among members; made from the name when left out.")
    ] = "",
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="Portal, DICOMweb and API.")] = 8443,
    dicom_port: Annotated[int, typer.Option(min=0, max=65535, help="DICOM over mutual TLS.")] = 2762,
    plain_dicom_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="For devices registered as plain; 0 closes it.")
    ] = None,
    peer_port: Annotated[int, typer.Option(min=0, max=65535, help="For other members.")] = 8444,
    as_json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """Make a node: settings, keystore, database and the administrator's account. Asks nothing.

    Example: accord init /srv/accord --name "General Hospital" --ae-title GENERAL
    """
    plain = plain_dicom_port if plain_dicom_port is not None else _plain_beside(dicom_port)
    settings = new_settings(
        folder,
        node={"id": node_id or slug(name), "name": name, "ae_title": ae_title},
        http={"port": http_port},
        dicom={"port": dicom_port, "plain_port": plain},
        peer={"port": peer_port},
    )
    create_folder(settings)
    once = asyncio.run(_first_account(folder))
    words = (
        f"Made {folder}: node.toml explains every setting.\n"
        f"Administrator: sign in as {ADMINISTRATOR!r} with the one-time password {once}\n"
        f"Keep {settings.keys.credential_file} on another medium: without it nothing in this folder opens.\n"
        f"Next: accord serve {folder}"
    )
    value = {"folder": str(folder), "node": settings.node.id, "login": ADMINISTRATOR, "one_time": once}
    tell(words, value, as_json=as_json)


@speaks
def serve(folder: Folder, as_json: Json = False) -> None:
    """Run the node until SIGTERM or Ctrl-C. Prints one line `ready` with its addresses.

    Example: accord serve /srv/accord
    """
    asyncio.run(serve_node(folder, as_json=as_json))


@speaks
def doctor(folder: Folder, as_json: Json = False) -> None:
    """Look at a node from outside and say in words which step fails; exits 1 when one does.

    Example: accord doctor /srv/accord
    """
    steps = asyncio.run(examine(folder))
    tell("\n".join(map(_line, steps)), {"findings": [vars(step) for step in steps]}, as_json=as_json)
    if not all(step.ok for step in steps):
        raise typer.Exit(1)


def slug(name: str) -> str:
    """A node id made from a name: lower case, words joined by '-'; a name without Latin letters gives 'node'."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return "-".join(words)[:32].strip("-") if len("".join(words)) > 1 else "node"


def _plain_beside(dicom_port: int) -> int:
    """11112 beside the standard TLS port; otherwise the next port, so that two nodes on one machine do not meet."""
    if dicom_port == 2762:
        return 11112
    return 0 if dicom_port in (0, 65535) else dicom_port + 1


async def _first_account(folder: Path) -> str:
    async with opened(folder) as node:
        await node.log.record(
            Event(EventKind.NODE_INITIALISED, operator(), detail={"node": node.identity.node_id})
        )
        await node.registry.add_person(ADMINISTRATOR, "Administrator", Role.ADMINISTRATOR, by=operator())
        return await node.registry.create_one_time(ADMINISTRATOR, by=operator())


def _line(one: Step) -> str:
    mark = "ok  " if one.ok else "FAIL"
    return f"{mark} {one.step}: {one.words}" + (f"\n     {one.mend}" if one.mend else "")
