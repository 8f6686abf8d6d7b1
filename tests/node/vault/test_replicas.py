"""Replicas: adoption, what stands at a path, failing over, healing every byte, one root that is slow or broken."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from consent.errors import Conflict, Corrupt, NotFound, Unavailable
from consent.vocabulary import EventKind
from node.vault import lanes
from node.vault.blobs import FileAppendable, FileBlobs
from node.vault.compacting import rewrite
from node.vault.pack import StoredObject, check_bodies, pack_name, survey
from node.vault.replicas import Replicas
from node.vault.roots import IDENTITY_NAME, Place, new_identity, read_identity, write_identity
from node.vault.upkeep import bring_back
from node.vault.writer import PackWriter
from tests.node.vault.test_pack import NOW, STUDY, drafts
from tests.support.rack import NODE, Rack, restore_all

NAME = pack_name(STUDY)


@pytest.fixture
def rack(tmp_path: Path) -> Iterator[Rack]:
    with Rack(tmp_path) as made:
        yield made


def fill(replicas: Replicas, *ids: str, size: int = 5000) -> tuple[StoredObject, ...]:
    writer = PackWriter(STUDY, replicas.append(NAME))
    try:
        return writer.append(drafts(*ids, size=size), NOW)
    finally:
        writer.close()
        replicas._voted(replicas.quorum.in_sync)


def copies(rack: Rack) -> list[bytes]:
    return [rack.file(number, NAME).read_bytes() for number in range(len(rack.paths))]


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x40]))


def read_whole(replicas: Replicas, stored: StoredObject) -> bytes:
    def use(read: Callable[[int, int], bytes], _size: int) -> bytes:
        if check_bodies(read, [stored]):
            raise Corrupt("not what was written")
        return read(stored.offset, stored.length)

    return replicas.proved(NAME, use)


@pytest.mark.requirement("V2")
def test_an_answered_group_is_on_a_quorum_and_soon_on_all(rack: Rack) -> None:
    """All three roots hold the same bytes, each says whose it is, and the memory names all of them."""
    replicas = rack.start()
    fill(replicas, "in_1", "in_2")
    assert len(set(copies(rack))) == 1
    assert rack.in_sync() == [0, 1, 2]
    identities = [read_identity(path) for path in rack.paths]
    assert len({one.id for one in identities if one}) == 3
    assert {one.epoch for one in identities if one} == {rack.memory.membership.epoch}


@pytest.mark.requirement("V2", "C3")
def test_every_byte_of_a_copy_that_changes_is_healed_from_the_others(rack: Rack) -> None:
    """Head, frames, headers, bodies, padding: a flipped bit anywhere in one copy is found and put right without a key."""
    replicas = rack.start()
    fill(replicas, "in_1", "in_2", size=300)
    fill(replicas, "in_3", size=300)
    good = copies(rack)[0]
    places = [*range(0, 1200, 7), *range(1200, len(good), 97)]
    for turn, place in enumerate(places):
        number = turn % 3
        flip(rack.file(number, NAME), place)
        healed = replicas.heal(NAME)
        assert (healed.lost, healed.words) == ((), ""), place
        assert list(healed.bytes_by_root) == [number + 1], place
        assert copies(rack) == [good] * 3, place


@pytest.mark.requirement("V2", "C3")
def test_what_is_damaged_everywhere_is_named_and_left_as_it_is(rack: Rack) -> None:
    """No copy of one body is sound: object and place are named, nothing is written, the rest is healed."""
    replicas = rack.start()
    one, two = fill(replicas, "in_1", "in_2")
    fill(replicas, "in_3")
    for number in range(3):
        flip(rack.file(number, NAME), one.offset + 10 + number)
    flip(rack.file(1, NAME), two.offset + 5)
    healed = replicas.heal(NAME)
    assert [piece.object_id for piece in healed.lost] == ["in_1"]
    assert list(healed.bytes_by_root) == [2]
    with pytest.raises(Corrupt):
        read_whole(replicas, one)
    assert read_whole(replicas, two)


@pytest.mark.requirement("C3")
def test_a_forged_record_does_not_pass_for_the_one_that_the_index_names(rack: Rack) -> None:
    """Two copies hold another record with its digest in order: the index knows better than the majority."""
    replicas = rack.start()
    (stored,) = fill(replicas, "in_1")
    good = copies(rack)[0]
    other = FileBlobs(rack.paths[0].parent / "forger")
    writer = PackWriter(STUDY, other.append(NAME))
    (forged,) = writer.append([replace(drafts("in_1", size=5000)[0], payload=b"!" * 5000)], NOW)
    writer.close()
    assert (forged.offset, forged.length) == (stored.offset, stored.length)
    for number in (0, 1):
        rack.file(number, NAME).write_bytes(other.read(NAME, 0, 2**20))
    healed = replicas.heal(NAME, {stored.offset: stored.blake3})
    assert healed.lost == ()
    assert sorted(healed.bytes_by_root) == [1, 2]
    assert copies(rack) == [good] * 3
    for number in range(3):
        rack.file(number, NAME).write_bytes(other.read(NAME, 0, 2**20))
    assert [piece.start for piece in replicas.heal(NAME, {stored.offset: stored.blake3}).lost]


@pytest.mark.requirement("V2")
@pytest.mark.parametrize("how", ["missing", "cut off", "flipped", "no pack at all"])
def test_readers_do_not_notice_a_bad_copy(rack: Rack, how: str) -> None:
    """The copy that is read first is bad: the object is read all the same, and the pack is suspect."""
    replicas = rack.start()
    one, two = fill(replicas, "in_1", "in_2")
    file = rack.file(0, NAME)
    match how:
        case "missing":
            file.unlink()
        case "cut off":
            file.write_bytes(file.read_bytes()[: two.offset + 10])
        case "flipped":
            flip(file, two.offset + 40)
        case _:
            file.write_bytes(b"nothing of the kind" * 1000)
    good = rack.file(1, NAME).read_bytes()
    assert read_whole(replicas, two) == good[two.offset : two.offset + two.length]
    assert replicas.next_suspect() == NAME
    assert replicas.next_suspect() is None
    assert replicas.heal(NAME).words == ""
    assert len(set(copies(rack))) == 1
    assert read_whole(replicas, one)


def test_plain_reads_fail_over_too(rack: Rack) -> None:
    """A missing copy, or one that ends too early, is left for another; a blob that nobody has is NotFound."""
    replicas = rack.start()
    fill(replicas, "in_1")
    whole = copies(rack)[1]
    rack.file(0, NAME).write_bytes(whole[:100])
    assert replicas.read(NAME, 0, 2**20) == whole
    rack.file(0, NAME).unlink()
    assert replicas.read(NAME, 50, 100) == whole[50:150]
    with pytest.raises(NotFound):
        replicas.read(pack_name("st_" + "z" * 26), 0, 1)


@pytest.mark.requirement("V2")
def test_a_disk_that_hangs_holds_nobody_up(rack: Rack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two roots answer while the third does nothing; it falls behind when too much waits, and catches up later."""
    monkeypatch.setattr(lanes, "MAX_OWED_BYTES", 20_000)
    monkeypatch.setattr(lanes, "CATCH_UP_SECONDS", 0.05)
    replicas = rack.start()
    hangs = threading.Event()
    slow = rack.paths[2]
    real = FileAppendable.sync

    def sync(file: FileAppendable) -> None:
        if threading.current_thread().name.startswith("root-3"):
            hangs.wait(20)
        real(file)

    monkeypatch.setattr(FileAppendable, "sync", sync)
    writer = PackWriter(STUDY, replicas.append(NAME))
    kept = [stored for number in range(6) for stored in writer.append(drafts(f"in_{number}", size=9000), NOW)]
    assert len(kept) == 6
    assert replicas.quorum.in_sync[2].lagging == {NAME}
    assert slow.exists()
    hangs.set()
    replicas._voted(replicas.quorum.in_sync)
    replicas.watch()
    assert rack.in_sync() == [0, 1, 2]
    writer.append(drafts("in_9"), NOW)
    writer.close()
    replicas._voted(replicas.quorum.in_sync)
    assert len(set(copies(rack))) == 1


