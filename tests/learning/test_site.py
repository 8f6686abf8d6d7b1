"""A hospital's answers to a run, without processes: the rule, the cohort, the record, the offers from the hub."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from consent.errors import Unavailable
from consent.principals import Principal
from consent.signed import Signed, sign, verify
from consent.vocabulary import EventKind, Outcome, Role
from learning.bundle import bundle_digest
from learning.dataset import open_examples
from learning.hublink import Offer
from learning.planbook import PlanBook
from learning.plans import PlanDecision, Refusal, TrainingPlan, Verdict
from learning.site import TrainingSite
from tests.learning.region import Digits, digits_plan
from tests.support.node import NodeFixture, small_node

OFFICER = Principal("wu", Role.SECURITY_OFFICER, "Wu", "a-general")


@dataclass
class HubAtHand:
    """The hub's side of the link, in the test's hand."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    plans: list[str] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)
    registered: bool = False
    away: bool = False
    hub_id: str = "hub"

    def keys_of(self, issuer: str) -> tuple[Ed25519PublicKey, ...]:
        return (self.key.public_key(),) if issuer in ("hub", "b") else ()

    def target(self) -> tuple[str, ssl.SSLContext, str]:
        raise Unavailable("no hub here")

    async def offers(self) -> Offer:
        if self.away:
            raise Unavailable("The hub is away.")
        return Offer(tuple(self.plans), self.registered)

    async def decided(self, token: str) -> None:
        if self.away:
            raise Unavailable("The hub is away.")
        self.decisions.append(token)


@dataclass
class SiteFixture:
    node: NodeFixture
    hub: HubAtHand
    site: TrainingSite
    digits: Digits

    def offer(self, plan: TrainingPlan | None = None, issuer: str = "hub") -> Signed[TrainingPlan]:
        """The hub offers a plan."""
        now = self.node.clock.now()
        signed = sign(
            plan or digits_plan(), record_id=os.urandom(16).hex(), issuer=issuer, key=self.hub.key, issued=now, expires=None
        )  # fmt: skip
        self.hub.plans.append(signed.token)
        return signed

    async def approved(self) -> Signed[TrainingPlan]:
        plan = self.offer()
        await self.site.sync()
        await self.site.book.decide(plan.digest, Verdict.APPROVE, OFFICER)
        return plan


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[SiteFixture]:
    async with small_node(tmp_path) as node:
        hub, digits = HubAtHand(), Digits(0, 3, 60)
        book = PlanBook(
            node_id=node.node_id,
            key=node.identity.signing,
            database=node.database,
            records=node.records,
            log=node.log,
            clock=node.clock,
        )
        site = TrainingSite(
            node_id=node.node_id,
            book=book,
            cohorts=digits,
            link=hub,  # type: ignore[arg-type]
            learning_key=node.identity.learning_private,
            log=node.log,
            clock=node.clock,
            folder=tmp_path / "learning",
        )
        yield SiteFixture(node, hub, site, digits)


def ask(plan: Signed[TrainingPlan], /, **changes: object) -> dict[str, object]:
    return {
        "ask": "part",
        "kind": "train",
        "run": "r1",
        "plan": plan.digest,
        "round": 1,
        "app": bundle_digest(),
    } | changes


@pytest.mark.requirement("R2", "V4")
async def test_an_approved_plan_gets_examples_in_sealed_memory_and_it_is_on_record(at: SiteFixture) -> None:
    """The answer holds the plan, the count of what may be trained on, and one descriptor."""
    plan = await at.approved()
    answer, descriptor = await at.site.answer(ask(plan))
    assert descriptor is not None
    examples = open_examples(descriptor)
    os.close(descriptor)

    assert len(examples) == 60
    assert answer["count"] == int((~at.digits.examples.held_out).sum())
    assert TrainingPlan.from_json(answer["plan"]) == plan.body
    (entry,) = await at.node.events(EventKind.TRAINING_STARTED)
    assert (entry.event.detail["plan"], entry.event.detail["round"]) == (plan.digest, 1)
    assert entry.event.actor == "member:hub"


