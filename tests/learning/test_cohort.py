"""From sealed studies to examples: consent asked each time, de-identified, labels and hold-out kept, nothing on disk."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consent.directives import ALL, Directive, withdraw
from consent.errors import Unavailable
from consent.policy import Parameters
from consent.principals import Principal
from consent.signed import Signed, sign
from consent.vocabulary import EventKind, Role
from learning import cohort as cohort_module
from learning.cohort import Cohorts
from learning.corpus import CODES
from learning.dataset import TooFewPatients
from learning.digits import digits_of, part10, patient_id
from learning.planbook import PlanBook
from learning.plans import Cohort, HoldOut, TrainingPlan, Verdict
from node.imaging.part10 import read_part10
from node.ingest import Receipt
from node.policies import Policies
from tests.learning.region import digits_plan
from tests.support.dicom import Instance
from tests.support.node import NodeFixture, small_node

CHOSEN = 12


def signed(plan: TrainingPlan, node: NodeFixture) -> Signed[TrainingPlan]:
    return sign(
        plan,
        record_id=secrets.token_hex(16),
        issuer="hub",
        key=Ed25519PrivateKey.generate(),
        issued=node.clock.now(),
        expires=node.clock.now() + timedelta(days=1),
    )


def instance(file: bytes) -> Instance:
    head = read_part10(file)
    return Instance(
        head.sop_class_uid, head.sop_instance_uid, head.transfer_syntax_uid, file[head.dataset_offset :]
    )


async def keep(node: NodeFixture, directive: Directive) -> Signed[Directive]:
    record = sign(
        directive,
        record_id=secrets.token_hex(16),
        issuer=node.node_id,
        key=node.identity.signing,
        issued=node.clock.now(),
        expires=None,
    )
    async with node.database.write() as tx:
        await node.records.keep(tx, record)
    return record


async def consents_to_research(node: NodeFixture, patient: str) -> Signed[Directive]:
    return await keep(
        node,
        Directive(
            patient=patient,
            chain=secrets.token_hex(8),
            version=1,
            studies=ALL,
            purposes=frozenset(),
            recipients=ALL,
            rights=frozenset(),
            start=node.clock.now(),
            end=node.clock.now() + timedelta(days=365),
            recorded_by="person:li@a-general",
            basis="form 17",
            research=True,
        ),
    )


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeFixture]:
    async with small_node(tmp_path) as built:
        yield built


async def stored(node: NodeFixture, count: int = CHOSEN) -> list[Receipt]:
    chosen = digits_of(0, 3)[::37][:count]
    return await node.store(*(instance(part10(digit)) for digit in chosen))


async def always(_digest: str) -> bool:
    return True


def cohorts(
    node: NodeFixture,
    approved: Callable[[str], Awaitable[bool]] = always,
    policies: Policies | None = None,
) -> Cohorts:
    return Cohorts(
        node_id=node.node_id,
        gateway=node.gateway,
        renderer=node.renderer,
        secret=node.keys.secret,
        approved=approved,
        policies=policies or node.policies,
    )


def book_of(node: NodeFixture, key: Ed25519PrivateKey | None = None) -> PlanBook:
    return PlanBook(
        node_id=node.node_id,
        key=key or node.identity.signing,
        database=node.database,
        records=node.records,
        log=node.log,
        clock=node.clock,
    )


@pytest.mark.requirement("R2")
async def test_a_cohort_is_read_only_while_this_site_approves_the_plan(node: NodeFixture) -> None:
    """Asked for each study: without a decision, after a refusal, and after its end nobody takes part."""
    receipts = await stored(node)
    for patient in await patients_of(node, receipts):
        await consents_to_research(node, patient)
    book, officer = book_of(node), Principal("sec", Role.SECURITY_OFFICER, "Sec", node.node_id)
    plan = await book.propose(digits_plan(), officer)
    cohort = cohorts(node, book.approves)
    with pytest.raises(TooFewPatients):
        await cohort.gather(plan)
    await book.decide(plan.digest, Verdict.APPROVE, officer)
    assert len(await cohort.gather(plan)) == CHOSEN
    await book.decide(plan.digest, Verdict.REFUSE, officer)
    with pytest.raises(TooFewPatients):
        await cohort.gather(plan)
    await book.decide(plan.digest, Verdict.APPROVE, officer)
    assert len(await cohort.gather(plan)) == CHOSEN
    node.clock.tick(days=91)
    with pytest.raises(TooFewPatients):
        await cohort.gather(plan)


@pytest.mark.requirement("R2")
async def test_a_decision_that_this_site_did_not_sign_approves_nothing(node: NodeFixture) -> None:
    """The signature is checked again, and so is what it is about."""
    officer = Principal("sec", Role.SECURITY_OFFICER, "Sec", node.node_id)
    book, forger = book_of(node), book_of(node, Ed25519PrivateKey.generate())
    plan = await book.propose(digits_plan(), officer)
    await forger.decide(plan.digest, Verdict.APPROVE, officer)
    assert not await book.approves(plan.digest)
    assert await forger.approves(plan.digest)
    await book.decide(plan.digest, Verdict.APPROVE, officer)
    assert await book.approves(plan.digest)
    assert not await book.approves("0" * 64)


async def patients_of(node: NodeFixture, receipts: list[Receipt]) -> list[str]:
    return [(await node.index.study(receipt.study)).patient for receipt in receipts]


@pytest.mark.requirement("R2", "U6")
async def test_only_patients_who_consent_now_take_part(node: NodeFixture) -> None:
    """Without consent nobody; with it the right pictures and labels; after a withdrawal one fewer at once."""
    receipts = await stored(node)
    patients = await patients_of(node, receipts)
    plan, cohort = signed(digits_plan(), node), cohorts(node)
    with pytest.raises(TooFewPatients):
        await cohort.gather(plan)
    records = [await consents_to_research(node, patient) for patient in patients[:-2]]
    examples = await cohort.gather(plan)

    chosen = digits_of(0, 3)[::37][:CHOSEN]
    assert len(examples) == CHOSEN - 2
    assert examples.images.shape == (CHOSEN - 2, 8, 8)
    assert list(examples.labels) == sorted(digit.label for digit in chosen[:-2])
    again = await cohorts(node).gather(plan)
    assert np.array_equal(again.images, examples.images)
    assert examples.held_out.sum() == sum(digit.reference for digit in chosen[:-2])
    expected = {np.clip(digit.pixels, 0, 15).astype(np.float32).round().tobytes() for digit in chosen[:-2]}
    assert {(image * 15).round().tobytes() for image in examples.images} == expected

    node.clock.tick(minutes=1)
    await keep(node, withdraw(records[0], recorded_by="person:li@a-general", basis="asked by phone"))
    assert len(await cohort.gather(plan)) == CHOSEN - 3


@pytest.mark.requirement("R2", "V4")
async def test_each_study_read_is_on_record_once_and_not_read_again(node: NodeFixture) -> None:
    """The first round opens each study on record; a later round asks for consent again but reads nothing twice."""
    receipts = await stored(node)
    for patient in await patients_of(node, receipts):
        await consents_to_research(node, patient)
    plan, cohort = signed(digits_plan(), node), cohorts(node)
    first = await cohort.gather(plan)
    opened = len(await node.events(EventKind.STUDY_OPENED))
    second = await cohort.gather(plan)

    assert opened == CHOSEN
    assert len(await node.events(EventKind.STUDY_OPENED)) == CHOSEN
    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.labels, second.labels)


@pytest.mark.requirement("R2")
async def test_a_plan_gets_only_what_it_names(node: NodeFixture) -> None:
    """Another modality matches nobody; a code that the plan lacks is left out."""
    receipts = await stored(node)
    for patient in await patients_of(node, receipts):
        await consents_to_research(node, patient)
    with pytest.raises(TooFewPatients):
        await cohorts(node).gather(signed(digits_plan(cohort=Cohort("CT")), node))

    few = digits_plan()
    labels = type(few.labels)(few.labels.attribute, few.labels.scheme, CODES[:2])
    examples = await cohorts(node).gather(signed(digits_plan(labels=labels), node))
    assert set(examples.labels) <= {0, 1}
    assert 0 < len(examples) < CHOSEN


async def test_a_patient_is_on_one_side_of_the_hold_out(node: NodeFixture) -> None:
    """Held out by a hash of the project's pseudonym: the same patients each time, others under another plan."""
    receipts = await stored(node)
    for patient in await patients_of(node, receipts):
        await consents_to_research(node, patient)
    plan = signed(digits_plan(holdout=HoldOut(fraction=0.5)), node)
    once, again = await cohorts(node).gather(plan), await cohorts(node).gather(plan)
    other = await cohorts(node).gather(
        signed(digits_plan(holdout=HoldOut(fraction=0.5), title="Another"), node)
    )

    assert 0 < once.held_out.sum() < CHOSEN
    assert np.array_equal(once.held_out, again.held_out)
    assert not np.array_equal(once.held_out, other.held_out)


