"""Destroying a spool before its machine leaves: keys first, then ciphertext, then a signed statement of what was done.

Holds the steps in their order. What overwriting cannot promise (flash memory, copying file systems, snapshots, backups) is
named as unproven: what makes the spool unreadable is that its key is gone. The statement's form is `node.access.wiping`'s.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consent.errors import Conflict, Unavailable
from consent.signed import Signed, sign
from node.access.wiping import KEY_DESTROYED, WIPE_LASTS, WipeCertificate, issuer_of
from node.clock import Clock
from node.edge.settings import EdgeSettings
from node.vault.blobs import OVERWRITE_BYTES, FileBlobs, sync_folder

SPOOL_OVERWRITTEN = "spool-overwritten"
DEVICE_KEY_DESTROYED = "device-key-destroyed"
NO_SPOOL_LEFT = "no-spool-file-left"
UNPROVEN_FLASH = "flash-memory-may-keep-old-blocks"
UNPROVEN_COPIES = "file-system-may-keep-copies"
UNPROVEN_BACKUPS = "snapshots-and-backups-are-not-known-here"
CERTIFICATE_NAME = "wipe-certificate.jws"
_COPYING = frozenset({"btrfs", "zfs", "overlay", "f2fs", "nilfs2", "bcachefs", "nfs", "nfs4"})


@dataclass(frozen=True)
class Wiped:
    """What a wipe left: the signed statement, and how much of the spool it destroyed."""

    statement: Signed[WipeCertificate]
    segments: int
    size_bytes: int


def wipe(settings: EdgeSettings, agent: Ed25519PrivateKey, clock: Clock, *, discard: bool) -> Wiped:
    """Destroy the spool and the keys of a stopped agent. Blocks.

    Raises Conflict when instances wait that the node does not have, unless `discard`; Unavailable when something could
    not be destroyed: then there is no statement, and the wipe can be repeated.
    """
    blobs = FileBlobs(settings.spool_folder)
    segments = list(blobs.names())
    if segments and not discard:
        raise Conflict(
            f"{len(segments)} segments wait for the node, which may not have them.",
            mend="Let the agent forward them first, or wipe with --discard to lose them for good.",
            code="spool-not-empty",
        )
    done = []
    _destroy(settings.spool_key)  # first: from here on the rest is noise, even if the power fails
    done.append(KEY_DESTROYED)
    for name, _ in segments:
        blobs.delete(name)
    for stray in _files(settings.spool_folder):
        _destroy(stray)
    if _files(settings.spool_folder):
        raise Unavailable("Files are left in the spool.", mend="Look at the disk, then wipe again.")
    done += [SPOOL_OVERWRITTEN, NO_SPOOL_LEFT]
    _destroy(settings.device_key)
    done.append(DEVICE_KEY_DESTROYED)
    now = clock.now()
    statement = sign(
        WipeCertificate(settings.edge.ae_title, now, tuple(done), tuple(unproven(settings.folder))),
        record_id=secrets.token_hex(16),
        issuer=issuer_of(settings.edge.ae_title),
        key=agent,
        issued=now,
        expires=now + WIPE_LASTS + timedelta(days=1),
    )
    return Wiped(statement, len(segments), sum(size for _, size in segments))


def forget(settings: EdgeSettings) -> None:
    """Destroy the agent's own key, once its last statement is safe: nobody signs with it again. Raises Unavailable."""
    _destroy(settings.agent_key)


def unproven(folder: Path) -> list[str]:
    """What overwriting a file in `folder` does not prove."""
    found = [UNPROVEN_BACKUPS]
    kind = _file_system(folder)
    if kind in _COPYING or not kind:
        found.append(UNPROVEN_COPIES)
    if _rotational(folder) is not True:
        found.append(UNPROVEN_FLASH)
    return found


def _destroy(file: Path) -> None:
    """Overwrite and remove a file, durably. Nothing happens when it is not there. Raises Unavailable."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unavailable(f"{file.name} cannot be destroyed: {error.strerror}.") from error
    try:
        size, done = os.fstat(descriptor).st_size, 0
        while done < size:
            done += os.pwrite(descriptor, os.urandom(min(OVERWRITE_BYTES, size - done)), done)
        os.fsync(descriptor)
        file.unlink()
        sync_folder(file.parent)
    except OSError as error:
        raise Unavailable(f"{file.name} cannot be destroyed: {error.strerror}.") from error
    finally:
        os.close(descriptor)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def _file_system(folder: Path) -> str:
    """The kind of file system, "" when the system does not tell (Linux tells in /proc/self/mountinfo)."""
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8").splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        place = before.split()[4].replace("\\040", " ")
        within = str(folder.resolve()) == place or str(folder.resolve()).startswith(place.rstrip("/") + "/")
        if within and len(place) >= len(best):
            best, kind = place, after.split()[0]
    return kind


def _rotational(folder: Path) -> bool | None:
    """Whether the folder lies on a turning disk; None when the system does not tell."""
    device = folder.stat().st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for place in (block / "queue/rotational", block / "../queue/rotational"):
        try:
            return place.read_text("ascii").strip() == "1"
        except OSError:
            continue
    return None
