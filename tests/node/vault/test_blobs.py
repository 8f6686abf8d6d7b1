"""The folder of files: rights, links, durable names, moving, and what the disk refuses."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from consent.errors import Conflict, NotFound, Unavailable
from node.vault import blobs as module
from node.vault.blobs import FileBlobs

NAME = "st_" + "a" * 26 + ".pack"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel itself refuses to write past `size`, in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_files_and_folders_are_private(tmp_path: Path) -> None:
    """Nobody but the node's user reads even the sealed bytes."""
    store = FileBlobs(tmp_path / "deep" / "packs")
    store.put(NAME, [b"x"])
    store.append("st_bbbb.pack").close()
    for path in (tmp_path / "deep").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A link planted in the folder leads nowhere."""
    target = tmp_path / "target"
    target.write_bytes(b"outside")
    folder = tmp_path / "packs" / "aa"
    folder.mkdir(parents=True)
    (folder / NAME).symlink_to(target)
    store = FileBlobs(tmp_path / "packs")
    for verb in (lambda: store.read(NAME, 0, 1), lambda: store.append(NAME), lambda: store.delete(NAME)):
        with pytest.raises(Unavailable):
            verb()
    assert target.read_bytes() == b"outside"
    assert list(store.names()) == []


def test_new_pack_syncs_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack that is answered for must not vanish with its directory entry."""
    synced: list[Path] = []
    real = module.sync_folder
    monkeypatch.setattr(module, "sync_folder", lambda folder: (synced.append(folder), real(folder)))
    store = FileBlobs(tmp_path / "packs")
    store.append(NAME).close()
    assert synced == [tmp_path, tmp_path / "packs", tmp_path / "packs" / "aa"]
    store.append(NAME).close()
    assert len(synced) == 3


def test_whole_blob_moves_to_another_folder_once(tmp_path: Path) -> None:
    """A copy that was verified in the waiting room becomes a held one in a single step."""
    waiting, held = FileBlobs(tmp_path / "waiting"), FileBlobs(tmp_path / "held" / "a-general")
    waiting.put(NAME, [b"verified"])
    waiting.hand_over(NAME, held)
    assert held.read(NAME, 0, 100) == b"verified"
    assert list(waiting.names()) == []
    waiting.put(NAME, [b"again"])
    with pytest.raises(Conflict):
        waiting.hand_over(NAME, held)
    assert held.read(NAME, 0, 100) == b"verified"
    with pytest.raises(NotFound):
        waiting.hand_over("st_bbbb.pack", held)


@pytest.mark.requirement("F4")
def test_disk_that_fills_during_put_leaves_nothing(tmp_path: Path) -> None:
    """Half a blob never counts, and no temporary file stays."""
    store = FileBlobs(tmp_path / "packs")
    with largest_file(1000), pytest.raises(Unavailable) as refused:
        store.put(NAME, [bytes(900), bytes(900)])
    assert refused.value.mend
    assert [path for path in (tmp_path / "packs").rglob("*") if path.is_file()] == []
    store.put(NAME, [bytes(1800)])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_what_the_system_says_becomes_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Every failure of the disk is Unavailable, with what to do and no path of a patient's study."""
    blob = FileBlobs(tmp_path / "packs").append(NAME)

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwritev", fail)
    with pytest.raises(Unavailable) as refused:
        blob.write([b"x"], 0)
    assert os.strerror(number) in refused.value.message
    assert refused.value.mend
    assert NAME not in str(refused.value)
    blob.close()


def test_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    """A file where the folder should be is told, not overwritten."""
    (tmp_path / "packs").write_text("in the way")
    with pytest.raises(Unavailable):
        FileBlobs(tmp_path / "packs").append(NAME)
    assert (tmp_path / "packs").read_text() == "in the way"