@pytest.mark.requirement("R2", "V1")
async def test_no_picture_or_name_touches_the_disk(node: NodeFixture) -> None:
    """After gathering, the node's folder holds neither the pixels nor any identifier in clear."""
    receipts = await stored(node)
    for patient in await patients_of(node, receipts):
        await consents_to_research(node, patient)
    await cohorts(node).gather(signed(digits_plan(), node))
    chosen = digits_of(0, 3)[::37][:CHOSEN]
    planted = [digit.pixels.tobytes() for digit in chosen]
    planted += [(digit.pixels.astype(np.float32) / 16).tobytes() for digit in chosen]
    planted += [patient_id(digit.number).encode() for digit in chosen]
    for path in node.path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [one for one in planted if one in content], path.name


@pytest.mark.requirement("R2", "R4")
@pytest.mark.parametrize("failures", [1, 99], ids=["for a moment", "for good"])
async def test_a_picture_that_cannot_be_drawn_for_now_is_not_left_out(
    node: NodeFixture, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """It is drawn again; when that does not help the site says so, and the next round has all of them."""
    monkeypatch.setattr(cohort_module, "DRAW_PAUSES_SECONDS", (0.0,))
    receipts = await stored(node)
    for patient in await patients_of(node, receipts):
        await consents_to_research(node, patient)
    plan, cohort, left, draw = signed(digits_plan(), node), cohorts(node), failures, node.renderer.render

    async def failing(*given: Any, **more: Any) -> bytes:
        nonlocal left
        left -= 1
        if left >= 0:
            raise Unavailable("A worker was lost.")
        return await draw(*given, **more)

    monkeypatch.setattr(node.renderer, "render", failing)
    if failures > 1:
        with pytest.raises(Unavailable):
            await cohort.gather(plan)
        left = 0
    assert len(await cohort.gather(plan)) == CHOSEN


@pytest.mark.requirement("R2")
async def test_the_policys_smallest_cohort_holds_where_the_plan_asks_for_fewer(node: NodeFixture) -> None:
    """One patient short of the policy's number nobody takes part; with as many, all do."""
    receipts = await stored(node)
    for patient in await patients_of(node, receipts):
        await consents_to_research(node, patient)
    plan = signed(digits_plan(), node)
    assert plan.body.cohort.minimum_patients < CHOSEN
    too_high, enough = (Policies(parameters=Parameters(min_cohort=CHOSEN + more)) for more in (1, 0))
    with pytest.raises(TooFewPatients):
        await cohorts(node, policies=too_high).gather(plan)
    assert len(await cohorts(node, policies=enough).gather(plan)) == CHOSEN
