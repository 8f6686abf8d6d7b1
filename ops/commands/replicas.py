"""`accord replicas` and `accord index`: the copies of the packs, and the index over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consent.errors import Conflict, Corrupt, NotFound
from consent.vocabulary import EventKind
from node.audit.log import Event
from node.config import load_settings
from node.database import DAMAGED, Database
from node.rebuilding import INDEX_TABLES, Rebuilt
from node.replication import IN_SYNC, RootStatus, standing
from node.scrubbing import Progress, loaded, request
from node.soundness import MAX_TOLD, Soundness, damaged
from node.vault.roots import (
    DatabaseLedger,
    Membership,
    Place,
    RootRow,
    look_at,
    new_identity,
    remember,
    write_identity,
)
from ops.commands.arguments import Folder, Json, operator
from ops.console import speaks, tell, tell_table
from ops.foundation import Foundation, opened
from ops.lock import sole_user

if TYPE_CHECKING:
    from ops.storage import Upkeep

replicas = typer.Typer(help="The copies of the study packs on several roots.", no_args_is_help=True)
index = typer.Typer(help="The index over the study packs.", no_args_is_help=True)

WORDS = {
    IN_SYNC: "in sync",
    "behind": "behind",
    "away": "away",
    "foreign": "foreign",
}
MIB = 1024 * 1024


@replicas.command("status")
@speaks
def status(folder: Folder, as_json: Json = False) -> None:
    """Say how every storage root is, and how the last scrub went; exits 1 when one is not in sync.

    Example: accord replicas status /srv/accord
    """

    async def run() -> tuple[list[RootStatus], Membership, Progress]:
        async with opened(folder) as node:
            membership = await DatabaseLedger(node.database).load()
            roots = await asyncio.to_thread(
                standing, node.settings.storage_roots, node.identity.node_id, membership
            )
            return roots, membership, await _progress(node)

    roots, membership, progress = asyncio.run(run())
    rows = [
        (
            root.number,
            root.path,
            WORDS.get(root.state, root.state),
            "–" if root.since is None else root.since.strftime("%Y-%m-%d %H:%M"),
            "–" if root.free_bytes is None else f"{root.free_bytes // MIB} MiB",
            root.words,
        )
        for root in roots
    ]
    value = {
        "roots": [asdict(root) for root in roots],
        "quorum": membership.quorum or 1,
        "scrub": asdict(progress),
    }
    tell_table(("root", "folder", "state", "since", "free", ""), rows, value, as_json=as_json)
    if not as_json:
        tell(_scrub_words(progress), None, as_json=False)
    if any(root.state != IN_SYNC for root in roots):
        raise typer.Exit(1)


@replicas.command("scrub")
@speaks
def scrub(
    folder: Folder,
    deep: Annotated[
        bool, typer.Option(help="Also open every instance, and compare the index with the packs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read every byte of every copy, heal what is damaged, name what cannot be; exits 1 when something cannot.

    A running node is asked to do it; follow with: accord replicas status DIR

    Example: accord replicas scrub /srv/accord --deep
    """

    async def run() -> Progress | None:
        async with opened(folder) as node:
            try:
                with sole_user(node.settings.folder):
                    async with _archive(node) as archive:
                        await archive.scrubbing.ask(deep=deep)
                        await archive.scrubbing.run()
                        return await archive.scrubbing.progress()
            except Conflict as error:
                if error.code != "already-running":
                    raise
                await node.database.write_in_one(partial(request, deep=deep))
                return None

    progress = asyncio.run(run())
    if progress is None:
        tell("The running node does it next: accord replicas status DIR", {"asked": True}, as_json=as_json)
        return
    tell(_scrub_words(progress), {"asked": False, **asdict(progress)}, as_json=as_json)
    if progress.faults:
        raise typer.Exit(1)


