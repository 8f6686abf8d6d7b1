"""Proof files: made by a node, checked by anybody, offline; and the frozen ones of tests/vectors/log."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import consent.errors
from consent.errors import AccordError, Corrupt, Invalid
from node.audit.event import SALT_BYTES, Event
from node.audit.evidence import ProofFile, verify_proof_file
from node.audit.note import Note
from node.audit.witness import AddCheckpoint
from tests.node.audit.conftest import Bench, opened, signer

VECTORS = Path(__file__).parents[2] / "vectors" / "log"
TABLE = json.loads((VECTORS / "table.json").read_text())
B = signer("accord/b-central").as_cosigner()
C = signer("accord/c-clinic").as_cosigner()
KEYS = [signer("accord/a-general").verifier.vkey, B.verifier.vkey, C.verifier.vkey]


async def _proof(bench: Bench, index: int = 2, *, disclose: bool = True) -> str:
    await bench.fill(5)
    note = Note.parse(await bench.log.checkpoint())
    lines = "".join(one.sign(note.text, bench.clock.now()).line for one in (B, C))
    await bench.log.add_cosignatures(5, lines, [B.verifier, C.verifier])
    return await bench.log.proof_file(index, disclose=disclose)


@pytest.mark.requirement("A1")
async def test_a_proof_file_is_enough_to_convince_an_outsider(bench: Bench) -> None:
    """One file and the public keys say which entry, where, when, and who saw it."""
    evidence = verify_proof_file(await _proof(bench), KEYS, quorum=2)
    assert (evidence.origin, evidence.index, evidence.size) == ("accord/a-general", 2, 5)
    assert (evidence.event, evidence.at) == (opened(2), bench.clock.now())
    assert {one.verifier.name for one in evidence.witnesses} == {"accord/b-central", "accord/c-clinic"}


@pytest.mark.requirement("A1")
async def test_a_proof_that_does_not_disclose_holds_for_the_record_handed_over(bench: Bench) -> None:
    """The file alone says nothing of the entry; with the record beside it, it proves it."""
    text = await _proof(bench, disclose=False)
    assert "extra" not in text
    with pytest.raises(Invalid, match="carries no record"):
        verify_proof_file(text, KEYS)
    record = ProofFile.parse(await bench.log.proof_file(2)).extra
    assert record is not None
    assert verify_proof_file(text, KEYS, record=record).event == opened(2)
    changed = record.replace(b"round 2", b"round 3")
    with pytest.raises(Corrupt):
        verify_proof_file(text, KEYS, record=changed)


async def test_the_log_is_not_its_own_witness(bench: Bench) -> None:
    """A cosignature by the log's own key fills no quorum."""
    text = await _proof(bench)
    own = bench.log.signer.as_cosigner()
    file = ProofFile.parse(text)
    note = Note.parse(file.checkpoint)
    more = note.with_signatures([own.sign(note.text, bench.clock.now())])
    with pytest.raises(Corrupt, match="2 of the 3"):
        verify_proof_file(str(replace(file, checkpoint=str(more))), [*KEYS, own.verifier.vkey], quorum=3)


async def test_a_proof_of_an_unknown_log_is_refused(bench: Bench) -> None:
    """The reader's keys decide, not the file."""
    text = await _proof(bench)
    with pytest.raises(Corrupt):
        verify_proof_file(text, [signer("accord/x").verifier.vkey, B.verifier.vkey])
    with pytest.raises(Invalid):
        verify_proof_file(text, ["nonsense"])


@pytest.mark.parametrize("case", TABLE["proofs"], ids=lambda case: case["file"])
def test_frozen_proof_files(case: dict[str, str]) -> None:
    """Files of version 1 stay readable, and each way of failing keeps its answer."""
    text = (VECTORS / case["file"]).read_text()
    quorum = int(case.get("quorum", 2))
    if case["expect"] == "ok":
        evidence = verify_proof_file(text, TABLE["vkeys"], quorum)
        assert evidence.event == Event(**case["event"])
        assert str(ProofFile.parse(text)) == text
        return
    with pytest.raises(getattr(consent.errors, case["expect"])) as found:
        verify_proof_file(text, TABLE["vkeys"], quorum)
    assert found.value.code == case["code"]


def test_the_frozen_request_is_read_and_written_byte_for_byte() -> None:
    """An add-checkpoint body of version 1."""
    text = (VECTORS / "add-checkpoint.txt").read_text()
    assert str(AddCheckpoint.parse(text)) == text


GOOD = (VECTORS / "good.tlog-proof").read_text()


@settings(max_examples=200)
@given(st.integers(0, len(GOOD) - 1), st.characters(codec="utf-8"))
def test_no_changed_character_goes_unnoticed(at: int, character: str) -> None:
    """Whatever character of a proof file is changed, it is refused or still says the very same."""
    changed = GOOD[:at] + character + GOOD[at + 1 :]
    try:
        evidence = verify_proof_file(changed, TABLE["vkeys"], 2)
    except AccordError:
        return
    assert evidence == verify_proof_file(GOOD, TABLE["vkeys"], 2)


def test_a_record_that_is_only_salt_is_refused() -> None:
    """There must be something in it."""
    file = ProofFile.parse(GOOD)
    with pytest.raises(Invalid):
        verify_proof_file(str(replace(file, extra=bytes(SALT_BYTES))), TABLE["vkeys"])
