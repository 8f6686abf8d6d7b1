"""Sign-in and sessions: one sentence for every wrong pair, growing pauses, and ends that hold."""

from __future__ import annotations

import asyncio

import pytest

from consent.errors import Denied, Invalid, Unavailable
from consent.vocabulary import EventKind, Outcome, Role
from node.access import passwords as passwords_module
from node.access.passwords import FREE_ATTEMPTS, Passwords
from node.access.sessions import Session
from tests.node.access.conftest import GOOD, Desk

HERE, THERE = "10.0.0.1", "10.0.0.2"


async def doctor(desk: Desk) -> None:
    await desk.registry.add_person("li", "Dr Li", Role.CLINICIAN, None, GOOD)


async def signed_in(desk: Desk, password: str = GOOD) -> Session:
    return await desk.sessions.sign_in("li", password, HERE)


async def refused(desk: Desk, login: str = "li", password: str = "wrong", address: str = HERE) -> Denied:
    with pytest.raises(Denied) as refusal:
        await desk.sessions.sign_in(login, password, address)
    return refusal.value


@pytest.mark.requirement("U7")
async def test_the_right_password_starts_a_session(desk: Desk) -> None:
    """The cookie finds the person again, with a CSRF token of its own; the sign-in is on record."""
    await doctor(desk)
    session = await desk.sessions.sign_in(" Li ", GOOD, HERE)
    found = await desk.sessions.session(session.cookie)

    assert found == session
    assert session.principal.actor == "person:li@a-general"
    assert session.csrf != (await signed_in(desk)).csrf
    assert session.cookie not in repr(session)
    (event, _) = await desk.events(EventKind.SIGNED_IN)
    assert (event.actor, event.address) == ("person:li@a-general", HERE)


@pytest.mark.requirement("U7")
@pytest.mark.parametrize(
    ("login", "password"),
    [
        ("li", "wrong"),
        ("li", ""),
        ("nobody", GOOD),
        ("closed", GOOD),
        ("new", ""),
        ("LI'; DROP TABLE person", GOOD),
        ("li", "x" * 10_000),
        ("li", "\ud800"),
    ],
)
async def test_every_wrong_pair_gets_the_same_answer(desk: Desk, login: str, password: str) -> None:
    """Unknown, closed, without a password, or wrong: the words do not tell which; the log has the attempt."""
    await doctor(desk)
    await desk.registry.add_person("closed", "Dr Out", Role.CLINICIAN, None, GOOD)
    await desk.registry.disable("closed")
    await desk.registry.add_person("new", "Dr New", Role.CLINICIAN)

    refusal = await refused(desk, login, password)

    assert refusal.message == "The login or the password is wrong."
    (event,) = await desk.events(EventKind.SIGN_IN_REFUSED)
    assert event.outcome is Outcome.REFUSED
    assert password not in event.actor or not password


async def test_a_password_typed_as_the_login_is_not_recorded(desk: Desk) -> None:
    """What cannot be a login is not written to the log."""
    await refused(desk, "Correct Horse Battery!")

    (event,) = await desk.events(EventKind.SIGN_IN_REFUSED)
    assert event.actor == "person:?"


@pytest.mark.requirement("U7")
async def test_wrong_passwords_make_an_account_wait_at_that_address_only(desk: Desk) -> None:
    """After a few the right password must wait too, there; elsewhere it works at once; no lock remains."""
    await doctor(desk)
    for _ in range(FREE_ATTEMPTS + 2):
        await refused(desk)
        desk.clock.tick(seconds=3)
    await refused(desk)
    paced = await refused(desk, password=GOOD)

    entries = len(await desk.events(EventKind.SIGN_IN_REFUSED))
    await refused(desk)

    assert paced.code == "sign-in-paced"
    assert len(await desk.events(EventKind.SIGN_IN_REFUSED)) == entries
    assert "Wait" in paced.mend
    assert await desk.sessions.sign_in("li", GOOD, THERE)
    desk.clock.tick(seconds=61)
    assert await signed_in(desk)
    assert (await refused(desk)).code == "sign-in"


@pytest.mark.requirement("U7")
async def test_many_guesses_at_once_do_not_slip_past_the_pause(desk: Desk) -> None:
    """Guesses sent together count one after the other: after the free ones the rest must wait."""
    await doctor(desk)
    guesses = await asyncio.gather(*(refused(desk) for _ in range(FREE_ATTEMPTS + 5)))

    assert [one.code for one in guesses].count("sign-in") == FREE_ATTEMPTS
    assert [one.code for one in guesses].count("sign-in-paced") == 5


@pytest.mark.requirement("U7")
async def test_an_idle_session_ends(desk: Desk) -> None:
    """Use keeps it awake; a quarter of an hour without use ends it."""
    await doctor(desk)
    session = await signed_in(desk)
    for _ in range(4):
        desk.clock.tick(minutes=14)
        assert await desk.sessions.session(session.cookie)
    desk.clock.tick(minutes=15)

    assert await desk.sessions.session(session.cookie) is None


