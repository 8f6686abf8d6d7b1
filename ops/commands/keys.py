"""`accord keys`: age and rotation of the keys, who keeps the root key, and the grade that two people unlock."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from consent.errors import Invalid
from consent.vocabulary import Grade
from node.vault.custody import credentials
from node.vault.keys import GradeStatus
from ops import rooting
from ops.commands.arguments import Folder, Json, operator
from ops.console import speaks, tell, tell_table
from ops.foundation import opened
from ops.remote import ask_running

keys = typer.Typer(help="The keys: age, rotation, custody, unlocking.", no_args_is_help=True)
GRADES = {grade.name.lower(): grade for grade in Grade}
Token = Annotated[Path, typer.Option(metavar="FILE", help="File with an API token of the person who asks.")]


@keys.command("status")
@speaks
def status(folder: Folder, as_json: Json = False) -> None:
    """Show each grade's key: version, age, how many study keys are under it and how many are behind.

    Example: accord keys status /srv/accord
    """
    custody, found, now = asyncio.run(_status(folder))
    value = {"custody": custody, "grades": [_grade(one, now) for one in found]}
    columns = ("grade", "version", "days", "study keys", "behind", "older versions", "root")
    rows = [_row(one, now) for one in found]
    tell_table(columns, rows, value, as_json=as_json)
    if not as_json:
        tell(f"Root key: {custody}", value, as_json=False)


@keys.command("rotate")
@speaks
def rotate(
    folder: Folder,
    grade: Annotated[
        str, typer.Option(help="ordinary, sensitive, restricted, or all that have keys.")
    ] = "all",
    as_json: Json = False,
) -> None:
    """Make a new key for a grade and rewrap its study keys. No image is rewritten; the node may run.

    Example: accord keys rotate /srv/accord --grade ordinary
    """
    if grade not in (*GRADES, "all"):
        raise Invalid("This is not a grade.", mend=f"Use one of: {', '.join(GRADES)}, all.")
    made, moved = asyncio.run(_rotate(folder, grade))
    words = (
        ", ".join(f"{name} has version {version}" for name, version in made.items()) or "No grade has keys"
    )
    tell(
        f"{words}; {moved} study keys were rewrapped.",
        {"versions": made, "rewrapped": moved},
        as_json=as_json,
    )


@keys.command("rewrap")
@speaks
def rewrap(folder: Folder, as_json: Json = False) -> None:
    """Bring every study key under its grade's newest key; the older keys are destroyed then. May be interrupted.

    Example: accord keys rewrap /srv/accord
    """

    async def run() -> tuple[int, int]:
        async with opened(folder) as node:
            done = await node.rotation.rewrap()
            return done.moved, done.broken

    moved, broken = asyncio.run(run())
    words = f"{moved} study keys were rewrapped." + (f" {broken} do not open: see the log." if broken else "")
    tell(words, {"rewrapped": moved, "broken": broken}, as_json=as_json)
    if broken:
        raise typer.Exit(1)


@keys.command("unlock")
@speaks
def unlock(
    folder: Folder,
    token_file: Token,
    source: Annotated[
        str,
        typer.Option("--passphrase", metavar="SOURCE", help="file:PATH, env:NAME or ask (at the terminal)."),
    ] = "ask",
    as_json: Json = False,
) -> None:
    """Give one holder's passphrase for the grade that two people unlock, to the node that runs.

    Example: accord keys unlock /srv/accord --token-file li.token
    """
    secret = credentials.read_credential(source, Path.cwd(), what="Your passphrase for these keys")
    body = {"grade": "restricted", "passphrase": secret.decode("utf-8", "replace")}
    answer = asyncio.run(ask_running(folder, token_file, "POST", "/api/v1/keys/unlock", body))
    if answer["locked"]:
        words = "Taken. Another holder must follow within five minutes: " + ", ".join(answer["holders"])
    else:
        words = "Grade restricted is unlocked."
    tell(words, answer, as_json=as_json)


@keys.command("lock")
@speaks
def lock(folder: Folder, token_file: Token, as_json: Json = False) -> None:
    """Take the keys of the grade that two people unlock out of the running node's memory.

    Example: accord keys lock /srv/accord --token-file li.token
    """
    body = {"grade": "restricted"}
    answer = asyncio.run(ask_running(folder, token_file, "POST", "/api/v1/keys/lock", body))
    tell("Grade restricted is locked.", answer, as_json=as_json)


@keys.command("change-passphrase")
@speaks
def change_passphrase(
    folder: Folder,
    new: Annotated[
        str, typer.Option(metavar="SOURCE", help="The new one; left out: random, kept where the old one is.")
    ] = "",
    holder: Annotated[
        str, typer.Option(metavar="LOGIN", help="Of the two-person keystore: whose passphrase.")
    ] = "",
    old: Annotated[str, typer.Option(metavar="SOURCE", help="With --holder: the present one.")] = "ask",
    as_json: Json = False,
) -> None:
    """Let another credential open the keystore, and the old one no more. The node may run.

    Example: accord keys change-passphrase /srv/accord
    """
    if holder:
        asyncio.run(rooting.change_holder(folder, holder, old, new or "ask", operator()))
        tell(f"{holder} has another passphrase.", {"holder": holder}, as_json=as_json)
        return
    where = asyncio.run(rooting.change_credential(folder, new, operator()))
    words = f"The keystore has another credential ({where}). Copies of the old keystore still open with the old one."
    tell(words, {"where": where}, as_json=as_json)


@keys.command("two-person")
@speaks
def two_person(
    folder: Folder,
    holder: Annotated[
        list[str],
        typer.Option(metavar="LOGIN=SOURCE", help="A holder and where their passphrase is; 2 to 6."),
    ],
    as_json: Json = False,
) -> None:
    """Give grade restricted a root key of its own that two of its holders unlock after each start. The node is stopped.

    Example: accord keys two-person /srv/accord --holder dr.li=ask --holder dr.wang=ask
    """
    holders = {login: source for login, _, source in (item.partition("=") for item in holder)}
    if len(holders) != len(holder) or not all(holders) or not all(holders.values()):
        raise Invalid("Each holder is named once, with a source.", mend="Write --holder dr.li=ask")
    moved = asyncio.run(rooting.make_two_person(folder, holders, operator()))
    words = (
        f"Grade restricted has a root key of its own; {moved} study keys were rewrapped.\n"
        f"After each start two of {', '.join(sorted(holders))} unlock it: page Keys, or accord keys unlock."
    )
    tell(words, {"holders": sorted(holders), "rewrapped": moved}, as_json=as_json)


@keys.command("move")
@speaks
def move(
    folder: Folder,
    to: Annotated[
        Path, typer.Option(metavar="FILE", help="TOML with the table [custody] of the new custody.")
    ],
    create_key: Annotated[
        bool, typer.Option(help="Make the root key in the token or server if it has none.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Move the root key to another custody: a token, a Vault server, a new keystore. The node is stopped.

    Example: accord keys move /srv/accord --to hsm.toml --create-key
    """
    done = asyncio.run(rooting.move(folder, to, operator(), create_key=create_key))
    words = (
        f"{done.keys} keys moved from {done.before} to {done.after}. Destroy the old root key and its copies."
    )
    tell(words, vars(done), as_json=as_json)