@pytest.mark.requirement("V2", "F4")
def test_no_quorum_no_answer_in_words(rack: Rack) -> None:
    """With one root of three nothing is answered for and the words say why; what was there is still read."""
    replicas = rack.start()
    (stored,) = fill(replicas, "in_1")
    rack.take(0)
    rack.take(1)
    with pytest.raises(Unavailable) as refused:
        fill(replicas, "in_2")
    assert refused.value.code == "below-quorum"
    assert "Nothing was stored" in refused.value.message
    replicas.watch()
    assert replicas.quorum.why_closed == "Only 1 of 3 storage roots can be used; 2 are needed."
    assert read_whole(replicas, stored)
    rack.put_back(1)
    replicas.watch()
    assert fill(replicas, "in_2")
    rack.put_back(0)
    restore_all(replicas)
    assert rack.in_sync() == [0, 1, 2]
    assert len(set(copies(rack))) == 1


@pytest.mark.requirement("V2")
def test_an_archive_with_one_root_becomes_the_first_of_three(tmp_path: Path) -> None:
    """Its packs are adopted as they are; it takes instances at once, and the others are filled from it."""
    with Rack(tmp_path) as rack:
        before = FileBlobs(rack.paths[0])
        writer = PackWriter(STUDY, before.append(NAME))
        writer.append(drafts("in_1"), NOW)
        writer.close()
        replicas = rack.start()
        assert rack.in_sync() == [0]
        fill(replicas, "in_2")
        restore_all(replicas)
        assert rack.in_sync() == [0, 1, 2]
        assert replicas.quorum.need == 2
        assert len(set(copies(rack))) == 1


