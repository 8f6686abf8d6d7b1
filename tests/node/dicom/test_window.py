"""The asynchronous operations window and private storage classes: what an operator and a peer may widen."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from node.dicom.messages import Verb
from node.dicom.pdu import AssociateAc, Proposal, ReleaseRp, ReleaseRq, Window
from tests.node.dicom.archive import SCANNER, archive_in
from tests.node.dicom.conftest import OpenDoor
from tests.node.dicom.raw import CONTEXTS, Raw, eventually, store_message
from tests.node.dicom.test_listener import ECHO
from tests.support.dicom import EXPLICIT, ct_slice, study

pytestmark = [pytest.mark.requirement("F5"), pytest.mark.timeout(30)]
PRIVATE = "1.3.46.670589.11.0.0.12.1"


async def test_operations_overlap_where_the_peer_negotiated_it(open_door: OpenDoor) -> None:
    """Three stores wait for the disk at once, an echo behind them is answered first, the fourth store waits its turn."""
    door = await open_door(operations=4)
    door.shelf.hold = asyncio.Event()
    async with Raw(door.port) as raw:
        answer = await raw.associate(window=Window(4, 1))
        assert isinstance(answer, AssociateAc) and answer.window == Window(4, 1)
        slices = study(slices=4)
        for number, one in enumerate(slices[:3], start=1):
            raw.send(store_message(one, number))
        raw.send(ECHO)
        first = await raw.response()
        assert (first.verb, first.message_id) == (Verb.C_ECHO_RSP, 7)
        raw.send(store_message(slices[3], 4), ReleaseRq())
        door.shelf.hold.set()
        answers = [await raw.response() for _ in range(4)]
        assert {answer.message_id for answer in answers} == {1, 2, 3, 4}
        assert all(answer.status == 0 for answer in answers)
        assert await raw.pdu() == ReleaseRp()
    assert len(door.shelf.arrivals) == 4 and door.gate.memory.held == 0


async def test_the_window_is_a_bound(open_door: OpenDoor) -> None:
    """No more than agreed are under way; what a peer sends beyond that waits and is not lost."""
    door = await open_door(operations=2, queued_messages=3)
    door.shelf.hold = asyncio.Event()
    waiting = 0
    receive = door.shelf.receive

    async def counted(*arguments: object) -> None:
        nonlocal waiting
        waiting += 1
        await receive(*arguments)  # type: ignore[arg-type]
        waiting -= 1

    door.shelf.receive = counted  # type: ignore[method-assign, assignment]
    async with Raw(door.port) as raw:
        await raw.associate(window=Window(0, 0))
        for number, one in enumerate(study(slices=9), start=1):
            raw.send(store_message(one, number))
        await eventually(lambda: waiting == 2)
        await asyncio.sleep(0.1)
        assert waiting == 2
        door.shelf.hold.set()
        assert len({(await raw.response()).message_id for _ in range(9)}) == 9


async def test_a_peer_that_leaves_ends_what_it_began(open_door: OpenDoor) -> None:
    """Several operations under way when the connection breaks: each ends, nothing is held."""
    door = await open_door(operations=4)
    door.shelf.hold = asyncio.Event()
    async with Raw(door.port) as raw:
        await raw.associate(window=Window(4, 4))
        for number, one in enumerate(study(slices=4), start=1):
            raw.send(store_message(one, number))
        await eventually(lambda: door.gate.memory.held > 0)
    door.shelf.hold.set()
    await eventually(lambda: not door.gate.associations and door.gate.memory.held == 0)


@pytest.mark.requirement("C3")
async def test_a_private_class_is_stored_as_sent_where_it_is_configured(tmp_path: Path) -> None:
    """The bytes of an object of a maker's own class come back as they came."""
    one = ct_slice(sop_class_uid=PRIVATE)
    contexts = (*CONTEXTS, Proposal(5, PRIVATE, (EXPLICIT,)))
    async with archive_in(tmp_path, private=frozenset({PRIVATE})) as archive, Raw(archive.port) as raw:
        await raw.associate(called="ACCORD", calling=SCANNER, contexts=contexts)
        raw.send(store_message(one, context_id=5))
        assert (await raw.response()).status == 0
        await archive.node.ingest.flushed()
        name = archive.node.index.pseudonyms.study(str(one.dataset().StudyInstanceUID))
        (row,) = await archive.node.index.instances(name)
        assert (row.sop_class_uid, row.sha256) == (PRIVATE, one.sha256)
