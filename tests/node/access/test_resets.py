"""Who has forgotten a password: IT asks, somebody else decides and hands over, the person is told."""

from __future__ import annotations

from datetime import timedelta

import pytest

from consent.approvals import State, Voice
from consent.errors import Conflict, Denied, Invalid, NotFound
from consent.principals import Principal
from consent.vocabulary import EventKind, Role
from node.access.resets import ESTABLISHED, Resets
from node.approvals import Approvals
from node.records import Records
from tests.node.access.conftest import GOOD, NODE, Desk
from tests.support.consents import key_of
from tests.support.seeds import ROWS

pytestmark = pytest.mark.requirement("U7")

HERE = "10.0.0.1"
WHY = "called from ward 3; staff card seen by the head nurse"
PEOPLE = {
    "it": Role.ADMINISTRATOR,
    "li": Role.CLINICIAN,
    "wu": Role.CHIEF_PHYSICIAN,
    "sec": Role.SECURITY_OFFICER,
}


@pytest.fixture
async def resets(desk: Desk) -> Resets:
    """Four people with passwords, all there for two days."""
    for login, role in PEOPLE.items():
        await desk.registry.add_person(login, login.title(), role, None, GOOD)
    desk.clock.tick(days=2)
    records = Records(desk.database, key=ROWS, log=desk.log)
    approvals = Approvals(desk.database, records, desk.log, desk.clock, node_id=NODE, key=key_of("b-central"))
    return Resets(desk.database, desk.registry, approvals, desk.log)


async def person(desk: Desk, login: str) -> Principal:
    return await desk.registry.principal(login)


async def asked(desk: Desk, resets: Resets, login: str = "li") -> str:
    await resets.ask(await person(desk, "it"), login, WHY)
    (waiting,) = await resets.waiting()
    return waiting.proposal.id


@pytest.mark.parametrize("login", ["li", "wu", "sec"])
async def test_it_alone_makes_no_sign_in_for_who_sees_patients(
    desk: Desk, resets: Resets, login: str
) -> None:
    """Nor for who watches over them; for its own kind, and for an account never used, it does."""
    assert not await resets.alone(login)
    with pytest.raises(Denied) as error:
        await desk.registry.create_one_time(login, by="person:it@a-general")
    assert error.value.code == "second-person"
    assert (await desk.registry.person(login)).reset is None
    assert await resets.alone("it")
    await desk.registry.add_person("new", "New", Role.CLINICIAN)
    assert await resets.alone("new")
    assert await desk.registry.create_one_time("new")
    assert (await desk.registry.person("new")).reset is None
    assert not await desk.events(EventKind.SIGN_IN_RESET)


async def test_a_second_person_decides_and_gets_the_secret(desk: Desk, resets: Resets) -> None:
    """It works once; that it was made is an alarm, and the person learns who asked and who made it."""
    proposal = await asked(desk, resets)
    made = await resets.answer(await person(desk, "sec"), proposal, Voice.APPROVE)
    assert made is not None
    login, secret = made
    assert login == "li"
    assert (await desk.sessions.sign_in("li", secret, HERE)).must_change_password
    assert not await resets.waiting()
    (event,) = await desk.events(EventKind.SIGN_IN_RESET)
    assert event.actor == "person:sec@a-general"
    assert (event.detail["asked_by"], event.detail["approval"]) == ("person:it@a-general", proposal)
    reset = (await desk.registry.person("li")).reset
    assert reset is not None
    assert (reset.asked_by, reset.by, reset.told) == ("person:it@a-general", "person:sec@a-general", False)
    with pytest.raises(Conflict):
        await resets.answer(await person(desk, "wu"), proposal, Voice.APPROVE)


async def test_every_session_and_token_ends_with_it(desk: Desk, resets: Resets) -> None:
    """Whoever had got in before is out; another person's stay."""
    session = await desk.sessions.sign_in("li", GOOD, HERE)
    other = await desk.sessions.sign_in("wu", GOOD, HERE)
    token = await desk.registry.create_token("li", {"api"})
    kept = await desk.registry.create_token("wu", {"api"})
    await resets.answer(await person(desk, "sec"), await asked(desk, resets), Voice.APPROVE)
    assert await desk.sessions.session(session.cookie) is None
    assert await desk.registry.principal_of_token(token) is None
    assert await desk.sessions.session(other.cookie) is not None
    assert await desk.registry.principal_of_token(kept) is not None
    (event,) = await desk.events(EventKind.SIGN_IN_RESET)
    assert event.detail["tokens_ended"] == 1


async def test_a_new_password_ends_every_session_and_token(desk: Desk, resets: Resets) -> None:
    """How many tokens ended is told; those that were over already are not counted."""
    session = await desk.sessions.sign_in("li", GOOD, HERE)
    secrets = [await desk.registry.create_token("li", {"api"}) for _ in range(3)]
    await desk.registry.revoke_token((await desk.registry.tokens_of("li"))[0].id)
    assert await desk.registry.set_password("li", GOOD + GOOD) == 2
    assert await desk.sessions.session(session.cookie) is None
    assert [await desk.registry.principal_of_token(one) for one in secrets] == [None] * 3
    assert len(await desk.events(EventKind.TOKEN_REVOKED)) == 3