@pytest.mark.requirement("U7")
async def test_a_session_in_use_ends_after_twelve_hours(desk: Desk) -> None:
    """However busy, after its absolute time it is over; the sweep takes its row."""
    await doctor(desk)
    session = await signed_in(desk)
    for _ in range(12 * 6 - 1):
        desk.clock.tick(minutes=10)
        assert await desk.sessions.session(session.cookie)
    desk.clock.tick(minutes=10)

    assert await desk.sessions.session(session.cookie) is None
    assert await desk.sessions.sweep() == 1


@pytest.mark.requirement("U7")
async def test_closing_an_account_ends_its_sessions_at_once(desk: Desk) -> None:
    """Disabled in another process or here: the next use fails, and opening it again revives nothing."""
    await doctor(desk)
    session = await signed_in(desk)
    await desk.registry.disable("li")

    assert await desk.sessions.session(session.cookie) is None
    await desk.registry.enable("li")
    assert await desk.sessions.session(session.cookie) is None


@pytest.mark.requirement("U7")
async def test_a_new_password_ends_every_session(desk: Desk) -> None:
    """The old cookie and the old password are worth nothing afterwards."""
    await doctor(desk)
    session = await signed_in(desk)
    await desk.registry.set_password("li", "another good one")

    assert await desk.sessions.session(session.cookie) is None
    assert (await refused(desk, password=GOOD)).code == "sign-in"
    assert await signed_in(desk, "another good one")


@pytest.mark.requirement("U7")
async def test_signing_out_ends_the_session(desk: Desk) -> None:
    """The cookie is dead afterwards; the sign-out is on record once; doing it again is harmless."""
    await doctor(desk)
    session = await signed_in(desk)
    await desk.sessions.sign_out(session.cookie)
    await desk.sessions.sign_out(session.cookie)

    assert await desk.sessions.session(session.cookie) is None
    assert len(await desk.events(EventKind.SIGNED_OUT)) == 1


@pytest.mark.requirement("U7")
async def test_a_one_time_sign_in_works_once_and_asks_for_a_password(desk: Desk) -> None:
    """The secret opens one session that must choose a password; a second use, and a late one, fail."""
    await desk.registry.add_person("it", "Hospital IT", Role.ADMINISTRATOR)
    secret = await desk.registry.create_one_time("it")
    session = await desk.sessions.sign_in("it", secret, HERE)

    assert session.must_change_password
    found = await desk.sessions.session(session.cookie)
    assert found is not None
    assert found.must_change_password
    assert (await refused(desk, "it", secret)).code == "sign-in"
    await desk.registry.set_password("it", GOOD)
    assert not (await desk.sessions.sign_in("it", GOOD, HERE)).must_change_password
    late = await desk.registry.create_one_time("it")
    desk.clock.tick(hours=72)
    assert (await refused(desk, "it", late)).code == "sign-in"


@pytest.mark.requirement("U7")
async def test_two_uses_of_a_one_time_secret_at_once_open_one_session(desk: Desk) -> None:
    """The secret is spent in one statement."""
    await desk.registry.add_person("it", "Hospital IT", Role.ADMINISTRATOR)
    secret = await desk.registry.create_one_time("it")
    uses = [desk.sessions.sign_in("it", secret, address) for address in (HERE, THERE)]
    outcomes = await asyncio.gather(*uses, return_exceptions=True)

    assert sorted(isinstance(outcome, Session) for outcome in outcomes) == [False, True]


@pytest.mark.parametrize("cookie", ["", "x", "A" * 43, "A" * 100_000, "é" * 20])
async def test_a_wrong_cookie_is_nobody(desk: Desk, cookie: str) -> None:
    """Unknown, empty and absurdly long cookies find no session."""
    assert await desk.sessions.session(cookie) is None


async def test_a_code_is_refused_while_no_account_has_a_second_factor(desk: Desk) -> None:
    """A code is never silently ignored."""
    await doctor(desk)
    with pytest.raises(Invalid, match="second factor"):
        await desk.sessions.sign_in("li", GOOD, HERE, "123456")


@pytest.mark.requirement("F4")
async def test_too_many_sign_ins_at_once_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue of the one worker is bounded: the next in line is told to come back."""
    monkeypatch.setattr(passwords_module, "MAX_WAITING", 2)
    hasher = Passwords(passes=2, memory_bytes=16 * 1024 * 1024)
    outcomes = await asyncio.gather(*(hasher.hash(GOOD) for _ in range(4)), return_exceptions=True)
    hasher.close()

    assert sum(isinstance(outcome, Unavailable) for outcome in outcomes) == 2
    assert sum(isinstance(outcome, str) for outcome in outcomes) == 2


async def test_the_shipped_hashing_costs_what_it_should() -> None:
    """argon2id over at least 19 MiB, and it knows its password again."""
    hasher = Passwords()
    stored = await hasher.hash(GOOD)

    assert stored.startswith("$argon2id$v=19$m=32768,t=3,p=1$")
    assert await hasher.matches(stored, GOOD)
    assert not await hasher.matches(stored, "wrong")
    assert not await hasher.matches(None, GOOD)
    hasher.close()
