"""The house rules, kept mechanically: floor order, purity, who may import what."""

from __future__ import annotations

import ast
import sys
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("consent", "node", "federation", "learning", "ops")
IMPURE = {
    *("aiohttp", "asyncio", "io", "os", "pathlib", "shutil", "socket", "sqlalchemy", "ssl", "subprocess"),
    *("tempfile", "threading", "logging", "structlog", "random", "secrets", "time", "uuid"),
}
CLOCKS = {"now", "utcnow", "today"}
LEARNING_ONLY = {"flwr", "torch"}
READING_SIDE = "node.vault.reader"
RESEALING = "node.vault.reseal"
MAY_READ_THE_VAULT = {"node/gateway/reading.py"}
OPENING = {"node.vault.seal.open_sealed", "node.vault.seal.open_range"}
DERIVING = {
    f"node.vault.{room}.{name}" for room in ("seal", "keys") for name in ("object_key", "object_keys")
}
MAY_DERIVE_KEYS = {"node/gateway/reading.py", "node/shelves.py"}
SPOOL = "node/edge/spool.py"
"""An edge agent's own sealed objects, under its own key: nobody reads them there, and no vault is near."""


def modules(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


@cache
def imported(path: Path) -> frozenset[str]:
    """Full names of the modules a file imports, anywhere in it; relative imports resolved."""
    names: set[str] = set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", modules(*FLOORS), ids=name_of)
def test_a_floor_calls_only_floors_below_it(path: Path) -> None:
    """No module imports a floor above its own."""
    own = FLOORS.index(path.relative_to(ROOT).parts[0])
    above = {name for name in imported(path) if name.split(".")[0] in FLOORS[own + 1 :]}

    assert not above


@pytest.mark.parametrize("path", modules("consent"), ids=name_of)
def test_the_rules_do_no_input_or_output(path: Path) -> None:
    """`consent` has no event loop, socket, file or database, no coroutine, no clock and no chance of its own."""
    tree = ast.parse(path.read_text("utf-8"))
    roots = {name.split(".")[0] for name in imported(path)}
    coroutines = [node.name for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)]
    opens = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open"
    ]

    clocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS
    ]

    assert not roots & IMPURE
    assert not coroutines
    assert not opens
    assert not clocks


def test_only_the_gateway_reads_the_vault() -> None:
    """The vault's reading side is imported by the gateway alone."""
    readers = {
        name_of(path)
        for path in modules(*FLOORS)
        if any(name == READING_SIDE or name.startswith(READING_SIDE + ".") for name in imported(path))
    }

    assert readers == MAY_READ_THE_VAULT


def test_only_regrading_seals_studies_anew() -> None:
    """The vault's own opening and sealing again, which shows nothing in clear, serves a change of grade and nothing else."""
    users = {
        name_of(path)
        for path in modules(*FLOORS)
        if any(name == RESEALING or name.startswith(RESEALING + ".") for name in imported(path))
    }

    assert users == {"node/regrading.py"}


def test_sealed_objects_are_opened_in_the_vault_alone() -> None:
    """Nothing outside the vault opens a sealed object, and only the gateway's side derives the keys to one."""
    outside = [
        path for path in modules(*FLOORS) if "node/vault/" not in name_of(path) and name_of(path) != SPOOL
    ]

    assert not [name_of(path) for path in outside if imported(path) & OPENING]
    assert {name_of(path) for path in outside if imported(path) & DERIVING} == MAY_DERIVE_KEYS


def test_only_learning_imports_flower_and_torch() -> None:
    """Nothing but `learning` pulls in Flower or PyTorch."""
    elsewhere = {
        name_of(path)
        for path in modules("consent", "node", "federation", "ops")
        if {name.split(".")[0] for name in imported(path)} & LEARNING_ONLY
    }

    assert not elsewhere


def test_no_other_distribution_owns_our_names() -> None:
    """No installed distribution but ours ships a top-level package with one of our five names."""
    owners = {
        (name, distribution.metadata["Name"])
        for distribution in distributions()
        if distribution.metadata["Name"] != "accord-imaging"
        for file in distribution.files or ()
        for name in FLOORS
        if file.parts[0] == name and file.suffix == ".py"
    }

    assert not owners


def test_no_file_is_named_for_nothing() -> None:
    """No `utils`, `helpers`, `manager` or `common`: if a function has no home, a noun is missing."""
    bad = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc"}

    assert not [name_of(path) for path in modules(*FLOORS) if path.stem in bad]


def test_floors_import_without_the_learning_extra() -> None:
    """Importing the lower floors and ops loads neither Flower nor PyTorch."""
    import subprocess

    program = "import consent.decision, node.gateway, federation.leases, ops.compose, sys; " + (
        "sys.exit(any(name in sys.modules for name in ('flwr', 'torch')))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, timeout=60)

    assert result.returncode == 0