def test_several_filled_folders_without_an_identity_are_nobodys(tmp_path: Path) -> None:
    """The node does not guess which of them is right."""
    with Rack(tmp_path) as rack:
        for number in (0, 1):
            FileBlobs(rack.paths[number]).put(NAME, [b"something"])
        with pytest.raises(Conflict, match="none says to whom"):
            rack.start()


@pytest.mark.requirement("V2")
def test_a_root_of_another_node_is_left_alone(tmp_path: Path) -> None:
    """Swapped disks are named, and not a byte on them changes."""
    with Rack(tmp_path / "a") as ours, Rack(tmp_path / "b") as theirs:
        replicas = ours.start()
        fill(replicas, "in_1")
        theirs.start()
        identity = (theirs.paths[0] / IDENTITY_NAME).read_text().replace("a-general", "b-central")
        (theirs.paths[0] / IDENTITY_NAME).write_text(identity)
        ours.take(2)
        theirs.paths[0].rename(ours.paths[2])
        replicas.watch()
        slot = replicas.quorum.slots[2]
        assert (slot.found.place, slot.root) == (Place.FOREIGN, None)
        assert slot.found.words == "It belongs to the node b-central."
        assert sorted(path.name for path in ours.paths[2].iterdir()) == [IDENTITY_NAME]
        fill(replicas, "in_2")


def test_swapped_disks_of_one_node_are_told_by_their_identity(rack: Rack) -> None:
    """Roots 2 and 3 change places over a restart: nothing is copied, nothing is lost."""
    replicas = rack.start()
    fill(replicas, "in_1")
    replicas.close()
    aside = rack.paths[1].with_suffix(".aside")
    rack.paths[1].rename(aside)
    rack.paths[2].rename(rack.paths[1])
    aside.rename(rack.paths[2])
    replicas = rack.start()
    assert len(replicas.quorum.in_sync) == 3
    assert fill(replicas, "in_2")


