"""Where bytes lie: the `BlobStore` seam and its implementation over a folder of files. Over several: `replicas`.

A blob is a named run of bytes that grows at its end. Names are made by the vault (`pack.pack_name`) and checked here again,
because they become file names. All verbs block; callers use a thread. No key and no meaning: only sealed bytes come here.

Promises of the seam: when `put` or `Appendable.sync` has returned, the bytes are durable, and so is the name; a
blob is never half put; `append` never moves what is there; after `delete` the name is gone. Failures of the disk
are `Unavailable`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

from consent.errors import Conflict, Invalid, NotFound, Unavailable
from node.vault.arena import Arena
from node.vault.seal import Buffer

NAME_PATTERN = re.compile(r"[a-z]{2}_[a-z0-9]{4,64}\.[a-z]{2,8}")
MAX_PARTS = 512  # of one gathered write; Linux takes 1,024
OVERWRITE_BYTES = 1024 * 1024
BLOCK_BYTES = 4096
"""What starts and ends on multiples of this goes straight to the disk; every disk's block divides it."""

T = TypeVar("T")
Read = Callable[[int, int], bytes]
"""`read(offset, length)`: bytes of a blob, fewer at its end."""


class Appendable(Protocol):
    """One blob opened for appending by one writer at a time."""

    def memory(self, own: Arena) -> Arena:
        """Where to put what is written next: `own`, or other memory when a copy may still be read after `sync`."""
        ...

    def lock(self) -> None:
        """Wait until no other process writes here, then keep others out."""
        ...

    def unlock(self) -> None:
        """Let others write."""
        ...

    @property
    def gone(self) -> bool:
        """Whether the blob was deleted since it was opened: what is written now would be lost."""
        ...

    def size(self) -> int:
        """Length in bytes, seen by everybody."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`; fewer at the end."""
        ...

    def write(self, parts: Sequence[Buffer], offset: int) -> None:
        """Write the parts one after the other from `offset`; durable after `sync`. See `memory`."""
        ...

    def sync(self) -> None:
        """Return when everything written so far is durable."""
        ...

    def truncate(self, size: int) -> None:
        """Cut the end off."""
        ...

    def close(self) -> None:
        """Release the blob. Does not sync."""
        ...


class BlobStore(Protocol):
    """Named blobs. See the module for what is promised."""

    def append(self, name: str) -> Appendable:
        """Open for appending; made, durably and empty, when it is not there."""
        ...

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Keep a whole blob. Raises Conflict when the name is taken."""
        ...

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Bytes from `offset`; fewer at the end. Raises NotFound."""
        ...

    def opened(self, name: str) -> AbstractContextManager[Callable[[int, int], bytes]]:
        """The same `read(offset, length)` for many reads of one blob, which stays the same while it is open."""
        ...

    def proved(self, name: str, use: Callable[[Read, int], T]) -> T:
        """What `use(read, size)` makes of the blob. When it raises Corrupt, it is given another copy, if there is one.

        `use` must raise Corrupt when what it reads is not what was written. Raises what it said of the first copy.
        """
        ...

    def rewritten(self, name: str, make: Callable[[Read, int, Appendable], None]) -> None:
        """Put a new blob, which `make(read, size, new)` writes from the old one, in its place: all of it or nothing.

        Durable when it returns. Writers find the old one `gone`; readers that have it open go on with it.
        Raises NotFound.
        """
        ...

    def tidy(self, name: str) -> None:
        """After a `rewritten` that was cut short: what stands in the blob's place is durable, what was beside it is gone.

        While nobody else writes the blob anew. Nothing happens where there is neither.
        """
        ...

    def size(self, name: str) -> int:
        """Length in bytes. Raises NotFound."""
        ...

    def delete(self, name: str) -> None:
        """Overwrite (where that means something) and remove, with what lies beside it. Nothing happens when it is not there."""
        ...

    def names(self) -> Iterator[tuple[str, int]]:
        """Every name with its length in bytes, in no order."""
        ...


