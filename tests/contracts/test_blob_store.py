"""What every blob store promises. One suite over all implementations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from consent.errors import Conflict, Corrupt, Invalid, NotFound, Unavailable
from node.vault.blobs import OVERWRITE_BYTES, Appendable, BlobStore, FileBlobs, Read
from tests.support.rack import Rack

NAME, OTHER = "st_" + "a" * 26 + ".pack", "st_" + "b" * 26 + ".pack"


@pytest.fixture(params=["files", "replicas"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], BlobStore]]:
    """Opens the same store anew, as after a restart."""
    if request.param == "files":
        yield lambda: FileBlobs(tmp_path / "store")
        return
    with Rack(tmp_path, 3) as rack:
        yield rack.start


def test_what_was_put_is_there_after_a_restart(reopen: Callable[[], BlobStore]) -> None:
    """A blob put in pieces reads back whole, in ranges, and short at its end."""
    reopen().put(NAME, [b"hello ", bytearray(b"wor"), memoryview(b"ld")])
    store = reopen()
    assert store.size(NAME) == 11
    assert store.read(NAME, 0, 11) == b"hello world"
    assert store.read(NAME, 6, 3) == b"wor"
    assert store.read(NAME, 6, 2**40) == b"world"
    assert store.read(NAME, 50, 10) == b""
    with store.opened(NAME) as read:
        assert (read(0, 5), read(6, 5)) == (b"hello", b"world")


def test_put_never_replaces(reopen: Callable[[], BlobStore]) -> None:
    """The second put of a name is a conflict and changes nothing."""
    store = reopen()
    store.put(NAME, [b"first"])
    with pytest.raises(Conflict):
        store.put(NAME, [b"second"])
    assert store.read(NAME, 0, 100) == b"first"
    assert list(store.names()) == [(NAME, 5)]


def test_a_blob_is_replaced_whole_or_not_at_all(reopen: Callable[[], BlobStore]) -> None:
    """The new bytes take the place of the old ones at once; a failure leaves the old; a writer notices; nothing is left over."""
    store = reopen()
    store.put(NAME, [b"the old bytes"])
    writer = store.append(NAME)

    def fails(read: Read, size: int, blob: Appendable) -> None:
        blob.write([b"half of the ne"], 0)
        raise Unavailable("the disk is full")

    with pytest.raises(Unavailable):
        store.rewritten(NAME, fails)
    assert (store.read(NAME, 0, 100), writer.gone) == (b"the old bytes", False)
    with store.opened(NAME) as read:
        store.rewritten(NAME, lambda read, size, blob: blob.write([b"new", b" ones"], 0))
        assert read(0, 100) in (b"the old bytes", b"new ones")
    assert writer.gone
    writer.close()
    assert reopen().read(NAME, 0, 100) == b"new ones"
    assert list(reopen().names()) == [(NAME, 8)]


def test_a_rewritten_blob_is_made_from_the_old_one(reopen: Callable[[], BlobStore]) -> None:
    """Whoever rewrites is handed the old bytes and their length; without an old blob there is nothing to rewrite."""
    store = reopen()
    store.put(NAME, [b"hello world"])
    store.rewritten(NAME, lambda read, size, blob: blob.write([read(6, size)], 0))
    assert store.read(NAME, 0, 100) == b"world"
    with pytest.raises(NotFound):
        store.rewritten(OTHER, lambda read, size, blob: None)
    assert sorted(store.names()) == [(NAME, 5)]


def test_what_is_proved_is_what_its_user_makes_of_it(reopen: Callable[[], BlobStore]) -> None:
    """`proved` hands over a whole copy and its length; what its user says of bad bytes is raised."""
    store = reopen()
    store.put(NAME, [b"hello world"])
    assert store.proved(NAME, lambda read, size: (read(6, 100), size)) == (b"world", 11)

    def spoilt(read: Read, size: int) -> None:
        raise Corrupt("not what was written")

    with pytest.raises(Corrupt, match="not what was written"):
        store.proved(NAME, spoilt)
    with pytest.raises(NotFound):
        store.proved(OTHER, lambda read, size: size)


def test_append_makes_extends_and_cuts(reopen: Callable[[], BlobStore]) -> None:
    """An appendable starts empty, grows by gathered writes, and can be cut back."""
    blob = reopen().append(NAME)
    assert blob.size() == 0
    blob.write([b"one", b"", b"two"], 0)
    blob.sync()
    blob.close()
    blob = reopen().append(NAME)
    assert (blob.size(), blob.read(0, 100)) == (6, b"onetwo")
    blob.write([b"three"], 6)
    blob.truncate(8)
    blob.sync()
    blob.close()
    assert reopen().read(NAME, 0, 100) == b"onetwoth"


def test_a_write_of_very_many_parts_arrives_in_order(reopen: Callable[[], BlobStore]) -> None:
    """More parts than one system call takes are still one run of bytes."""
    parts = [os.urandom(number % 7) for number in range(3000)]
    blob = reopen().append(NAME)
    blob.write(parts, 0)
    blob.close()
    assert reopen().read(NAME, 0, 2**20) == b"".join(parts)


def test_writers_take_turns(reopen: Callable[[], BlobStore]) -> None:
    """Two appendables of one blob see each other's bytes under the lock."""
    one, two = reopen().append(NAME), reopen().append(NAME)
    one.lock()
    one.write([b"one"], one.size())
    one.unlock()
    two.lock()
    two.write([b"two"], two.size())
    two.unlock()
    assert one.read(0, 10) == b"onetwo"
    one.close()
    two.close()


