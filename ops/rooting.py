"""What changes a node's root keys: another credential, another custody, a grade's own root that two people unlock.

Each is done so that a crash at any point leaves a node that opens, with the old or with the new, or one that opens after the
same command was given again. Everything is put on record. The node must not run meanwhile, except for changing a passphrase.
"""

from __future__ import annotations

import asyncio
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import select

from consent.errors import Conflict, Corrupt, Invalid, NotFound
from consent.vocabulary import EventKind, Grade
from node.audit.log import Event
from node.config import (
    FILE_NAME,
    CustodySection,
    KeysSection,
    Settings,
    changed_settings,
    load_settings,
    read_settings,
    replace_settings,
)
from node.database import Database
from node.durable import write_new, write_over
from node.rotation import Rotation
from node.settings_file import NEW_SUFFIX, words_of
from node.vault.custody import Custody, credentials
from node.vault.custody.keystore import Keystore
from node.vault.custody.two_person import TwoPersonKeystore
from node.vault.key_tables import vault_secret
from node.vault.keys import KeyRing, secret_context
from ops.foundation import (
    CREDENTIAL_BYTES,
    Foundation,
    create_keystore,
    open_custody,
    opened,
    read_credential,
)
from ops.lock import sole_user

TWO_PERSON_FILE = "restricted.keystore.json"
MAX_FILE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Moved:
    """What was moved: how many keys, from where, to where."""

    keys: int
    before: str
    after: str


async def change_credential(folder: Path, new: str, actor: str) -> str:
    """Give the built-in keystore another credential; return where the new one is.

    `new` is a source ("ask" and so on); "" makes a random one, kept where the old one is.
    """
    settings = load_settings(folder)
    if settings.custody.kind != "keystore":
        raise Invalid(
            f"The root key is kept by {settings.custody.kind!r}: its PIN or token is changed with the maker's own tools.",
            mend="Then correct what custody.credential in node.toml points to.",
            code="custody-kind",
        )
    async with opened(folder) as node:
        path = settings.path(settings.keys.keystore)
        source = settings.custody.credential
        if source:
            old = credentials.read_credential(source, settings.folder, what="The present passphrase")
            fresh = credentials.read_credential(new or "ask", Path.cwd(), what="The new passphrase")
            Keystore.change_credential(path, old, fresh)
            where = f"{source}: put the new passphrase there"
        else:
            where = str(_change_file(settings, path, new))
        await _record(node, actor, {"what": "credential", "custody": node.custody.describe()})
    return where


async def change_holder(folder: Path, holder: str, old: str, new: str, actor: str) -> None:
    """Give a holder of the two-person keystore another passphrase. Raises Denied when the old one is wrong."""
    async with opened(folder) as node:
        keystore = TwoPersonKeystore.open(_two_person_path(node.settings))
        was = credentials.read_credential(old, Path.cwd(), what=f"Present passphrase of {holder}")
        fresh = credentials.read_credential(new, Path.cwd(), what=f"New passphrase of {holder}")
        await asyncio.to_thread(keystore.change_passphrase, holder, was, fresh)
        await _record(node, actor, {"what": "passphrase", "holder": holder})


async def make_two_person(folder: Path, holders: Mapping[str, str], actor: str) -> int:
    """Give grade restricted a root key of its own that two of these people unlock (login to passphrase source).

    Its keys are replaced by new ones under that root at once; returns how many study keys were rewrapped.
    """
    with sole_user(load_settings(folder).folder):
        async with opened(folder) as node:
            if node.settings.custody.two_person_keystore:
                raise Conflict(
                    "Grade restricted has a root key of its own already.",
                    mend="Its holders change their passphrases with accord keys change-passphrase --holder LOGIN.",
                )
            for login in holders:
                await node.registry.principal(login)  # a holder signs in to unlock: there must be an account
            passphrases = {
                login: credentials.read_credential(source, Path.cwd(), what=f"Passphrase of {login}")
                for login, source in holders.items()
            }
            path = node.settings.folder / TWO_PERSON_FILE
            keystore = TwoPersonKeystore.create(path, Grade.RESTRICTED, passphrases)
            replace_settings(
                folder, changed_settings(folder, {"custody.two_person_keystore": TWO_PERSON_FILE})
            )
            keys = KeyRing(node.custody, node.database, node.clock, guarded={Grade.RESTRICTED: keystore})
            rotation = Rotation(keys, node.database, node.log, node.policies, node.clock)
            await rotation.rotate(Grade.RESTRICTED, actor, cause="two-person")
            done = await rotation.rewrap()
            await keys.purge_journal()
            await _record(
                node,
                actor,
                {"what": "two-person", "holders": sorted(holders), "custody": keystore.describe()},
            )
    return done.moved


