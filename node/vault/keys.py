"""The key ring: root (custody) → KEK per grade, versioned → study key → object key.

Holds the wrapped keys' tables, creation, rotation, rewrapping, shredding and the named secrets of the node. Leaves the root
key to a `Custody` and the deriving of object keys to `seal`.

Invariants: a study key that sealed something durable is itself durable; no wrapped key opens for another study,
grade, version or name; rotation rewrites wrapped keys only; once `shred` has committed, no cache and no row of this
ring opens the study. Format: docs/formats/keystore.md.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import (
    Column,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)

from consent.errors import Corrupt, Invalid, NotFound, Unavailable
from consent.signed import canonical_json
from consent.vocabulary import Grade
from node.clock import Clock
from node.database import Database, Tx, UtcDateTime, metadata
from node.vault.custody import Custody
from node.vault.seal import KEY_BYTES, check_study_id, object_key, object_keys
from node.vault.wrapping import open_key, seal_key

__all__ = ["GradeStatus", "KeyRing", "KeyStatus", "object_key", "object_keys"]

MAX_CACHED_STUDIES = 8192
MAX_SECRET_BYTES = 64 * 1024
REWRAP_BATCH = 500
ACTIVE, DECRYPT_ONLY, DESTROYED = "active", "decrypt-only", "destroyed"
_SECRET_NAME = re.compile(r"[a-z][a-z0-9./-]{0,63}")

vault_kek = Table(
    "vault_kek",
    metadata,
    Column("grade", Integer, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("state", String(16), nullable=False),
    Column("wrapped", LargeBinary, nullable=True),
    Column("created", UtcDateTime, nullable=False),
    Column("destroyed", UtcDateTime, nullable=True),
)
vault_study_key = Table(
    "vault_study_key",
    metadata,
    Column("study", String(80), primary_key=True),
    Column("grade", Integer, primary_key=True),
    Column("kek_version", Integer, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Index("ix_vault_study_key_grade_kek_version", "grade", "kek_version"),
)
vault_secret = Table(
    "vault_secret",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("wrapped", LargeBinary, nullable=False),
    Column("created", UtcDateTime, nullable=False),
)


@dataclass(frozen=True)
class GradeStatus:
    """The keys of one grade: the active version, since when, how many study keys, how many under older versions."""

    grade: Grade
    version: int
    created: datetime
    study_keys: int
    behind: int


@dataclass(frozen=True)
class KeyStatus:
    """What a report may say about the keys."""

    custody: str
    grades: tuple[GradeStatus, ...]


class KeyRing:
    """All keys of one node. Unwrapped keys live in bounded caches in memory and nowhere else."""

    def __init__(self, custody: Custody, database: Database, clock: Clock) -> None:
        self._custody = custody
        self._database = database
        self._clock = clock
        self._keks: dict[bytes, AESGCM] = {}
        self._studies: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._secrets: dict[str, bytes] = {}
        self._shreds: dict[str, int] = {}
        self._creating = asyncio.Lock()

    async def study_key(self, tx: Tx | None, study: str, grade: Grade, *, create: bool = False) -> bytes:
        """The 32-byte key of a study at a grade. With `create`, made and kept durably when there is none.

        With `tx` None the ring uses its own transaction; call so only outside a write transaction.
        Raises NotFound when there is no key (never was, or shredded).
        """
        cached = self._studies.get((study, grade))
        if cached is not None:
            self._studies.move_to_end((study, grade))
            return cached
        check_study_id(study)
        if tx is not None:
            return await self._load(tx, study, grade) or await self._make_if(create, tx, study, grade)
        async with self._creating:  # of many that come for a new study one asks; the others find it in memory
            cached = self._studies.get((study, grade))
            if cached is not None:
                return cached
            async with self._database.read() as reading:
                key = await self._load(reading, study, grade)
            if key is None:
                if not create:
                    raise _no_key()
                async with self._database.write() as writing:
                    key = await self._load(writing, study, grade)
                    key = key or await self._make_if(True, writing, study, grade)
            self._remember(study, grade, key)
            return key

    async def secret(
        self, name: str, size: int = KEY_BYTES, *, make: Callable[[], bytes] | None = None
    ) -> bytes:
        """A secret of the node by name; on first use `make()` (or `size` random bytes), kept from then on.

        Uses its own transaction: call so only outside a write transaction, or after a first call.
        """
        if name in self._secrets:
            return self._secrets[name]
        if _SECRET_NAME.fullmatch(name) is None:
            raise Invalid("A secret's name has lower-case letters, digits, '.', '/' and '-'.")
        async with self._database.read() as reading:
            value = await self._load_secret(reading, name)
        if value is None:
            async with self._creating, self._database.write() as tx:
                value = await self._load_secret(tx, name)
                value = value or await self._make_secret(tx, name, make, size)
        return self._secrets.setdefault(name, value)

    async def rotate(self, grade: Grade) -> int:
        """Make a new active KEK for `grade`; return its version. Study keys follow by `rewrap`."""
        async with self._database.write() as tx:
            newest = await self._newest(tx, grade) or 0
            await tx.execute(
                update(vault_kek)
                .where(vault_kek.c.grade == grade, vault_kek.c.state == ACTIVE)
                .values(state=DECRYPT_ONLY)
            )
            return await self._new_kek(tx, grade, newest + 1)

    async def rotate_due(self, max_age: timedelta) -> tuple[Grade, ...]:
        """Rotate every grade whose active KEK is `max_age` old or older; return those grades."""
        async with self._database.read() as tx:
            rows = await tx.execute(
                select(vault_kek.c.grade).where(
                    vault_kek.c.state == ACTIVE, vault_kek.c.created <= self._clock.now() - max_age
                )
            )
            due = tuple(Grade(row.grade) for row in rows)
        for grade in due:
            await self.rotate(grade)
        return due

    async def rewrap(self, batch: int = REWRAP_BATCH) -> int:
        """Bring up to `batch` study keys under their grade's active KEK; return how many were moved.

        0 means that all are current and that older KEKs have been destroyed. May be interrupted anywhere.
        """
        moved = 0
        async with self._database.write() as tx:
            for grade in Grade:
                moved += await self._rewrap_grade(tx, grade, batch - moved)
            if moved == 0:
                await self._destroy_unused(tx)
        return moved

    async def shred(self, tx: Tx, study: str) -> int:
        """Delete every wrapped key of `study` in the caller's transaction; return how many there were.

        Caches are emptied at once. After the commit call `purge_journal`.
        """
        self._shreds[check_study_id(study)] = self.shreds(study) + 1
        for grade in Grade:
            self._studies.pop((study, grade), None)
        result = await tx.execute(delete(vault_study_key).where(vault_study_key.c.study == study))
        return int(result.rowcount)

    def shreds(self, study: str) -> int:
        """How often this ring has shredded `study`: a writer compares before and after."""
        return self._shreds.get(study, 0)

    async def purge_journal(self) -> None:
        """Truncate SQLite's write-ahead log, so that no older page keeps a shredded key.

        Raises Unavailable when a reader held it for too long: call again.
        """
        if self._database.engine.dialect.name == "sqlite":
            async with self._database.engine.connect() as connection:
                busy, *_ = (await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")).one()
            if busy:
                raise Unavailable(
                    "The database's journal is being read and still holds a destroyed key.",
                    mend="Try again in a moment.",
                    code="journal-busy",
                )

    async def status(self) -> KeyStatus:
        """Versions, ages and counts, for the state check and for compliance."""
        keys = vault_study_key.c
        async with self._database.read() as tx:
            active = (await tx.execute(select(vault_kek).where(vault_kek.c.state == ACTIVE))).all()
            counts = (
                await tx.execute(
                    select(keys.grade, keys.kek_version, func.count()).group_by(keys.grade, keys.kek_version)
                )
            ).all()
        grades = []
        for kek in sorted(active, key=lambda row: row.grade):
            held = {version: number for grade, version, number in counts if grade == kek.grade}
            total = sum(held.values())
            behind = total - held.get(kek.version, 0)
            grades.append(GradeStatus(Grade(kek.grade), kek.version, kek.created, total, behind))
        return KeyStatus(self._custody.describe(), tuple(grades))

    async def _load(self, tx: Tx, study: str, grade: Grade) -> bytes | None:
        row = (
            await tx.execute(
                select(vault_study_key.c.kek_version, vault_study_key.c.wrapped).where(
                    vault_study_key.c.study == study, vault_study_key.c.grade == grade
                )
            )
        ).first()
        return None if row is None else await self._unwrap(tx, study, grade, row.kek_version, row.wrapped)

    async def _make_if(self, create: bool, tx: Tx, study: str, grade: Grade) -> bytes:
        if not create:
            raise _no_key()
        key = secrets.token_bytes(KEY_BYTES)
        version = await self._active(tx, grade)
        await tx.execute(
            insert(vault_study_key).values(
                study=study,
                grade=grade,
                kek_version=version,
                wrapped=await self._wrap(tx, study, grade, version, key),
                created=self._clock.now(),
            )
        )
        return key

    def _remember(self, study: str, grade: Grade, key: bytes) -> None:
        # A study that was shredded once is never cached again: a reader that began before the commit could
        # otherwise put the dead key back, and new objects would be sealed under it.
        if study in self._shreds:
            return
        self._studies[study, grade] = key
        if len(self._studies) > MAX_CACHED_STUDIES:
            self._studies.popitem(last=False)

    async def _active(self, tx: Tx, grade: Grade) -> int:
        return await self._newest(tx, grade) or await self._new_kek(tx, grade, 1)

    async def _newest(self, tx: Tx, grade: Grade) -> int | None:
        """The version of the active KEK; None before the first."""
        row = (
            await tx.execute(
                select(vault_kek.c.version).where(vault_kek.c.grade == grade, vault_kek.c.state == ACTIVE)
            )
        ).first()
        return None if row is None else int(row.version)

    async def _new_kek(self, tx: Tx, grade: Grade, version: int) -> int:
        key = secrets.token_bytes(KEY_BYTES)
        wrapped = await asyncio.to_thread(self._custody.wrap, key, _kek_context(grade, version))
        await tx.execute(
            insert(vault_kek).values(
                grade=grade, version=version, state=ACTIVE, wrapped=wrapped, created=self._clock.now()
            )
        )
        return version

    async def _kek(self, tx: Tx, grade: Grade, version: int) -> AESGCM:
        row = (
            await tx.execute(
                select(vault_kek.c.wrapped).where(vault_kek.c.grade == grade, vault_kek.c.version == version)
            )
        ).first()
        if row is None or row.wrapped is None:
            raise Corrupt(
                f"The key-encryption key of grade {int(grade)}, version {version}, is missing.",
                mend="Restore the keys from their backup.",
                code="kek-missing",
            )
        # Cached by its wrapped bytes, not by its number: a KEK made in a transaction that was rolled back must
        # never be taken for the one that later got the same number.
        if row.wrapped not in self._keks:
            key = await asyncio.to_thread(self._custody.unwrap, row.wrapped, _kek_context(grade, version))
            self._keks[row.wrapped] = AESGCM(key)
        return self._keks[row.wrapped]

    async def _rewrap_grade(self, tx: Tx, grade: Grade, limit: int) -> int:
        keys = vault_study_key.c
        active = await self._newest(tx, grade)
        if active is None:
            return 0
        rows = (
            await tx.execute(
                select(vault_study_key).where(keys.grade == grade, keys.kek_version != active).limit(limit)
            )
        ).all()
        if not rows:
            return 0
        new = await self._kek(tx, grade, active)
        old = {version: await self._kek(tx, grade, version) for version in {row.kek_version for row in rows}}
        moved = []
        for row in rows:
            aad = _study_context(row.study, grade, row.kek_version)
            key = open_key(old[row.kek_version], row.wrapped, aad)
            moved.append(
                {"of": row.study, "new": seal_key(new, key, _study_context(row.study, grade, active))}
            )
        await tx.execute(
            update(vault_study_key)
            .where(keys.study == bindparam("of"), keys.grade == grade)
            .values(kek_version=active, wrapped=bindparam("new")),
            moved,
        )
        return len(rows)

    async def _load_secret(self, tx: Tx, name: str) -> bytes | None:
        row = (await tx.execute(select(vault_secret.c.wrapped).where(vault_secret.c.name == name))).first()
        if row is None:
            return None
        return await asyncio.to_thread(self._custody.unwrap, row.wrapped, _secret_context(name))

    async def _make_secret(self, tx: Tx, name: str, make: Callable[[], bytes] | None, size: int) -> bytes:
        value = make() if make else secrets.token_bytes(size)
        if not 0 < len(value) <= MAX_SECRET_BYTES:
            raise Invalid(f"A secret has 1 to {MAX_SECRET_BYTES} bytes.")
        wrapped = await asyncio.to_thread(self._custody.wrap, value, _secret_context(name))
        await tx.execute(insert(vault_secret).values(name=name, wrapped=wrapped, created=self._clock.now()))
        return value

    async def _wrap(self, tx: Tx, study: str, grade: Grade, version: int, key: bytes) -> bytes:
        return seal_key(await self._kek(tx, grade, version), key, _study_context(study, grade, version))

    async def _unwrap(self, tx: Tx, study: str, grade: Grade, version: int, wrapped: bytes) -> bytes:
        return open_key(await self._kek(tx, grade, version), wrapped, _study_context(study, grade, version))

    async def _destroy_unused(self, tx: Tx) -> None:
        in_use = (
            select(vault_study_key.c.study)
            .where(
                vault_study_key.c.grade == vault_kek.c.grade,
                vault_study_key.c.kek_version == vault_kek.c.version,
            )
            .exists()
        )
        old = (
            await tx.execute(
                select(vault_kek.c.grade, vault_kek.c.version, vault_kek.c.wrapped).where(
                    vault_kek.c.state == DECRYPT_ONLY, ~in_use
                )
            )
        ).all()
        for grade, version, wrapped in old:
            await tx.execute(
                update(vault_kek)
                .where(vault_kek.c.grade == grade, vault_kek.c.version == version)
                .values(state=DESTROYED, wrapped=None, destroyed=self._clock.now())
            )
            self._keks.pop(wrapped, None)


def _kek_context(grade: Grade, version: int) -> bytes:
    return canonical_json({"grade": int(grade), "use": "kek", "version": version})


def _secret_context(name: str) -> bytes:
    return canonical_json({"name": name, "use": "secret"})


def _study_context(study: str, grade: Grade, version: int) -> bytes:
    return canonical_json({"grade": int(grade), "kek": version, "study": study, "use": "study-key"})


def _no_key() -> NotFound:
    return NotFound(
        "There is no key for this study: it was destroyed, or was never kept here.", code="no-study-key"
    )
