"""Signed records kept: every grant, directive, roster, plan and proposal that this node has verified.

Holds two tables and nothing about what the records mean. A record lies as the token that was signed, encrypted, for
people write into it what they like (`RecordSeal`); beside it are a status of our own and the subjects (studies, patients,
grants) it is looked up by.

Invariants: a kept token is never changed; the same id with another token is a Conflict; what `get` and `find`
return still matches its digest and, when `keys_of` is given, still bears a signature by its issuer; a status
that this node did not write raises RowAltered (`node.access.rows`), and so does a subject of whose records one is gone.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import Column, ForeignKey, LargeBinary, Select, String, Table, select

from consent.errors import Conflict, Corrupt, NotFound, Sentence
from consent.signed import Body, KeysOf, Signed, T, peek, read
from node.access.rows import GROUP, UNSEALED, Reading, RowAltered, Rows, seal_columns
from node.audit.log import Log
from node.database import Database, Tx, UtcDateTime, metadata

NONCE_BYTES = 12
MAX_CACHED = 4096
MAX_NAMES = 500
"""Records asked for in one statement."""
SUBJECT_FIELDS = ("patient", "study", "studies", "grant", "plan", "proposal")

record = Table(
    "record",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(64), nullable=False, index=True),
    Column("issuer", String(64), nullable=False),
    Column("issued", UtcDateTime, nullable=False),
    Column("expires", UtcDateTime),
    Column("status", String(32), nullable=False, index=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("sealed", LargeBinary, nullable=False),
    *seal_columns(),
    info={UNSEALED: ("sealed",)},  # `digest` is that of the token in it
)
record_subject = Table(
    "record_subject",
    metadata,
    Column("record_id", String(64), ForeignKey("record.id"), primary_key=True),
    Column("subject", String(255), primary_key=True, index=True),
    *seal_columns(),
    info={GROUP: "subject"},
)


class RecordSeal:
    """Encrypts tokens under a key of the records; docs/formats/signed-record.md, section At rest."""

    def __init__(self, key: bytes) -> None:
        derived = HKDF(SHA256(), length=32, salt=None, info=b"accord/record-token/v1").derive(key)
        self._cipher = AESGCM(derived)

    def seal(self, record_id: str, token: str) -> bytes:
        """Nonce, then ciphertext and tag; the record's id is authenticated."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, token.encode(), record_id.encode())

    def open(self, record_id: str, sealed: bytes) -> str:
        """The token. Raises Corrupt when these are not the bytes that were sealed for this record."""
        try:
            return self._cipher.decrypt(
                sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], record_id.encode()
            ).decode()
        except (InvalidTag, ValueError, TypeError) as error:
            raise Corrupt("A kept record was altered.", code="record-altered") from error


@dataclass(frozen=True)
class Kept:
    """A record with what this node says of it."""

    signed: Signed[Any]
    status: str


