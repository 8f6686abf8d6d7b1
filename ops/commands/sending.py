"""How `accord send` reaches whom, and by what it knows them: DIMSE with storage commitment, or STOW-RS with its credentials.

Each way returns, for every file, why it did not arrive: "" for one that did. Credentials come from files alone:
whoever lists processes sees the command line.
"""

from __future__ import annotations

import ssl
from base64 import b64encode
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from consent.errors import AccordError, Invalid, NotFound
from node.dicom.sender import Peer, Sent, send_files

if TYPE_CHECKING:
    import aiohttp

    from node.dicom.report_listener import ReportListener

MAX_CREDENTIAL_BYTES = 8 * 1024

Results = list[tuple[str, str]]
"""File by file: its path, and why it did not arrive."""


async def by_dicom(
    peer: Peer, paths: list[Path], *, commit: bool, reports: ReportListener | None = None
) -> Results:
    """Send by C-STORE; with `commit` what the receiver does not vouch for afterwards has not arrived.

    `reports` listens meanwhile for what the receiver says on an association of its own: nothing is sent unless it can.
    """
    async with reports or nullcontext():
        sent = [one async for one in send_files(peer, paths)]
        reasons = {one.label: "" if one.ok else one.reason for one in sent}
        if commit:
            reasons |= await _unsafe(peer, [one for one in sent if one.ok], reports)
    return list(reasons.items())


def dicom_tls(certificate: Path | None, key: Path | None, authority: Path | None) -> ssl.SSLContext | None:
    """What DICOM TLS shows, and under whose authority the receiver must be; None without any of the three."""
    from node.tls import KeyPair, dicom_client_context

    if certificate is None and key is None and authority is None:
        return None
    if certificate is None or key is None or authority is None:
        raise Invalid("Mutual TLS needs --tls-certificate, --tls-key and --tls-authority together.")
    try:
        pair = KeyPair(_read(certificate), _read(key))
        return dicom_client_context(pair, [_read(authority).decode("ascii")])
    except (ssl.SSLError, ValueError) as error:
        raise Invalid(f"Certificate, key or authority cannot be used: {error}.") from error


def expected(host: str, authority: Path | None, name: str, pin: str | None) -> tuple[frozenset[str], str]:
    """Fingerprints and name by which the receiver is known. An authority vouches for many: one must be said, or follow from it."""
    from node.identity import node_of
    from node.tls import read_fingerprint

    if authority is None:
        if name or pin:
            raise Invalid("--tls-name and --pin go with --tls-certificate, --tls-key and --tls-authority.")
        return frozenset(), ""
    if pin is not None:
        return frozenset({read_fingerprint(pin)}), name
    if name:
        return frozenset(), name
    try:
        return frozenset(), node_of(_read(authority).decode("ascii"))
    except Invalid:  # some other receiver, under an authority that says nothing of who it is
        return frozenset(), host


def report_listener(
    peer: Peer, port: int, certificate: Path | None, key: Path | None, authority: Path | None
) -> ReportListener:
    """What hears the receiver's reports at `port`: over TLS, under the same authority, when it is called so."""
    from node.dicom.report_listener import ReportListener
    from node.tls import KeyPair, dicom_server_context

    tls = None
    if certificate is not None and key is not None and authority is not None:
        pair = KeyPair(_read(certificate), _read(key))
        tls = dicom_server_context(pair, [_read(authority).decode("ascii")])
    return ReportListener(peer, port, tls=tls)


async def by_web(
    address: str,
    trust: ssl.SSLContext | aiohttp.Fingerprint | None,
    authorization: str,
    paths: list[Path],
    *,
    plain: bool,
) -> Results:
    """Send by STOW-RS to the service at `address`."""
    from node.dicom.stow_client import service, store_files

    to = service(address, trust, authorization=authorization, plain=plain)
    return [(one.label, "" if one.ok else one.reason) async for one in store_files(to, paths)]


def web_trust(
    certificate: Path | None, key: Path | None, authority: Path | None, pin: str | None
) -> ssl.SSLContext | aiohttp.Fingerprint | None:
    """Whom HTTPS trusts, and what it shows: an authority and a certificate of our own, or a pinned one; None: not said."""
    from node.dicom.stow_client import pinned, trusting
    from node.tls import KeyPair

    if (certificate is None) != (key is None):
        raise Invalid("A certificate of our own needs --tls-certificate and --tls-key together.")
    if pin is not None:
        if authority is not None or certificate is not None:
            raise typer.BadParameter("--pin trusts one certificate: it goes with no other TLS option.")
        return pinned(pin)
    if authority is None:
        if certificate is not None:
            raise Invalid("A certificate of our own needs --tls-authority for the service's.")
        return None
    pair = None
    if certificate is not None and key is not None:
        pair = KeyPair(_read(certificate), _read(key))
    try:
        return trusting(_read(authority).decode("ascii"), pair)
    except (ssl.SSLError, ValueError) as error:
        raise Invalid(f"Certificate, key or authority cannot be used: {error}.") from error


def authorization(token_file: Path | None, login_file: Path | None) -> str:
    """The Authorization header that a file says; "" without one. Raises NotFound, and Invalid when it is not one line."""
    if token_file is not None and login_file is not None:
        raise typer.BadParameter("Either --token-file or --login-file.")
    if token_file is not None:
        return f"Bearer {_line(token_file)}"
    if login_file is None:
        return ""
    login = _line(login_file)
    if ":" not in login:
        raise Invalid(f"{login_file} holds no NAME:PASSWORD.")
    return f"Basic {b64encode(login.encode()).decode()}"


def _line(file: Path) -> str:
    """What a file of one line holds."""
    content = _read(file)
    try:
        text = content.decode().strip()
    except UnicodeDecodeError as error:
        raise Invalid(f"{file} is not text.") from error
    if not text or not text.isprintable() or len(content) > MAX_CREDENTIAL_BYTES:
        raise Invalid(f"{file} must hold one line.")
    return text


def _read(file: Path) -> bytes:
    if not file.is_file():
        raise NotFound(f"{file} is not there.")
    with file.open("rb") as opened:
        return opened.read(1024 * 1024)


async def _unsafe(peer: Peer, sent: list[Sent], reports: ReportListener | None) -> dict[str, str]:
    """Why those among what was accepted that the receiver does not vouch for are not safe there."""
    from node.dicom.commitment_forms import MAX_REFERENCES
    from node.dicom.commitment_request import commit

    reasons: dict[str, str] = {}
    for start in range(0, len(sent), MAX_REFERENCES):
        part = sent[start : start + MAX_REFERENCES]
        try:
            report = await commit(peer, [one.reference for one in part], reports=reports)
        except AccordError as error:
            return reasons | {one.label: f"accepted; {error}" for one in sent[start:]}
        safe = set(report.safe)
        for one in part:
            if one.reference not in safe:
                reason = report.failed.get(one.reference, 0)
                reasons[one.label] = f"accepted; not safe there (reason {reason:04X})"
    return reasons
