"""Sealed columns: one value of one row, encrypted under the index key and bound to its place.

The nonce is a keyed digest of place and value, so that an index rebuilt from the packs is the old one bit for bit, and an
altered row shows by comparison. Who sees two states of a row learns whether it changed, and no more.
"""

from __future__ import annotations

import hmac
import json
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consent.errors import Corrupt, Sentence
from node.index.pseudonyms import derive

NONCE_BYTES = 12


class RowSealer:
    """Seals and opens column values; a value opens only in the row and column it was sealed for."""

    def __init__(self, index_key: bytes) -> None:
        self._cipher = AESGCM(derive(index_key, b"accord/index/rows/v1"))
        self._nonces = derive(index_key, b"accord/index/nonces/v1")

    def seal(self, table: str, column: str, row: str, value: bytes) -> bytes:
        """Nonce, then ciphertext and tag."""
        place = _place(table, column, row)
        nonce = hmac.digest(self._nonces, place + b"\x00" + value, "sha256")[:NONCE_BYTES]
        return nonce + self._cipher.encrypt(nonce, value, place)

    def open(self, table: str, column: str, row: str, sealed: bytes) -> bytes:
        """Raises Corrupt when the value was altered or moved."""
        try:
            place = _place(table, column, row)
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place)
        except (InvalidTag, ValueError, TypeError) as error:  # not even bytes, where a row was damaged
            raise altered(table) from error

    def seal_json(self, table: str, row: str, value: dict[str, Any]) -> bytes:
        """Seal a JSON object in column `sealed`."""
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        return self.seal(table, "sealed", row, text.encode("utf-8", "surrogatepass"))

    def open_json(self, table: str, row: str, sealed: bytes) -> dict[str, Any]:
        """Open a JSON object from column `sealed`."""
        value = json.loads(self.open(table, "sealed", row, sealed).decode("utf-8", "surrogatepass"))
        assert isinstance(value, dict)
        return value


def altered(table: str) -> Corrupt:
    """The error for a row that says something else than was put into it."""
    return Corrupt(
        Sentence("A row of %(table)s was altered.", table=table),
        mend="Stop the node and run accord index rebuild DIR; never delete the database, the keys lie in it too.",
    )


def _place(table: str, column: str, row: str) -> bytes:
    return f"{table}\x00{column}\x00{row}".encode()
