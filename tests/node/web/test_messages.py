"""The catalogues: complete in both languages, with the same placeholders, and up to date with the sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from datetime import datetime
from string import ascii_letters

import pytest
from babel.messages.catalog import Catalog

from consent.errors import Sentence, Sentences
from node.web import text
from node.web.portal import messages
from node.web.text import LANGUAGES, _, catalogue, format_person_name, format_until, page_text

PLACEHOLDER = re.compile(r"%\(\w+\)s|%%")


@pytest.fixture(scope="module")
def sources() -> Catalog:
    """What the sources say, collected once for both languages."""
    return messages.found()


@pytest.mark.requirement("F6")
@pytest.mark.parametrize("tag", LANGUAGES)
def test_every_string_has_a_translation(tag: str, sources: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates and code of all five packages, rules, and the words of refusals and errors.

    When this fails: python -m node.web.portal.messages extract, then translate what it names.
    """
    monkeypatch.setattr(messages, "found", lambda: sources)
    assert messages.missing(tag) == []


@pytest.mark.parametrize("tag", LANGUAGES)
def test_translations_keep_their_placeholders(tag: str) -> None:
    """A lost or misspelt placeholder would break a page in one language only."""
    wrong = [
        message.id
        for message in messages.stored(tag)
        if message.id
        and sorted(PLACEHOLDER.findall(message.id)) != sorted(PLACEHOLDER.findall(message.string))
    ]

    assert wrong == []


def test_chinese_is_chinese() -> None:
    """Nothing was merely copied: a translation has a Chinese character, or the msgid has no letter."""
    copied = [
        message.id
        for message in messages.stored("zh-CN")
        if message.id
        and any(sign in ascii_letters for sign in message.id)
        and not re.search("[\u4e00-\u9fff]", message.string)
    ]

    assert copied == []


def spoken_calls() -> Iterator[tuple[str, ast.Call]]:
    paths = (
        path for package in messages.PACKAGES for path in sorted((messages.ROOT / package).rglob("*.py"))
    )
    for path in paths:
        name = path.relative_to(messages.ROOT).as_posix()
        if name.startswith(messages.SPOKEN_PLACES):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and _called(node) in messages.SPOKEN:
                    yield name, node


def _called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


@pytest.mark.requirement("F6")
def test_errors_that_a_person_meets_are_not_put_together_in_english() -> None:
    """Neither an f-string nor a sum of texts: no catalogue knows such words. `Sentence` takes values, `Sentences` parts."""
    calls = list(spoken_calls())
    wrong = [
        f"{name}:{part.lineno} {ast.unparse(part)}"
        for name, call in calls
        for part in ast.walk(call)
        if isinstance(part, ast.JoinedStr)
        or (isinstance(part, ast.BinOp) and isinstance(part.op, ast.Add | ast.Mod))
    ]

    assert len(calls) > 300
    assert wrong == []


def test_catalogue_is_compiled_in_memory_and_speaks() -> None:
    """English is its own msgid; Chinese is looked up; an unknown sentence stays as it is."""
    token = text.language.set("zh-CN")
    try:
        assert _("Sign in") == "登录"
        assert _("Access until %(moment)s", moment="x") == "可访问至 x"
        assert _("Never written down anywhere.") == "Never written down anywhere."
        assert _("") == ""
    finally:
        text.language.reset(token)
    assert _("Sign in") == "Sign in"
    assert catalogue("xx").gettext("Sign in") == "Sign in"


@pytest.mark.parametrize(
    ("value", "english", "chinese"),
    [
        ("Zhang^San=张^三", "Zhang, San (张三)", "张三 (Zhang, San)"),
        ("Doe^Peter^^Dr", "Doe, Peter", "Doe, Peter"),
        ("Doe", "Doe", "Doe"),
        ("=张^三", "张三", "张三"),
        ("", "", ""),
        (None, "", ""),
    ],
)
def test_person_names_are_written_as_people_write_them(value: str | None, english: str, chinese: str) -> None:
    """PS3.5 §6.2.1.1: the ideographic form leads in Chinese."""
    assert format_person_name(value) == english
    token = text.language.set("zh-CN")
    try:
        assert format_person_name(value) == chinese
    finally:
        text.language.reset(token)


def test_ends_at_midnight_are_shown_as_the_last_day() -> None:
    """Until 30 June means that day included."""
    midnight = datetime.fromisoformat("2027-07-01").astimezone()
    assert format_until(midnight) == "2027-06-30"
    assert format_until(midnight.replace(hour=8)) == "2027-07-01 08:00"
    assert format_until(None) == ""


def test_a_sentence_with_values_is_said_in_the_persons_language() -> None:
    """It is English text until a door translates it: in a page its values are escaped."""
    sentence = Sentence("Access until %(moment)s", moment="<noon> 5% d")
    assert sentence == "Access until <noon> 5% d"
    token = text.language.set("zh-CN")
    try:
        assert _(sentence) == "可访问至 <noon> 5% d"
        assert page_text(sentence) == "可访问至 &lt;noon&gt; 5% d"
        assert page_text("Access until %(moment)s", moment="<noon>") == "可访问至 &lt;noon&gt;"
        assert page_text("<b>100% d</b>") == "&lt;b&gt;100% d&lt;/b&gt;"
    finally:
        text.language.reset(token)


def test_sentences_are_each_said_in_the_persons_language() -> None:
    """One after another, or one as the value of another."""
    until = Sentence("Access until %(moment)s", moment="x")
    both = Sentences(["The grant was revoked.", until])
    assert both == "The grant was revoked. Access until x"
    token = text.language.set("zh-CN")
    try:
        assert _(both) == "授权已被收回。 可访问至 x"
        assert page_text(Sentence("Rule %(name)s: %(fault)s", name="<r>", fault=until)) == (
            "规则 &lt;r&gt;：可访问至 x"
        )
    finally:
        text.language.reset(token)
