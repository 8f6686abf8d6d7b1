"""The part of a node that needs no listener: keys, database, identity, log, people.

The command line works on this while the node may or may not be running; `ops.compose` builds the rest on it.
Made by `opened`, which closes everything it opened.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from consent.errors import Conflict, Corrupt, Denied, Invalid, NotFound
from consent.policy import GradeRule, Policy, shipped_policy, tighten
from federation.members import Members
from node.access.care import Care
from node.access.passwords import Passwords
from node.access.registry import Registry
from node.access.rows import Rows
from node.access.sessions import Sessions
from node.access.sweep import RowSweep
from node.approvals import Approvals
from node.audit.log import Log
from node.clock import TrustedClock
from node.config import FILE_NAME, Settings, load_settings, write_settings
from node.database import Database
from node.durable import write_new
from node.grade_locks import GradeLocks
from node.identity import Identity
from node.index import Pseudonyms
from node.policies import Policies, shipped_cedar
from node.records import Records
from node.rotation import Rotation
from node.settings_file import NEW_SUFFIX
from node.vault.custody import Custody, credentials
from node.vault.custody.keystore import Keystore
from node.vault.custody.two_person import TwoPersonKeystore
from node.vault.keys import KeyRing
from ops.lock import holds, sole_user
from ops.migrate import migrate, schema_of

MIN_CREDENTIAL_BYTES = 16
MAX_CREDENTIAL_BYTES = 4096
CREDENTIAL_BYTES = 32


@dataclass(frozen=True)
class Foundation:
    """What every part of a node stands on."""

    settings: Settings
    clock: TrustedClock
    database: Database
    keys: KeyRing
    identity: Identity
    pseudonyms: Pseudonyms
    log: Log
    records: Records
    members: Members
    policies: Policies
    registry: Registry
    sessions: Sessions
    care: Care
    approvals: Approvals
    access_rows: RowSweep
    custody: Custody
    rotation: Rotation
    grade_locks: GradeLocks


def create_folder(settings: Settings) -> None:
    """Write settings, a random credential and a keystore into a new folder; nothing is overwritten."""
    settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings.folder.chmod(0o700)  # it may have been there, open to all
    write_settings(settings)
    create_keystore(settings)


def create_keystore(settings: Settings) -> None:
    """Make a random credential and a keystore that it opens, where the settings say. Raises Conflict, Unavailable."""
    credential = settings.path(settings.keys.credential_file)
    credential.parent.mkdir(mode=0o700, exist_ok=True)
    write_new(credential, secrets.token_urlsafe(CREDENTIAL_BYTES).encode() + b"\n")
    Keystore.create(settings.path(settings.keys.keystore), read_credential(credential))


def read_credential(file: Path) -> bytes:
    """The credential that opens the keystore. Raises NotFound or Invalid with what to do."""
    if not file.is_file():
        raise NotFound(
            f"The credential {file} is not there.",
            mend="Mount the medium it lies on, or correct keys.credential_file in node.toml.",
            code="no-credential",
        )
    credential = file.read_bytes().strip()
    if not MIN_CREDENTIAL_BYTES <= len(credential) <= MAX_CREDENTIAL_BYTES:
        raise Invalid(
            f"The credential {file} is empty or not a credential.", mend="Restore it from its safe copy."
        )
    return credential


def open_custody(settings: Settings, *, create: bool = False) -> Custody:
    """Open the custody that node.toml names; `create` makes the root key where token or server has none.

    Raises NotFound, Denied, Corrupt, Invalid or Unavailable, each saying what does not open.
    """
    named = settings.custody
    match named.kind:
        case "pkcs11":
            from node.vault.custody.pkcs11 import Pkcs11Custody, TokenPlace

            pin = credentials.read_credential(named.credential, settings.folder, what="The token's PIN")
            place = TokenPlace(
                module=named.pkcs11_module,
                token=named.pkcs11_token,
                key=named.pkcs11_key,
                pin=pin,
                mechanism=named.pkcs11_mechanism,
                wait_seconds=named.wait_seconds,
            )
            return Pkcs11Custody.open(place, create=create)
        case "vault":
            from node.vault.custody.vault_transit import TransitPlace, VaultTransit

            def token() -> bytes:
                return credentials.read_credential(named.credential, settings.folder, what="The Vault token")

            authorities = str(settings.path(Path(named.vault_authorities))) if named.vault_authorities else ""
            return VaultTransit.open(
                TransitPlace(
                    url=named.vault_url,
                    mount=named.vault_mount,
                    key=named.vault_key,
                    token=token,
                    namespace=named.vault_namespace,
                    authorities=authorities,
                    wait_seconds=named.wait_seconds,
                ),
                create=create,
            )
        case "keystore":
            return _open_keystore(settings)


@contextmanager
def _moving_in_words(settings: Settings) -> Iterator[None]:
    """Say so when the keys do not open because a move of the root key was cut short."""
    try:
        yield
    except Corrupt as error:
        if not (settings.folder / (FILE_NAME + NEW_SUFFIX)).exists():
            raise
        raise Corrupt(
            "The root key was being moved to another custody when the node was cut off.",
            mend="Give the same accord keys move again: it finishes what was begun.",
            code="root-key-moving",
        ) from error


def _two_person(settings: Settings) -> TwoPersonKeystore | None:
    """The keystore of the grade that two people unlock, locked; None where the settings name none."""
    named = settings.custody.two_person_keystore
    return TwoPersonKeystore.open(settings.path(Path(named))) if named else None


def _open_keystore(settings: Settings) -> Keystore:
    path = settings.path(settings.keys.keystore)
    source = settings.custody.credential
    if source:
        passphrase = credentials.read_credential(source, settings.folder, what="The keystore's passphrase")
        return Keystore.open(path, passphrase)
    file = settings.path(settings.keys.credential_file)
    try:
        return Keystore.open(path, read_credential(file))
    except Denied:
        # A change of the credential that a crash cut short: the keystore is the new one, its credential not in place yet.
        new = file.with_name(file.name + NEW_SUFFIX)
        if not new.is_file():
            raise
        keystore = Keystore.open(path, read_credential(new))
        new.replace(file)
        return keystore


@asynccontextmanager
async def opened(folder: Path, *, upgrade: bool = True) -> AsyncIterator[Foundation]:
    """Open the node that lies in `folder`. Raises an error family that says which part does not open.

    An older database is upgraded first, unless another process runs on it, or `upgrade` says to leave it.
    """
    settings = load_settings(folder)
    custody = open_custody(settings)
    two_person = _two_person(settings)
    database = Database(settings.database_url)
    passwords = Passwords()
    try:
        await _require_schema(settings, database, upgrade)
        with _moving_in_words(settings):
            found = await _found(settings, custody, two_person, database, passwords)
        yield found
    finally:
        passwords.close()
        await database.close()
        custody.close()


async def _require_schema(settings: Settings, database: Database, upgrade: bool) -> None:
    """Bring the database to this version's schema. Raises Conflict when it must not be touched now."""
    schema = await schema_of(database)
    if not schema.older:
        return
    words = f"The database has schema {schema.current or 'none'}; this version of Accord needs {schema.head}."
    if not upgrade:
        raise Conflict(
            words,
            mend="Stop the node and start it with this version: accord serve DIR upgrades it.",
            code="older-schema",
        )
    if schema.current is None or holds(settings.folder):
        await migrate(database)
        return
    try:
        with sole_user(settings.folder):
            await migrate(database)
    except Conflict as error:
        if error.code != "already-running":
            raise
        raise Conflict(
            f"{words} An older one is running on it.",
            mend="Stop the node first; then start it with this version.",
            code="older-schema",
        ) from error


