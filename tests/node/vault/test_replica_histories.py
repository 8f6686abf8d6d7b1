"""The five rules of decision 10 against random histories of crashes, absences, losses and returns, with real files.

`ACCORD_HISTORIES` raises how many are tried, `ACCORD_HISTORY_SEED` repeats the decisions of one.
"""

from __future__ import annotations

import os
import random
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from blake3 import blake3

from consent.errors import Corrupt, NotFound, Unavailable
from node.vault.blobs import FileBlobs, Read
from node.vault.compacting import rewrite
from node.vault.lanes import Root
from node.vault.pack import StoredObject, pack_name, survey
from node.vault.replicas import Replicas
from node.vault.roots import read_identity
from node.vault.seal import ObjectHeader
from node.vault.writer import Draft, PackGone, PackWriter
from tests.support.clock import FakeClock
from tests.support.rack import Rack

STUDIES = ["st_" + letter * 26 for letter in "ab"]
NOW = FakeClock().now()
COUNT = int(os.environ.get("ACCORD_HISTORIES", "12"))
STEPS = 30
TAILS = ("none", "some", "whole", "zeros", "spoilt")


def draft(study: str, dice: random.Random) -> Draft:
    header = ObjectHeader(study, f"in_{dice.randbytes(8).hex()}", "instance", 1)
    return Draft(header, dice.randbytes(dice.randrange(6000)), bytes(32))