@pytest.mark.requirement("V2")
def test_a_damaged_identity_is_named_and_costs_nothing(rack: Rack) -> None:
    """A byte of the identity file changes: the root counts as away until somebody says what it is."""
    replicas = rack.start()
    fill(replicas, "in_1")
    (rack.paths[1] / IDENTITY_NAME).write_text("{}")
    replicas.watch()
    slot = replicas.quorum.slots[1]
    assert (slot.found.place, slot.found.words) == (Place.FOREIGN, "Its identity file is damaged.")
    assert rack.in_sync() == [0, 2]
    fill(replicas, "in_2")
    write_identity(rack.paths[1], new_identity(NODE, NOW))  # as accord replicas refill --root 2 does
    replicas.watch()
    restore_all(replicas)
    assert rack.in_sync() == [0, 1, 2]
    assert len(set(copies(rack))) == 1


@pytest.mark.requirement("V2")
def test_an_older_database_does_not_bring_a_stale_root_back_as_good(rack: Rack) -> None:
    """The database is restored from before a root was lost: the roots know which of them took part last."""
    replicas = rack.start()
    fill(replicas, "in_1")
    older = rack.memory.membership
    rack.take(2)
    replicas.watch()
    (kept,) = fill(replicas, "in_2")
    replicas.close()
    rack.put_back(2)
    rack.memory.membership = older
    replicas = rack.start()
    assert [root.number for root in replicas.quorum.in_sync] == [1, 2]
    assert any("older than the storage roots" in news.words for news in replicas.quorum.news)
    restore_all(replicas)
    assert read_whole(replicas, kept)
    assert len(set(copies(rack))) == 1


@pytest.mark.requirement("V2")
def test_a_root_that_missed_a_compaction_gets_the_new_file(rack: Rack) -> None:
    """A root comes back with an older generation of a pack, longer than the new one: it is replaced, not merged."""
    replicas = rack.start()
    fill(replicas, "in_1", "in_2")
    fill(replicas, "in_1", "in_3")
    rack.take(1)
    replicas.watch()
    places = rewrite(replicas, STUDY, NOW)
    rack.put_back(1)
    assert rack.file(1, NAME).stat().st_size > rack.file(0, NAME).stat().st_size
    restore_all(replicas)
    assert len(set(copies(rack))) == 1
    assert sorted(places) == ["in_1", "in_2", "in_3"]
    for stored in places.values():
        assert read_whole(replicas, stored)


def test_what_happens_to_roots_is_news(rack: Rack) -> None:
    """Out of sync, below the quorum, in sync again: each once, with the root's number."""
    replicas = rack.start()
    fill(replicas, "in_1")
    rack.take(1)
    replicas.watch()
    replicas.watch()
    rack.put_back(1)
    restore_all(replicas)
    news = [(one.kind, one.detail.get("root")) for one in replicas.quorum.news]
    assert news == [(EventKind.REPLICA_DEGRADED, 2), (EventKind.REPLICA_HEALED, 2)]


def test_copies_equal_in_length_and_not_in_bytes_are_brought_level_before_writing(rack: Rack) -> None:
    """After a power cut one copy of the last group is zeros: opening the pack for writing mends it."""
    replicas = rack.start()
    fill(replicas, "in_1")
    two = fill(replicas, "in_2")[0]
    replicas.close()
    good = copies(rack)[1]
    base = next(s for s in survey(lambda o, n: good[o : o + n], len(good), STUDY).spans if s.stored == two)
    rack.file(0, NAME).write_bytes(good[: base.start] + bytes(len(good) - base.start))
    replicas = rack.start()
    fill(replicas, "in_3")
    assert len(set(copies(rack))) == 1
    assert read_whole(replicas, two)


