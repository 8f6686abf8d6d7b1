"""A witness cosigns a log that only grew, answers as C2SP tlog-witness says, and is never rolled back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from consent.errors import AccordError, Conflict, Corrupt, Denied, Invalid, NotFound
from node.audit.merkle import EMPTY_ROOT, leaf_hash
from node.audit.note import Checkpoint, Note, Verifier
from node.audit.witness import (
    AddCheckpoint,
    HistoryRewritten,
    StaleSize,
    Witness,
    http_status,
    origin_hash,
)
from tests.node.audit.conftest import Bench, opened, signer
from tests.support.clock import FakeClock
from tests.support.databases import database_in

B = signer("accord/b-central").as_cosigner()


@dataclass
class Pair:
    """A log and a witness at another hospital, with a database of its own."""

    bench: Bench
    witness: Witness

    async def request(self, old: int) -> AddCheckpoint:
        note = await self.bench.log.checkpoint()
        size = Checkpoint.parse(Note.parse(note).text).size
        proof = await self.bench.log.prove_consistency(old, size)
        return AddCheckpoint(old, tuple(proof), note)

    async def add(self, request: AddCheckpoint) -> str:
        return await self.witness.add_checkpoint(request, self.known)

    def known(self, origin: str) -> list[Verifier]:
        return [self.bench.log.signer.verifier] if origin == self.bench.log.origin else []


@pytest.fixture
async def pair(bench: Bench, tmp_path: Path) -> AsyncIterator[Pair]:
    database = database_in(tmp_path / "witness.db")
    yield Pair(bench, Witness(database, signer=B, clock=bench.clock))
    await database.close()


@pytest.mark.requirement("A1")
async def test_a_log_that_grows_is_cosigned_step_by_step(pair: Pair) -> None:
    """First checkpoint without a proof, then from the size known; the log keeps the cosignatures."""
    size = 0
    for count in (3, 300, 1):
        await pair.bench.fill(count)
        pair.bench.clock.tick(minutes=1)
        lines = await pair.add(await pair.request(size))
        size = await pair.bench.log.size()
        kept = await pair.bench.log.add_cosignatures(size, lines, [B.verifier])
        assert [one.at for one in kept] == [pair.bench.clock.now()]
        assert await pair.witness.known_size(pair.bench.log.origin) == size
    latest = await pair.witness.latest_by_hash(origin_hash(pair.bench.log.origin))
    assert latest == await pair.witness.latest(pair.bench.log.origin)
    assert [s.name for s in Note.parse(latest).signatures] == ["accord/a-general", "accord/b-central"]


async def test_the_same_checkpoint_may_be_cosigned_again_with_a_newer_time(pair: Pair) -> None:
    """A quiet log still shows that it is alive."""
    await pair.bench.fill(3)
    first = await pair.add(await pair.request(0))
    pair.bench.clock.tick(hours=1)
    assert await pair.add(await pair.request(3)) != first


async def test_an_empty_log_may_be_cosigned(pair: Pair) -> None:
    """Size 0 with the root of nothing."""
    await pair.add(await pair.request(0))
    await pair.bench.fill(2)
    await pair.add(await pair.request(0))
    assert await pair.witness.known_size(pair.bench.log.origin) == 2


async def test_a_stale_old_size_is_answered_with_the_known_one(pair: Pair) -> None:
    """409 and the size as text; from there it works."""
    await pair.bench.fill(3)
    await pair.add(await pair.request(0))
    await pair.bench.fill(2)
    with pytest.raises(StaleSize) as found:
        await pair.add(await pair.request(0))
    assert (http_status(found.value), found.value.body) == (409, "3\n")
    await pair.add(await pair.request(3))


@pytest.mark.requirement("A1")
async def test_each_wrong_request_has_its_answer(pair: Pair) -> None:
    """404, 403, 400, 422 as the protocol says, and nothing is persisted."""
    log = pair.bench.log
    await pair.bench.fill(3)
    await pair.add(await pair.request(0))
    await pair.bench.fill(4)
    good = await pair.request(3)
    stranger = signer("accord/d-unlisted")
    text = Note.parse(good.note).text

    def signed(changed: Checkpoint) -> str:
        line = log.signer.sign(changed.text, pair.bench.clock.now())
        return str(Note(changed.text, (line,)))

    head = Checkpoint.parse(text)
    flipped = bytes([good.proof[0][0] ^ 1]) + good.proof[0][1:]
    cases: list[tuple[AddCheckpoint, type[AccordError], int]] = [
        (replace(good, note=good.note.replace("accord/a-general", "accord/d-unlisted")), NotFound, 404),
        (
            replace(good, note=str(Note(text, (stranger.sign(text, pair.bench.clock.now()),)))),
            Denied,
            403,
        ),
        (replace(good, note=good.note.replace("\n7\n", "\n8\n")), Denied, 403),
        (replace(good, old_size=8), Invalid, 400),
        (replace(good, proof=good.proof[1:]), Corrupt, 422),
        (replace(good, proof=(flipped, *good.proof[1:])), Corrupt, 422),
        (replace(good, proof=()), Corrupt, 422),
        (AddCheckpoint(3, (), signed(Checkpoint(head.origin, 3, leaf_hash(b"x")))), HistoryRewritten, 422),
        (AddCheckpoint(0, (), signed(Checkpoint(head.origin, 0, leaf_hash(b"x")))), Corrupt, 422),
        (AddCheckpoint(0, (), signed(Checkpoint(head.origin, 0, EMPTY_ROOT))), StaleSize, 409),
        (replace(good, note="nonsense"), Invalid, 400),
    ]
    for request, family, status in cases:
        with pytest.raises(family) as found:
            await pair.add(request)
        assert http_status(found.value) == status
    assert await pair.witness.known_size(log.origin) == 3
    await pair.add(good)


async def test_a_first_checkpoint_with_a_proof_is_refused(pair: Pair) -> None:
    """From nothing there is nothing to prove."""
    await pair.bench.fill(3)
    request = await pair.request(0)
    with pytest.raises(Corrupt, match="empty proof"):
        await pair.add(replace(request, proof=(EMPTY_ROOT,)))


@pytest.mark.requirement("A1")
async def test_not_even_the_node_itself_can_rewrite_history(pair: Pair, tmp_path: Path) -> None:
    """With every key of its own it signs another past; the witness has seen the true one and refuses."""
    await pair.bench.fill(3)
    await pair.add(await pair.request(0))
    known = await pair.witness.latest(pair.bench.log.origin)

    database = database_in(tmp_path / "forged.db")
    origin = pair.bench.log.origin
    forged = Bench(pair.bench.another(), tmp_path / "forged.db", FakeClock())
    await forged.log.database.close()
    forged.log.database = database
    for n in (0, 9, 2, 3):
        await forged.log.record(opened(n))
    note = await forged.log.checkpoint()
    proof = await forged.log.prove_consistency(3, 4)
    with pytest.raises(HistoryRewritten) as found:
        await pair.add(AddCheckpoint(3, tuple(proof), note))
    assert (found.value.known, found.value.offered) == (known, note)
    assert await pair.witness.known_size(origin) == 3
    await database.close()


@pytest.mark.requirement("A1")
async def test_two_requests_at_once_cannot_roll_the_witness_back(pair: Pair) -> None:
    """Whoever comes second finds its old size stale; the size known never falls."""
    await pair.bench.fill(3)
    await pair.add(await pair.request(0))
    await pair.bench.fill(1)
    small = await pair.request(3)
    await pair.bench.fill(5)
    large = await pair.request(3)
    for _ in range(5):
        results = await asyncio.gather(pair.add(small), pair.add(large), return_exceptions=True)
        assert sum(isinstance(result, str) for result in results) <= 1
        assert all(isinstance(result, (str, Conflict)) for result in results)
    assert await pair.witness.known_size(pair.bench.log.origin) in (4, 9)


async def test_a_request_goes_to_text_and_back(pair: Pair) -> None:
    """The body of the protocol, byte for byte."""
    await pair.bench.fill(300)
    await pair.add(await pair.request(0))
    await pair.bench.fill(7)
    request = await pair.request(300)
    body = str(request)
    assert body.startswith("old 300\n")
    assert AddCheckpoint.parse(body) == request
    first = AddCheckpoint(0, (), request.note)
    assert str(first) == f"old 0\n\n{request.note}"
    assert AddCheckpoint.parse(str(first)) == first


@pytest.mark.parametrize(
    "text",
    [
        "",
        "old 3",
        "new 3\n\nnote",
        "old 03\n\nnote",
        "old -1\n\nnote",
        "old 3\nnot base64!\n\nnote",
        "old 3\nAAAA\n\nnote",
        "old 3\n" + "A" * 43 + "=\n" * 1 + ("A" * 43 + "=\n") * 63 + "\nnote",
        "old 3\n\n" + "x" * 200_000,
    ],
    ids=lambda text: repr(text[:20]),
)
def test_a_malformed_request_is_refused(text: str) -> None:
    """Bounds and form are checked before any signature."""
    with pytest.raises(Invalid):
        AddCheckpoint.parse(text)


async def test_an_origin_that_was_never_cosigned_is_not_found(pair: Pair) -> None:
    """For reading as for monitoring."""
    assert await pair.witness.latest("accord/x") is None
    assert await pair.witness.known_size("accord/x") == 0
    with pytest.raises(NotFound):
        await pair.witness.latest_by_hash(origin_hash("accord/x"))


async def test_a_witness_needs_a_cosignature_key(pair: Pair) -> None:
    """A plain log signature is not a witness's statement."""
    with pytest.raises(Invalid, match="cosignature key"):
        Witness(pair.bench.log.database, signer=signer("accord/b-central"), clock=FakeClock())
