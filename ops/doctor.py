"""`accord doctor`: a look at a node from outside, step by step, in words.

Each step that fails says what to do; steps that need a failed one are left out. Nothing is changed.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from consent.errors import AccordError
from node.config import Settings, load_settings
from node.tls import client_context
from ops.foundation import Foundation, opened

MIN_FREE_BYTES = 2 * 1024**3
MIN_CERTIFICATE_DAYS = 3
ANSWER_SECONDS = 3.0


@dataclass(frozen=True)
class Finding:
    """One step of the examination."""

    step: str
    ok: bool
    words: str
    mend: str = ""


async def examine(folder: Path) -> list[Finding]:
    """Examine the node in `folder`: settings, keys, clock, disk, roster, listeners and their certificates."""
    try:
        settings = load_settings(folder)
    except AccordError as error:
        return [Finding("settings", False, error.message, error.mend)]
    findings = [Finding("settings", True, f"{settings.node.name} ({settings.node.id})"), _disk(settings)]
    try:
        async with opened(folder) as node:
            findings.append(Finding("keys", True, "the credential opens the keystore and the database"))
            findings.append(_clock(node))
            findings.append(_roster(node))
            findings += await _listeners(node)
    except AccordError as error:
        findings.append(Finding("keys", False, error.message, error.mend))
    return findings


def _disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(settings.folder).free
    words = f"{free / 1024**3:.1f} GiB free"
    if free < MIN_FREE_BYTES:
        return Finding("disk", False, words, "Free space or move storage.packs: a full disk refuses studies.")
    return Finding("disk", True, words)


def _clock(node: Foundation) -> Finding:
    behind = node.clock.behind_seconds
    if behind > 60:
        mend = "Set the clock (NTP): until it catches up, time stands still for grants and sessions."
        return Finding("clock", False, f"{behind:.0f} s behind the last time on record", mend)
    return Finding("clock", True, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, not behind the log")


def _roster(node: Foundation) -> Finding:
    members = node.members
    if members.anchor is None:
        return Finding("roster", True, "not a member of a region yet (accord join DIR INVITATION)")
    try:
        roster = members.current()
    except AccordError as error:
        return Finding("roster", False, error.message, error.mend)
    return Finding("roster", True, f"version {members.version}, {len(roster.members)} members")


async def _listeners(node: Foundation) -> list[Finding]:
    settings = node.settings
    context = client_context([node.identity.authority_pem])
    context.check_hostname = False
    doors = [
        ("portal", settings.http.host, settings.http.port, context),
        ("DICOM over TLS", settings.dicom.host, settings.dicom.port, None),
        ("plain DICOM", settings.dicom.host, settings.dicom.plain_port, None),
        ("peers", settings.peer.host, settings.peer.port, None),
    ]
    return [await _door(*door) for door in doors if door[2]]


async def _door(name: str, host: str, port: int, context: ssl.SSLContext | None) -> Finding:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except ssl.SSLError as error:
        mend = "Another program uses this port, or the node runs with other keys: look at who listens there."
        return Finding(
            name, False, f"{host}:{port} does not show this node's certificate ({error.reason})", mend
        )
    except (OSError, TimeoutError):
        return _closed(name, host, port)
    tls = writer.get_extra_info("ssl_object")
    writer.close()
    words = f"answers at {host}:{port}"
    if tls is None:
        return Finding(name, True, words)
    certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True))
    days = (certificate.not_valid_after_utc - datetime.now(UTC)).days
    words += f", {tls.version()}, certificate good for {days} days"
    if days < MIN_CERTIFICATE_DAYS:
        return Finding(name, False, words, "Restart the node: it makes a new certificate at every start.")
    return Finding(name, True, words)


def _closed(name: str, host: str, port: int) -> Finding:
    """Nobody answers: either the node is down, or it could not take the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            mend = "Choose another port or address in node.toml, or end the program that holds it."
            return Finding(name, False, f"{host}:{port} cannot be used: {error.strerror}", mend)
    return Finding(name, False, f"nobody answers at {host}:{port}", "Start the node: accord serve DIR")
