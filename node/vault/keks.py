"""Key-encryption keys: one chain of versions per grade, each wrapped by the root key of its grade.

Holds making, opening, moving to another root and destroying them. A grade may have a root of its own, which two people
unlock (`guarded`); while that is locked no key of the grade opens. Leaves study keys to `keys`.

Invariants: a version is destroyed only when no study key is wrapped under it; a new version is made only where the active one
opens, so a changed setting cannot quietly put a grade under another root; unwrapped keys live in memory only.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import insert, select, update

from consent.errors import Corrupt, Unavailable
from consent.signed import canonical_json
from consent.vocabulary import Grade
from node.database import Tx
from node.vault.custody import Custody
from node.vault.key_tables import (
    ACTIVE,
    DECRYPT_ONLY,
    DESTROYED,
    NODE_ROOT,
    TWO_PERSON_ROOT,
    vault_kek,
    vault_study_key,
)
from node.vault.seal import KEY_BYTES


class GuardedCustody(Custody, Protocol):
    """A custody that people lock and unlock."""

    @property
    def locked(self) -> bool:
        """Whether it wraps and unwraps nothing now."""
        ...


class Keks:
    """The key-encryption keys of all grades."""

    def __init__(self, custody: Custody, guarded: Mapping[Grade, GuardedCustody]) -> None:
        self._custody = custody
        self._guarded = guarded
        self._open: dict[bytes, tuple[Grade, AESGCM]] = {}

    def locked(self, grade: Grade) -> bool:
        """Whether the grade's own root is locked."""
        guarded = self._guarded.get(grade)
        return guarded is not None and guarded.locked

    def require_unlocked(self, grade: Grade) -> None:
        """Raise Unavailable, in words, while the grade's own root is locked."""
        if self.locked(grade):
            raise Unavailable(
                f"Studies of grade {grade.name.lower()} are locked: two people must unlock their keys.",
                mend="Have two of the key holders unlock the grade: page Keys in the portal, or accord keys unlock.",
                code="grade-locked",
            )

    def forget(self, grade: Grade) -> None:
        """Drop what is open of a grade."""
        self._open = {wrapped: item for wrapped, item in self._open.items() if item[0] != grade}

    async def active(self, tx: Tx, grade: Grade, now: datetime) -> int:
        """The version that wraps new study keys; the first is made when there is none."""
        return await self.newest(tx, grade) or await self._make(tx, grade, 1, now)

    async def prepare(self, tx: Tx, grade: Grade) -> None:
        """Have the active version open, when there is one, before a transaction that needs it begins to write."""
        if all(known != grade for known, _ in self._open.values()):
            version = await self.newest(tx, grade)
            if version is not None:
                await self.opened(tx, grade, version)

    async def newest(self, tx: Tx, grade: Grade) -> int | None:
        """The active version; None before the first."""
        row = (
            await tx.execute(
                select(vault_kek.c.version).where(vault_kek.c.grade == grade, vault_kek.c.state == ACTIVE)
            )
        ).first()
        return None if row is None else int(row.version)

    async def older(self, tx: Tx, grade: Grade) -> list[int]:
        """The versions that are neither active nor destroyed, oldest first."""
        rows = await tx.execute(
            select(vault_kek.c.version)
            .where(vault_kek.c.grade == grade, vault_kek.c.state == DECRYPT_ONLY)
            .order_by(vault_kek.c.version)
        )
        return [int(row.version) for row in rows]

    async def rotate(self, tx: Tx, grade: Grade, now: datetime) -> int:
        """Make the next version and let it wrap from now on; return its number."""
        active = await self.newest(tx, grade)
        if active is None:
            return await self._make(tx, grade, 1, now)
        await self.opened(tx, grade, active)
        await tx.execute(
            update(vault_kek)
            .where(vault_kek.c.grade == grade, vault_kek.c.state == ACTIVE)
            .values(state=DECRYPT_ONLY)
        )
        return await self._make(tx, grade, active + 1, now)

    async def opened(self, tx: Tx, grade: Grade, version: int) -> AESGCM:
        """The key of one version, ready for use. Raises Corrupt (missing, altered), Unavailable (locked, custody away)."""
        self.require_unlocked(grade)
        row = (
            await tx.execute(
                select(vault_kek.c.wrapped, vault_kek.c.root).where(
                    vault_kek.c.grade == grade, vault_kek.c.version == version
                )
            )
        ).first()
        if row is None or row.wrapped is None:
            raise Corrupt(
                f"The key-encryption key of grade {int(grade)}, version {version}, is missing.",
                mend="Restore the keys from their backup.",
                code="kek-missing",
            )
        # Known by its wrapped bytes, not by its number: a key made in a transaction that was rolled back must
        # never be taken for the one that later got the same number.
        if row.wrapped not in self._open:
            custody = self._root(row.root, grade)
            key = await asyncio.to_thread(custody.unwrap, row.wrapped, kek_context(grade, version))
            self.require_unlocked(
                grade
            )  # locked meanwhile, `forget` was before this and would not come again
            self._open[row.wrapped] = (grade, AESGCM(key))
        return self._open[row.wrapped][1]

    async def destroy_unused(self, tx: Tx, now: datetime) -> list[tuple[Grade, int]]:
        """Destroy the versions that wrap nothing any more; return them."""
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
                .values(state=DESTROYED, wrapped=None, destroyed=now)
            )
            self._open.pop(wrapped, None)
        return [(Grade(grade), version) for grade, version, _ in old]

    async def move(self, tx: Tx, to: Custody) -> int:
        """Wrap every living key of the node's root by another custody; return how many."""
        rows = (
            await tx.execute(
                select(vault_kek).where(vault_kek.c.wrapped.is_not(None), vault_kek.c.root == NODE_ROOT)
            )
        ).all()
        for row in rows:
            context = kek_context(Grade(row.grade), row.version)
            key = await asyncio.to_thread(self._custody.unwrap, row.wrapped, context)
            wrapped = await asyncio.to_thread(to.wrap, key, context)
            await tx.execute(
                update(vault_kek)
                .where(vault_kek.c.grade == row.grade, vault_kek.c.version == row.version)
                .values(wrapped=wrapped)
            )
        return len(rows)

    async def _make(self, tx: Tx, grade: Grade, version: int, now: datetime) -> int:
        self.require_unlocked(grade)
        root = TWO_PERSON_ROOT if grade in self._guarded else NODE_ROOT
        key = secrets.token_bytes(KEY_BYTES)
        custody = self._root(root, grade)
        wrapped = await asyncio.to_thread(custody.wrap, key, kek_context(grade, version))
        await tx.execute(
            insert(vault_kek).values(
                grade=grade, version=version, state=ACTIVE, root=root, wrapped=wrapped, created=now
            )
        )
        return version

    def _root(self, root: str, grade: Grade) -> Custody:
        if root == NODE_ROOT:
            return self._custody
        guarded = self._guarded.get(grade)
        if guarded is None:
            raise Unavailable(
                f"The keys of grade {grade.name.lower()} are under a keystore that two people unlock, and none is named.",
                mend="Name it again: custody.two_person_keystore in node.toml.",
                code="grade-locked",
            )
        return guarded


def kek_context(grade: Grade, version: int) -> bytes:
    """What a wrapped key-encryption key is bound to."""
    return canonical_json({"grade": int(grade), "use": "kek", "version": version})