class Records:
    """Keeps verified records. Without `keys_of`, what was verified before `keep` is trusted on reading.

    `key` seals the rows. Without `log`, an altered row is refused and not written down.
    """

    def __init__(
        self, database: Database, keys_of: KeysOf | None = None, *, key: bytes, log: Log | None = None
    ) -> None:
        self._rows = Rows(database, key, log)
        self._seal = RecordSeal(key)
        self._keys_of = keys_of
        self._parsed: OrderedDict[tuple[str, type[Any]], Signed[Any]] = OrderedDict()

    async def keep(
        self, tx: Tx, signed: Signed[Any], status: str = "active", *, subjects: Iterable[str] | None = None
    ) -> None:
        """Keep a record that the caller has verified; keeping the same one again changes nothing.

        `subjects` defaults to `subjects_of(signed.body)`. Raises Conflict when the id is taken by another.
        """
        query = select(record.c.digest).where(record.c.id == signed.id)
        taken = (await tx.execute(query)).scalar_one_or_none()
        if taken == signed.digest:
            return
        if taken is not None:
            raise Conflict(
                Sentence("Another %(kind)s with this id is kept already.", kind=signed.kind),
                code="record-exists",
            )
        values = {
            "id": signed.id,
            "kind": signed.kind,
            "issuer": signed.issuer,
            "issued": signed.issued,
            "expires": signed.expires,
            "status": status,
            "digest": signed.digest,
            "sealed": self._seal.seal(signed.id, signed.token),
        }
        names = dict.fromkeys(subjects_of(signed.body) if subjects is None else subjects)
        async with self._rows.writing(tx):
            await self._rows.insert(tx, record, values)
            await self._rows.insert(
                tx, record_subject, *({"record_id": signed.id, "subject": name} for name in names)
            )

    async def mark(self, tx: Tx, record_id: str, status: str, *, expected: str | None = None) -> None:
        """Change a record's status. Raises NotFound, or Conflict when it is not `expected` now."""
        query = select(record).where(record.c.id == record_id).with_for_update()
        row = await self._rows.read(lambda on: on.check(record, on.execute(query).one_or_none()), tx=tx)
        if row is None:
            raise _unknown()
        if expected is not None and row.status != expected:
            raise Conflict(
                Sentence(
                    "This record is %(status)s now, not %(expected)s.", status=row.status, expected=expected
                ),
                code="wrong-status",
            )
        await self._rows.update(tx, record, row, {"status": status})

    async def get(self, record_id: str, body_type: type[T], *, tx: Tx | None = None) -> Signed[T]:
        """The record with this id. Raises NotFound when there is none of this kind."""
        query = _of_kind(body_type).where(record.c.id == record_id)
        return _only(await self._fetch(query, body_type, tx), body_type).signed

    async def by_digest(self, digest: str, body_type: type[T], *, tx: Tx | None = None) -> Signed[T]:
        """The record with this digest. Raises NotFound when there is none of this kind."""
        query = _of_kind(body_type).where(record.c.digest == digest)
        return _only(await self._fetch(query, body_type, tx), body_type).signed

    async def status(self, record_id: str, *, tx: Tx | None = None) -> str:
        """The status of a record. Raises NotFound."""
        query = select(record).where(record.c.id == record_id)
        row = await self._rows.read(lambda on: on.check(record, on.execute(query).one_or_none()), tx=tx)
        if row is None:
            raise _unknown()
        return str(row.status)

    async def find(
        self,
        body_type: type[T],
        *,
        subject: str | None = None,
        status: str | None = None,
        issuer: str | None = None,
        tx: Tx | None = None,
    ) -> tuple[Signed[T], ...]:
        """Every record of this kind that matches what is given, oldest first."""
        kept = await self.find_kept(body_type, subject=subject, status=status, issuer=issuer, tx=tx)
        return tuple(one.signed for one in kept)

    async def find_kept(
        self,
        body_type: type[T],
        *,
        subject: str | None = None,
        status: str | None = None,
        issuer: str | None = None,
        tx: Tx | None = None,
    ) -> tuple[Kept, ...]:
        """As `find`, with each record's status."""
        if subject is not None:
            about = await self._rows.read(lambda on: _about(on, subject), tx=tx)
            # The conditions are put to proved rows: of those that do not meet them, none is missing either.
            rows = [row for row in about if row.kind == body_type.KIND]
            rows = [row for row in rows if status in (None, row.status) and issuer in (None, row.issuer)]
            return tuple(Kept(self._read(row, body_type), row.status) for row in rows)
        query = _of_kind(body_type)
        if status is not None:
            query = query.where(record.c.status == status)
        if issuer is not None:
            query = query.where(record.c.issuer == issuer)
        return await self._fetch(query, body_type, tx)

    async def _fetch(self, query: Select[Any], body_type: type[T], tx: Tx | None) -> tuple[Kept, ...]:
        rows = await self._rows.read(
            lambda on: [on.check(record, row) for row in on.execute(query).all()], tx=tx
        )
        return tuple(Kept(self._read(row, body_type), row.status) for row in rows)

    def _read(self, row: Any, body_type: type[T]) -> Signed[T]:
        token = self._seal.open(row.id, row.sealed)
        if sha256(token.encode()).hexdigest() != row.digest:
            raise Corrupt(Sentence("A kept %(kind)s was altered.", kind=row.kind), code="record-altered")
        key = (row.digest, body_type)
        found = self._parsed.get(key)
        if found is None:
            keys_of = self._keys_of
            found = read(token, body_type, keys_of=keys_of) if keys_of else _parse(token, body_type)
            self._parsed[key] = found
            if len(self._parsed) > MAX_CACHED:
                self._parsed.popitem(last=False)
        said = (found.id, found.issuer, found.issued, found.expires)
        if said != (row.id, row.issuer, row.issued, row.expires):
            raise Corrupt(Sentence("A kept %(kind)s was altered.", kind=row.kind), code="record-altered")
        return found


def subjects_of(body: Body) -> tuple[str, ...]:
    """What a record is about: its own `subjects()` when it has one, else its SUBJECT_FIELDS."""
    own = getattr(body, "subjects", None)
    if callable(own):
        return tuple(own())
    names: list[str] = []
    for field in SUBJECT_FIELDS:
        value = getattr(body, field, None)
        names.extend([value] if isinstance(value, str) else value if isinstance(value, tuple) else ())
    return tuple(name for name in names if isinstance(name, str) and name)


def _about(on: Reading, subject: str) -> Sequence[Any]:
    """Every record about a subject, oldest first. Raises RowAltered when one of them is gone."""
    links = on.execute(select(record_subject).where(record_subject.c.subject == subject)).all()
    on.complete(record_subject, subject)
    names = [on.check(record_subject, link).record_id for link in links]
    rows = []
    for start in range(0, len(names), MAX_NAMES):
        query = select(record).where(record.c.id.in_(names[start : start + MAX_NAMES]))
        rows += [on.check(record, row) for row in on.execute(query).all()]
    if missing := set(names) - {row.id for row in rows}:
        raise RowAltered(record.name, min(missing))
    return sorted(rows, key=lambda row: (row.issued, row.id))


def _unknown() -> NotFound:
    return NotFound("There is no such record here.")


def _of_kind(body_type: type[Body]) -> Select[Any]:
    return select(record).where(record.c.kind == body_type.KIND).order_by(record.c.issued, record.c.id)


def _only(kept: tuple[Kept, ...], body_type: type[Body]) -> Kept:
    if not kept:
        raise NotFound(Sentence("There is no such %(kind)s here.", kind=body_type.KIND))
    return kept[0]


def _parse(token: str, body_type: type[T]) -> Signed[T]:
    """Read a token whose signature was checked before it was kept."""
    _, _, claims = peek(token)
    known = {"kind", "version", "id", "iss", "iat", "exp", "body"}
    issued, expires = (
        datetime.fromtimestamp(claims[name], UTC) if claims[name] is not None else None
        for name in ("iat", "exp")
    )
    assert issued is not None
    unknown = {name: value for name, value in claims.items() if name not in known}
    body = body_type.from_json(claims["body"])
    return Signed(claims["id"], claims["iss"], issued, expires, body, token, unknown)
