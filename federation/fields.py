"""Reads what another organisation sent: `consent.fields` plus the forms that only peers exchange.

Identifiers by pattern, and bytes in base64 with a bound on the bytes. Holds no rule about meaning.
"""

from __future__ import annotations

import base64
import binascii
import re

from consent.errors import Invalid
from consent.fields import Fields

NODE_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,30}[a-z0-9]")
RECORD_ID = re.compile(r"[0-9a-f]{32}")
DIGEST = re.compile(r"[0-9a-f]{64}")
STUDY_ID = re.compile(r"st_[a-z2-7]{26}")
OBJECT_ID = re.compile(r"[a-z0-9][a-z0-9_.-]{0,127}")


class PeerFields(Fields):
    """One JSON object from a peer."""

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._data.get(name) is not None

    def matching(self, name: str, pattern: re.Pattern[str]) -> str:
        """A string that `pattern` matches from end to end."""
        value = self._data.get(name)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self._bad(name, f"of the form {pattern.pattern}")
        return value

    def matchings(self, name: str, pattern: re.Pattern[str], limit: int) -> tuple[str, ...]:
        """A list of at most `limit` different strings, each matched by `pattern`."""
        values = self.texts(name, limit=limit)
        if len(set(values)) != len(values) or not all(pattern.fullmatch(value) for value in values):
            raise self._bad(name, f"a list of different values of the form {pattern.pattern}")
        return values

    def octets(self, name: str, limit: int) -> bytes:
        """Standard base64 of at most `limit` bytes."""
        try:
            raw = unbase64(self.text(name, limit=4 * (limit // 3 + 1)))
        except ValueError as error:
            raise self._bad(name, "base64") from error
        if len(raw) > limit:
            raise self._bad(name, f"at most {limit} bytes")
        return raw


def read_object(value: object, what: str) -> PeerFields:
    """Raise Invalid when `value` is not a JSON object."""
    if not isinstance(value, dict):
        raise Invalid(f"A {what} must be a JSON object.")
    return PeerFields(value, what)


def base64_text(data: bytes) -> str:
    """Standard base64, as `PeerFields.octets` reads it."""
    return base64.b64encode(data).decode("ascii")


def unbase64(text: str) -> bytes:
    """Raise ValueError when `text` is not standard base64."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
