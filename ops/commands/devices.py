"""`accord device`: the machines that may send."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from consent.errors import Conflict, Invalid, NotFound
from consent.vocabulary import EventKind
from node.access.certificates import read_certificate
from node.access.devices import SENDING, check_ae_title
from node.audit.event import Event
from ops.commands.arguments import Folder, Json, operator
from ops.console import speaks, tell, tell_table
from ops.foundation import opened

MAX_CERTIFICATE_BYTES = 64 * 1024

devices = typer.Typer(help="Imaging devices.", no_args_is_help=True)


@devices.command("add")
@speaks
def add_device(
    folder: Folder,
    ae_title: Annotated[str, typer.Option(help="The AE title by which the device calls.")],
    address: Annotated[str, typer.Option(metavar="IP", help="Its address, or a range such as 10.1.2.0/28.")],
    certificate: Annotated[Path | None, typer.Option(help="Its client certificate (PEM).")] = None,
    plain: Annotated[str | None, typer.Option(metavar="REASON", help="Why it cannot use TLS.")] = None,
    department: Annotated[
        str | None, typer.Option(help="The department it stands in, and whose studies it may query.")
    ] = None,
    service: Annotated[
        list[str] | None, typer.Option(help="store, commit, query, retrieve; store and commit by default.")
    ] = None,
    purpose: Annotated[str, typer.Option(help="Why it queries: TREAT, ETREAT or HQUALIMP.")] = "TREAT",
    port: Annotated[int | None, typer.Option(help="Where we call it: C-MOVE, commitment reports.")] = None,
    as_json: Json = False,
) -> None:
    """Register a device, or register it anew.

    Example: accord device add /srv/accord --ae-title CT1 --address 10.1.2.3 --certificate ct1.crt
    """
    pem = None if certificate is None else _read_certificate(certificate)

    async def run() -> dict[str, str | None]:
        async with opened(folder) as node:
            device = await node.registry.add_device(
                ae_title,
                address,
                pem,
                plain,
                department=department,
                services=service or sorted(SENDING),
                purpose=purpose,
                port=port,
                by=operator(),
            )
            return {
                "ae_title": device.ae_title,
                "address": device.address,
                "fingerprint": device.fingerprint,
                "services": " ".join(sorted(device.services)),
            }

    device = asyncio.run(run())
    how = f"certificate {device['fingerprint']}" if device["fingerprint"] else "plain DICOM"
    words = f"{device['ae_title']} may {device['services']} from {device['address']} ({how})."
    tell(words, device, as_json=as_json)


@devices.command("list")
@speaks
def list_devices(folder: Folder, as_json: Json = False) -> None:
    """List the registered devices.

    Example: accord device list /srv/accord
    """

    async def run() -> list[dict[str, str]]:
        async with opened(folder) as node:
            return [
                {
                    "ae_title": device.ae_title,
                    "address": device.address,
                    "channel": "TLS" if device.fingerprint else f"plain: {device.plain_reason}",
                    "services": " ".join(sorted(device.services)),
                    "state": device.state,
                }
                for device in await node.registry.devices()
            ]

    found = asyncio.run(run())
    columns = ("ae_title", "address", "channel", "services", "state")
    tell_table(columns, [[device[column] for column in columns] for device in found], found, as_json=as_json)


@devices.command("issue-certificate")
@speaks
def issue_certificate(
    folder: Folder,
    ae_title: Annotated[str, typer.Option(help="The device's AE title.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write AET.crt, AET.key and ca.crt.")],
    as_json: Json = False,
) -> None:
    """Make a client certificate for a device from this node's own authority; then register the device with it.

    Example: accord device issue-certificate /srv/accord --ae-title CT1 --out ct1/
    """
    check_ae_title(ae_title)

    async def run() -> tuple[str, str, str]:
        async with opened(folder) as node:
            pair = node.identity.issue_device_certificate(ae_title, node.clock.now())
            fingerprint = read_certificate(pair.certificate.decode())[1]
            detail = {"ae_title": ae_title, "fingerprint": fingerprint}
            await node.log.record(Event(EventKind.DEVICE_CERTIFICATE_ISSUED, operator(), detail=detail))
            return pair.certificate.decode(), pair.key.decode(), node.identity.authority_pem

    certificate, key, authority = asyncio.run(run())
    stem = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in ae_title)
    out.mkdir(parents=True, exist_ok=True)
    files = {f"{stem}.key": (key, 0o600), f"{stem}.crt": (certificate, 0o644), "ca.crt": (authority, 0o644)}
    for name, (text, mode) in files.items():
        _write_new(out / name, text, mode, again=name == "ca.crt")
    words = (
        f"Wrote {stem}.crt, {stem}.key and ca.crt to {out}. Move the key to the device and delete it here."
    )
    tell(words, {"folder": str(out), "files": sorted(files)}, as_json=as_json)


def _write_new(file: Path, text: str, mode: int, *, again: bool) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if again else os.O_EXCL), mode)
    except FileExistsError as error:
        raise Conflict(
            f"{file} is there already.", mend="Give another folder; a key is never overwritten."
        ) from error
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(text)


def _read_certificate(file: Path) -> str:
    if not file.is_file():
        raise NotFound(f"The certificate {file} is not there.")
    if file.stat().st_size > MAX_CERTIFICATE_BYTES:
        raise Invalid(f"{file} is too large for a certificate.")
    try:
        return file.read_text("ascii")
    except UnicodeDecodeError as error:
        raise Invalid(
            f"{file} is not a PEM certificate.", mend="Convert it: openssl x509 -inform DER -in …"
        ) from error
