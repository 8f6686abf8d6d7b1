"""What a start loads: nothing that the command does not need. Counted in modules, because seconds differ by machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

NEVER_TO_SERVE = {
    *("torch", "flwr", "opacus", "sklearn", "pandas", "scipy", "matplotlib", "reportlab"),
    *("numpy", "pydicom", "PIL", "gdcm", "highdicom", "imagecodecs", "rapidocr_onnxruntime"),
    *("alembic", "playwright", "zeroconf", "requests", "hvac", "pkcs11", "obstore", "hl7", "fhir"),
    *("learning.api", "learning.runs", "ops.demo", "pytest"),
}
"""Each is for something that comes later, if at all, or in a process of its own."""

NEVER_TO_STAY = {
    "rich",
    "pygments",
    "asyncpg",
    "sqlalchemy.dialects.postgresql",
    "ops.demo",
    "email.mime",
    "xml",
}
"""What would be held in memory for as long as the node runs, for nothing."""

NEVER_TO_A_WORKER = {
    *(
        "asyncio",
        "ssl",
        "socket",
        "pydicom",
        "cryptography",
        "aiohttp",
        "sqlalchemy",
        "node.imaging.rendering",
    ),
    *("node.imaging.workers", "node.imaging.deidentify", "node.imaging.transcode"),
}
"""A worker is started when somebody waits for a picture."""

NEVER_TO_A_COMMAND = NEVER_TO_SERVE | {
    *("aiohttp", "sqlalchemy", "cryptography", "nacl", "joserfc", "pydantic", "cedarpy", "structlog", "rich"),
    *("asyncio", "jinja2", "prometheus_client", "ops.foundation", "ops.compose", "node", "federation"),
}
NEVER_TO_A_LOOK_AT_THE_LOG = NEVER_TO_SERVE | {"aiohttp", "jinja2", "prometheus_client", "ops.compose"}


def loaded_by(code: str) -> set[str]:
    """Every module that a fresh interpreter has loaded after `code`."""
    show = "\nimport sys\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code + show], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.requirement("F4")
@pytest.mark.parametrize(
    ("code", "never"),
    [
        ("import ops.service, ops.compose", NEVER_TO_SERVE),
        ("import ops.service, ops.hub", NEVER_TO_SERVE),
        ("import ops.cli; ops.cli.Commands()['serve']; import ops.compose", NEVER_TO_SERVE | NEVER_TO_STAY),
        ("import node.imaging.worker", NEVER_TO_A_WORKER),
        ("import ops.cli", NEVER_TO_A_COMMAND),
        ("from ops.cli import app\nfrom typer.testing import CliRunner\nCliRunner().invoke(app, ['--help'])",
         NEVER_TO_A_COMMAND - {"asyncio"}),
        ("import ops.commands.logs, ops.foundation", NEVER_TO_A_LOOK_AT_THE_LOG),
    ],
    ids=["serve", "hub serve", "accord serve", "a worker", "accord", "accord --help", "accord log verify"],
)  # fmt: skip
def test_a_start_loads_nothing_that_it_does_not_need(code: str, never: set[str]) -> None:
    """A node is back within two seconds of a crash because nothing heavy stands in the way."""
    assert not loaded_by(code) & never


def test_what_is_loaded_is_seen() -> None:
    """The guard can fail: a module loaded by way of another counts."""
    assert {"pydicom", "numpy"} <= loaded_by("import node.imaging.deidentify") & NEVER_TO_SERVE
