"""Copies of another hospital's study: they open under a living grant with released keys, and not otherwise."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from consent.decision import Facts
from consent.errors import Corrupt, Denied, NotFound
from consent.grants import Grant
from consent.principals import Principal
from consent.signed import Signed
from consent.vocabulary import Action, EventKind, Purpose, Right, Role
from node.vault.blobs import FileBlobs
from tests.support.clearance import cleared
from tests.support.clock import FakeClock
from tests.support.consents import ABROAD, HOME, signed_directive, signed_grant
from tests.support.dicom import ct_slice, study, uid
from tests.support.node import NodeFixture, small_node

SOP = uid("study-1", 1, 1)


@dataclass
class Shared:
    """A study of A as it lies at B, its grant, and whether A still releases keys."""

    home: NodeFixture
    root: Path
    study: str
    facts_now: Facts
    releasing: bool = True
    released: list[str] = field(default_factory=list)
    words: str = ""

    def blobs(self, home: str) -> FileBlobs:
        return FileBlobs(self.root / home)

    async def facts(self, home: str, study: str) -> Facts:
        return self.facts_now

    async def ended(self, home: str, study: str, who: Principal) -> str:
        return self.words

    async def keys(
        self,
        home: str,
        study: str,
        object_ids: Sequence[str],
        who: Principal,
        purpose: Purpose,
        opening_id: str,
    ) -> Mapping[str, bytes]:
        if not self.releasing:
            raise Denied("The grant was revoked.")
        self.released += object_ids
        return await self.home.gateway.object_keys(study, object_ids, cleared(self.home, study, Action.VIEW))

    def close_opening(self, opening_id: str) -> None:
        self.released.clear()


@dataclass
class Pair:
    """Hospital B with a copy of a study of A, and a clinician of B."""

    there: NodeFixture
    shared: Shared
    grant: Signed[Grant]
    who: Principal


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    clock = FakeClock()
    async with (
        small_node(tmp_path / "a", node_id=HOME, clock=clock) as home,
        small_node(tmp_path / "b", node_id=ABROAD, clock=clock) as there,
    ):
        receipts = await home.store(*study(series=2, slices=3))
        name = receipts[0].study
        patient = await home.index.patient_of(name)
        consent = signed_directive(patient=patient)
        grant = signed_grant(consent, study=name, patient=patient, rights=frozenset({Right.VIEW}))
        pack = next((home.path / "studies").rglob(f"{name}.pack"))
        target = FileBlobs(tmp_path / "b" / "held" / HOME)
        target.put(f"{name}.pack", [pack.read_bytes()])
        facts = Facts(grants=(grant,), directives=(consent,))
        shared = Shared(home, tmp_path / "b" / "held", name, facts)
        there.gateway.hold(shared, shared)
        yield Pair(there, shared, grant, await there.person())


@pytest.mark.requirement("E3", "U2", "U5")
async def test_a_granted_copy_is_viewed_like_a_study_of_ones_own(pair: Pair) -> None:
    """The same series and pictures, with a watermark, an end, and a record of it."""
    gateway = pair.there.gateway
    opening = await gateway.open(pair.who, pair.shared.study, home=HOME)
    series = await gateway.series(opening)
    picture = await gateway.frame(opening, SOP, fmt="png")
    await gateway.close_opening(opening)

    assert [len(one.instances) for one in series] == [3, 3]
    assert series[0].instances[0].uid == SOP
    assert picture.content
    assert opening.expires == pair.grant.expires
    opened, viewed = (entry.event for entry in (await pair.there.events())[-2:])
    assert (opened.kind, opened.detail["home"], opened.study) == (
        EventKind.STUDY_OPENED,
        HOME,
        pair.shared.study,
    )
    assert viewed.detail["pictures"] == 1
    assert pair.shared.released == []


@pytest.mark.requirement("U2")
async def test_a_right_that_was_not_granted_is_refused(pair: Pair) -> None:
    """A grant to view hands out no bytes; the refusal names the reason."""
    with pytest.raises(Denied, match="right"):
        await pair.there.gateway.open(pair.who, pair.shared.study, home=HOME, action=Action.DOWNLOAD)


@pytest.mark.requirement("U2", "E4")
async def test_the_next_frame_after_the_end_is_refused(pair: Pair) -> None:
    """A grant that ran out, or was taken from the facts, ends the view at once."""
    gateway = pair.there.gateway
    opening = await gateway.open(pair.who, pair.shared.study, home=HOME)
    await gateway.frame(opening, SOP)
    pair.shared.facts_now = Facts(
        grants=pair.shared.facts_now.grants,
        directives=pair.shared.facts_now.directives,
        revoked=frozenset({pair.grant.id}),
    )
    with pytest.raises(Denied, match="revoked"):
        await gateway.frame(opening, SOP)

    pair.shared.facts_now = Facts(grants=(pair.grant,), directives=pair.shared.facts_now.directives)
    opening = await gateway.open(pair.who, pair.shared.study, home=HOME)
    assert pair.grant.expires is not None
    pair.there.clock.moment = pair.grant.expires - timedelta(seconds=1)
    with pytest.raises(Denied, match="ended"):  # idle by then
        await gateway.frame(opening, SOP)
    opening = await gateway.open(pair.who, pair.shared.study, home=HOME)
    await gateway.frame(opening, SOP)
    pair.there.clock.tick(seconds=1)
    with pytest.raises(Denied):
        await gateway.frame(opening, SOP)


@pytest.mark.requirement("E4")
async def test_without_keys_from_home_a_copy_shows_nothing(pair: Pair) -> None:
    """A copy that lies whole on the disk opens only with what its home releases."""
    gateway = pair.there.gateway
    opening = await gateway.open(pair.who, pair.shared.study, home=HOME)
    pair.shared.releasing = False
    with pytest.raises(Denied):
        await gateway.frame(opening, SOP)


@pytest.mark.requirement("C3", "E4")
async def test_a_flipped_byte_of_a_copy_is_never_shown(pair: Pair) -> None:
    """Corruption on B's disk is found, on record at B, and nothing is shown."""
    path = next(pair.shared.root.rglob("*.pack"))
    row = (await pair.shared.home.index.instances(pair.shared.study))[0]
    content = bytearray(path.read_bytes())
    content[row.data_set.offset + 100] ^= 1
    path.write_bytes(content)
    gateway = pair.there.gateway
    opening = await gateway.open(pair.who, pair.shared.study, home=HOME)
    with pytest.raises(Corrupt):
        await gateway.frame(opening, row.sop_instance_uid)

    (entry,) = await pair.there.events(EventKind.INTEGRITY_FAILED)
    assert entry.event.detail["home"] == HOME