def test_deleted_blob_is_gone_and_its_writer_knows(reopen: Callable[[], BlobStore]) -> None:
    """After delete the name is free; who had it open is told, so that nothing is written into the void."""
    store = reopen()
    blob = store.append(NAME)
    blob.write([b"secret"], 0)
    assert not blob.gone
    store.delete(NAME)
    store.delete(NAME)
    assert blob.gone
    assert blob.read(0, 100) != b"secret"
    blob.close()
    assert list(store.names()) == []
    for verb in (lambda: store.size(NAME), lambda: store.read(NAME, 0, 1)):
        with pytest.raises(NotFound):
            verb()
    with pytest.raises(NotFound), store.opened(NAME):
        pass
    store.put(NAME, [b"new"])


def test_deleted_blob_is_noise_to_whoever_still_holds_it(
    reopen: Callable[[], BlobStore], tmp_path: Path
) -> None:
    """Every copy is overwritten where it lies, to its last byte, before its name goes: another link to it shows nothing."""
    content = os.urandom(16) * (OVERWRITE_BYTES // 16 * 2) + b"the end of the blob"
    store = reopen()
    store.put(NAME, [content])
    copies = list(tmp_path.rglob(NAME))
    links = [tmp_path / f"link-{number}" for number, _ in enumerate(copies)]
    for copy, link in zip(copies, links, strict=True):
        link.hardlink_to(copy)
        assert link.read_bytes() == content
    held = [os.open(copy, os.O_RDONLY) for copy in copies]
    store.delete(NAME)
    for link, descriptor in zip(links, held, strict=True):
        with os.fdopen(descriptor, "rb") as open_file:
            found = open_file.read()
        assert found == link.read_bytes()
        assert len(found) == len(content)
        assert content[:16] not in found
        assert not found.endswith(b"the end of the blob")
    assert links and not list(tmp_path.rglob(NAME))


def test_names_lists_every_blob_with_its_size(reopen: Callable[[], BlobStore]) -> None:
    """The list is what a restart begins with; an empty store lists nothing."""
    assert list(reopen().names()) == []
    reopen().put(NAME, [b"12345"])
    reopen().put(OTHER, [])
    assert sorted(reopen().names()) == [(NAME, 5), (OTHER, 0)]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../../etc/passwd",
        "st_aaaa/../../x.pack",
        "/etc/passwd",
        "st_aaaa",
        "st_aaaa.pack\n",
        ".st_a.pack",
    ],
)
def test_names_that_could_be_paths_are_refused(reopen: Callable[[], BlobStore], name: str) -> None:
    """Every verb checks its name: they come from ids that came from outside."""
    store = reopen()
    for verb in (
        lambda: store.put(name, [b"x"]),
        lambda: store.append(name),
        lambda: store.read(name, 0, 1),
        lambda: store.size(name),
        lambda: store.delete(name),
    ):
        with pytest.raises(Invalid):
            verb()