@replicas.command("refill")
@speaks
def refill(
    folder: Folder,
    root: Annotated[int | None, typer.Option(min=1, max=9, help="Only this root, by its number.")] = None,
    as_json: Json = False,
) -> None:
    """Bring roots that are empty or behind in sync. With --root also one whose packs say not whose they are.

    A running node does this by itself for an empty folder and for one that was away.

    Example: accord replicas refill /srv/accord --root 3
    """

    async def run() -> tuple[bool, list[RootStatus]]:
        async with opened(folder) as node:
            membership = await DatabaseLedger(node.database).load()
            paths = node.settings.storage_roots
            if root is not None:
                await asyncio.to_thread(_take_over, node, membership, root)
            try:
                with sole_user(node.settings.folder):
                    async with _archive(node) as archive:
                        await archive.replication.restored()
                    membership = await DatabaseLedger(node.database).load()
                    return True, await asyncio.to_thread(standing, paths, node.identity.node_id, membership)
            except Conflict as error:
                if error.code != "already-running":
                    raise
                return False, await asyncio.to_thread(standing, paths, node.identity.node_id, membership)

    done, roots = asyncio.run(run())
    value = {"done": done, "roots": [asdict(one) for one in roots]}
    if not done:
        tell("The running node brings it back: accord replicas status DIR", value, as_json=as_json)
        return
    behind = [one for one in roots if one.state != IN_SYNC]
    words = [
        f"Root {one.number} is {WORDS.get(one.state, one.state)}. {one.words}".rstrip() for one in behind
    ]
    tell("\n".join(words) or "Every root is in sync.", value, as_json=as_json)
    if behind:
        raise typer.Exit(1)


@replicas.command("accept")
@speaks
def accept(
    folder: Folder,
    root: Annotated[int, typer.Option(min=1, max=9, help="The root that is left, by its number.")],
    as_json: Json = False,
) -> None:
    """Take one root for the archive as it is, when too many are lost for ever to know that nothing is missing.

    The node must not run. Afterwards the others are filled from it: what only they had is gone. It is on record.

    Example: accord replicas accept /srv/accord --root 1
    """

    async def run() -> int:
        async with opened(folder) as node:
            with sole_user(node.settings.folder):
                membership = await DatabaseLedger(node.database).load()
                accepted = await asyncio.to_thread(_accepted, node, membership, root)
                words = (
                    f"Storage root {root} was taken for the archive as it is; the others are filled from it."
                )
                event = Event(EventKind.REPLICA_DEGRADED, operator(), reason=words, detail={"root": root})
                async with node.database.write() as tx:
                    await tx.run_sync(remember, accepted)
                    await node.log.append(tx, event)
                return accepted.epoch

    epoch = asyncio.run(run())
    words = (
        f"Root {root} is the archive now.\nNext: accord replicas refill {folder}; accord index check {folder}"
    )
    tell(words, {"root": root, "epoch": epoch}, as_json=as_json)


@index.command("rebuild")
@speaks
def rebuild(folder: Folder, as_json: Json = False) -> None:
    """Make the index anew from the packs alone, and the database's search trees from its tables; the node must not run.

    Exits 1 when a pack could not be read or a table of the database is lost.

    Example: accord index rebuild /srv/accord
    """
    _index(folder, mend=True, as_json=as_json)


@index.command("check")
@speaks
def check(folder: Folder, as_json: Json = False) -> None:
    """Look at every page of the database, and hold every row of the index against the packs; the node must not run.

    Exits 1 when something differs or is damaged.

    Example: accord index check /srv/accord
    """
    _index(folder, mend=False, as_json=as_json)


def _index(folder: Folder, *, mend: bool, as_json: bool) -> None:
    async def run() -> Rebuilt:
        try:
            return await _gone_through(folder, mend=mend)
        except Corrupt as error:
            if error.code != DAMAGED:
                raise
        # What the node needs to open is damaged: the database is mended before anything else is read.
        await _mended(folder, mend=mend)
        return await _gone_through(folder, mend=mend)

    found = asyncio.run(run())
    words = [f"database: {name} cannot be mended" for name in found.lost]
    if found.damaged and not found.lost:
        words.append(f"database: {', '.join(found.damaged)} {'made anew' if mend else 'damaged'}")
    words += [f"{study}: {reason}" for study, reason in found.failed.items()]
    verb = "put right" if mend else "altered"
    words += [f"{study}: rows {verb}" for study in found.differing]
    words += [f"{study}: rows that belong to no study{' removed' if mend else ''}" for study in found.strays]
    words.append(f"{found.studies} studies, {found.instances} instances; {len(found.differing)} {verb}.")
    tell("\n".join(words), asdict(found), as_json=as_json)
    if found.failed or found.lost or (not mend and (found.differing or found.damaged or found.strays)):
        raise typer.Exit(1)


