"""The key ring: root (custody) → KEK per grade, versioned → study key → object key.

Holds study keys, rewrapping, shredding and the named secrets of the node. Leaves the root key to a `Custody`,
key-encryption keys to `keks`, the tight loop to `rewrapping` and the deriving of object keys to `seal`.

Invariants: a study key that sealed something durable is itself durable; no wrapped key opens for another study,
grade, version or name; rotation rewrites wrapped keys only; once `shred` has committed, no cache and no row of this
ring opens the study. Format: docs/formats/keystore.md.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import delete, func, insert, select, update

from consent.errors import Invalid, NotFound, Unavailable
from consent.signed import canonical_json
from consent.vocabulary import Grade
from node.clock import Clock
from node.database import Database, Tx
from node.vault.custody import Custody
from node.vault.keks import GuardedCustody, Keks
from node.vault.key_tables import (
    ACTIVE,
    DESTROYED,
    TWO_PERSON_ROOT,
    vault_kek,
    vault_secret,
    vault_study_key,
)
from node.vault.rewrapping import apply, prepare, study_context
from node.vault.seal import KEY_BYTES, check_study_id, object_key, object_keys
from node.vault.wrapping import open_key, seal_key

__all__ = [
    "GradeStatus",
    "KeyRing",
    "KeyStatus",
    "KeyVersion",
    "object_key",
    "object_keys",
    "vault_kek",
    "vault_secret",
    "vault_study_key",
]

MAX_CACHED_STUDIES = 8192
MAX_SECRET_BYTES = 64 * 1024
REWRAP_BATCH = 2000
"""Study keys that one transaction rewraps: others wait for the database about 20 ms."""
EXCHANGE_SECONDS = 10.0
_SECRET_NAME = re.compile(r"[a-z][a-z0-9./-]{0,63}")


@dataclass(frozen=True)
class KeyVersion:
    """One version of a grade's key-encryption key that still lives, and how many study keys are under it."""

    version: int
    state: str
    created: datetime
    study_keys: int
    two_person: bool


@dataclass(frozen=True)
class GradeStatus:
    """The keys of one grade: the active version, since when, how many study keys, how many under older versions.

    `versions` are all that live, oldest first. `guarded`: two people unlock this grade; `locked`: they have not.
    """

    grade: Grade
    version: int
    created: datetime
    study_keys: int
    behind: int
    versions: tuple[KeyVersion, ...] = ()
    guarded: bool = False
    locked: bool = False


@dataclass(frozen=True)
class Rewrapped:
    """What a batch did: how many study keys it moved, and the studies whose key does not open."""

    moved: int
    broken: tuple[str, ...]


@dataclass(frozen=True)
class KeyStatus:
    """What a report may say about the keys."""

    custody: str
    grades: tuple[GradeStatus, ...]