async def _status(folder: Path) -> tuple[str, tuple[GradeStatus, ...], Any]:
    async with opened(folder) as node:
        found = await node.keys.status()
        return found.custody, found.grades, node.clock.now()


async def _rotate(folder: Path, grade: str) -> tuple[dict[str, int], int]:
    async with opened(folder) as node:
        known = (await node.keys.status()).grades
        wanted = [one.grade for one in known if not one.locked] if grade == "all" else [GRADES[grade]]
        made = {one.name.lower(): await node.rotation.rotate(one, operator()) for one in wanted}
        done = await node.rotation.rewrap()
        return made, done.moved


def _grade(one: GradeStatus, now: Any) -> dict[str, Any]:
    return {
        "grade": one.grade.name.lower(),
        "version": one.version,
        "age_days": round((now - one.created).total_seconds() / 86400, 1),
        "study_keys": one.study_keys,
        "behind": one.behind,
        "guarded": one.guarded,
        "versions": [vars(version) for version in one.versions],
    }


def _row(one: GradeStatus, now: Any) -> list[Any]:
    older = ", ".join(f"{old.version} ({old.study_keys})" for old in one.versions[:-1]) or "-"
    root = "two people" if one.guarded else "node"
    return [
        one.grade.name.lower(),
        one.version,
        (now - one.created).days,
        one.study_keys,
        one.behind,
        older,
        root,
    ]
