"""`Log.verify` finds and names every alteration made behind the log's back."""

from __future__ import annotations

import sqlite3

import pytest

from node.audit.merkle import leaf_hash
from node.audit.note import Note
from tests.node.audit.conftest import Bench, opened, signer

WITNESS = signer("accord/b-central").as_cosigner()


async def _witnessed(bench: Bench, count: int) -> None:
    await bench.fill(count)
    note = Note.parse(await bench.log.checkpoint())
    line = WITNESS.sign(note.text, bench.clock.now()).line
    await bench.log.add_cosignatures(await bench.log.size(), line, [WITNESS.verifier])


@pytest.mark.requirement("A1")
async def test_an_untouched_log_verifies(bench: Bench) -> None:
    """Size, root, checkpoints and the largest cosigned size are told."""
    for count in (3, 297, 1):
        await _witnessed(bench, count)
    await bench.fill(4)
    found = await bench.log.verify([WITNESS.verifier])
    assert found.ok, found.faults
    assert (found.size, found.checkpoints, found.cosigned) == (305, 3, 301)
    async with bench.log.database.write() as tx:
        assert (await bench.log.frontier(tx)).root == found.root


async def test_an_empty_log_verifies(bench: Bench) -> None:
    """Before its first entry, and with a checkpoint of nothing."""
    assert (await bench.log.verify()).ok
    await bench.log.checkpoint()
    assert (await bench.log.verify()).checkpoints == 1


@pytest.mark.requirement("A1")
@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE log_entry SET sealed = zeroblob(200) WHERE position = 123", "Entry 123 was altered"),
        ("UPDATE log_entry SET leaf = zeroblob(32) WHERE position = 123", "Entry 123 was altered: its leaf"),
        ("UPDATE log_entry SET patient = NULL WHERE position = 123", "Entry 123 was altered: its patient"),
        ("UPDATE log_entry SET actor = zeroblob(16) WHERE position = 123", "123 was altered: its actor"),
        ("UPDATE log_entry SET at = at - 3600000000 WHERE position = 123", "Entry 123 was altered: its at"),
        ("UPDATE log_entry SET at = 'noon' WHERE position = 123", "Entry 123 was altered: its row cannot"),
        ("UPDATE log_entry SET sealed = 'text' WHERE position = 123", "Entry 123 was altered"),
        ("DELETE FROM log_entry WHERE position = 123", "Entry 123 is missing"),
        ("DELETE FROM log_entry WHERE position BETWEEN 5 AND 9", "Entries 5 to 9 are missing"),
        ("DELETE FROM log_entry WHERE position >= 290", "Entries 290 to 299 are missing"),
        ("DELETE FROM log_entry", "Entries 0 to 299 are missing"),
        (
            "INSERT INTO log_entry SELECT 300, at, leaf, kind, actor, patient, study, sealed "
            "FROM log_entry WHERE position = 7",
            "Entry 300 was put in",
        ),
        (
            "INSERT INTO log_entry SELECT -1, at, leaf, kind, actor, patient, study, sealed "
            "FROM log_entry WHERE position = 7",
            "Entry -1 was put in",
        ),
        ("UPDATE log_entry SET leaf = 7, sealed = 'text' WHERE position = 7", "Entry 7 was altered"),
        ("UPDATE log_hash SET hash = zeroblob(32)", "Hash 0 of tile level 1 does not fit"),
        ("DELETE FROM log_hash", "Hash 0 of tile level 1 is missing"),
        ("INSERT INTO log_hash VALUES (1, 1, zeroblob(32))", "Hash 1 of tile level 1 was put in"),
        ("UPDATE log_state SET frontier = zeroblob(128)", "frontier does not fit"),
        ("UPDATE log_state SET size = 299", "Entry 299 was put in"),
        ("UPDATE log_state SET size = 1000000000000", "Entries 300 to 999999999999 are missing"),
        ("UPDATE log_state SET origin = 'accord/x'", "The log is of 'accord/x'"),
        ("DELETE FROM log_state", "Entry 0 was put in"),
        (
            "UPDATE log_checkpoint SET note = replace(note, 'accord', 'record') WHERE size = 300",
            "Checkpoint 300 was altered",
        ),
        ("UPDATE log_checkpoint SET size = 299 WHERE size = 300", "Checkpoint 299 was altered"),
        ("UPDATE log_checkpoint SET note = 'nonsense' WHERE size = 300", "Checkpoint 300 was altered"),
        ("UPDATE log_checkpoint SET note = zeroblob(9) WHERE size = 300", "Checkpoint 300 was altered"),
        ("DELETE FROM log_checkpoint", "Checkpoint 300 is missing"),
        (
            "UPDATE log_cosignature SET line = replace(line, 'A', 'B')",
            "A cosignature of checkpoint 300 was altered",
        ),
    ],
)
async def test_an_alteration_is_found_and_named(bench: Bench, statement: str, words: str) -> None:
    """Altered, deleted or inserted, in whichever table: the fault says what and where."""
    await _witnessed(bench, 300)
    bench.alter(statement)
    found = await bench.log.verify([WITNESS.verifier])
    assert not found.ok
    assert any(words in fault for fault in found.faults), found.faults