class KeyRing:
    """All keys of one node. Unwrapped keys live in bounded caches in memory and nowhere else."""

    def __init__(
        self,
        custody: Custody,
        database: Database,
        clock: Clock,
        *,
        guarded: Mapping[Grade, GuardedCustody] | None = None,
    ) -> None:
        self._custody = custody
        self._database = database
        self._clock = clock
        self._guarded = guarded or {}
        self._keks = Keks(custody, self._guarded)
        self._studies: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._secrets: dict[str, bytes] = {}
        self._shreds: dict[str, int] = {}
        self._gone: set[tuple[str, Grade]] = set()
        self._exchanging: set[str] = set()
        self._exchanged = asyncio.Event()
        self._making = {
            grade: asyncio.Lock() for grade in Grade
        }  # a custody that is away keeps its grade waiting only
        self._naming = asyncio.Lock()

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
        async with self._making[
            grade
        ]:  # of many that come for a new study one asks; the others find it in memory
            cached = self._studies.get((study, grade))
            if cached is not None:
                return cached
            async with self._database.read() as reading:
                key = await self._load(reading, study, grade)
                if key is None and not create:
                    raise _no_key()
                if key is None:  # while a custody is asked nobody shall wait for the database's writer
                    await self._keks.prepare(reading, grade)
            if key is None:
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
            async with self._naming, self._database.write() as tx:
                value = await self._load_secret(tx, name)
                value = value or await self._make_secret(tx, name, make, size)
        return self._secrets.setdefault(name, value)

    async def rotate(self, grade: Grade, tx: Tx | None = None) -> int:
        """Make a new active KEK for `grade`, in the caller's transaction or its own; return its version.

        Study keys follow by `rewrap_batch`. Raises Unavailable (locked, custody away), Corrupt (the active one does not open).
        """
        if tx is not None:
            return await self._keks.rotate(tx, grade, self._clock.now())
        async with self._database.write() as own:
            return await self._keks.rotate(own, grade, self._clock.now())

    async def due(self, max_age: Mapping[Grade, timedelta]) -> tuple[Grade, ...]:
        """The grades whose active KEK is as old as `max_age` allows, or older."""
        now = self._clock.now()
        async with self._database.read() as tx:
            rows = await tx.execute(
                select(vault_kek.c.grade, vault_kek.c.created).where(vault_kek.c.state == ACTIVE)
            )
            return tuple(
                sorted(Grade(row.grade) for row in rows if now - row.created >= max_age[Grade(row.grade)])
            )

    async def rewrap_batch(self, batch: int = REWRAP_BATCH) -> Rewrapped:
        """Bring up to `batch` study keys under their grade's active KEK. May be interrupted anywhere; ingest and reading go on.

        Grades that are locked are left out; so are study keys that do not open, which keep their KEK alive.
        """
        done = Rewrapped(0, ())
        for grade in Grade:
            if done.moved < batch and not self._keks.locked(grade):
                more = await self._rewrap_grade(grade, batch - done.moved)
                done = Rewrapped(done.moved + more.moved, done.broken + more.broken)
        return done

    async def retire(self, tx: Tx | None = None) -> list[tuple[Grade, int]]:
        """Destroy the older KEKs that wrap nothing any more; return which."""
        if tx is not None:
            return await self._keks.destroy_unused(tx, self._clock.now())
        async with self._database.write() as own:
            return await self._keks.destroy_unused(own, self._clock.now())

    def locked(self, grade: Grade) -> bool:
        """Whether two people must unlock the grade first."""
        return self._keks.locked(grade)

    def forget(self, grade: Grade) -> None:
        """Drop every key of a grade from memory: it was locked."""
        self._keks.forget(grade)
        for known in [known for known in self._studies if known[1] == grade]:
            del self._studies[known]

    async def move_root(self, to: Custody) -> int:
        """Wrap by `to` everything that the present custody wraps; return how many keys. All of them move, or none."""
        async with self._database.write() as tx:
            moved = await self._keks.move(tx, to)
            rows = (await tx.execute(select(vault_secret.c.name, vault_secret.c.wrapped))).all()
            for name, wrapped in rows:
                value = await asyncio.to_thread(self._custody.unwrap, wrapped, secret_context(name))
                again = await asyncio.to_thread(to.wrap, value, secret_context(name))
                await tx.execute(
                    update(vault_secret).where(vault_secret.c.name == name).values(wrapped=again)
                )
        return moved + len(rows)

    async def shred(self, tx: Tx, study: str) -> int:
        """Delete every wrapped key of `study` in the caller's transaction; return how many there were.

        Caches are emptied at once. After the commit call `purge_journal`.
        """
        self._shreds[check_study_id(study)] = self.shreds(study) + 1
        for grade in Grade:
            self._studies.pop((study, grade), None)
        result = await tx.execute(delete(vault_study_key).where(vault_study_key.c.study == study))
        return int(result.rowcount)

    async def shred_grades(self, tx: Tx, study: str, grades: Collection[Grade]) -> int:
        """Delete the wrapped keys of `study` at these grades only: its objects were sealed anew under another one."""
        for grade in grades:
            self._gone.add((check_study_id(study), grade))
            self._studies.pop((study, grade), None)
        keys = vault_study_key.c
        result = await tx.execute(
            delete(vault_study_key).where(
                keys.study == study, keys.grade.in_([int(grade) for grade in grades])
            )
        )
        return int(result.rowcount)

    def shreds(self, study: str) -> int:
        """How often this ring has shredded `study`: a writer compares before and after."""
        return self._shreds.get(study, 0)

    def begin_exchange(self, study: str) -> None:
        """From now on whoever reads `study` waits: its key is exchanged for another. May be called from any thread."""
        self._exchanging.add(study)

    def end_exchange(self, study: str) -> None:
        """Let readers go on. Call on the event loop."""
        self._exchanging.discard(study)
        self._exchanged.set()
        self._exchanged = asyncio.Event()

    async def exchanged(self, study: str) -> None:
        """Wait, if the key of `study` is being exchanged this moment. Raises Unavailable when that takes too long."""
        if study not in self._exchanging:
            return
        try:
            async with asyncio.timeout(EXCHANGE_SECONDS):
                while study in self._exchanging:
                    await self._exchanged.wait()
        except TimeoutError:
            raise Unavailable(
                "This study is being given another grade.", mend="Try again in a moment.", code="regrading"
            ) from None

    async def purge_journal(self) -> None:
        """See that no older page of the database's journal keeps a shredded key.

        Raises Unavailable when a reader held it for too long: call again.
        """
        if not await self._database.purge_journal():
            raise Unavailable(
                "The database's journal is being read and still holds a destroyed key.",
                mend="Try again in a moment.",
                code="journal-busy",
            )

    async def status(self) -> KeyStatus:
        """Versions, ages and counts, for the state check and for compliance."""
        keys = vault_study_key.c
        async with self._database.read() as tx:
            living = (
                await tx.execute(
                    select(vault_kek)
                    .where(vault_kek.c.state != DESTROYED)
                    .order_by(vault_kek.c.grade, vault_kek.c.version)
                )
            ).all()
            counts = {
                (grade, version): int(number)
                for grade, version, number in await tx.execute(
                    select(keys.grade, keys.kek_version, func.count()).group_by(keys.grade, keys.kek_version)
                )
            }
        versions: dict[int, list[KeyVersion]] = {}
        for kek in living:
            held = counts.get((kek.grade, kek.version), 0)
            guarded = kek.root == TWO_PERSON_ROOT
            versions.setdefault(kek.grade, []).append(
                KeyVersion(kek.version, kek.state, kek.created, held, guarded)
            )
        grades = (self._grade_status(Grade(grade), chain) for grade, chain in versions.items())
        return KeyStatus(self._custody.describe(), tuple(grades))

    def _grade_status(self, grade: Grade, chain: list[KeyVersion]) -> GradeStatus:
        active = next(one for one in chain if one.state == ACTIVE)
        total = sum(one.study_keys for one in chain)
        return GradeStatus(
            grade,
            active.version,
            active.created,
            total,
            total - active.study_keys,
            tuple(chain),
            guarded=grade in self._guarded,
            locked=self._keks.locked(grade),
        )

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
        self._gone.discard((study, grade))
        key = secrets.token_bytes(KEY_BYTES)
        version = await self._keks.active(tx, grade, self._clock.now())
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
        if study in self._shreds or (study, grade) in self._gone or self._keks.locked(grade):
            return
        self._studies[study, grade] = key
        if len(self._studies) > MAX_CACHED_STUDIES:
            self._studies.popitem(last=False)

    async def _rewrap_grade(self, grade: Grade, limit: int) -> Rewrapped:
        async with self._database.read() as tx:
            active, older = await self._keks.newest(tx, grade), await self._keks.older(tx, grade)
            if active is None or not older:
                return Rewrapped(0, ())
            new = (active, await self._keks.opened(tx, grade, active))
            chain = [(version, await self._keks.opened(tx, grade, version)) for version in older]
        moved, broken = 0, list[str]()
        for old in chain:
            if moved < limit:
                again, unopened = await self._database.read_in_one(
                    partial(prepare, grade=grade, old=old, new=new, most=limit - moved)
                )
                if again:
                    await self._database.write_in_one(partial(apply, moved=again))
                moved += len(again)
                broken += unopened
        return Rewrapped(moved, tuple(broken))

    async def _load_secret(self, tx: Tx, name: str) -> bytes | None:
        row = (await tx.execute(select(vault_secret.c.wrapped).where(vault_secret.c.name == name))).first()
        if row is None:
            return None
        return await asyncio.to_thread(self._custody.unwrap, row.wrapped, secret_context(name))

    async def _make_secret(self, tx: Tx, name: str, make: Callable[[], bytes] | None, size: int) -> bytes:
        value = make() if make else secrets.token_bytes(size)
        if not 0 < len(value) <= MAX_SECRET_BYTES:
            raise Invalid(f"A secret has 1 to {MAX_SECRET_BYTES} bytes.")
        wrapped = await asyncio.to_thread(self._custody.wrap, value, secret_context(name))
        await tx.execute(insert(vault_secret).values(name=name, wrapped=wrapped, created=self._clock.now()))
        return value

    async def _wrap(self, tx: Tx, study: str, grade: Grade, version: int, key: bytes) -> bytes:
        return seal_key(
            await self._keks.opened(tx, grade, version), key, study_context(study, grade, version)
        )

    async def _unwrap(self, tx: Tx, study: str, grade: Grade, version: int, wrapped: bytes) -> bytes:
        kek = await self._keks.opened(tx, grade, version)
        return open_key(kek, wrapped, study_context(study, grade, version))


def secret_context(name: str) -> bytes:
    """What a wrapped secret is bound to."""
    return canonical_json({"name": name, "use": "secret"})


def _no_key() -> NotFound:
    return NotFound(
        "There is no key for this study: it was destroyed, or was never kept here.", code="no-study-key"
    )