class History:
    """One archive on three roots, quorum two. What was answered for must be there whenever it can be."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.rack = Rack(folder)
        self.dice = dice
        self.answered: dict[str, dict[str, StoredObject]] = {study: {} for study in STUDIES}
        self.writers: dict[str, PackWriter] = {}
        self.out: set[int] = set()
        self.done: list[str] = []
        self.replicas: Replicas = self.rack.start()

    def run(self) -> None:
        """Random steps, the promise looked at after each; in the end everything is put back and alike."""
        deeds = [self.store] * 5 + [
            self.take,
            self.put_back,
            self.look,
            self.bring_back,
            self.lose,
            self.crash,
        ]
        deeds += [self.crash, self.put_back, self.compact]
        for _ in range(STEPS):
            deed = self.dice.choice(deeds if self.dice.random() < 0.97 else [self.destroy])
            self.done.append(deed.__name__)
            deed()
            self.require_what_was_answered_for()
        self.finish()

    def store(self) -> None:
        """A group; what is answered for is remembered."""
        study = self.dice.choice(STUDIES)
        with suppress(Unavailable):
            for stored in self._append(study):
                self.answered[study][stored.object_id] = stored

    def take(self) -> None:
        """A root is pulled out in the middle of things."""
        number = self.dice.randrange(3)
        if number not in self.out:
            self.rack.take(number)
            self.out.add(number)

    def put_back(self) -> None:
        """One comes back as it was."""
        if self.out:
            number = self.dice.choice(sorted(self.out))
            self.out.remove(number)
            self.rack.put_back(number)

    def look(self) -> None:
        """What the node does every second."""
        self.replicas.watch()

    def bring_back(self) -> None:
        """What it does for a root that is there and behind."""
        self.replicas.watch()
        for root in self.replicas.quorum.others:
            with suppress(Unavailable):
                self.replicas.restore(root)

    def lose(self) -> None:
        """A disk dies and an empty one takes its place, while the others are well."""
        self.replicas.watch()
        if not self.out and len(self.rack.in_sync()) == 3 and not self.replicas.quorum.missing:
            self._settle()
            self.rack.blank(self.dice.randrange(3))

    def destroy(self) -> None:
        """A study is deleted; when that was said, it must not come back."""
        study = self.dice.choice(STUDIES)
        self._drop(study)
        self.answered[study].clear()  # also when it did not end well: whoever destroys wants it gone
        with suppress(Unavailable):
            self.replicas.delete(pack_name(study))

    def compact(self) -> None:
        """A pack is written anew; one that is damaged or cannot be has stayed as it was."""
        study = self.dice.choice(STUDIES)
        with suppress(Unavailable, NotFound, Corrupt):
            places = rewrite(self.replicas, study, NOW)
            self.answered[study] = {name: places[name] for name in self.answered[study]}

    def crash(self) -> None:
        """The process dies: an unfinished group lies about, and one root may not have got the last answered one."""
        study = self.dice.choice(STUDIES)
        for name in list(self.writers):
            self._drop(name)
        began = self._begins_a_group(study)
        self._settle()
        for root in self.replicas.quorum.readable:
            root.abandon()
        members = [number for number in self.rack.in_sync() if read_identity(self.rack.paths[number])]
        straggler = self.dice.randrange(3)
        if self.dice.random() < 0.5 and len(self.rack.in_sync()) == 3 and straggler in members:
            self._lose_last_group(study, straggler)
        group = self._unfinished(study, members) if began else b""
        for number in members:
            self._leave(study, number, group, self.dice.choice(TAILS))
        self.replicas = self.rack.start()

    def require_what_was_answered_for(self) -> None:
        """As long as enough roots are there to know."""
        quorum = self.replicas.quorum
        if any(self._stands(root) for root in quorum.in_sync):
            for study, objects in self.answered.items():
                for stored in objects.values():
                    assert self._reads(study, stored), (study, stored.object_id)
            assert len(self.rack.in_sync()) >= quorum.need

    def finish(self) -> None:
        """Everything is put back: all copies are alike, and say what was answered for."""
        while self.out:
            self.put_back()
        for _ in range(4):
            self.bring_back()
        assert self.rack.in_sync() == [0, 1, 2]
        for study, objects in self.answered.items():
            answered = self._append(study)
            self._drop(study)
            self._settle()
            self.replicas.watch()
            copies = [self.rack.file(number, pack_name(study)).read_bytes() for number in range(3)]
            assert copies[0] == copies[1] == copies[2]
            assert all(self._reads(study, stored) for stored in [*objects.values(), *answered])

    def close(self) -> None:
        """End every thread."""
        for study in list(self.writers):
            self._drop(study)
        self.rack.close()

    def _append(self, study: str) -> tuple[StoredObject, ...]:
        while True:
            if study not in self.writers:
                self.writers[study] = PackWriter(study, self.replicas.append(pack_name(study)))
            try:
                return self.writers[study].append([draft(study, self.dice), draft(study, self.dice)], NOW)
            except PackGone:
                self._drop(study)

    def _drop(self, study: str) -> None:
        writer = self.writers.pop(study, None)
        if writer is not None:
            writer.close()

    def _begins_a_group(self, study: str) -> bool:
        """Whether a writer gets as far as to write: it mends the pack first."""
        try:
            writer = PackWriter(study, self.replicas.append(pack_name(study)))
        except Unavailable:
            return False
        try:
            writer.settle()
        except Unavailable:
            return False
        finally:
            writer.close()
        return True

    def _stands(self, root: Root) -> bool:
        identity = read_identity(root.path)
        return identity is not None and identity.id == root.id

    def _settle(self) -> None:
        """Let stragglers end, so that what a crash leaves is what the rule says and no accident."""
        self.replicas._voted(self.replicas.quorum.in_sync)

    def _reads(self, study: str, stored: StoredObject) -> bool:
        def use(read: Read, size: int) -> bool:
            if blake3(read(stored.offset, stored.length)).digest() != stored.blake3:
                raise Corrupt("not what was written")
            return True

        return self.replicas.proved(pack_name(study), use)

    def _lose_last_group(self, study: str, number: int) -> None:
        path = self.rack.file(number, pack_name(study))
        if path.exists():
            found = survey(_reader(path), path.stat().st_size, study)
            bases = [span.base for span in found.spans if span.stored is not None]
            if bases:
                with path.open("r+b") as file:
                    file.truncate(bases[-1])

    def _unfinished(self, study: str, members: list[int]) -> bytes:
        """The bytes of a group that nobody was told of, as a writer would put them behind the longest copy."""
        paths = [self.rack.file(number, pack_name(study)) for number in members]
        paths = [path for path in paths if path.exists()]
        with tempfile.TemporaryDirectory() as scratch:
            blobs = FileBlobs(Path(scratch))
            before = b""
            if paths:
                before = max((path.read_bytes() for path in paths), key=len)
                blobs.put(pack_name(study), [before])
            writer = PackWriter(study, blobs.append(pack_name(study)))
            try:
                writer.append([draft(study, self.dice)], NOW)
            finally:
                writer.close()
            return blobs.read(pack_name(study), len(before), 2**20)

    def _leave(self, study: str, number: int, group: bytes, tail: str) -> None:
        path = self.rack.file(number, pack_name(study))
        sizes = [p.stat().st_size for n in range(3) if (p := self.rack.file(n, pack_name(study))).exists()]
        if not group or tail == "none" or (sizes and (not path.exists() or path.stat().st_size < max(sizes))):
            return
        half = len(group) // 2
        data = {
            "some": group[:half],
            "whole": group,
            "zeros": bytes(len(group)),
            "spoilt": group[:half] + self.dice.randbytes(64) + group[half + 64 :],
        }[tail]
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            file.write(data)


def _reader(path: Path) -> Read:
    data = path.read_bytes()
    return lambda offset, length: data[offset : offset + length]


@pytest.mark.requirement("V2", "F4")
def test_no_history_of_crashes_and_absences_loses_what_was_answered_for(tmp_path: Path) -> None:
    """Whatever happens to one root at a time, or to the process: copies end alike, with everything in them."""
    given = os.environ.get("ACCORD_HISTORY_SEED")
    for number in range(COUNT if given is None else 1):
        seed = secrets.randbits(32) if given is None else int(given)
        history = History(tmp_path / str(number), random.Random(seed))
        try:
            history.run()
        except Exception as error:
            error.add_note(f"ACCORD_HISTORY_SEED={seed}: {' '.join(history.done)}")
            raise
        finally:
            history.close()


def test_deleted_packs_do_not_return_with_a_root(tmp_path: Path) -> None:
    """A root that was away during a deletion loses the pack when it comes back."""
    name = pack_name(STUDIES[0])
    with Rack(tmp_path) as rack:
        replicas = rack.start()
        replicas.put(name, [b"gone soon"])
        rack.take(2)
        replicas.delete(name)
        rack.put_back(2)
        assert rack.file(2, name).exists()
        replicas.watch()
        (root,) = replicas.quorum.others
        replicas.restore(root)
        assert rack.in_sync() == [0, 1, 2]
        assert not rack.file(2, name).exists()
        with pytest.raises(NotFound):
            replicas.size(name)