@pytest.mark.requirement("A1")
async def test_two_entries_changed_places_are_both_named(bench: Bench) -> None:
    """Each is sealed to its index."""
    await bench.fill(10)
    for old, new in ((3, -3), (4, 3), (-3, 4)):
        bench.alter("UPDATE log_entry SET position = ? WHERE position = ?", (new, old))
    faults = (await bench.log.verify()).faults
    assert {fault.split(" was")[0] for fault in faults if "does not open" in fault} == {"Entry 3", "Entry 4"}


@pytest.mark.requirement("A1")
async def test_a_log_cut_back_together_with_its_state_meets_its_checkpoint(bench: Bench) -> None:
    """Taking away the last entries and mending size and frontier leaves a checkpoint that vouches for them."""
    await bench.fill(5)
    with sqlite3.connect(bench.file) as connection:
        frontier = connection.execute("SELECT frontier FROM log_state").fetchone()[0]
    connection.close()
    await bench.fill(3)
    await bench.log.checkpoint()
    bench.alter("DELETE FROM log_entry WHERE position >= 5")
    bench.alter("UPDATE log_state SET size = 5, frontier = ?", (frontier,))
    faults = (await bench.log.verify()).faults
    assert faults == ("A checkpoint vouches for 8 entries, but the log has 5.",)


@pytest.mark.requirement("A1")
async def test_history_rewritten_with_the_audit_key_meets_the_signed_checkpoints(bench: Bench) -> None:
    """Somebody who can seal records and mend every hash still cannot mend what was signed and cosigned."""
    await _witnessed(bench, 3)
    await _witnessed(bench, 3)
    record = opened(77).to_record(bench.clock.now(), bytes(16))
    at_two = {"sealed": bench.log.sealer.seal(2, record), "leaf": leaf_hash(record)}
    at_two |= {name: value for name, value in bench.log.blinded(opened(77)).items() if value is not None}
    for column, value in at_two.items():
        bench.alter(f"UPDATE log_entry SET {column} = ? WHERE position = 2", (value,))
    from node.audit.merkle import Frontier

    frontier = Frontier()
    for entry in await bench.log.entries():
        frontier.append(entry.leaf)
    bench.alter("UPDATE log_state SET frontier = ?", (frontier.to_bytes(),))
    faults = (await bench.log.verify([WITNESS.verifier])).faults
    assert faults == ("2 signed checkpoint(s) do not fit the entries, the first one of size 3.",)


async def test_very_many_faults_are_counted_and_not_all_listed(bench: Bench) -> None:
    """The list stays readable."""
    await bench.fill(300)
    bench.alter("UPDATE log_entry SET sealed = zeroblob(200)")
    faults = (await bench.log.verify()).faults
    assert len(faults) == 101
    assert faults[-1] == "… and 200 more."