class FileBlobs:
    """A `BlobStore` in a folder: `root/ab/st_…ab.pack`, files 0600, folders 0700, no links followed."""

    def __init__(self, root: Path, *, make_root: bool = True) -> None:
        self.root = root
        self._makes_root = make_root

    def append(self, name: str) -> FileAppendable:
        """See `BlobStore.append`."""
        path = self._path(name)
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        with disk_errors("open a study pack"):
            try:
                descriptor = os.open(path, flags)
            except FileNotFoundError:
                self._make_folder(path.parent)
                descriptor = os.open(path, flags | os.O_CREAT, 0o600)
                sync_folder(path.parent)
            return FileAppendable(descriptor, _open_direct(path, flags, descriptor))

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """See `BlobStore.put`."""
        path = self._path(name)
        with disk_errors("write a study pack"):
            self._make_folder(path.parent)
            temporary = path.parent / f".{secrets.token_hex(8)}.new"
            try:
                writing = FileAppendable(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
                try:
                    writing.write(parts, 0)
                    writing.sync()
                finally:
                    writing.close()
                os.link(temporary, path)
            except FileExistsError as error:
                raise Conflict(f"{name} is kept already.", code="blob-exists") from error
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(path.parent)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """See `BlobStore.read`."""
        with self.opened(name) as read:
            return read(offset, length)

    @contextmanager
    def opened(self, name: str) -> Iterator[Read]:
        """See `BlobStore.opened`."""
        with self._open(name) as descriptor:
            yield _reading(descriptor)

    def proved(self, name: str, use: Callable[[Read, int], T]) -> T:
        """See `BlobStore.proved`. There is one copy here."""
        with self._open(name) as descriptor:
            with disk_errors("look at a study pack"):
                size = os.fstat(descriptor).st_size
            return use(_reading(descriptor), size)

    def rewritten(self, name: str, make: Callable[[Read, int, Appendable], None]) -> None:
        """See `BlobStore.rewritten`."""
        old = self.existing(name)
        try:
            old.lock()
            if old.gone:
                raise _not_found(name)
            new = self.prepare(name)
            try:
                make(old.read, old.size(), new)
                new.sync()
                self.install(name)
            except BaseException:
                self.discard(name)
                raise
            finally:
                new.close()
        finally:
            old.close()

    def existing(self, name: str) -> FileAppendable:
        """Like `append`, of a blob that is there. Raises NotFound."""
        path = self._path(name)
        with disk_errors("open a study pack"):
            try:
                return FileAppendable(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
            except FileNotFoundError as error:
                raise _not_found(name) from error

    def prepare(self, name: str) -> FileAppendable:
        """An empty file beside the blob, for `install`; what an earlier attempt left there goes."""
        path = self._beside(name)
        with disk_errors("write a study pack"):
            self._make_folder(path.parent)
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            return FileAppendable(os.open(path, flags, 0o600))

    def install(self, name: str) -> None:
        """Put the prepared file, which was synced, in the blob's place, durably and at once."""
        path = self._path(name)
        with disk_errors("replace a study pack"):
            self._beside(name).rename(path)
            sync_folder(path.parent)

    def discard(self, name: str) -> None:
        """Remove a prepared file, if there is one."""
        with disk_errors("delete a study pack"):
            self._beside(name).unlink(missing_ok=True)

    def tidy(self, name: str) -> None:
        """See `BlobStore.tidy`."""
        self.discard(name)
        with disk_errors("make a study pack durable"), suppress(FileNotFoundError):
            sync_folder(self._path(name).parent)

    def size(self, name: str) -> int:
        """See `BlobStore.size`."""
        path = self._path(name)
        with disk_errors("look at a study pack"):
            try:
                return path.stat(follow_symlinks=False).st_size
            except FileNotFoundError as error:
                raise _not_found(name) from error

    def delete(self, name: str) -> None:
        """See `BlobStore.delete`. On flash and on copying file systems only destroying the key is final."""
        path = self._path(name)
        with disk_errors("delete a study pack"):
            self._beside(name).unlink(missing_ok=True)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                return
            try:
                fcntl.flock(
                    descriptor, fcntl.LOCK_EX
                )  # a writer that waits for it then sees that the file is gone
                _overwrite(descriptor)
                path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)
            sync_folder(path.parent)

    def names(self) -> Iterator[tuple[str, int]]:
        """See `BlobStore.names`."""
        with disk_errors("list the study packs"):
            if not self.root.exists():
                return
            for folder in sorted(os.scandir(self.root), key=lambda entry: entry.name):
                if not folder.is_dir(follow_symlinks=False):
                    continue
                for entry in os.scandir(folder):
                    if NAME_PATTERN.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        yield entry.name, entry.stat(follow_symlinks=False).st_size

    def hand_over(self, name: str, other: FileBlobs) -> None:
        """Move a whole blob to another folder of the same disk, durably and at once.

        Raises Conflict when the name is taken there, NotFound when it is not here.
        """
        source, target = self._path(name), other._path(name)
        with disk_errors("move a study pack"):
            self._make_folder(target.parent)
            try:
                os.link(source, target, follow_symlinks=False)
            except FileExistsError as error:
                raise Conflict(f"{name} is kept already.", code="blob-exists") from error
            except FileNotFoundError as error:
                raise _not_found(name) from error
            sync_folder(target.parent)
            source.unlink()
            sync_folder(source.parent)

    def _path(self, name: str) -> Path:
        stem = check_name(name).partition(".")[0]
        return self.root / stem[-2:] / name

    def _beside(self, name: str) -> Path:
        path = self._path(name)
        return path.with_name(f".{name}.new")

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        if not self._makes_root and not self.root.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        missing = [folder, *(parent for parent in folder.parents if not parent.exists())]
        for step in reversed(missing):
            step.mkdir(mode=0o700, exist_ok=True)
            sync_folder(step.parent)

    @contextmanager
    def _open(self, name: str) -> Iterator[int]:
        path = self._path(name)
        with disk_errors("open a study pack"):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise _not_found(name) from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)


