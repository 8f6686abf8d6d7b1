"""The command line: every word and where it is handled. Results, errors and exit codes are `ops.console`'s.

A command's module is loaded when the command is called: `accord --help` loads none of them, and no command pays for
what another needs.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

import click
import typer
from typer.core import TyperGroup

WORDS: Mapping[str, tuple[str, str, str]] = {
    "init": ("nodes", "init", "Make a node: settings, keystore, database and the administrator's account."),
    "serve": ("nodes", "serve", "Run the node until SIGTERM or Ctrl-C."),
    "doctor": ("nodes", "doctor", "Look at a node from outside and say in words which step fails."),
    "device": ("devices", "devices", "Imaging devices."),
    "edge": ("edge", "edge", "The agent beside a modality."),
    "user": ("people", "users", "People who sign in."),
    "care": ("people", "care", "Treatment relationships."),
    "keys": ("keys", "keys", "The keys: age, rotation, custody, unlocking."),
    "grade": ("grades", "grades", "How sensitive a study is."),
    "token": ("people", "tokens", "Tokens for programs."),
    "findings": (
        "findings",
        "findings",
        "List what needs somebody: refused devices, integrity faults, full disks, expiring certificates.",
    ),
    "access": ("access", "access", "The sealed rows that decide who may do what."),
    "replicas": ("replicas", "replicas", "The copies of the study packs on several roots."),
    "index": ("replicas", "index", "The index over the study packs."),
    "import": ("files", "import_files", "Take DICOM files into a node that is not running."),
    "send": ("files", "send", "Send DICOM files by C-STORE or STOW-RS."),
    "log": ("logs", "logs", "The tamper-evident log."),
    "deidentify": ("deidentify", "deidentify", "Remove identities by PS3.15 Annex E."),
    "hub": ("hub", "hub", "The hub of a region."),
    "join": ("hub", "join", "Enter a region."),
    "demo": ("demo", "demo", "Start a hub and three hospitals on loopback and play one study's whole life."),
}
"""Word → module below `ops.commands`, the function or group in it, and what `accord --help` says of it."""


class Commands(dict[str, click.Command]):
    """The commands by their words; each is loaded when it is first asked for."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(WORDS))  # type: ignore[arg-type]  # a place for each

    def __getitem__(self, word: str) -> click.Command:
        found: click.Command | None = super().__getitem__(word)
        if found is None:
            found = self[word] = _loaded(word)
        return found

    def get(self, word: str, default: Any = None) -> Any:
        try:
            return self[word]
        except KeyError:
            return default

    def items(self) -> Any:
        return [(word, self[word]) for word in self]

    def values(self) -> Any:
        return [self[word] for word in self]


class Root(TyperGroup):
    """`accord` itself: knows the words without loading what is behind them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = Commands()

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(word, words) for word, (_, _, words) in WORDS.items()])


app = typer.Typer(
    name="accord",
    cls=Root,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def accord() -> None:
    """A federated imaging exchange node: studies sealed at home, shared only under consent."""


def main() -> None:
    """The console script."""
    gc.disable()  # nothing is garbage while modules load: to look for it takes a fifth of a start
    app()


def _loaded(word: str) -> click.Command:
    """The command as click knows it."""
    module, name, _ = WORDS[word]
    _structlog()  # before a command's modules import it
    thing = getattr(import_module(f"ops.commands.{module}"), name)
    _quieten()
    if not gc.isenabled():
        gc.freeze()  # what was loaded stays: no collection needs to walk it
        gc.enable()
    parent = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    parent.callback()(accord)
    if isinstance(thing, typer.Typer):
        parent.add_typer(thing, name=word)
    else:
        parent.command(word)(thing)
    group = typer.main.get_command(parent)
    assert isinstance(group, click.Group)
    return group.commands[word]


def _structlog() -> ModuleType:
    """The operators' log, without Rich: it would load that, 60 modules and 3 MiB, to colour what is never shown."""
    barred = "rich" not in sys.modules
    if barred:
        sys.modules["rich"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        import structlog
    finally:
        if barred:
            del sys.modules["rich"]
    return structlog


def _quieten() -> None:
    """What the parts log goes to standard error, and only when it matters; `serve` sets its own."""
    structlog = _structlog()
    if not structlog.is_configured():
        structlog.configure(
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        )
