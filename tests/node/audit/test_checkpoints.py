"""Checkpoints of a real log: signed once, cosigned, proved under, and never against the entries."""

from __future__ import annotations

from hashlib import sha256

import pytest

from consent.errors import Corrupt, Invalid, NotFound, Unavailable
from node.audit.checkpoints import cosigners
from node.audit.evidence import verify_proof_file
from node.audit.merkle import check_consistency, check_inclusion
from node.audit.note import Checkpoint, Note, Signer, open_checkpoint
from node.audit.tiles import Tile
from tests.node.audit.conftest import Bench, opened, signer

B = signer("accord/b-central").as_cosigner()
C = signer("accord/c-clinic").as_cosigner()


def _head(note: str, log: Signer) -> Checkpoint:
    return open_checkpoint(note, [log.verifier])[0]


@pytest.mark.requirement("A1")
async def test_a_checkpoint_is_made_when_the_log_grew_and_only_then(bench: Bench) -> None:
    """The same note comes back until there is an entry more."""
    empty = _head(await bench.log.checkpoint(), bench.log.signer)
    assert (empty.origin, empty.size) == ("accord/a-general", 0)
    await bench.fill(3)
    first = await bench.log.checkpoint()
    bench.clock.tick(hours=1)
    assert await bench.log.checkpoint() == first == await bench.log.heads.latest()
    await bench.log.record(opened(3))
    assert _head(await bench.log.checkpoint(), bench.log.signer).size == 4


@pytest.mark.requirement("A1")
async def test_proofs_hold_at_every_size_around_a_tile_boundary(bench: Bench) -> None:
    """Inclusion of every entry, and consistency with every earlier checkpoint, from stored hashes."""
    heads: list[Checkpoint] = []
    for count in (1, 2, 251, 1, 1, 1, 256, 5):
        await bench.fill(count)
        heads.append(_head(await bench.log.checkpoint(), bench.log.signer))
    assert [head.size for head in heads] == [1, 3, 254, 255, 256, 257, 513, 518]
    leaves = [entry.leaf for entry in await bench.log.entries(limit=1000)]
    for head in heads:
        for index in {0, 1, 2, 127, 253, 255, 256, 512, head.size - 1} & set(range(head.size)):
            proof = await bench.log.prove_inclusion(index, head.size)
            check_inclusion(index, head.size, leaves[index], proof, head.root)
    for old in heads:
        for new in heads:
            if old.size <= new.size:
                proof = await bench.log.prove_consistency(old.size, new.size)
                check_consistency(old.size, new.size, proof, old.root, new.root)


async def test_proofs_of_what_is_not_there_are_refused(bench: Bench) -> None:
    """Beyond the log, or backwards."""
    await bench.fill(3)
    with pytest.raises(Invalid):
        await bench.log.prove_inclusion(3, 3)
    with pytest.raises(NotFound):
        await bench.log.prove_inclusion(1, 300)
    with pytest.raises(Invalid):
        await bench.log.prove_consistency(3, 2)


@pytest.mark.requirement("A1")
async def test_cosignatures_are_kept_with_their_checkpoint(bench: Bench) -> None:
    """A witness's line is verified, stored once, replaced by a newer one, and shown with the note."""
    await bench.fill(2)
    text = Note.parse(await bench.log.checkpoint()).text
    for signer_ in (B, C, B):
        bench.clock.tick(seconds=1)
        line = signer_.sign(text, bench.clock.now()).line
        kept = await bench.log.add_cosignatures(2, line, [B.verifier, C.verifier])
        assert [one.verifier for one in kept] == [signer_.verifier]
        assert kept[0].at == bench.clock.now()
    note = await bench.log.checkpoint()
    found = cosigners(note, bench.log.signer.verifier, [B.verifier, C.verifier])
    assert {one.verifier.name for one in found} == {"accord/b-central", "accord/c-clinic"}
    assert len(Note.parse(note).signatures) == 3


async def test_only_a_known_witness_of_this_very_checkpoint_counts(bench: Bench) -> None:
    """A stranger's line is ignored, a line over another text is refused, no checkpoint takes none."""
    await bench.fill(2)
    text = Note.parse(await bench.log.checkpoint()).text
    stranger = signer("accord/d-unlisted").as_cosigner()
    line = stranger.sign(text, bench.clock.now()).line
    assert await bench.log.add_cosignatures(2, line, [B.verifier]) == ()
    other = B.sign(text.replace("2\n", "3\n"), bench.clock.now()).line
    with pytest.raises(Corrupt):
        await bench.log.add_cosignatures(2, other, [B.verifier])
    with pytest.raises(NotFound):
        await bench.log.add_cosignatures(1, other, [B.verifier])
    with pytest.raises(Invalid):
        await bench.log.add_cosignatures(2, "nonsense", [B.verifier])
    own = bench.log.signer.as_cosigner()
    note = Note.parse(await bench.log.checkpoint()).with_signatures([own.sign(text, bench.clock.now())])
    assert cosigners(str(note), bench.log.signer.verifier, [own.verifier]) == ()


