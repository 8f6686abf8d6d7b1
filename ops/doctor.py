"""`accord doctor`: a look at a node from outside, step by step, in words.

Steps are settings, disk, database, version, keys, clock, roster, port (of each door), certificate and name. One that fails
says what to do; steps that need a failed one are left out. Nothing is changed: an older database stays as it is.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from cryptography import x509

from consent.errors import AccordError
from node.config import Settings, load_settings
from node.database import Database
from node.soundness import MAX_TOLD, Soundness
from node.tls import client_context
from ops.foundation import Foundation, opened
from ops.migrate import schema_of

MIN_FREE_BYTES = 2 * 1024**3
MAX_CLOCK_BEHIND_SECONDS = 60.0
MIN_CERTIFICATE_DAYS = 3
ANSWER_SECONDS = 3.0
LOOK_SECONDS = 20.0


@dataclass(frozen=True)
class Step:
    """One step of the examination."""

    step: str
    ok: bool
    words: str
    mend: str = ""


async def examine(folder: Path) -> list[Step]:
    """Examine the node in `folder`: settings, disk, database, version, keys, clock, roster, ports, certificate and names."""
    try:
        settings = load_settings(folder)
    except AccordError as error:
        return [Step("settings", False, error.message, error.mend)]
    steps = [Step("settings", True, f"{settings.node.name} ({settings.node.id})"), _disk(settings)]
    steps += await _database(settings)
    versions = await _version(settings)
    if not versions.ok:
        return [*steps, versions]
    try:
        async with opened(folder, upgrade=False) as node:
            roster = f", roster {node.members.version}" if node.members.version else ", no roster"
            steps.append(replace(versions, words=versions.words + roster))
            steps.append(Step("keys", True, "the credential opens the keystore and the database"))
            steps.append(_clock(node))
            steps.append(_roster(node))
            steps += await _listeners(node)
    except AccordError as error:
        steps += [versions, Step("keys", False, error.message, error.mend)]
    return steps


async def _version(settings: Settings) -> Step:
    """Whether this version of the software and the schema of the database belong together."""
    software = f"Accord {version('accord-imaging')}"
    database = Database(settings.database_url)
    try:
        schema = await schema_of(database)
    except AccordError as error:
        return Step("version", False, f"{software}: {error.message}", error.mend)
    finally:
        await database.close()
    if schema.current is None:
        return Step(
            "version", False, "the database is not there", "Restore it, or correct storage in node.toml."
        )
    if schema.older:
        words = f"{software} needs schema {schema.head}; the database has {schema.current}"
        mend = "Stop the node and start it with this version: accord serve DIR upgrades it and keeps a copy."
        return Step("version", False, words, mend)
    return Step("version", True, f"{software}, schema {schema.head}")


async def _database(settings: Settings) -> list[Step]:
    """Whether the database can read every page of itself, as far as a short look goes; nothing where there is none yet."""
    database = Database(settings.database_url)
    try:
        found = await Soundness(database).look(limit_seconds=LOOK_SECONDS)
    except AccordError:  # the file is not there: the next step says so
        return []
    finally:
        await database.close()
    if not found.looked:
        return []
    if not found.finished:
        words = f"no damage found in {LOOK_SECONDS:.0f} s; accord index check looks at everything"
        return [Step("database", True, words)]
    if not found.sound:
        mend = f"accord index check {settings.folder} says more. Runbook: damaged-database.md"
        return [Step("database", False, f"damaged: {', '.join(found.names[:MAX_TOLD])}", mend)]
    return [Step("database", True, "every page and every search tree is whole")]


def _disk(settings: Settings) -> Step:
    free = shutil.disk_usage(settings.folder).free
    words = f"{free / 1024**3:.1f} GiB free"
    if free < MIN_FREE_BYTES:
        return Step("disk", False, words, "Free space or move storage.packs: a full disk refuses studies.")
    return Step("disk", True, words)


def _clock(node: Foundation) -> Step:
    behind = node.clock.behind_seconds
    if behind > MAX_CLOCK_BEHIND_SECONDS:
        mend = "Set the clock (NTP): until it catches up, time stands still for grants and sessions."
        return Step("clock", False, f"{behind:.0f} s behind the last time on record", mend)
    return Step("clock", True, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, not behind the log")


def _roster(node: Foundation) -> Step:
    members = node.members
    if members.anchor is None:
        return Step("roster", True, "not a member of a region yet (accord join DIR INVITATION)")
    try:
        roster = members.current()
    except AccordError as error:
        return Step("roster", False, error.message, error.mend)
    return Step("roster", True, f"version {members.version}, {len(roster.members)} members")


async def _listeners(node: Foundation) -> list[Step]:
    settings = node.settings
    doors = [
        ("DICOM over TLS", settings.dicom.host, settings.dicom.port),
        ("plain DICOM", settings.dicom.host, settings.dicom.plain_port),
        ("peers", settings.peer.host, settings.peer.port),
    ]
    steps = await _portal(node) if settings.http.port else [await _names(settings, None)]
    return [*steps, *[await _port(*door) for door in doors if door[2]]]


async def _portal(node: Foundation) -> list[Step]:
    """The portal's port, its certificate, and the names under which people call it."""
    settings = node.settings
    host, port = settings.http.host, settings.http.port
    found = await _port("portal", host, port)
    if not found.ok:
        return [found, await _names(settings, None)]
    context = client_context([node.identity.authority_pem])
    context.check_hostname = False
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except (OSError, TimeoutError) as error:
        why = error.reason if isinstance(error, ssl.SSLError) else type(error).__name__
        words = f"{host}:{port} does not show this node's certificate ({why})"
        mend = "Another program uses this port, or the node runs with other keys: look at who listens there."
        return [found, Step("certificate", False, words, mend), await _names(settings, None)]
    tls = writer.get_extra_info("ssl_object")
    certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True))
    protocol = str(tls.version())
    writer.close()
    return [found, _certificate(certificate, protocol), await _names(settings, certificate)]