async def _gone_through(folder: Path, *, mend: bool) -> Rebuilt:
    async with opened(folder) as node:
        with sole_user(node.settings.folder):
            async with _archive(node) as archive:
                return await archive.rebuilding.everything(operator(), mend=mend)


async def _mended(folder: Path, *, mend: bool) -> None:
    """Mend the database of a node that does not open. Raises Corrupt when that cannot be, or is not wished."""
    settings = load_settings(folder)
    database = Database(settings.database_url)
    try:
        with sole_user(settings.folder):
            soundness = Soundness(database)
            found = await soundness.look()
            left = await soundness.mend(found, emptied=INDEX_TABLES, keep=mend)
    finally:
        await database.close()
    if left.sound and not mend:
        names = ", ".join(found.names[:MAX_TOLD])
        raise Corrupt(
            f"The database is damaged: {names}.", mend=f"accord index rebuild {folder}", code=DAMAGED
        )
    if not left.sound:
        raise damaged(left)


@asynccontextmanager
async def _archive(node: Foundation) -> AsyncIterator[Upkeep]:
    """What looks after the packs of a node that does not run; nothing is taken in meanwhile."""
    from ops.storage import build_archive

    archive = await build_archive(node)
    try:
        yield archive.upkeep
    finally:
        await archive.close()


def _take_over(node: Foundation, membership: Membership, number: int) -> None:
    """Make what stands at a root's path a new root of this node, to be refilled. Raises NotFound, Conflict."""
    paths = node.settings.storage_roots
    if not 1 <= number <= len(paths) or len(paths) == 1:
        raise NotFound(f"There is no storage root {number}.", mend="Look at storage.roots in node.toml.")
    path = paths[number - 1]
    row = next((row for row in membership.roots if row.number == number), None)
    found = look_at(path, node.identity.node_id, was_mounted=row is not None and row.mounted)
    if found.place is Place.ROOT:
        return
    if found.place is Place.FOREIGN and found.identity is not None:
        raise Conflict(f"{path}: {found.words}", mend="Give this node an empty folder.", code="foreign-root")
    if found.place is Place.AWAY and path.exists():
        raise Conflict(
            f"{path}: {found.words}", mend="Mount its disk, or correct storage.roots.", code="root-away"
        )
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_identity(path, new_identity(node.identity.node_id, node.clock.now()))


def _accepted(node: Foundation, membership: Membership, number: int) -> Membership:
    """The membership with one root in sync, which must be there and be this node's. Raises NotFound, Conflict."""
    paths = node.settings.storage_roots
    if not 1 <= number <= len(paths) or len(paths) == 1:
        raise NotFound(f"There is no storage root {number}.", mend="Look at storage.roots in node.toml.")
    found = look_at(paths[number - 1], node.identity.node_id)
    if found.place is not Place.ROOT or found.identity is None:
        words = found.words or "It is empty."
        raise Conflict(f"{paths[number - 1]}: {words}", mend="Name the root that is left.", code="root-away")
    epoch = max(membership.epoch, found.identity.epoch) + 1
    now = node.clock.now()
    row = RootRow(found.identity.id, number, str(paths[number - 1]), True, now, paths[number - 1].is_mount())
    return Membership(epoch, 1, (row,))


async def _progress(node: Foundation) -> Progress:
    return await node.database.read_in_one(loaded)


def _scrub_words(progress: Progress) -> str:
    if progress.started is None:
        return "No scrub yet."
    kind = "Deep scrub" if progress.deep else "Scrub"
    faults = f"{progress.healed_bytes} bytes healed, {progress.faults} faults left"
    if progress.running:
        return f"{kind} under way: {progress.packs} of {progress.total} packs, {faults}."
    assert progress.finished is not None
    return f"{kind} of {progress.finished:%Y-%m-%d %H:%M}: {progress.packs} packs, {faults}."
