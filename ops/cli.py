"""The command line: every word and where it is handled. Results, errors and exit codes are `ops.console`'s."""

from __future__ import annotations

import logging
import sys

import structlog
import typer

from ops.commands.deidentify import deidentify
from ops.commands.demo import demo
from ops.commands.devices import devices
from ops.commands.files import import_files, send
from ops.commands.hub import hub, join
from ops.commands.logs import logs
from ops.commands.nodes import doctor, init, serve
from ops.commands.people import care, tokens, users

app = typer.Typer(
    name="accord",
    help="A federated imaging exchange node: studies sealed at home, shared only under consent.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.command("init")(init)
app.command("serve")(serve)
app.command("doctor")(doctor)
app.add_typer(devices, name="device")
app.add_typer(users, name="user")
app.add_typer(care, name="care")
app.add_typer(tokens, name="token")
app.command("import")(import_files)
app.command("send")(send)
app.add_typer(logs, name="log")
app.command("deidentify")(deidentify)
app.add_typer(hub, name="hub")
app.command("join")(join)
app.command("demo")(demo)


def main() -> None:
    """The console script. What the parts log goes to standard error, and only when it matters; `serve` sets its own."""
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    app()