def _certificate(certificate: x509.Certificate, protocol: str) -> Step:
    days = (certificate.not_valid_after_utc - datetime.now(UTC)).days
    words = f"{protocol}, certificate good for {days} days"
    if days < MIN_CERTIFICATE_DAYS:
        mend = "Restart the node: it makes a new certificate at every start."
        return Step("certificate", False, words, mend)
    return Step("certificate", True, words)


async def _names(settings: Settings, certificate: x509.Certificate | None) -> Step:
    """Whether every name of `http.names` leads somewhere, and stands in the certificate that answers."""
    names = settings.http.names
    lost = [name for name in names if not await _resolves(name)]
    if lost:
        mend = "Enter them in the hospital's DNS, or correct http.names in node.toml."
        return Step("name", False, f"not to be resolved from here: {', '.join(lost)}", mend)
    if certificate is None:
        return Step("name", True, f"{', '.join(names)} resolve; no certificate answered")
    shown = _names_in(certificate)
    if missing := [name for name in names if name.lower() not in shown]:
        mend = "Restart the node: its certificate takes http.names from node.toml at every start."
        return Step("name", False, f"not in the certificate that answers: {', '.join(missing)}", mend)
    return Step("name", True, f"{', '.join(names)} resolve and stand in the certificate")


async def _resolves(name: str) -> bool:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return bool(await asyncio.get_running_loop().getaddrinfo(name, None))
    except (OSError, UnicodeError, TimeoutError):
        return False


def _names_in(certificate: x509.Certificate) -> frozenset[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    addresses = (str(one) for one in extension.get_values_for_type(x509.IPAddress))
    return frozenset((*(one.lower() for one in extension.get_values_for_type(x509.DNSName)), *addresses))


async def _port(door: str, host: str, port: int) -> Step:
    """Whether somebody answers at a port that is switched on."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return _closed(door, host, port)
    writer.close()
    return Step("port", True, f"{door} answers at {host}:{port}")


def _closed(door: str, host: str, port: int) -> Step:
    """Nobody answers: either the node is down, or it could not take the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            mend = "Choose another port or address in node.toml, or end the program that holds it."
            return Step("port", False, f"{door}: {host}:{port} cannot be used: {error.strerror}", mend)
    return Step("port", False, f"{door}: nobody answers at {host}:{port}", "Start the node: accord serve DIR")