@pytest.mark.parametrize(
    ("login", "code"), [("it", "own-proposal"), ("li", "own-sign-in"), ("other", "not-an-approver")]
)
async def test_who_may_not_decide_is_refused_on_record(
    desk: Desk, resets: Resets, login: str, code: str
) -> None:
    """Neither who asked, nor whom it is for, nor a colleague without that duty."""
    await desk.registry.add_person("other", "Other", Role.CLINICIAN, None, GOOD)
    desk.clock.tick(days=2)
    proposal = await asked(desk, resets)
    with pytest.raises(Denied) as error:
        await resets.answer(await person(desk, login), proposal, Voice.APPROVE)
    assert error.value.code == code
    (event,) = await desk.events(EventKind.ACCESS_REFUSED)
    assert event.actor == f"person:{login}@a-general"
    assert (await desk.registry.person("li")).reset is None


async def test_an_account_made_for_the_purpose_decides_nothing(desk: Desk, resets: Resets) -> None:
    """IT can make an officer's account; not one that was there a day before the request."""
    await desk.registry.add_person("puppet", "Puppet", Role.SECURITY_OFFICER, None, GOOD)
    proposal = await asked(desk, resets)
    desk.clock.tick(hours=20)
    with pytest.raises(Denied) as error:
        await resets.answer(await person(desk, "puppet"), proposal, Voice.APPROVE)
    assert error.value.code == "new-account"
    desk.clock.tick(hours=5)
    assert not await resets.waiting()  # too late by then
    proposal = await asked(desk, resets)
    assert timedelta(hours=25) > ESTABLISHED
    assert await resets.answer(await person(desk, "puppet"), proposal, Voice.APPROVE) is not None


async def test_a_refused_request_makes_nothing(desk: Desk, resets: Resets) -> None:
    """It is closed; asking again is possible, and asking twice is asking once."""
    proposal = await asked(desk, resets)
    await resets.ask(await person(desk, "it"), "li", WHY)
    assert len(await resets.waiting()) == 1
    assert await resets.answer(await person(desk, "sec"), proposal, Voice.REFUSE) is None
    assert not await resets.waiting()
    assert not await desk.events(EventKind.SIGN_IN_RESET)
    assert await asked(desk, resets) != proposal


async def test_what_was_cut_short_is_gone_on_with_by_who_approved(desk: Desk, resets: Resets) -> None:
    """Approved, and the node stopped before the secret was made."""
    proposal = await asked(desk, resets)
    await resets._approvals.answer(proposal, await person(desk, "sec"), Voice.APPROVE)
    (waiting,) = await resets.waiting()
    assert waiting.state is State.APPROVED
    with pytest.raises(Conflict):
        await resets.answer(await person(desk, "wu"), proposal, Voice.APPROVE)
    assert await resets.answer(await person(desk, "sec"), proposal, Voice.APPROVE) is not None


async def test_bad_requests_are_refused_with_words(desk: Desk, resets: Resets) -> None:
    """No reason, no such account, another deed's proposal."""
    it = await person(desk, "it")
    for reason in ("", "x" * 501):
        with pytest.raises(Invalid, match="recognised"):
            await resets.ask(it, "li", reason)
    with pytest.raises(NotFound):
        await resets.ask(it, "nobody", WHY)
    with pytest.raises(NotFound):
        await resets.answer(it, "0" * 32, Voice.APPROVE)
    other = await resets._approvals.put(
        it, deed="destruction", subject="li", reason="x", quorum=1, roles={Role.SECURITY_OFFICER}
    )
    with pytest.raises(Invalid):
        await resets.answer(await person(desk, "sec"), other.id, Voice.APPROVE)


@pytest.mark.parametrize("did", [True, False])
async def test_the_person_says_whether_they_asked(desk: Desk, resets: Resets, did: bool) -> None:
    """Once; that they did not is an alarm of its own."""
    await resets.answer(await person(desk, "sec"), await asked(desk, resets), Voice.APPROVE)
    for _ in range(2):
        await desk.registry.answer_reset("li", asked=did, address=HERE)
    reset = (await desk.registry.person("li")).reset
    assert reset is not None
    assert reset.told
    kinds = {True: EventKind.SIGN_IN_RESET_CONFIRMED, False: EventKind.SIGN_IN_RESET_DISOWNED}
    assert len(await desk.events(kinds[did])) == 1
    assert not await desk.events(kinds[not did])
    await desk.registry.answer_reset("sec", asked=False)
    assert len(await desk.events(kinds[did])) == 1


async def test_it_resets_its_own_kind_and_that_is_an_alarm_too(desk: Desk, resets: Resets) -> None:
    """An account in use is never reset in silence."""
    await desk.registry.create_one_time("it", by="system:root")
    (event,) = await desk.events(EventKind.SIGN_IN_RESET)
    assert event.detail["asked_by"] == "system:root"
    assert (await desk.registry.person("it")).reset is not None
