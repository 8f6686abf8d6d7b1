"""Keeps the catalogues: finds every string that a person may read, and says what lacks a translation.

    python -m node.web.portal.messages extract    update en and zh_CN with what the sources say now
    python -m node.web.portal.messages check      exit 1 and name every msgid without Chinese
    python -m node.web.portal.messages compile    write .mo files, for tools that want them (the node needs none)

Sources are the templates and the Python of all five packages (`_`, `N_`, `ngettext`, `Sentence`), and the reasons of the shipped
rules. The words of `consent.refusals`, `consent.grants` and `consent.directives`, which become reasons too, and the
messages of errors, are taken from their literals. Catalogues are written without line numbers, so that an edit
elsewhere changes nothing here.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from babel.messages.catalog import Catalog
from babel.messages.extract import extract
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from node.web.text import LANGUAGES, LOCALES

ROOT: Final = Path(__file__).parents[3]
PACKAGES: Final = ("consent", "node", "federation", "learning", "ops")
KEYWORDS: Final[dict[str, tuple[int, ...] | None]] = {
    "_": None,
    "N_": None,
    "gettext": None,
    "ngettext": (1, 2),
    "pgettext": (1, 2),
    "Sentence": (1,),
}
SPOKEN: Final = {"Denied", "NotFound", "Conflict", "Invalid", "Unavailable", "Corrupt", "Deny", "Found"}
"""Calls whose literal words reach a person: as the message, the way out, a reason, or what is wrong with a storage root."""
WORDED: Final = "Words"
"""Calls whose every literal reaches a person: sentences with places for values."""
SPOKEN_PLACES: Final = (
    "consent/refusals.py",
    "consent/grants.py",
    "consent/directives.py",
    "consent/decision.py",
    "consent/emergency.py",
    "consent/approvals.py",
    "node/access",
    "node/approvals.py",
    "node/consents.py",
    "node/copies.py",
    "node/gateway",
    "node/imaging/codecs.py",
    "node/imaging/decode.py",
    "node/imaging/encode.py",
    "node/imaging/frames.py",
    "node/imaging/grayscale.py",
    "node/imaging/header.py",
    "node/imaging/layout.py",
    "node/imaging/rendering.py",
    "node/imaging/tables.py",
    "node/imaging/viewport.py",
    "node/imaging/window.py",
    "node/imaging/workers.py",
    "node/index",
    "node/openings.py",
    "node/records.py",
    "node/shelves.py",
    "node/vault/lanes.py",
    "node/vault/quorum.py",
    "node/vault/replicas.py",
    "node/vault/roots.py",
    "node/web",
    "federation/api.py",
    "federation/asking.py",
    "federation/client.py",
    "federation/doorway.py",
    "federation/fetching.py",
    "federation/grants.py",
    "federation/held.py",
    "federation/holdings.py",
    "federation/incoming.py",
    "federation/leased_keys.py",
    "federation/leases.py",
    "federation/members.py",
    "federation/notices.py",
    "federation/pages.py",
    "federation/protocol.py",
    "federation/roster.py",
    "learning/api.py",
    "learning/plans.py",
    "ops/findings.py",
    "ops/findingwords.py",
)
HEADER: Final = "# What the portal says. Kept by: python -m node.web.portal.messages extract"

# Dates would change with every run, and the rest says nothing.
_NOISE = re.compile(
    r'"(POT-Creation-Date|PO-Revision-Date|Generated-By|Project-Id-Version|Report-Msgid-Bugs-To|Last-Translator'
    r"|Language-Team)"
)
_REASON = re.compile(r'@reason\("((?:[^"\\]|\\.)*)"\)')
_SENTENCE = re.compile(r"^[A-Z0-9«\"].*[.…?]$", re.DOTALL)


def found() -> Catalog:
    """Everything that the sources say, as a catalogue without translations."""
    catalogue = Catalog(project="accord", charset="utf-8", fuzzy=False)
    for message, context in sorted(set(_messages()), key=lambda item: (str(item[0]), item[1] or "")):
        catalogue.add(message, context=context)
    return catalogue


def stored(tag: str) -> Catalog:
    """The catalogue of a language as it lies in the sources."""
    path = _path(tag)
    if not path.exists():
        return Catalog(locale=LANGUAGES[tag], domain="accord", charset="utf-8", fuzzy=False)
    with path.open("rb") as source:
        return read_po(source, locale=LANGUAGES[tag], domain="accord")


def missing(tag: str) -> list[str]:
    """The msgids of the sources that have no translation in this language."""
    known = stored(tag)
    lacking = []
    for message in found():
        if not message.id:
            continue
        entry = known.get(message.id, message.context)
        said = entry.string if entry is not None else ""
        if not all(said if isinstance(said, tuple | list) else (said,)) or (entry and entry.fuzzy):
            lacking.append(message.id if isinstance(message.id, str) else message.id[0])
    return lacking


def update(tag: str) -> None:
    """Bring a catalogue up to the sources: new msgids come in empty (English says itself), old ones leave."""
    now, before = found(), stored(tag)
    fresh = Catalog(
        header_comment=HEADER,
        locale=LANGUAGES[tag],
        domain="accord",
        project="accord",
        charset="utf-8",
        fuzzy=False,
    )
    for message in now:
        if not message.id:
            continue
        old = before.get(message.id, message.context)
        said = old.string if old is not None else ""
        if tag == "en":
            said = message.id
        fresh.add(message.id, said, context=message.context)
    path = _path(tag)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as target:
        write_po(target, fresh, width=110, omit_header=False, no_location=True, sort_output=True)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line for line in lines if not _NOISE.match(line)) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """The command."""
    match arguments:
        case ["extract"]:
            for tag in LANGUAGES:
                update(tag)
            return main(["check"])
        case ["check"]:
            lacking = {tag: missing(tag) for tag in LANGUAGES}
            for tag, messages in lacking.items():
                for message in messages:
                    sys.stdout.write(f"{tag}: {message}\n")
            return 1 if any(lacking.values()) else 0
        case ["compile"]:
            for tag in LANGUAGES:
                with _path(tag).with_suffix(".mo").open("wb") as target:
                    write_mo(target, stored(tag))
            return 0
        case _:
            sys.stderr.write((__doc__ or "") + "\n")
            return 2


def _messages() -> Iterator[tuple[str | tuple[str, ...], str | None]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix == ".html":
                yield from _extracted(path, "jinja2.ext:babel_extract")
            elif path.suffix == ".py":
                yield from _extracted(path, "python")
                if name.startswith(SPOKEN_PLACES):
                    for words in _spoken(path):
                        yield words, None
            elif path.suffix == ".cedar":
                for words in _REASON.findall(path.read_text(encoding="utf-8")):
                    yield words, None


def _extracted(path: Path, method: str) -> Iterator[tuple[str | tuple[str, ...], str | None]]:
    options = (
        {"trimmed": "false", "newstyle_gettext": "true", "silent": "false", "extensions": "jinja2.ext.do"}
        if path.suffix == ".html"
        else {}
    )
    with path.open("rb") as source:
        for _line, message, _comments, context in extract(method, source, KEYWORDS, options=options):
            words = message if isinstance(message, str) else tuple(message)
            if words:
                yield words, context


def _spoken(path: Path) -> Iterator[str]:
    """The literal sentences in calls of `SPOKEN` and, in the rules' own files, in any string."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    rules = "consent/" in path.as_posix()
    docs = {id(body) for body in _docstrings(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SPOKEN:
            for part in ast.walk(node):
                if words := _sentence(part):
                    yield words
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == WORDED:
            yield from (
                part.value
                for part in node.args
                if isinstance(part, ast.Constant)
                and isinstance(part.value, str)
                and re.search("[A-Za-z]{2}", re.sub(r"%\(\w+\)s", "", part.value))
            )
        elif rules and id(node) not in docs and (words := _sentence(node)):
            yield words


def _sentence(node: ast.AST) -> str:
    """The words of a literal that is one; empty for everything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and _SENTENCE.match(node.value):
        return node.value
    return ""


def _docstrings(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


def _path(tag: str) -> Path:
    return LOCALES / LANGUAGES[tag] / "LC_MESSAGES" / "accord.po"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
