"""Keyed names for patients, studies, series and instances, and blind values for exact matches.

The same value always gives the same pseudonym on one node and a different one on another. Nothing here can
be turned back without the index key. Format: docs/formats/index.md.
"""

from __future__ import annotations

import hmac
from base64 import b32encode
from functools import lru_cache
from hashlib import sha256

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
PSEUDONYM_CHARACTERS = 26
BLIND_BYTES = 16
REMEMBERED = 4096


class Pseudonyms:
    """Makes `pt_…`, `st_…`, `se_…`, `in_…` and blind column values from the index key (32 bytes)."""

    def __init__(self, index_key: bytes) -> None:
        # Keyed states that are copied: `hmac.digest` lets go of the interpreter for each of these few bytes.
        self._naming = hmac.new(derive(index_key, b"accord/index/pseudonym/v1"), digestmod=sha256)
        self._blinding = hmac.new(derive(index_key, b"accord/index/blind/v1"), digestmod=sha256)
        # A study's few names recur with every one of its instances.
        self._remembered = lru_cache(maxsize=REMEMBERED)(self._make)

    def study(self, study_instance_uid: str) -> str:
        """The StudyId: the name of the study's pack, and of the study in log and grants."""
        return self._remembered("st_", "study", study_instance_uid)

    def patient(self, patient_id: str, study_instance_uid: str = "") -> str:
        """The patient's pseudonym; without a Patient ID, one that belongs to this study alone."""
        return self._remembered("pt_", "patient", patient_id or f"\x00{study_instance_uid}")

    def fits(self, patient: str, patient_id: str) -> bool:
        """Whether the clear pseudonym of a study's row is that of its sealed Patient ID (if it has one)."""
        return not patient_id or self.patient(patient_id) == patient

    def series(self, series_instance_uid: str) -> str:
        """The SeriesId."""
        return self._remembered("se_", "series", series_instance_uid)

    def instance(self, sop_instance_uid: str) -> str:
        """The InstanceId: the object id of the data set in its pack."""
        return self._make("in_", "instance", sop_instance_uid)

    def blind(self, column: str, value: str) -> bytes:
        """The 16-byte value by which `value` is found in a blind column."""
        return _digest(self._blinding, f"{column}\x00{value}".encode())[:BLIND_BYTES]

    def _make(self, prefix: str, kind: str, value: str) -> str:
        mac = _digest(self._naming, f"{kind}\x00{value}".encode())
        return prefix + b32encode(mac)[:PSEUDONYM_CHARACTERS].decode().lower()


def derive(index_key: bytes, info: bytes) -> bytes:
    """A 32-byte key of its own for one use. Raises ValueError when the index key has another length."""
    if len(index_key) != KEY_BYTES:
        raise ValueError(f"the index key has {KEY_BYTES} bytes")
    return HKDF(SHA256(), length=32, salt=None, info=info).derive(index_key)


def _digest(keyed: hmac.HMAC, message: bytes) -> bytes:
    mac = keyed.copy()
    mac.update(message)
    return mac.digest()