async def _found(
    settings: Settings,
    custody: Custody,
    two_person: TwoPersonKeystore | None,
    database: Database,
    passwords: Passwords,
) -> Foundation:
    clock = TrustedClock()
    guarded = {} if two_person is None else {two_person.grade: two_person}
    keys = KeyRing(custody, database, clock, guarded=guarded)
    identity = await Identity.load_or_create(keys.secret, settings.node.id, settings.node.name)
    log = Log(
        database,
        key=await keys.secret("audit"),
        origin=identity.origin,
        signer=identity.log_signer,
        clock=clock,
    )
    for newest in await log.search(limit=1):
        clock.raise_floor(newest.at)
    policies = Policies(_policy(settings))
    parameters = policies.parameters
    members = Members(
        database=database,
        log=log,
        clock=clock,
        node_id=identity.node_id,
        own_key=identity.signing.public_key(),
    )
    await members.load()
    key = await keys.secret("registry")
    records = Records(database, members.keys_of, key=key, log=log)
    return Foundation(
        settings=settings,
        clock=clock,
        database=database,
        keys=keys,
        identity=identity,
        pseudonyms=Pseudonyms(await keys.secret("index")),
        log=log,
        records=records,
        members=members,
        policies=policies,
        registry=Registry(
            database,
            log,
            clock,
            key=key,
            node=identity.node_id,
            ae_title=settings.node.ae_title,
            passwords=passwords,
            parameters=parameters,
        ),
        sessions=Sessions(
            database,
            log,
            clock,
            key=key,
            node=identity.node_id,
            passwords=passwords,
            parameters=parameters,
        ),
        care=Care(database, log, clock, key=key),
        approvals=Approvals(database, records, log, clock, node_id=identity.node_id, key=identity.signing),
        access_rows=RowSweep(database, log, Rows(database, key, log)),
        custody=custody,
        rotation=Rotation(keys, database, log, policies, clock),
        grade_locks=GradeLocks(guarded, keys, log, clock),
    )


def _policy(settings: Settings) -> Policy:
    """The shipped policy, tightened by what node.toml says. Raises Denied, naming the numbers, where it loosens."""
    shipped = shipped_policy(shipped_cedar())
    own = replace(
        shipped.parameters,
        lease_seconds=settings.policy.lease_seconds,
        grant_default_hours=settings.policy.grant_default_hours,
        kek_max_age_days=settings.policy.kek_max_age_days,
        restricted_kek_max_age_days=settings.policy.restricted_kek_max_age_days,
        grades=tuple(GradeRule.parse(text) for text in settings.policy.grade_rules),
    )
    return tighten(shipped, Policy("", own))
