"""`accord user`, `accord care`, `accord token`: who may come, whom they treat, and their programs' tokens."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from consent.errors import Invalid, NotFound
from consent.vocabulary import Role
from ops.commands.arguments import Folder, Json, operator
from ops.console import speaks, tell, tell_table
from ops.foundation import opened

MAX_PASSWORD_FILE_BYTES = 4096

users = typer.Typer(help="People who sign in.", no_args_is_help=True)
care = typer.Typer(help="Treatment relationships.", no_args_is_help=True)
tokens = typer.Typer(help="Tokens for programs.", no_args_is_help=True)


@users.command("add")
@speaks
def add_user(
    folder: Folder,
    name: Annotated[str, typer.Option(metavar="LOGIN", help="Login: what the person types to sign in.")],
    role: Annotated[Role, typer.Option(help="What the person is, for the rules.")],
    full_name: Annotated[
        str, typer.Option(help="The name as colleagues read it; the login when left out.")
    ] = "",
    department: Annotated[str | None, typer.Option(help="Department, for the rules.")] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="File with the first password; read once.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make an account. Without --password-file it prints a one-time sign-in that must be changed at first use.

    Example: accord user add /srv/accord --name dr.li --role clinician --full-name "Li Wei"
    """
    password = None if password_file is None else _read_password(password_file)

    async def run() -> str | None:
        async with opened(folder) as node:
            await node.registry.add_person(name, full_name or name, role, department, password, by=operator())
            return None if password else await node.registry.create_one_time(name, by=operator())

    once = asyncio.run(run())
    words = f"{name} can sign in as {role}." + (f"\nOne-time sign-in: {once}" if once else "")
    tell(words, {"login": name, "role": role, "one_time": once}, as_json=as_json)


@users.command("list")
@speaks
def list_users(folder: Folder, as_json: Json = False) -> None:
    """List accounts.

    Example: accord user list /srv/accord
    """

    async def run() -> list[dict[str, str | None]]:
        async with opened(folder) as node:
            return [
                {
                    "login": person.login,
                    "name": person.name,
                    "role": person.role,
                    "department": person.department,
                }
                for person in await node.registry.people()
            ]

    people = asyncio.run(run())
    columns = ("login", "name", "role", "department")
    tell_table(
        columns, [[person[column] or "" for column in columns] for person in people], people, as_json=as_json
    )


@care.command("add")
@speaks
def add_care(
    folder: Folder,
    user: Annotated[str, typer.Option(metavar="LOGIN", help="The clinician.")],
    patient: Annotated[str, typer.Option(metavar="ID", help="The hospital's Patient ID (0010,0020).")],
    as_json: Json = False,
) -> None:
    """Record that a clinician treats a patient.

    Example: accord care add /srv/accord --user dr.li --patient 4711
    """

    async def run() -> None:
        async with opened(folder) as node:
            await node.registry.person(user)
            await node.care.record(user, node.pseudonyms.patient(patient), by=operator())

    asyncio.run(run())
    tell(f"Recorded: {user} treats this patient.", {"login": user}, as_json=as_json)


@tokens.command("create")
@speaks
def create_token(
    folder: Folder,
    user: Annotated[str, typer.Option(metavar="LOGIN", help="Whose rights the token has.")],
    scope: Annotated[list[str], typer.Option(help="What it may be used for; may be given several times.")],
    days: Annotated[float, typer.Option(help="How long it lives.")] = 30.0,
    as_json: Json = False,
) -> None:
    """Make a bearer token for a program; prints the token alone, this once.

    Example: accord token create /srv/accord --user dr.li --scope dicomweb
    """

    async def run() -> str:
        async with opened(folder) as node:
            return await node.registry.create_token(user, scope, days, by=operator())

    token = asyncio.run(run())
    tell(token, {"token": token}, as_json=as_json)


def _read_password(file: Path) -> str:
    if not file.is_file():
        raise NotFound(f"The password file {file} is not there.")
    raw = file.read_bytes()
    if len(raw) > MAX_PASSWORD_FILE_BYTES:
        raise Invalid(f"The password file {file} is larger than {MAX_PASSWORD_FILE_BYTES} bytes.")
    try:
        return raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise Invalid(f"The password file {file} is not UTF-8 text.") from error
