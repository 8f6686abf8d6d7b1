"""Words in the language of the person: gettext catalogues, one domain `accord`, English and Chinese.

The language of the request in hand lies in a context variable that `pages` sets. Catalogues are compiled in memory
from the .po files at start, so no binary is committed. `_()` translates now; `N_()` marks a constant for
extraction and leaves it in English until a page shows it.
"""

from __future__ import annotations

import gettext
import io
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

from babel import Locale, dates, numbers
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from markupsafe import Markup, escape

from consent.errors import Sentence, Sentences

LOCALES: Final = Path(__file__).parent / "portal" / "locales"
LANGUAGES: Final[Mapping[str, str]] = {"en": "en", "zh-CN": "zh_CN"}
"""HTML language tag to catalogue folder; the first is what an unknown language gets."""
DEFAULT_LANGUAGE: Final = "en"

language: ContextVar[str] = ContextVar("language", default=DEFAULT_LANGUAGE)


@cache
def catalogue(tag: str) -> gettext.NullTranslations:
    """The compiled catalogue of a language tag; empty (English msgids) when its .po is not there."""
    path = LOCALES / LANGUAGES.get(tag, "en") / "LC_MESSAGES" / "accord.po"
    if not path.exists():
        return gettext.NullTranslations()
    with path.open("rb") as source:
        entries = read_po(source, locale=LANGUAGES.get(tag, "en"), domain="accord")
    compiled = io.BytesIO()
    write_mo(compiled, entries)
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)


def _(message: str, **values: Any) -> str:
    """`message` in the person's language, with %(name)s filled in. A `Sentence` brings its own values."""
    text = gettext_now(message)
    return text % values if values else text


def ngettext(one: str, many: str, n: int, **values: Any) -> str:
    """The form that fits `n`, in the person's language; %(num)s is `n`."""
    return catalogue(language.get()).ngettext(one, many, n) % {"num": n, **values}


def gettext_now(message: str) -> str:
    """The bare lookup. A `Sentence` brings its values, themselves sentences or not; in any other message places for
    values stay as they are."""
    if not message:
        return ""
    found = catalogue(language.get())
    if isinstance(message, Sentences):
        return " ".join(map(gettext_now, message.parts))
    if isinstance(message, Sentence):
        values = {
            name: gettext_now(value) if isinstance(value, Sentence | Sentences) else value
            for name, value in message.values.items()
        }
        return found.gettext(message.words) % values
    return found.gettext(message)


def page_text(message: str, **values: Any) -> Markup:
    """`_` of the templates. A message may be data (a reason that a person wrote, a word of another node): it is escaped
    like any other text and only filled in when values are given."""
    text = escape(gettext_now(message))
    return text % values if values else text


def page_plural(one: str, many: str, n: int, **values: Any) -> Markup:
    """`ngettext` of the templates; %(num)s is `n`."""
    return escape(catalogue(language.get()).ngettext(one, many, n)) % {"num": n, **values}


def page_text_in(context: str, message: str, **values: Any) -> Markup:
    """`pgettext` of the templates."""
    text = escape(catalogue(language.get()).pgettext(context, message) if message else "")
    return text % values if values else text


def N_(message: str) -> str:  # noqa: N802  (gettext's customary name)
    """Mark a constant for extraction; it stays English until `_` meets it."""
    return message


def negotiate(accept_language: str) -> str:
    """The best of our languages for an Accept-Language header (RFC 9110 §12.5.4)."""
    wanted: list[tuple[float, int, str]] = []
    for position, part in enumerate(accept_language[:1000].split(",")[:20]):
        tag, _sep, quality = part.strip().partition(";q=")
        try:
            weight = float(quality or 1)
        except ValueError:
            continue
        wanted.append((-weight, position, tag.strip().lower()))
    for weight, _position, tag in sorted(wanted):
        if weight < 0 and tag.startswith("zh"):
            return "zh-CN"
        if weight < 0 and tag.startswith("en"):
            return "en"
    return DEFAULT_LANGUAGE


def format_moment(moment: datetime | None, style: str = "minute") -> str:
    """A moment in the node's own time zone: to the minute, or `exact` with seconds and offset; empty for None."""
    if moment is None:
        return ""
    local = moment.astimezone()
    return local.strftime("%Y-%m-%d %H:%M:%S %z" if style == "exact" else "%Y-%m-%d %H:%M")


def format_until(moment: datetime | None) -> str:
    """An end: the last day when it falls on midnight, else the minute."""
    if moment is None:
        return ""
    local = moment.astimezone()
    whole_days = (local.hour, local.minute, local.second) == (0, 0, 0)
    return (local - timedelta(seconds=1)).strftime("%Y-%m-%d") if whole_days else format_moment(moment)


def format_date(value: date | str | None) -> str:
    """A date, or a DICOM DA value (YYYYMMDD), in ISO form; other text is returned as it is."""
    if value is None:
        return ""
    if isinstance(value, str):
        digits = value.strip()
        if len(digits) == 8 and digits.isdigit():
            return f"{digits[:4]}-{digits[4:6]}-{digits[6:]}"
        return value
    return value.isoformat()


def format_delta(seconds: float) -> str:
    """A length of time in words, in the person's language: "15 minutes"."""
    return str(dates.format_timedelta(seconds, locale=_locale(), threshold=1.2))


def format_person_name(value: object) -> str:
    """A DICOM person name (PS3.5 §6.2.1.1) for reading: in Chinese the ideographic form first, else the Latin one."""
    groups = [_name_group(group) for group in str(value or "").split("=")[:2]]
    groups = [group for group in (reversed(groups) if language.get() == "zh-CN" else groups) if group]
    return (
        groups[0] + (f" ({groups[1]})" if len(groups) > 1 and groups[1] != groups[0] else "")
        if groups
        else ""
    )


def _name_group(group: str) -> str:
    family, given, *rest = [*group.split("^"), "", ""]
    whole = f"{family}{given}" if not group.isascii() else ", ".join(part for part in (family, given) if part)
    return " ".join(part for part in (whole, rest[0]) if part).strip()


def format_bytes(size: float) -> str:
    """A size in the usual units of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_number(value: float) -> str:
    """A number with the language's grouping."""
    return str(numbers.format_decimal(value, locale=_locale()))


def _locale() -> Locale:
    return Locale.parse(LANGUAGES[language.get()])