class FileAppendable:
    """An `Appendable` over a file descriptor, which it owns.

    `direct` is a second descriptor of the same file that goes round the page cache. Whole blocks from aligned memory are
    written by it: that spares a copy and half the processor time of a write, and a night's acquisitions do not push out
    of memory what readers use.
    """

    def __init__(self, descriptor: int, direct: int | None = None) -> None:
        self._descriptor = descriptor
        self._direct = direct

    def memory(self, own: Arena) -> Arena:
        """See `Appendable.memory`: what was written is not looked at again."""
        return own

    def lock(self) -> None:
        """See `Appendable.lock`."""
        with disk_errors("lock a study pack"):
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def unlock(self) -> None:
        """See `Appendable.unlock`."""
        with disk_errors("unlock a study pack"):
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    @property
    def gone(self) -> bool:
        """See `Appendable.gone`."""
        with disk_errors("look at a study pack"):
            return os.fstat(self._descriptor).st_nlink == 0

    def size(self) -> int:
        """See `Appendable.size`."""
        with disk_errors("look at a study pack"):
            return os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """See `Appendable.read`."""
        with disk_errors("read a study pack"):
            return _pread(self._descriptor, offset, length)

    def write(self, parts: Sequence[Buffer], offset: int) -> None:
        """See `Appendable.write`."""
        views = [memoryview(part).cast("B") for part in parts if len(part)]
        with disk_errors("write a study pack"):
            if len(views) == 1 and self._write_direct(views[0], offset):
                return
            for start in range(0, len(views), MAX_PARTS):
                offset = _write_all(self._descriptor, views[start : start + MAX_PARTS], offset)

    def _write_direct(self, view: memoryview, offset: int) -> bool:
        """Write whole blocks round the page cache; False when that cannot be done here."""
        if self._direct is None or offset % BLOCK_BYTES or view.nbytes % BLOCK_BYTES:
            return False
        try:
            _write_all(self._direct, [view], offset)
        except OSError as error:
            if error.errno != errno.EINVAL:  # memory or a rest that this disk does not take
                raise
            return False
        return True

    def sync(self) -> None:
        """See `Appendable.sync`."""
        with disk_errors("make a study pack durable"):
            os.fdatasync(self._descriptor)

    def truncate(self, size: int) -> None:
        """See `Appendable.truncate`."""
        with disk_errors("cut a study pack back"):
            os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        """See `Appendable.close`."""
        os.close(self._descriptor)
        if self._direct is not None:
            os.close(self._direct)


def check_name(name: str) -> str:
    """Return `name` when it is a blob's; raise Invalid: it becomes a file name."""
    if NAME_PATTERN.fullmatch(name) is None:
        raise Invalid("This is not the name of a blob.", code="blob-name")
    return name


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn what the operating system says into Unavailable, in words."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"Cannot {doing}: {os.strerror(error.errno or errno.EIO)}.",
            mend=_MEND.get(error.errno or 0, "Look at the disk and at the system's log."),
            code="storage",
        ) from error


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_MEND = {
    errno.ENOSPC: "Free disk space; what was answered for is safe.",
    errno.EDQUOT: "Raise the quota; what was answered for is safe.",
    errno.EROFS: "The disk went read-only: look at the system's log.",
    errno.EACCES: "Give the node's user the right to this folder.",
    errno.EMFILE: "Raise the limit of open files.",
}


def _open_direct(path: Path, flags: int, descriptor: int) -> int | None:
    """The file of `descriptor` once more, round the page cache; None where the system or the file system has no such thing."""
    direct = getattr(os, "O_DIRECT", None)
    if direct is None:
        return None
    try:
        again = os.open(path, flags | direct)
    except OSError:
        return None
    if os.path.sameopenfile(descriptor, again):
        return again
    os.close(again)  # another file has taken its place meanwhile, which the writer is told of by `gone`
    return None


def _write_all(descriptor: int, views: list[memoryview], offset: int) -> int:
    while views:
        written = os.pwritev(descriptor, views, offset)
        offset += written
        while views and written >= views[0].nbytes:
            written -= views.pop(0).nbytes
        if views and written:
            views[0] = views[0][written:]
    return offset


def _reading(descriptor: int) -> Read:
    def read(offset: int, length: int) -> bytes:
        with disk_errors("read a study pack"):
            return _pread(descriptor, offset, length)

    return read


def _pread(descriptor: int, offset: int, length: int) -> bytes:
    # Lengths may come from a peer: ask for no more than there is, or the buffer alone could exhaust memory.
    length = min(length, max(0, os.fstat(descriptor).st_size - offset))
    data = os.pread(descriptor, length, offset)
    if len(data) == length or not data:
        return data
    rest = [data]  # the kernel gives at most 2 GiB at once
    got = len(data)
    while got < length and (data := os.pread(descriptor, length - got, offset + got)):
        rest.append(data)
        got += len(data)
    return b"".join(rest)


def _overwrite(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    for offset in range(0, size, OVERWRITE_BYTES):
        os.pwrite(descriptor, os.urandom(min(OVERWRITE_BYTES, size - offset)), offset)
    os.fsync(descriptor)


def _not_found(name: str) -> NotFound:
    return NotFound(f"There is no {name} here.", code="blob")
