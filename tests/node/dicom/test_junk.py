"""A device that sends junk: refused each time, on record a few times, and counted to the last."""

from __future__ import annotations

import pytest

from consent.vocabulary import EventKind
from node.access.live import refusals_in
from node.dicom.messages import Command, Verb, encode_request
from node.dicom.pdu import AssociateAc, ReleaseRq
from node.refusals import IN_FULL
from tests.node.dicom.conftest import Door
from tests.node.dicom.raw import CT, Raw, data_pdu, eventually

pytestmark = [pytest.mark.timeout(30), pytest.mark.requirement("V4", "F4")]


@pytest.mark.parametrize("released", [True, False])
async def test_an_association_of_junk_is_counted_when_it_ends(door: Door, released: bool) -> None:
    """Forty C-STOREs without a data set; the peer releases, or is gone."""
    nothing = encode_request(Command(Verb.C_STORE_RQ, 1, sop_class_uid=CT, sop_instance_uid="1.2.3"))
    async with Raw(door.port) as raw:
        assert isinstance(await raw.associate(), AssociateAc)
        for _ in range(40):
            raw.send(data_pdu(1, nothing, command=True, last=True))
            assert (await raw.response()).status != 0
        if released:
            raw.send(ReleaseRq())
            await raw.pdu()

    def told() -> int:
        kind = EventKind.INSTANCE_REFUSED
        return sum(refusals_in(event) for event in door.journal.events if event.kind is kind)

    await eventually(lambda: told() == 40)
    refusals = [event for event in door.journal.events if event.kind is EventKind.INSTANCE_REFUSED]
    assert len(refusals) == IN_FULL + 1