@pytest.mark.requirement("R2")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plan": "0" * 64}, Refusal.UNKNOWN_PLAN),
        ({"app": "0" * 64}, Refusal.OTHER_CODE),
        ({"round": 7}, Refusal.TOO_MANY_ROUNDS),
    ],
)
async def test_what_was_not_approved_gets_fixed_words_and_no_example(
    at: SiteFixture, changes: dict[str, object], words: Refusal
) -> None:
    """Nothing is gathered, and the refusal is on record with its reason."""
    plan = await at.approved()
    answer, descriptor = await at.site.answer(ask(plan, **changes))

    assert (answer, descriptor) == ({"refusal": words.value}, None)
    assert at.digits.gathered == 0
    (entry,) = await at.node.events(EventKind.TRAINING_REFUSED)
    assert (entry.event.outcome, entry.event.reason) == (Outcome.REFUSED, words.value)


@pytest.mark.requirement("R2")
async def test_a_decision_can_be_changed_between_rounds(at: SiteFixture) -> None:
    """Not decided: no. Approved: yes. Refused afterwards: no, at the next message."""
    plan = at.offer()
    await at.site.sync()
    assert (await at.site.answer(ask(plan)))[0] == {"refusal": Refusal.NOT_APPROVED.value}
    await at.site.book.decide(plan.digest, Verdict.APPROVE, OFFICER)
    answer, descriptor = await at.site.answer(ask(plan))
    assert "plan" in answer
    assert descriptor is not None
    os.close(descriptor)
    await at.site.book.decide(plan.digest, Verdict.REFUSE, OFFICER, reason="board said no")
    assert (await at.site.answer(ask(plan)))[0] == {"refusal": Refusal.REFUSED.value}


async def test_too_few_patients_is_told_without_the_number(at: SiteFixture) -> None:
    """The refusal's words name no count."""
    plan = await at.approved()
    at.digits.examples = type(at.digits.examples)(
        at.digits.examples.images[:3], at.digits.examples.labels[:3], at.digits.examples.held_out[:3]
    )
    assert (await at.site.answer(ask(plan)))[0] == {"refusal": Refusal.TOO_FEW_PATIENTS.value}


@pytest.mark.requirement("R2")
async def test_only_the_hubs_signed_plans_come_in(at: SiteFixture) -> None:
    """A plan of another member, a changed one, junk: passed over; the good one beside them is kept once."""
    at.offer(issuer="b")
    good = at.offer()
    at.hub.plans += [good.token[:-4] + "AAAA", "junk"]
    await at.site.sync()
    await at.site.sync()

    assert [plan.digest for plan in await at.site.book.plans()] == [good.digest]
    assert len(await at.node.events(EventKind.PLAN_PROPOSED)) == 1


@pytest.mark.requirement("R2")
async def test_decisions_reach_the_hub_signed_and_without_a_persons_name(at: SiteFixture) -> None:
    """Also when the hub was away at first; each is sent once; the person is in the site's own log only."""
    plan = await at.approved()
    at.hub.away = True
    with pytest.raises(Unavailable):
        await at.site.sync()
    at.hub.away = False
    await at.site.sync()
    await at.site.sync()

    (token,) = at.hub.decisions
    public = at.node.identity.signing.public_key()
    sent = verify(token, PlanDecision, keys_of=lambda _: (public,), now=at.node.clock.now())
    assert (sent.body.plan, sent.body.verdict, sent.body.role) == (
        plan.digest,
        Verdict.APPROVE,
        "security-officer",
    )
    assert "wu" not in str(sent.body.to_json())
    (entry,) = await at.node.events(EventKind.PLAN_APPROVED)
    assert entry.event.actor == "person:wu@a-general"


async def test_nothing_runs_until_a_plan_is_offered_and_this_site_is_registered(at: SiteFixture) -> None:
    """A hospital to which nobody offers a plan has no Flower process; a failing start is retried, not fatal."""
    running = asyncio.create_task(at.site.run())
    await asyncio.sleep(0.2)
    assert not at.site.status.running
    assert at.site.status.restarts == 0
    at.offer()
    await at.site.sync()
    await asyncio.sleep(0.1)
    assert at.site.status.restarts == 0
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_an_unusable_answer_of_the_hub_does_not_end_the_duty(at: SiteFixture) -> None:
    """The status says so, and the next good answer clears it."""
    at.hub.plans = None  # type: ignore[assignment]
    at.site._sync_seconds = 0.02
    running = asyncio.create_task(at.site.run())
    await asyncio.sleep(0.1)
    assert "could not be used" in at.site.status.hub_error
    at.hub.plans = []
    await asyncio.sleep(0.1)
    assert at.site.status.hub_error == ""
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
