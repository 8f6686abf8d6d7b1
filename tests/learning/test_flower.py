"""The contract with Flower's pinned version: each private symbol by name, and the forms that it accepts."""

from __future__ import annotations

import importlib
import inspect
import io
import subprocess
import sys
import zipfile
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import pytest

from learning import flower
from learning.bundle import FLOWER_VERSION, SOURCES, bundle, bundle_digest
from learning.processes import superlink_command, supernode_command

SYMBOLS = [(module, name) for module, names in flower.PRIVATE_SYMBOLS.items() for name in names]


def test_flower_is_the_pinned_version() -> None:
    """Another version means reading its internals again."""
    assert version("flwr") == FLOWER_VERSION


@pytest.mark.parametrize(("module", "name"), SYMBOLS)
def test_a_private_symbol_is_there(module: str, name: str) -> None:
    """Each symbol of Flower's private API that the adapter uses exists in the installed version."""
    assert hasattr(importlib.import_module(module), name)


def test_the_adapter_names_everything_private_it_imports() -> None:
    """No import from Flower's inside is missing in the list."""
    documented = {"flwr.app", "flwr.serverapp", "flwr.clientapp", "flwr.serverapp.strategy"}
    imported = {
        (value.__module__, name)
        for name, value in vars(flower).items()
        if getattr(value, "__module__", "").startswith("flwr.")
    }
    listed = {name for _, name in SYMBOLS}
    unlisted = {name for module, name in imported if name not in listed and module not in documented}
    assert unlisted <= {"Context", "Message", "Grid"}


@pytest.mark.parametrize(
    ("symbol", "parameters"),
    [
        (
            "ControlHttpClient.from_server_address",
            {"server_address", "insecure", "root_certificates", "interceptors"},
        ),
        ("SuperExecAuthHttpInterceptor", {"master_secret", "protected_methods"}),
        ("HttpGrid", {"runtime_api_address", "insecure", "root_certificates", "token"}),
        ("pull_task_input", {"client"}),
        ("push_message", {"client", "message", "context"}),
    ],
)
def test_a_private_signature_is_as_expected(symbol: str, parameters: set[str]) -> None:
    """The parameters by which we call it are still its parameters."""
    value: object = flower
    for name in symbol.split("."):
        value = getattr(value, name)
    assert parameters <= set(inspect.signature(value).parameters)  # type: ignore[arg-type]


def test_the_bundle_is_one_that_flower_takes() -> None:
    """Flower reads our bundle's metadata and finds both components."""
    from flwr.cli.config_utils import get_fab_config, get_fab_metadata

    assert get_fab_metadata(bundle()) == ("accord/accord-learning", "1.0.0")
    components = get_fab_config(bundle())["tool"]["flwr"]["app"]["components"]
    assert components == {
        "serverapp": "learning.server_app:app",
        "clientapp": "learning.client_app:app",
    }


@pytest.mark.requirement("R2")
def test_the_digest_covers_the_code_that_runs() -> None:
    """The bundle holds the sources as installed and is the same in another process."""
    with zipfile.ZipFile(io.BytesIO(bundle())) as archive:
        for name in SOURCES:
            assert archive.read(f"learning/{name}") == Path("learning", name).read_bytes()
    program = "from learning.bundle import bundle_digest; print(bundle_digest())"
    other = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert other.stdout.strip() == bundle_digest() == sha256(bundle()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        superlink_command(1, root=3, certificate=4, key=5, secret=6),
        supernode_command("127.0.0.1:1", 2, root=3, node_key=4, secret=5),
    ],
    ids=["superlink", "supernode"],
)
def test_flowers_programs_know_our_options(command: list[str]) -> None:
    """Every option that we pass is in the program's help."""
    shown = subprocess.run(
        [command[0], "--help"], check=True, capture_output=True, text=True, timeout=90
    ).stdout
    assert not [word for word in command[1:] if word.startswith("--") and word not in shown]
