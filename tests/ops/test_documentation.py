"""What the documentation says is what the program does: commands, settings, events, exit codes, and the README."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from consent.vocabulary import EventKind
from federation.service import HUB_ROUTES, PEER_ROUTES
from learning.service import HUB_PEER_ROUTES
from node.config import KEY_WORDS, SECTION_WORDS, NodeSection, Settings
from node.ports import free_ports
from node.web.limits import rules_of_handler
from ops.console import EXIT_CODES
from ops.findingtables import FindingKind
from tests.ops.test_cli import COMMANDS
from tests.support.cli import accord
from tests.support.requirements_page import PAGE, page

ROOT = Path(__file__).parents[2]
CLI, SETTINGS, EVENTS = (ROOT / "docs" / name for name in ("cli.md", "settings.md", "events.md"))
FORMATS = ROOT / "docs" / "formats"
FAMILY_WORDS = {3: "denied", 4: "not found", 5: "conflict", 6: "corrupt", 7: "invalid", 8: "unavailable"}


def sections(file: Path) -> dict[str, str]:
    """Heading to text, for the second-level headings of a page."""
    parts = re.split(r"^## (.+)$", file.read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.requirement("F6")
def test_every_command_is_documented_and_nothing_else() -> None:
    """docs/cli.md has a section for each, in the words of its help."""
    assert set(sections(CLI)) == {f"accord {name}" for name in COMMANDS}


@pytest.mark.requirement("F6")
@pytest.mark.parametrize("name", COMMANDS)
def test_the_documented_options_are_the_commands_own(name: str) -> None:
    """Every option is in its table, no option is that is gone, and the example is the help's."""
    section = sections(CLI)[f"accord {name}"]
    command = COMMANDS[name]
    real = {
        option
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.name not in ("as_json", "help")
        for option in parameter.opts
    }
    assert set(re.findall(r"^\| `(--[a-z-]+)`", section, re.MULTILINE)) == real
    example = " ".join((command.help or "").partition("Example: ")[2].split())
    assert example in section


def test_the_documented_exit_codes_are_the_programs() -> None:
    """Each family's number."""
    rows = dict(re.findall(r"^\| (\d) \| (.+?) \|$", CLI.read_text("utf-8"), re.MULTILINE))
    assert set(rows) == {str(code) for code in (0, 1, 2, *EXIT_CODES.values())}
    for code, word in FAMILY_WORDS.items():
        assert rows[str(code)].startswith(word)


@pytest.mark.requirement("F6")
def test_every_setting_is_documented_with_its_default() -> None:
    """docs/settings.md says of each key what node.toml says, and its default."""
    found = sections(SETTINGS)
    assert set(found) == set(SECTION_WORDS)
    rows = {
        key: (default, words)
        for text in found.values()
        for key, default, words in re.findall(r"^\| `([a-z0-9_.]+)` \| (.+?) \| (.+) \|$", text, re.MULTILINE)
    }
    assert {key: words for key, (_default, words) in rows.items()} == KEY_WORDS
    shipped = Settings(node=NodeSection(id="a1", name="A"))
    for key, (default, _words) in rows.items():
        section, _, name = key.partition(".")
        value = getattr(getattr(shipped, section), name)
        if default != "required":
            shown = default.strip("`").strip('"')
            expected = str(value).lower() if isinstance(value, bool) else str(value)
            assert shown.replace('", "', ",").strip('["]') == (
                ",".join(value) if isinstance(value, tuple) else expected
            ), key


@pytest.mark.requirement("V4")
def test_every_event_is_documented_once() -> None:
    """docs/events.md has a row for each kind that the log can hold, and for no other."""
    rows = re.findall(r"^\| `([A-Z][A-Za-z]+)` \| (.+) \|$", EVENTS.read_text("utf-8"), re.MULTILINE)
    names = [name for name, _words in rows]
    assert sorted(names) == sorted(kind.value for kind in EventKind)
    assert all(len(words) > 10 for _name, words in rows)