@pytest.mark.requirement("E4")
async def test_a_shredded_copy_cannot_be_opened(pair: Pair) -> None:
    """Without a grant there is nothing here to open; without the pack neither."""
    shutil.rmtree(pair.shared.root)
    with pytest.raises(NotFound):
        await pair.there.gateway.open(pair.who, pair.shared.study, home=HOME)
    pair.shared.facts_now = Facts()
    with pytest.raises(NotFound):
        await pair.there.gateway.open(pair.who, pair.shared.study, home=HOME)


@pytest.mark.requirement("U1", "E4")
@pytest.mark.parametrize("role", [Role.ADMINISTRATOR, Role.RESEARCHER, Role.SECURITY_OFFICER])
async def test_a_grant_to_clinicians_is_not_for_others(pair: Pair, role: Role) -> None:
    """Who sees no images at home sees none of another hospital's."""
    who = await pair.there.person(role)
    with pytest.raises(Denied):
        await pair.there.gateway.open(who, pair.shared.study, home=HOME)


async def test_metadata_of_a_copy_is_made_from_the_copy(pair: Pair) -> None:
    """The DICOM JSON of a held study, without an index of it."""
    import json

    opening = await pair.there.gateway.open(pair.who, pair.shared.study, home=HOME)
    found = json.loads(await pair.there.gateway.metadata(opening))

    assert len(found) == 6
    assert found[0]["00100020"]["Value"] == [ct_slice().dataset().PatientID]


@pytest.mark.requirement("U2", "E4")
async def test_who_had_a_grant_is_told_how_it_ended(pair: Pair) -> None:
    """Before and after the sweep has closed the opening and the copy is gone, and when opening it anew."""
    gateway = pair.there.gateway
    opening = await gateway.open(pair.who, pair.shared.study, home=HOME)
    assert pair.grant.expires is not None
    pair.there.clock.moment = pair.grant.expires - timedelta(minutes=1)
    later = await gateway.open(pair.who, pair.shared.study, home=HOME)
    pair.there.clock.moment = pair.grant.expires
    with pytest.raises(Denied, match="The grant has expired"):
        await gateway.frame(later, SOP)
    await gateway.sweep()
    pair.shared.facts_now = Facts()
    with pytest.raises(Denied):
        await gateway.frame(later, SOP)
    pair.shared.words = "The grant has run out."
    for question in (
        gateway.frame(opening, SOP),
        gateway.frame(later, SOP),
        gateway.open(pair.who, pair.shared.study, home=HOME),
        gateway.visit(pair.who, pair.shared.study, action=Action.VIEW, home=HOME),
    ):
        with pytest.raises(Denied, match="The grant has run out"):
            await question
    (last,) = (await pair.there.events(EventKind.ACCESS_REFUSED))[-1:]
    assert last.event.reason == "The grant has run out."
    pair.shared.words = ""
    with pytest.raises(NotFound):
        await gateway.open(pair.who, pair.shared.study, home=HOME)
