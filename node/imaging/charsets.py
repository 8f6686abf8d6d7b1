"""Text of a data set by its Specific Character Set (0008,0005) (PS3.5 §6.1, PS3.3 §C.12.1.1.2).

Never fails: an unknown term or a byte that the set lacks costs that character, not the instance. Code
extensions (ISO 2022) go through pydicom's decoder; the rest is decoded here.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache

_ESCAPE = 0x1B
# Python's GB 2312 codec hands the escape sequence on.
_LEFT_OVER = re.compile("\x1b[$()-]{1,2}[A-Z]")
_DELIMITERS = {0x0D, 0x0A, 0x09, 0x0C, 0x5C}
_NAME_DELIMITERS = {0x5E, 0x3D, 0x5C}
_DEFAULT = "iso8859"
_SINGLE_BYTE = {
    "6": _DEFAULT,
    "13": "shift_jis",
    "100": "latin_1",
    "101": "iso8859_2",
    "109": "iso8859_3",
    "110": "iso8859_4",
    **{number: f"iso_ir_{number}" for number in ("126", "127", "138", "144", "148", "166")},
}
TERMS = {
    "": _DEFAULT,
    **{f"ISO_IR {number}": name for number, name in _SINGLE_BYTE.items()},
    **{f"ISO 2022 IR {number}": name for number, name in _SINGLE_BYTE.items()},
    "ISO 2022 IR 58": "iso_ir_58",
    "ISO 2022 IR 87": "iso2022_jp",
    "ISO 2022 IR 149": "euc_kr",
    "ISO 2022 IR 159": "iso2022_jp_2",
    "ISO_IR 192": "UTF8",
    "GB18030": "GB18030",
    "GBK": "GBK",
    # No defined terms, but met.
    "ISO 2022 GBK": "GBK",
    "ISO 2022 58": "GB2312",
}
"""Defined term → Python's codec, by the names that pydicom's decoder knows (PS3.3 §C.12.1.1.2)."""
# Misspellings met often enough that pydicom mends them too.
_SPACED = str.maketrans({" ": "_", "-": "_"})


class Charset:
    """Decodes text values. Made by `charset_of`."""

    def __init__(self, terms: tuple[str, ...]) -> None:
        self.terms = terms
        self._encodings: tuple[str, ...] = tuple(_python_name(term) for term in terms) or (_DEFAULT,)

    def text(self, value: bytes, *, name: bool = False) -> str:
        """Decode a value; `name` resets code extensions at the component delimiters of PN."""
        if _ESCAPE in value:
            return _with_extensions(value, self._encodings, name)
        return value.decode(self._encodings[0], errors="replace")

    @property
    def known(self) -> bool:
        """Whether a set was named, and every term of it is one that can be written too."""
        return bool(self.terms) and all(term in TERMS for term in self.terms)

    def encode(self, text: str, *, name: bool = False) -> bytes | None:
        """Encode a value; None when the set does not hold it. `name` is for PN, as in `text`."""
        if text.isascii():
            return text.encode("ascii")
        if not self.terms:
            return None  # the default repertoire is ASCII
        if len(self._encodings) == 1 and not self._encodings[0].startswith("iso2022"):
            try:
                return text.encode(self._encodings[0])
            except UnicodeEncodeError:
                return None
        written = _written_with_extensions(text, self._encodings, name)
        return written if self.text(written, name=name) == text else None


@lru_cache(maxsize=256)
def charset_of(value: bytes) -> Charset:
    """The character set that an element (0008,0005) with this value declares."""
    declared = value.decode("ascii", errors="replace").strip(" \0")
    return Charset(tuple(term.strip() for term in declared.split("\\")) if declared else ())


def _python_name(term: str) -> str:
    if term in TERMS:
        return TERMS[term]
    for known, encoding in TERMS.items():
        if known and known.translate(_SPACED) == term.upper().translate(_SPACED):
            return encoding
    return _DEFAULT


def _with_extensions(value: bytes, names: tuple[str, ...], name: bool) -> str:
    from pydicom.charset import decode_bytes  # large, and few hospitals' images need it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = decode_bytes(value, names, _NAME_DELIMITERS if name else _DELIMITERS)
        return _LEFT_OVER.sub("", str(found))
    except (LookupError, UnicodeError, ValueError):
        return value.decode(names[0], errors="replace")


def _written_with_extensions(text: str, names: tuple[str, ...], name: bool) -> bytes:
    """What pydicom makes of it; whether it is the text is for the caller to see."""
    from pydicom.charset import encode_string
    from pydicom.valuerep import PersonName

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bytes(PersonName(text).encode(names) if name else encode_string(text, names))
    except (LookupError, UnicodeError, ValueError):
        return b""