async def move(folder: Path, to: Path, actor: str, *, create_key: bool) -> Moved:
    """Move the root key to the custody that the file `to` describes: its tables [custody] and [keys].

    Every key under the old root is wrapped under the new one in one transaction; then node.toml names the new custody.
    May be given again after a crash.
    """
    present = load_settings(folder)
    with sole_user(present.folder):
        _finish_settings(present, await _which_opens(present))
        present = load_settings(folder)
        coming = _with_custody(present, to)
        if coming.custody.kind == "keystore" and not coming.path(coming.keys.keystore).exists():
            create_keystore(coming)
        async with opened(folder) as node:
            custody = open_custody(coming, create=create_key)
            try:
                _prepare_settings(folder, coming)
                moved = await node.keys.move_root(custody)
                _finish_settings(present, to_new=True)
                await node.keys.purge_journal()
                done = Moved(moved, node.custody.describe(), custody.describe())
                await _record(node, actor, {"what": "custody", "from": done.before, "to": done.after})
            finally:
                custody.close()
    return done


def _change_file(settings: Settings, path: Path, new: str) -> Path:
    """Another credential in the credential file. Until it is in place it lies beside, where the next start finds it."""
    file = settings.path(settings.keys.credential_file)
    old = read_credential(file)
    fresh = (
        credentials.read_credential(new, Path.cwd(), what="The new passphrase")
        if new
        else secrets.token_urlsafe(CREDENTIAL_BYTES).encode()
    )
    beside = file.with_name(file.name + NEW_SUFFIX)
    # Of an attempt that ended before the keystore was changed: `opened` has looked.
    beside.unlink(missing_ok=True)
    write_new(beside, fresh + b"\n")
    Keystore.change_credential(path, old, fresh)
    beside.replace(file)
    return file


def _two_person_path(settings: Settings) -> Path:
    named = settings.custody.two_person_keystore
    if not named:
        raise NotFound(
            "No grade here is guarded by two people.", mend="Set it up with accord keys two-person."
        )
    return settings.path(Path(named))


def _with_custody(present: Settings, file: Path) -> Settings:
    """The settings with the custody that `file` describes. Raises NotFound, Invalid."""
    if not file.is_file():
        raise NotFound(f"{file} is not there.", mend="Write the table [custody] of the new custody into it.")
    try:
        data = tomllib.loads(file.read_bytes()[:MAX_FILE_BYTES].decode())
        if not data or not set(data) <= {"custody", "keys"}:
            raise ValueError("it may hold the tables [custody] and [keys], and nothing else")
        custody = CustodySection(
            **{"two_person_keystore": present.custody.two_person_keystore, **data.get("custody", {})}
        )
        keys = KeysSection(**{**present.keys.model_dump(), **data.get("keys", {})})
    except ValidationError as error:
        raise Invalid(f"{file}: {words_of(error)}", mend="Correct it.", code="bad-setting") from error
    except (ValueError, TypeError) as error:
        raise Invalid(f"{file}: {error}.", mend="Correct it.", code="bad-setting") from error
    return present.model_copy(update={"custody": custody, "keys": keys})


def _prepare_settings(folder: Path, coming: Settings) -> None:
    """The coming node.toml beside the present one: after a crash it tells where the keys may have gone."""
    changes = {f"custody.{name}": value for name, value in coming.custody}
    changes |= {f"keys.{name}": value for name, value in coming.keys}
    text = changed_settings(folder, changes)
    beside = folder / (FILE_NAME + NEW_SUFFIX)
    write_over(beside, text.encode())


def _finish_settings(present: Settings, to_new: bool) -> None:
    """Put the prepared node.toml in place, or throw it away."""
    beside = present.folder / (FILE_NAME + NEW_SUFFIX)
    if not beside.exists():
        return
    if to_new:
        replace_settings(present.folder, beside.read_text("utf-8"))
    else:
        beside.unlink()


async def _which_opens(present: Settings) -> bool:
    """After a crash: whether it is the prepared node.toml whose custody opens the keys."""
    beside = present.folder / (FILE_NAME + NEW_SUFFIX)
    if not beside.exists():
        return False
    return await _opens(read_settings(beside.read_text("utf-8"), present.folder))


async def _opens(settings: Settings) -> bool:
    database = Database(settings.database_url)
    custody: Custody | None = None
    try:
        custody = open_custody(settings)
        async with database.read() as tx:
            row = (await tx.execute(select(vault_secret.c.name, vault_secret.c.wrapped).limit(1))).first()
        if row is None:
            return False
        await asyncio.to_thread(custody.unwrap, row.wrapped, secret_context(row.name))
    except (Corrupt, NotFound):
        return False
    finally:
        if custody is not None:
            custody.close()
        await database.close()
    return True


async def _record(node: Foundation, actor: str, detail: Mapping[str, str | list[str]]) -> None:
    await node.log.record(Event(EventKind.ROOT_KEY_CHANGED, actor, detail=dict(detail)))
