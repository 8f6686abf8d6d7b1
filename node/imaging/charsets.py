"""Text of a data set by its Specific Character Set (0008,0005) (PS3.5 §6.1, PS3.3 §C.12.1.1.2).

Never fails: an unknown term or a byte that the set lacks costs that character, not the instance. Code
extensions (ISO 2022) go through pydicom's decoder; the rest is decoded here.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache

from pydicom.charset import decode_bytes, default_encoding, python_encoding

_ESCAPE = 0x1B
# Python's GB 2312 codec hands the escape sequence on.
_LEFT_OVER = re.compile("\x1b[$()-]{1,2}[A-Z]")
_DELIMITERS = {0x0D, 0x0A, 0x09, 0x0C, 0x5C}
_NAME_DELIMITERS = {0x5E, 0x3D, 0x5C}
# Misspellings met often enough that pydicom mends them too.
_SPACED = str.maketrans({" ": "_", "-": "_"})


class Charset:
    """Decodes text values. Made by `charset_of`."""

    def __init__(self, terms: tuple[str, ...]) -> None:
        self.terms = terms
        self._encodings: tuple[str, ...] = tuple(_python_name(term) for term in terms) or (default_encoding,)

    def text(self, value: bytes, *, name: bool = False) -> str:
        """Decode a value; `name` resets code extensions at the component delimiters of PN."""
        if _ESCAPE in value:
            return _with_extensions(value, self._encodings, name)
        return value.decode(self._encodings[0], errors="replace")


@lru_cache(maxsize=256)
def charset_of(value: bytes) -> Charset:
    """The character set that an element (0008,0005) with this value declares."""
    declared = value.decode("ascii", errors="replace").strip(" \0")
    return Charset(tuple(term.strip() for term in declared.split("\\")) if declared else ())


def _python_name(term: str) -> str:
    if term in python_encoding:
        return str(python_encoding[term])
    for known, encoding in python_encoding.items():
        if known and known.translate(_SPACED) == term.upper().translate(_SPACED):
            return str(encoding)
    return str(default_encoding)


def _with_extensions(value: bytes, names: tuple[str, ...], name: bool) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = decode_bytes(value, names, _NAME_DELIMITERS if name else _DELIMITERS)
        return _LEFT_OVER.sub("", str(found))
    except (LookupError, UnicodeError, ValueError):
        return value.decode(names[0], errors="replace")
