"""`accord device`: the machines that may send."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from consent.errors import Invalid, NotFound
from consent.vocabulary import EventKind
from node.access.certificates import MAX_OVERLAP, OVERLAP, read_certificate
from node.access.devices import SENDING, Device, DeviceState, check_ae_title
from node.access.live import LiveDevice, live_devices, refusal_words
from node.audit.event import Event
from node.durable import write_new, write_over
from ops.commands.arguments import Folder, Json, operator
from ops.console import speaks, tell, tell_table
from ops.foundation import Foundation, opened
from ops.lock import in_use

MAX_CERTIFICATE_BYTES = 64 * 1024

devices = typer.Typer(help="Imaging devices.", no_args_is_help=True)
AeTitle = Annotated[str, typer.Option(help="The device's AE title.")]


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
    """List the registered devices with what they do now; exits 1 when a row was altered outside the node.

    Example: accord device list /srv/accord
    """
    found, altered = asyncio.run(_live(folder))
    columns = ("device", "now", "last seen", "images", "refused", "address", "certificate")
    value = {"devices": [one.to_json() for one in found], "altered": list(altered)}
    tell_table(columns, [_row(one) for one in found], value, as_json=as_json)
    if altered:
        if not as_json:
            tell(f"Changed outside this node, and refused: {', '.join(altered)}.", value, as_json=False)
        raise typer.Exit(1)


@devices.command("show")
@speaks
def show_device(
    folder: Folder,
    ae_title: AeTitle,
    as_json: Json = False,
) -> None:
    """Show one device: what it is registered for, what it does now, and why it was refused last.

    Example: accord device show /srv/accord --ae-title CT1
    """
    found, _altered = asyncio.run(_live(folder))
    one = next((live for live in found if live.device.ae_title == ae_title.strip()), None)
    if one is None:
        raise NotFound("There is no such device.", mend="List them: accord device list DIR")
    tell("\n".join(_lines(one)), one.to_json(), as_json=as_json)


@devices.command("set-agent")
@speaks
def set_agent(
    folder: Folder,
    ae_title: AeTitle,
    agent: Annotated[str, typer.Option(metavar="KEY", help="What accord edge init printed: 64 hex digits.")],
    as_json: Json = False,
) -> None:
    """Say that an edge agent stands beside a device: from then on its media must be wiped before it leaves service.

    Example: accord device set-agent /srv/accord --ae-title CT1 --agent 3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29
    """

    async def run() -> None:
        async with opened(folder) as node:
            await node.registry.set_agent(ae_title, agent, by=operator())

    asyncio.run(run())
    tell(f"An edge agent stands beside {ae_title}.", {"ae_title": ae_title, "agent": agent}, as_json=as_json)


@devices.command("set-state")
@speaks
def set_state(
    folder: Folder,
    ae_title: AeTitle,
    state: Annotated[
        DeviceState, typer.Option(help="Retired is for good: it comes back by being added anew.")
    ],
    reason: Annotated[str, typer.Option(help="Why, for the log and for whoever looks.")] = "",
    wipe_certificate: Annotated[
        Path | None, typer.Option(help="What accord edge wipe wrote; needed where an edge agent stands.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put a device in use, in maintenance or out of use. What it has open then is ended within two seconds.

    Example: accord device set-state /srv/accord --ae-title CT1 --state maintenance --reason "new tube"
    """
    wipe = None if wipe_certificate is None else _read_text(wipe_certificate, "wipe certificate")

    async def run() -> None:
        async with opened(folder) as node:
            await node.registry.set_device_state(ae_title, state, by=operator(), reason=reason, wipe=wipe)

    asyncio.run(run())
    tell(f"{ae_title} is {state.value} now.", {"ae_title": ae_title, "state": state.value}, as_json=as_json)


@devices.command("move")
@speaks
def move_device(
    folder: Folder,
    ae_title: AeTitle,
    address: Annotated[str, typer.Option(metavar="IP", help="Its new address, or a range.")],
    as_json: Json = False,
) -> None:
    """Give a registered device another address; everything else stays.

    Example: accord device move /srv/accord --ae-title CT1 --address 10.1.2.4
    """

    async def run() -> str:
        async with opened(folder) as node:
            return (await node.registry.move_device(ae_title, address, by=operator())).address

    place = asyncio.run(run())
    tell(f"{ae_title} is at {place} now.", {"ae_title": ae_title, "address": place}, as_json=as_json)


@devices.command("renew-certificate")
@speaks
def renew_certificate(
    folder: Folder,
    ae_title: AeTitle,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Issue a new one and write it with its key here.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Or take this one, the device's own (PEM).")
    ] = None,
    overlap_days: Annotated[
        int, typer.Option(min=0, max=MAX_OVERLAP.days, help="Days during which both are let in.")
    ] = OVERLAP.days,
    as_json: Json = False,
) -> None:
    """Give a registered device a new certificate; the present one is let in beside it while they overlap.

    Example: accord device renew-certificate /srv/accord --ae-title CT1 --out ct1-renewed/
    """
    if (out is None) == (certificate is None):
        raise Invalid(
            "Say which certificate.", mend="Give either --out FOLDER or --certificate FILE.", code="renewal"
        )
    pem = None if certificate is None else _read_certificate(certificate)

    async def run() -> Device:
        async with opened(folder) as node:
            device = await node.registry.device(ae_title)  # before anything is written
            given = pem or await _issue(node, ae_title, out or Path(), serves=device.port is not None)
            overlap = timedelta(days=overlap_days)
            return await node.registry.renew_certificate(ae_title, given, overlap=overlap, by=operator())

    device = asyncio.run(run())
    until = device.former.until if device.former else None
    words = f"{ae_title} has a new certificate ({device.fingerprint})."
    words += f" The former one is let in until {until:%Y-%m-%d %H:%M} UTC." if until else ""
    value = {
        "ae_title": ae_title,
        "fingerprint": device.fingerprint,
        "former_until": until.isoformat() if until else None,
    }
    tell(words, value, as_json=as_json)


