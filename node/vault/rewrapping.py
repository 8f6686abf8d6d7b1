"""Rewrapping study keys: the tight loop of a rotation. Reads a batch, wraps it anew, writes it, without an event loop.

Only wrapped keys are touched. What was shredded, or moved, between the reading and the writing is left alone: a row is
written only when it still is under the version it was read under. Called by `keys` in database threads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, bindparam, select, update

from consent.vocabulary import Grade
from node.vault.key_tables import vault_study_key
from node.vault.wrapping import SUITE

NONCE_BYTES = 12

_KEYS = vault_study_key.c
_BATCH = (
    select(_KEYS.study, _KEYS.wrapped)
    .where(_KEYS.grade == bindparam("of_grade"), _KEYS.kek_version == bindparam("old"))
    .limit(bindparam("most"))
)
_MOVE = (
    update(vault_study_key)
    .where(
        _KEYS.study == bindparam("of"),
        _KEYS.grade == bindparam("of_grade"),
        _KEYS.kek_version == bindparam("old"),
    )
    .values(kek_version=bindparam("new"), wrapped=bindparam("again"))
)


def prepare(
    connection: Connection, grade: Grade, old: tuple[int, AESGCM], new: tuple[int, AESGCM], most: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Up to `most` study keys of `grade` under version `old`, wrapped anew under `new`; and the studies whose key does
    not open."""
    rows = connection.execute(_BATCH, {"of_grade": int(grade), "old": old[0], "most": most}).all()
    before, after = context_ends(grade, old[0]), context_ends(grade, new[0])
    nonces = os.urandom(NONCE_BYTES * len(rows))
    unwrap, wrap, suite = old[1].decrypt, new[1].encrypt, bytes([SUITE])
    moved, broken = [], []
    for number, (study, wrapped) in enumerate(rows):
        name = study.encode()
        aad = before[0] + name + before[1]
        try:
            key = unwrap(wrapped[1:13], wrapped[13:], aad)
        except (InvalidTag, ValueError):
            broken.append(study)
            continue
        nonce = nonces[number * NONCE_BYTES : (number + 1) * NONCE_BYTES]
        again = suite + nonce + wrap(nonce, key, after[0] + name + after[1])
        moved.append({"of": study, "of_grade": int(grade), "old": old[0], "new": new[0], "again": again})
    return moved, broken


def apply(connection: Connection, moved: Sequence[dict[str, Any]]) -> None:
    """Write what `prepare` gave."""
    connection.execute(_MOVE, moved)


def study_context(study: str, grade: Grade, version: int) -> bytes:
    """What a wrapped study key is bound to: canonical JSON of grade, version, study and use."""
    start, end = context_ends(grade, version)
    return start + study.encode() + end


def context_ends(grade: Grade, version: int) -> tuple[bytes, bytes]:
    """The canonical JSON before and behind the study's id, which needs no escaping (`check_study_id`)."""
    start = f'{{"grade":{int(grade)},"kek":{version},"study":"'
    return start.encode(), b'","use":"study-key"}'
