"""`accord send` and `accord import`: DICOM files to a peer, and into this node directly.

What is said to a peer, and by what it is known, is in `sending`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from consent.errors import AccordError, NotFound
from consent.principals import Principal
from consent.vocabulary import Role
from ops.commands.arguments import Folder, Json, operator
from ops.console import JSON_OPTION, speaks, tell
from ops.foundation import opened
from ops.lock import sole_user


@speaks
def send(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[HOST PORT] PATH…",
            help="The receiver, unless --web names it; then DICOM files, or folders of them.",
        ),
    ],
    called: Annotated[str, typer.Option(metavar="AET", help="AE title of the receiver.")] = "",
    calling: Annotated[str, typer.Option(metavar="AET", help="AE title we call ourselves.")] = "",
    tls_certificate: Annotated[Path | None, typer.Option(help="Our certificate (PEM): turns TLS on.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    tls_authority: Annotated[Path | None, typer.Option(help="Who vouches for the receiver (PEM).")] = None,
    tls_name: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Name in the receiver's certificate: the node's id, or HOST, by default."
        ),
    ] = "",
    commit: Annotated[
        bool, typer.Option("--commit", help="Ask afterwards whether all is safe there (storage commitment).")
    ] = False,
    listen_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="With --commit: where the receiver calls us to report."),
    ] = None,
    web: Annotated[
        str | None, typer.Option(metavar="URL", help="Send by DICOMweb (STOW-RS) to this service instead.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="With --web: file with a bearer token.")] = None,
    login_file: Annotated[
        Path | None, typer.Option(help="With --web: file with NAME:PASSWORD, for HTTP basic.")
    ] = None,
    pin: Annotated[
        str | None, typer.Option(metavar="SHA256", help="The receiver's certificate, instead of a name.")
    ] = None,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="With --web: send in the clear to another machine.")
    ] = False,
    as_json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """Send DICOM files by C-STORE or STOW-RS. Exits 1 when a file was not accepted, or with --commit is not safe there.

    Example: accord send 10.1.2.3 2762 study/ --called GENERAL --calling CT1
    --tls-certificate ct1/CT1.crt --tls-key ct1/CT1.key --tls-authority ct1/ca.crt
    """
    from node.dicom.sender import Peer
    from ops.commands import sending

    files = (tls_certificate, tls_key, tls_authority)
    if web is not None:
        if called or calling or commit or tls_name or listen_port:
            raise typer.BadParameter(
                "--called, --calling, --commit, --listen-port and --tls-name are for DICOM, not for --web."
            )
        paths = _there(words)
        trust = sending.web_trust(*files, pin)
        authorization = sending.authorization(token_file, login_file)
        results = asyncio.run(sending.by_web(web, trust, authorization, paths, plain=plain_http))
    else:
        if token_file or login_file or plain_http:
            raise typer.BadParameter("--token-file, --login-file and --plain-http are for --web.")
        host, port, paths = _receiver(words)
        if not called or not calling:
            raise typer.BadParameter("DICOM needs --called and --calling; DICOMweb needs --web.")
        if listen_port and not commit:
            raise typer.BadParameter("--listen-port is for the report that --commit asks for.")
        tls = sending.dicom_tls(*files)
        pins, name = sending.expected(host, tls_authority, tls_name, pin)
        peer = Peer(host, port, called, calling, tls, pins, name)
        reports = sending.report_listener(peer, listen_port, *files) if listen_port else None
        results = asyncio.run(sending.by_dicom(peer, paths, commit=commit, reports=reports))
    _tell_sent(results, safe=commit, as_json=as_json)


def _receiver(words: list[str]) -> tuple[str, int, list[Path]]:
    if len(words) < 3 or not words[1].isdecimal() or not 1 <= int(words[1]) <= 65535:
        raise typer.BadParameter("Name the receiver's HOST and PORT, then files; or --web URL, then files.")
    return words[0], int(words[1]), _there(words[2:])


def _there(words: list[str]) -> list[Path]:
    paths = [Path(word) for word in words]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise NotFound(f"{missing[0]} is not there.")
    return paths


def _tell_sent(results: list[tuple[str, str]], *, safe: bool, as_json: bool) -> None:
    failed = [result for result in results if result[1]]
    words = [f"{label}: {reason}" for label, reason in failed]
    words.append(f"{len(results) - len(failed)} {'safe there' if safe else 'accepted'}, {len(failed)} not.")
    value = {
        "accepted": [label for label, reason in results if not reason],
        "failed": [{"path": label, "reason": reason} for label, reason in failed],
    }
    tell("\n".join(words), value, as_json=as_json)
    if failed:
        raise typer.Exit(1)


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