@devices.command("issue-certificate")
@speaks
def issue_certificate(
    folder: Folder,
    ae_title: AeTitle,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write AET.crt, AET.key and ca.crt.")],
    serves: Annotated[
        bool, typer.Option("--serves", help="For a device that this node calls too (device add --port).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a client certificate for a device from this node's own authority; then register the device with it.

    Example: accord device issue-certificate /srv/accord --ae-title CT1 --out ct1/
    """
    check_ae_title(ae_title)

    async def run() -> None:
        async with opened(folder) as node:
            await _issue(node, ae_title, out, serves=serves)

    asyncio.run(run())
    stem = _stem(ae_title)
    words = (
        f"Wrote {stem}.crt, {stem}.key and ca.crt to {out}. Move the key to the device and delete it here."
    )
    files = sorted((f"{stem}.key", f"{stem}.crt", "ca.crt"))
    tell(words, {"folder": str(out), "files": files}, as_json=as_json)


async def _issue(node: Foundation, ae_title: str, out: Path, *, serves: bool) -> str:
    """Make a certificate from the node's own authority, on record; write it and its key; return it."""
    pair = node.identity.issue_device_certificate(ae_title, node.clock.now(), serves=serves)
    certificate, stem = pair.certificate.decode(), _stem(ae_title)
    out.mkdir(parents=True, exist_ok=True)
    write_new(out / f"{stem}.key", pair.key)
    write_new(out / f"{stem}.crt", pair.certificate, mode=0o644)
    write_over(out / "ca.crt", node.identity.authority_pem.encode(), mode=0o644)
    detail = {"ae_title": ae_title, "fingerprint": read_certificate(certificate)[1]}
    await node.log.record(Event(EventKind.DEVICE_CERTIFICATE_ISSUED, operator(), detail=detail))
    return certificate


async def _live(folder: Path) -> tuple[tuple[LiveDevice, ...], tuple[str, ...]]:
    """The devices as the running node last wrote them down, and those whose rows were altered."""
    async with opened(folder) as node:
        survey, activities = await node.registry.survey(), await node.registry.activity()
        running = in_use(node.settings.folder)
        now = node.clock.now()
        return live_devices(survey, activities, (), now, running=running), survey.altered


def _row(one: LiveDevice) -> list[str]:
    """Today's numbers; a device that is not in use shows its state instead of what it does."""
    device, activity = one.device, one.activity
    now = "connected" if one.associated else "refused" if one.troubled else "idle"
    ends = device.certificate_ends
    return [
        device.ae_title,
        now if device.state is DeviceState.ACTIVE else device.state.value,
        _minute(one.last_seen),
        str(activity.instances),
        str(activity.refusals),
        device.place,
        f"{ends:%Y-%m-%d}" if ends else "plain",
    ]


def _lines(one: LiveDevice) -> list[str]:
    """One device in words."""
    device, activity = one.device, one.activity
    since = f" since {_minute(device.since)}" if device.since else ""
    lines = [
        f"{device.ae_title} is {device.state.value}{since}"
        + (f": {device.state_reason}" if device.state_reason else ""),
        f"registered at {device.place} to {' '.join(sorted(device.services))}",
    ]
    if device.certificate_ends:
        lines.append(f"certificate {device.fingerprint} until {device.certificate_ends:%Y-%m-%d}")
    else:
        lines.append(f"plain DICOM: {device.plain_reason}")
    if device.former:
        lines.append(
            f"former certificate {device.former.fingerprint} let in until {_minute(device.former.until)}"
        )
    if device.agent:
        lines.append(f"edge agent {device.agent}")
    lines.append(f"associations now {one.associated}, last seen {_minute(one.last_seen)}")
    lines.append(f"today {activity.instances} images, {activity.refusals} refusals")
    if activity.refusal:
        lines.append(f"last refused {_minute(activity.refusal.at)} from {activity.refusal.address}:")
        lines += [f"  {fault} {mend}".rstrip() for fault, mend in refusal_words(activity.refusal, str)]
    return lines


def _minute(moment: datetime | None) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M}" if moment else "-"


def _stem(ae_title: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in ae_title)


def _read_certificate(file: Path) -> str:
    return _read_text(file, "certificate", mend="Convert it: openssl x509 -inform DER -in …")


def _read_text(file: Path, what: str, *, mend: str = "") -> str:
    if not file.is_file():
        raise NotFound(f"The {what} {file} is not there.")
    if file.stat().st_size > MAX_CERTIFICATE_BYTES:
        raise Invalid(f"{file} is too large for a {what}.")
    try:
        return file.read_text("ascii")
    except UnicodeDecodeError as error:
        raise Invalid(f"{file} is not a {what} in text form.", mend=mend) from error