def test_every_peer_route_is_documented_with_its_bound() -> None:
    """docs/formats/peer-protocol.md names what a member can be asked, how much may be sent, and nothing else."""
    text = (FORMATS / "peer-protocol.md").read_text("utf-8")
    rows = re.findall(r"^\| `(GET|POST) ([a-z/{}-]+)`.*?\|([^|]*)\|$", text, re.MULTILINE)
    documented = {(method, re.sub(r"\{\w+\}", "{}", path)): bound.strip() for method, path, bound in rows}
    served = {
        (route.method, re.sub(r"\{\w+\}", "{}", route.path.removeprefix("/peer/v1/"))): route.handler
        for route in (*HUB_ROUTES, *PEER_ROUTES, *HUB_PEER_ROUTES)
        if route.path.startswith("/peer/v1/")
    }
    assert documented.keys() == served.keys()
    for name, handler in served.items():
        if name[0] == "POST":
            kib = rules_of_handler(handler).body_bytes // 1024
            assert documented[name] == (f"{kib} KiB" if kib < 1024 else f"{kib // 1024} MiB"), name


def test_every_kind_of_signed_record_has_its_format() -> None:
    """Whatever is signed under a kind of its own is described in docs/formats by that name."""
    kinds = {
        kind
        for package in ("consent", "node", "federation", "learning")
        for source in (ROOT / package).rglob("*.py")
        for kind in re.findall(r'KIND: ClassVar\[str\] = "([a-z-]+)"', source.read_text("utf-8"))
    }
    formats = "".join(page.read_text("utf-8") for page in FORMATS.glob("*.md"))
    assert len(kinds) > 15
    assert {kind for kind in kinds if f"`{kind}`" not in formats and f": {kind}" not in formats} == set()


def test_every_kind_of_finding_is_documented() -> None:
    """docs/formats/http-api.md lists the kinds that programs may meet."""
    text = (FORMATS / "http-api.md").read_text("utf-8")
    assert {kind.value for kind in FindingKind if f"`{kind}`" not in text} == set()


def test_the_page_of_requirements_is_what_the_tests_claim() -> None:
    """Renewed by `make requirements`."""
    assert PAGE.read_text("utf-8") == page()


def readme_commands() -> list[list[str]]:
    """The commands of the README's section 'One hospital'."""
    section = sections(ROOT / "README.md")["One hospital"]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [shlex.split(line) for line in block[1].splitlines() if line.strip()]


@pytest.mark.slow
@pytest.mark.journey
@pytest.mark.requirement("F6", "F3")
def test_the_readmes_commands_make_a_hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as they stand, in a temporary folder: init to doctor, with a hub's invitation for the joining."""
    monkeypatch.chdir(tmp_path)
    commands = readme_commands()
    assert {words[1] for words in commands} >= {"init", "serve", "user", "device", "join", "doctor"}
    http, dicom, plain, peer, hub_peer = free_ports(5)
    made = accord("hub", "init", "hub", "--region", "delta", "--http-port", 0, "--peer-port", hub_peer)
    assert made.code == 0, made.err
    assert accord("hub", "invite", "hub", "--out", "invitation.accord").code == 0
    running = [_serve("hub", "serve", "hub")]
    more = ("--http-port", http, "--dicom-port", dicom, "--plain-dicom-port", plain, "--peer-port", peer)
    try:
        for words in commands:
            assert words[0] == "accord"
            line = [word.replace("/srv/accord", str(tmp_path / "accord")) for word in words[1:]]
            if line[0] == "serve":
                running.append(_serve(*line))
                continue
            said = accord(*line, *(more if line[0] == "init" else ()))
            assert said.code == 0, (words, said.out, said.err)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
    assert all(process.returncode == 0 for process in running)


def _serve(*words: str) -> subprocess.Popen[str]:
    """Start a server and wait for its ready line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ops", *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=Path.cwd(),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready"):
            return process
    raise AssertionError("the server ended before it was ready")


PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """Every relative link and picture is a file of this repository."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def shell_lines(page: Path) -> list[str]:
    """The `accord` commands in a page's sh blocks, continued lines joined."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("accord ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_in_the_documentation_is_one_that_exists(page: Path) -> None:
    """Its words, options and the kinds of their values are taken by the program."""
    for line in shell_lines(page):
        words = shlex.split(line.partition(" > ")[0], comments=True)[1:]
        name = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
        assert name is not None, line
        with COMMANDS[name].make_context(name, words[len(name.split()) :]) as context:
            assert context.params is not None
