"""The registry: accounts and tokens, what is refused and what is on record."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from consent.errors import Conflict, Invalid, NotFound
from consent.vocabulary import EventKind, Role
from tests.node.access.conftest import GOOD, NODE, Desk


@pytest.mark.requirement("U7")
async def test_a_person_is_added_once_and_on_record(desk: Desk) -> None:
    """The account is there, a second of the same login is a Conflict, and the log names who added it."""
    added = await desk.registry.add_person("li", "Dr Li", Role.CLINICIAN, "Surgery", GOOD, by="person:it@a")

    assert await desk.registry.person("li") == added
    assert added.principal(NODE).actor == "person:li@a-general"
    with pytest.raises(Conflict, match="taken"):
        await desk.registry.add_person("li", "Another", Role.CLINICIAN)
    (event,) = await desk.events(EventKind.PERSON_ADDED)
    assert (event.actor, event.detail) == ("person:it@a", {"login": "li", "role": "clinician"})


@pytest.mark.requirement("U7")
async def test_no_password_or_secret_lies_in_the_database(desk: Desk) -> None:
    """Passwords are argon2id; one-time secrets, tokens and cookies are hashes."""
    await desk.registry.add_person("li", "Dr Li", Role.CLINICIAN, None, GOOD)
    session = await desk.sessions.sign_in("li", GOOD, "10.0.0.1")
    once = await desk.registry.create_one_time("li", approval="p-1")
    token = await desk.registry.create_token("li", {"dicomweb"})
    async with desk.database.read() as tx:
        rows = [
            str(row)
            for table in ("person", "token", "session")
            for row in await tx.execute(text(f"SELECT * FROM {table}"))
        ]

    stored = "\n".join(rows)
    assert "$argon2id$" in stored
    assert not [secret for secret in (GOOD, once, token, session.cookie, session.csrf) if secret in stored]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"login": "Dr Li"}, "not a login"),
        ({"login": "li/../x"}, "not a login"),
        ({"login": ""}, "not a login"),
        ({"login": "a" * 65}, "not a login"),
        ({"role": Role.DEVICE}, "cannot have the role"),
        ({"name": ""}, "name is empty"),
        ({"name": "x" * 121}, "name is empty, too long"),
        ({"department": "a\nb"}, "department"),
        ({"password": "short"}, "fewer than 12"),
        ({"password": "li-li-li-li-li"}, "holds the login"),
        ({"password": "a" * 20}, "hardly more than one"),
        ({"password": "ab12" * 200}, "longer than"),
    ],
)
async def test_a_bad_account_is_refused_by_name(desk: Desk, change: dict[str, Any], words: str) -> None:
    """Login, role, name, department and password each have their own sentence; nothing is kept."""
    account: dict[str, Any] = {"login": "li", "name": "Dr Li", "role": Role.CLINICIAN, "password": GOOD}

    with pytest.raises(Invalid, match=words):
        await desk.registry.add_person(**(account | change))
    assert await desk.registry.people() == []


async def test_an_unknown_account_is_not_found(desk: Desk) -> None:
    """Asking for, or changing, an account that is not there says so."""
    for deed in (
        desk.registry.person("li"),
        desk.registry.disable("li"),
        desk.registry.set_password("li", GOOD),
        desk.registry.create_one_time("li"),
        desk.registry.create_token("li", {"api"}),
        desk.registry.revoke_token("nothing"),
    ):
        with pytest.raises(NotFound):
            await deed


@pytest.mark.requirement("U7")
async def test_a_token_is_its_owner_within_its_scopes_until_it_ends(desk: Desk) -> None:
    """A token names person and scopes; it dies at its expiry, when revoked, and with the account."""
    await desk.registry.add_person("li", "Dr Li", Role.CLINICIAN)
    short = await desk.registry.create_token("li", ["dicomweb"], days=1)
    long = await desk.registry.create_token("li", ["dicomweb", "api"], days=90)
    assert short.startswith("acc_")

    found = await desk.registry.principal_of_token(long)
    assert found is not None
    assert (found[0].id, found[1]) == ("li", frozenset({"api", "dicomweb"}))

    desk.clock.tick(days=1)
    assert await desk.registry.principal_of_token(short) is None
    await desk.registry.disable("li")
    assert await desk.registry.principal_of_token(long) is None
    await desk.registry.enable("li")
    assert await desk.registry.principal_of_token(long) is None
    assert len(await desk.events(EventKind.TOKEN_REVOKED)) == 2
    another = await desk.registry.create_token("li", ["api"])
    await desk.registry.revoke_token((await desk.registry.tokens_of("li"))[0].id)
    assert await desk.registry.principal_of_token(another) is None
    assert len(await desk.events(EventKind.TOKEN_REVOKED)) == 3


@pytest.mark.parametrize("secret", ["", "acc_", "acc_" + "A" * 43, "acc_" + "A" * 10_000, "Bearer x"])
async def test_a_wrong_token_is_nobody(desk: Desk, secret: str) -> None:
    """Unknown, empty and absurdly long tokens find nobody."""
    assert await desk.registry.principal_of_token(secret) is None


@pytest.mark.parametrize(
    ("scopes", "days", "words"),
    [
        (set(), 1, "scopes that exist"),
        ({"everything"}, 1, "scopes that exist"),
        ({"api"}, 0, "at most 90 days"),
        ({"api"}, 91, "at most 90 days"),
        ({"api"}, float("nan"), "at most 90 days"),
    ],
)
async def test_a_token_for_too_much_is_refused(desk: Desk, scopes: set[str], days: float, words: str) -> None:
    """Unknown scopes and too long a life are Invalid."""
    await desk.registry.add_person("li", "Dr Li", Role.CLINICIAN)

    with pytest.raises(Invalid, match=words):
        await desk.registry.create_token("li", scopes, days)


@pytest.mark.requirement("U7", "V4")
async def test_every_change_of_an_account_is_on_record(desk: Desk) -> None:
    """Password, one-time sign-in, closing and opening each leave an entry, without any secret."""
    await desk.registry.add_person("li", "Dr Li", Role.CLINICIAN)
    await desk.registry.set_password("li", GOOD)
    await desk.registry.create_one_time("li", approval="p-1")
    await desk.registry.disable("li")
    await desk.registry.enable("li")

    changes = [event.detail["what"] for event in await desk.events(EventKind.PERSON_CHANGED)]
    assert changes == ["password", "one-time sign-in", "disabled", "enabled"]


async def test_a_change_that_cannot_be_logged_does_not_happen(desk: Desk) -> None:
    """Deed and entry share a transaction: an entry too large to keep takes the account back too."""
    with pytest.raises(Invalid, match="log entry"):
        await desk.registry.add_person("li", "Dr Li", Role.CLINICIAN, by="x" * 40_000)

    assert await desk.registry.people() == []
