"""`accord send` and `accord import`: DICOM files to a peer by C-STORE, and into this node directly."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consent.errors import AccordError, Invalid, NotFound
from consent.principals import Principal
from consent.vocabulary import Role
from ops.commands.arguments import Folder, Json, operator
from ops.console import JSON_OPTION, speaks, tell
from ops.foundation import opened
from ops.lock import sole_user

if TYPE_CHECKING:
    from node.dicom.sender import Peer, Sent


@speaks
def send(
    host: Annotated[str, typer.Argument(metavar="HOST", help="Name or address of the receiver.")],
    port: Annotated[int, typer.Argument(metavar="PORT", min=1, max=65535)],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="DICOM files, or folders of them.")],
    called: Annotated[str, typer.Option(metavar="AET", help="AE title of the receiver.")],
    calling: Annotated[str, typer.Option(metavar="AET", help="AE title we call ourselves.")],
    tls_certificate: Annotated[Path | None, typer.Option(help="Our certificate (PEM): turns TLS on.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    tls_authority: Annotated[Path | None, typer.Option(help="Who vouches for the receiver (PEM).")] = None,
    commit: Annotated[
        bool, typer.Option("--commit", help="Ask afterwards whether all is safe there (storage commitment).")
    ] = False,
    as_json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """Send DICOM files by C-STORE. Exits 1 when a file was not accepted, or with --commit is not safe there.

    Example: accord send 10.1.2.3 2762 study/ --called GENERAL --calling CT1
    --tls-certificate ct1/CT1.crt --tls-key ct1/CT1.key --tls-authority ct1/ca.crt
    """
    from node.dicom.sender import Peer

    peer = Peer(host, port, called, calling, _tls(tls_certificate, tls_key, tls_authority))
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise NotFound(f"{missing[0]} is not there.")
    results = asyncio.run(_send(peer, paths, commit=commit))
    failed = [result for result in results if result[1]]
    words = [f"{label}: {reason}" for label, reason in failed]
    words.append(f"{len(results) - len(failed)} {'safe there' if commit else 'accepted'}, {len(failed)} not.")
    value = {
        "accepted": [label for label, reason in results if not reason],
        "failed": [{"path": label, "reason": reason} for label, reason in failed],
    }
    tell("\n".join(words), value, as_json=as_json)
    if failed:
        raise typer.Exit(1)


async def _send(peer: Peer, paths: list[Path], *, commit: bool) -> list[tuple[str, str]]:
    from node.dicom.sender import send_files

    sent = [one async for one in send_files(peer, paths)]
    reasons = {one.label: "" if one.ok else one.reason for one in sent}
    if commit:
        reasons |= await _unsafe(peer, [one for one in sent if one.ok])
    return list(reasons.items())


async def _unsafe(peer: Peer, sent: list[Sent]) -> dict[str, str]:
    """Why those among what was accepted that the receiver does not vouch for are not safe there."""
    from node.dicom.commitment_forms import MAX_REFERENCES
    from node.dicom.sender import commit

    reasons: dict[str, str] = {}
    for start in range(0, len(sent), MAX_REFERENCES):
        part = sent[start : start + MAX_REFERENCES]
        try:
            report = await commit(peer, [one.reference for one in part])
        except AccordError as error:
            return reasons | {one.label: f"accepted; {error}" for one in sent[start:]}
        safe = set(report.safe)
        for one in part:
            if one.reference not in safe:
                reason = report.failed.get(one.reference, 0)
                reasons[one.label] = f"accepted; not safe there (reason {reason:04X})"
    return reasons


def _tls(certificate: Path | None, key: Path | None, authority: Path | None) -> ssl.SSLContext | None:
    from node.tls import KeyPair, dicom_client_context

    given = (certificate, key, authority)
    if not any(given):
        return None
    if certificate is None or key is None or authority is None:
        raise Invalid("Mutual TLS needs --tls-certificate, --tls-key and --tls-authority together.")
    for file in (certificate, key, authority):
        if not file.is_file():
            raise NotFound(f"{file} is not there.")
    try:
        pair = KeyPair(certificate.read_bytes(), key.read_bytes())
        return dicom_client_context(pair, [authority.read_text("ascii")])
    except (ssl.SSLError, ValueError) as error:
        raise Invalid(f"Certificate, key or authority cannot be used: {error}.") from error


@speaks
def import_files(
    folder: Folder,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="DICOM files, or folders of them.")],
    as_json: Json = False,
) -> None:
    """Take DICOM files into a node that is not running. Exits 1 when a file was refused.

    Into a running node, send them: accord send HOST PORT …

    Example: accord import /srv/accord old-archive/
    """
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise NotFound(f"{missing[0]} is not there.")
    taken, refused = asyncio.run(_import(folder, paths))
    words = [f"{name}: {reason}" for name, reason in refused]
    words.append(f"{taken} taken in, {len(refused)} refused.")
    value = {"taken": taken, "refused": [{"path": name, "reason": reason} for name, reason in refused]}
    tell("\n".join(words), value, as_json=as_json)
    if refused:
        raise typer.Exit(1)


async def _import(folder: Path, paths: list[Path]) -> tuple[int, list[tuple[str, str]]]:
    from node.dicom.sender import files_under, outgoing
    from node.ingest import Arrival, Source
    from ops.storage import build_archive

    taken, refused = 0, list[tuple[str, str]]()
    async with opened(folder) as foundation:
        with sole_user(foundation.settings.folder):
            archive = await build_archive(foundation)
            importer = Principal("import", Role.JOB, operator(), foundation.identity.node_id)
            source = Source(importer, "import", "local")
            async with archive.running():
                for path in files_under(paths):
                    try:
                        one = await asyncio.to_thread(outgoing, path)
                        data = await asyncio.to_thread(one.read)
                        arrival = Arrival.of(
                            one.sop_class_uid, one.sop_instance_uid, one.transfer_syntax_uid, data
                        )
                        await archive.ingest.receive(arrival, source)
                        taken += 1
                    except AccordError as error:
                        refused.append((str(path), str(error)))
                await archive.ingest.summarise(source)
                await archive.ingest.flushed()
    return taken, refused