@pytest.mark.requirement("A1")
async def test_a_proof_file_waits_for_its_quorum(bench: Bench) -> None:
    """It is made under the best cosigned checkpoint that covers the entry, not merely the newest."""
    await bench.fill(2)
    note = Note.parse(await bench.log.checkpoint())
    with pytest.raises(Unavailable, match="cosignatures yet"):
        await bench.log.proof_file(1, quorum=1)
    lines = "".join(one.sign(note.text, bench.clock.now()).line for one in (B, C))
    await bench.log.add_cosignatures(2, lines, [B.verifier, C.verifier])
    await bench.fill(3)
    await bench.log.checkpoint()
    keys = [bench.log.signer.verifier.vkey, B.verifier.vkey, C.verifier.vkey]
    evidence = verify_proof_file(await bench.log.proof_file(1, quorum=2), keys, quorum=2)
    assert (evidence.size, evidence.event) == (2, opened(1))
    assert verify_proof_file(await bench.log.proof_file(4), keys).size == 5
    with pytest.raises(NotFound, match="no log entry 99"):
        await bench.log.proof_file(99)
    await bench.fill(1)
    with pytest.raises(Unavailable, match="entry 5"):
        await bench.log.proof_file(5)


async def test_tiles_are_served_as_the_tree_has_them(bench: Bench) -> None:
    """Full and partial; more than there is, is not found."""
    await bench.fill(260)
    leaves = b"".join(entry.leaf for entry in await bench.log.entries(limit=1000))
    assert await bench.log.tile(Tile(0, 0)) == leaves[: 256 * 32]
    assert await bench.log.tile(Tile(0, 1, 3)) == leaves[256 * 32 : 259 * 32]
    assert len(await bench.log.tile(Tile(1, 0, 1))) == 32
    for missing in (Tile(0, 1, 5), Tile(0, 1), Tile(1, 0, 2), Tile(2, 0, 1)):
        with pytest.raises(NotFound):
            await bench.log.tile(missing)


@pytest.mark.requirement("A1")
@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE log_entry SET sealed = zeroblob(200) WHERE position = 3", "entry 3"),
        ("UPDATE log_entry SET leaf = zeroblob(32) WHERE position = 3", "entry 3"),
        ("UPDATE log_entry SET leaf = zeroblob(32) WHERE position = 299", "entry 299"),
        ("DELETE FROM log_entry WHERE position = 7", "entry 7 is missing"),
        ("UPDATE log_hash SET hash = zeroblob(32)", "do not give their hash"),
        ("UPDATE log_state SET size = 200, frontier = zeroblob(96)", "300 entries were vouched for"),
    ],
)
async def test_a_log_that_contradicts_itself_signs_nothing(bench: Bench, statement: str, words: str) -> None:
    """The next checkpoint, and so the next witness, finds the alteration; the reason says where."""
    await bench.fill(300)
    await bench.log.checkpoint()
    await bench.log.record(opened(300))
    bench.alter(statement)
    with pytest.raises(Corrupt, match=words):
        await bench.log.checkpoint()
    size = int(bench_checkpoints(bench))
    assert size == 300


def bench_checkpoints(bench: Bench) -> int:
    """The largest size signed so far, straight from the table."""
    import sqlite3

    with sqlite3.connect(bench.file) as connection:
        return int(connection.execute("SELECT max(size) FROM log_checkpoint").fetchone()[0])


@pytest.mark.requirement("A1")
async def test_a_rewritten_entry_with_rewritten_hashes_does_not_get_signed(bench: Bench) -> None:
    """Even with the audit key: whoever rebuilds leaf and frontier still meets the last checkpoint's root."""
    await bench.fill(5)
    await bench.log.checkpoint()
    await bench.log.record(opened(5))
    record = opened(77).to_record(bench.clock.now(), sha256(b"salt").digest()[:16])
    from node.audit.merkle import Frontier, leaf_hash

    frontier = Frontier()
    for entry in await bench.log.entries():
        frontier.append(leaf_hash(record) if entry.index == 2 else entry.leaf)
    bench.alter(
        "UPDATE log_entry SET sealed = ?, leaf = ? WHERE position = 2",
        (bench.log.sealer.seal(2, record), leaf_hash(record)),
    )
    bench.alter("UPDATE log_state SET frontier = ?", (frontier.to_bytes(),))
    with pytest.raises(Corrupt, match="checkpoint of size 5"):
        await bench.log.checkpoint()


async def test_the_recheck_wanders_over_a_log_larger_than_its_window(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one checkpoint does not open again, a later one does."""
    monkeypatch.setattr("node.audit.checkpoints.RECHECKED_ENTRIES", 256)
    await bench.fill(600)
    await bench.log.checkpoint()
    await bench.log.checkpoint()
    bench.alter("UPDATE log_entry SET sealed = zeroblob(200) WHERE position = 10")
    found = ""
    for n in range(6):
        await bench.log.record(opened(n))
        try:
            await bench.log.checkpoint()
        except Corrupt as error:
            found = error.message
            break
    assert "entry 10" in found