@pytest.mark.requirement("V2", "C3")
def test_a_copy_that_cannot_be_read_is_written_anew(rack: Rack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad sector: readers go past it, and a scrub gives that root another file."""
    replicas = rack.start()
    (stored,) = fill(replicas, "in_1")
    bad = rack.file(1, NAME).stat().st_ino
    real = os.pread

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        if os.fstat(descriptor).st_ino == bad and offset + length > stored.offset:
            raise OSError(errno.EIO, "bad sector")
        return real(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    healed = replicas.heal(NAME)
    assert (healed.lost, healed.words, list(healed.bytes_by_root)) == ((), "", [2])
    monkeypatch.undo()
    assert rack.file(1, NAME).stat().st_ino != bad
    assert len(set(copies(rack))) == 1


@pytest.mark.requirement("V2")
def test_a_stale_root_alone_is_not_taken_for_the_archive(rack: Rack) -> None:
    """It comes back while the roots in sync are away: nothing is written, nothing is taken in sync, what it has is read."""
    replicas = rack.start()
    (old,) = fill(replicas, "in_1")
    rack.take(2)
    replicas.watch()
    (new,) = fill(replicas, "in_2")
    rack.take(0)
    rack.take(1)
    rack.put_back(2)
    replicas.watch()
    (stale,) = replicas.quorum.others
    with pytest.raises(Unavailable):
        replicas.restore(stale)
    with pytest.raises(Unavailable):
        fill(replicas, "in_3")
    assert rack.in_sync() == [0, 1]
    assert read_whole(replicas, old)
    rack.put_back(0)
    rack.put_back(1)
    restore_all(replicas)
    assert rack.in_sync() == [0, 1, 2]
    assert read_whole(replicas, new)
    assert len(set(copies(rack))) == 1


@pytest.mark.requirement("V2")
@pytest.mark.parametrize("how", ["unreadable", "taken away"])
def test_a_root_that_comes_back_keeps_what_the_others_cannot_be_asked_for(
    rack: Rack, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A pack counts as deleted only when every root in sync is there and has none; else nothing is taken in sync."""
    replicas = rack.start()
    (stored,) = fill(replicas, "in_1")
    rack.take(2)
    replicas.watch()
    rack.put_back(2)
    replicas.watch()
    (returning,) = replicas.quorum.others
    sources = replicas.quorum.in_sync
    if how == "unreadable":

        def existing(_blobs: FileBlobs, _name: str) -> FileAppendable:
            raise Unavailable("Cannot open a study pack: Too many open files.", code="storage")

        monkeypatch.setattr(FileBlobs, "existing", existing)
    else:  # the disks are unmounted: empty folders, and nobody has looked since
        for number in (0, 1):
            rack.take(number)
            rack.paths[number].mkdir()
    with pytest.raises(Unavailable):
        bring_back(NAME, sources, returning)
    with pytest.raises(Unavailable):
        replicas.restore(returning)
    assert rack.in_sync() == [0, 1]
    assert returning.blobs.size(NAME) > stored.length


@pytest.mark.requirement("V2")
def test_a_root_whose_packs_cannot_be_listed_is_left_behind_at_the_start(
    rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of three: the node begins without it. Two of three: it reads, and takes nothing in."""
    replicas = rack.start()
    (stored,) = fill(replicas, "in_1")
    replicas.close()
    bad = {rack.paths[0]}
    listed = FileBlobs.names

    def names(blobs: FileBlobs) -> Iterator[tuple[str, int]]:
        if blobs.root in bad:
            raise Unavailable("Cannot list the study packs: Input/output error.", code="storage")
        return listed(blobs)

    monkeypatch.setattr(FileBlobs, "names", names)
    replicas = rack.start()
    assert rack.in_sync() == [1, 2]
    fill(replicas, "in_2")
    replicas.close()
    bad.add(rack.paths[1])
    replicas = rack.start()
    assert rack.in_sync() == [1, 2]
    assert read_whole(replicas, stored)
    with pytest.raises(Unavailable):
        fill(replicas, "in_3")
