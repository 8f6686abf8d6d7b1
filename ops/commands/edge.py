"""`accord edge`: the agent beside a modality."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from consent.errors import Conflict, Invalid, NotFound
from node.clock import TrustedClock
from node.durable import write_over
from node.edge.settings import FILE_NAME, EdgeSettings, load_edge, new_edge, write_edge
from ops.commands.arguments import Json
from ops.console import speaks, tell
from ops.lock import sole_user

MAX_PEM_BYTES = 64 * 1024

edge = typer.Typer(help="The agent beside a modality.", no_args_is_help=True)
EdgeFolder = Annotated[Path, typer.Argument(metavar="DIR", help="The agent's folder.")]


@edge.command("init")
@speaks
def init(
    folder: EdgeFolder,
    ae_title: Annotated[str, typer.Option(help="The device's AE title at the node.")],
    node: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The node's DICOM TLS port; '' to discover it.")
    ],
    called: Annotated[str, typer.Option(help="The node's AE title.")],
    certificate: Annotated[Path, typer.Option(help="The device's certificate (PEM).")],
    key: Annotated[Path, typer.Option(help="Its private key (PEM).")],
    authority: Annotated[
        Path, typer.Option(help="The authority of the node's certificate (PEM): trusted alone.")
    ],
    listen_port: Annotated[int, typer.Option(help="Port on 127.0.0.1 for the modality.")] = 11112,
    listen_ae_title: Annotated[
        str, typer.Option(help="What the modality calls; the node's AE title by default.")
    ] = "",
    discover: Annotated[
        str, typer.Option(metavar="IP", help="Interface on which to look for the node.")
    ] = "",
    max_gib: Annotated[float, typer.Option(help="How much may wait on this disk.")] = 20.0,
    as_json: Json = False,
) -> None:
    """Make an agent: settings, spool key, agent key. Then tell the node its key and start it.

    Example: accord edge init /srv/edge --ae-title CT1 --node 10.1.0.5:2762 --called GENERAL --certificate CT1.crt --key CT1.key --authority ca.crt
    """
    from node.edge.agent import create

    host, port = _address(node)
    settings = new_edge(
        folder,
        edge={"ae_title": ae_title},
        listen={"port": listen_port, "ae_title": listen_ae_title or called},
        node={"ae_title": called, "host": host, "port": port, "discover": discover},
        spool={"max_bytes": int(max_gib * 1024**3)},
    )
    if (settings.folder / FILE_NAME).exists():
        raise Conflict(f"{settings.folder} holds an agent already.", mend="Choose another folder.")
    public = create(settings, _pem(certificate), _pem(key), _pem(authority))
    write_edge(settings)
    tell(
        f"Made {settings.folder}: edge.toml explains every setting.\n"
        f"Agent key: {public}\n"
        f"At the node: accord device set-agent DIR --ae-title {ae_title} --agent {public}\n"
        f"Next: accord edge serve {folder}",
        {"folder": str(settings.folder), "agent": public},
        as_json=as_json,
    )


@edge.command("serve")
@speaks
def serve(folder: EdgeFolder, as_json: Json = False) -> None:
    """Run the agent until SIGTERM or Ctrl-C. Prints one line `ready` with its address.

    Example: accord edge serve /srv/edge
    """
    from node.edge.agent import running
    from ops.service import set_up_logs, until_signalled

    settings = load_edge(folder)
    set_up_logs()
    with sole_user(settings.folder):
        asyncio.run(until_signalled(running(settings, TrustedClock()), None, as_json=as_json))


@edge.command("status")
@speaks
def status(folder: EdgeFolder, as_json: Json = False) -> None:
    """Say what waits, what the node has, and what is in the way.

    Example: accord edge status /srv/edge
    """
    settings = load_edge(folder)
    try:
        found = json.loads(settings.status_file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise NotFound("The agent has not run yet.", mend=f"Start it: accord edge serve {folder}") from error
    except ValueError as error:
        raise Invalid(f"{settings.status_file} is malformed.", mend="Restart the agent.") from error
    tell(_status_words(settings, found), found, as_json=as_json)


@edge.command("wipe")
@speaks
def wipe(
    folder: EdgeFolder,
    discard: Annotated[
        bool, typer.Option("--discard", help="Also when instances wait that the node lacks.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Destroy the spool before the machine leaves; write a signed wipe certificate. The agent must be stopped.

    Example: accord edge wipe /srv/edge
    """
    from node.edge.agent import read_agent_key
    from node.edge.wiping import CERTIFICATE_NAME, forget
    from node.edge.wiping import wipe as carry_out

    settings = load_edge(folder)
    with sole_user(settings.folder):
        wiped = carry_out(settings, read_agent_key(settings), TrustedClock(), discard=discard)
    file = settings.folder / CERTIFICATE_NAME
    write_over(file, wiped.statement.token.encode() + b"\n", mode=0o644)
    forget(settings)
    body = wiped.statement.body
    tell(
        f"Wiped: {', '.join(body.done)}.\n"
        f"{wiped.segments} segments, {wiped.size_bytes} bytes, were overwritten.\n"
        f"Not proved: {', '.join(body.unproven)}.\n"
        f"Wipe certificate: {file}\n"
        f"At the node: accord device set-state DIR --ae-title {body.device} --state retired --wipe-certificate {file}",
        {
            "certificate": str(file),
            "done": list(body.done),
            "unproven": list(body.unproven),
            "segments": wiped.segments,
            "bytes": wiped.size_bytes,
        },
        as_json=as_json,
    )


def _status_words(settings: EdgeSettings, found: dict[str, object]) -> str:
    lines = [
        f"{found.get('ae_title')}: {found.get('waiting')} instances wait ({found.get('spool_bytes')} of "
        f"{settings.spool.max_bytes} bytes); since its start {found.get('sent')} sent, {found.get('committed')} committed.",
        f"As of {found.get('at')}; node last reached {found.get('node_reached') or 'never since the start'}.",
    ]
    if found.get("trouble"):
        lines.append(f"In the way: {found['trouble']}")
    refused = found.get("not_taken")
    if isinstance(refused, dict):
        lines += [f"Not taken: {name}: {reason}" for name, reason in refused.items()]
    damaged = found.get("damaged_segments")
    if isinstance(damaged, list) and damaged:
        lines.append(f"Damaged segments, left where they are: {', '.join(map(str, damaged))}")
    return "\n".join(lines)


def _address(text: str) -> tuple[str, int]:
    if not text:
        return "", 2762
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536 or not host:
        raise Invalid(f"{text!r} is not HOST:PORT.", mend="For example --node 10.1.0.5:2762")
    return host.strip("[]"), int(port)


def _pem(file: Path) -> bytes:
    try:
        if file.stat().st_size > MAX_PEM_BYTES:
            raise Invalid(f"{file} is too large for a certificate or key.")
        return file.read_bytes()
    except OSError as error:
        raise NotFound(f"{file} cannot be read: {error.strerror}.") from error
