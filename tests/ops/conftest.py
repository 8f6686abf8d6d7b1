"""A node's folder made once by `accord init`, and a fresh copy of it for every test that asks."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.support.cli import Said, accord, logs_kept
from tests.support.custodies import hurry


@pytest.fixture(scope="package", autouse=True)
def quiet_logs() -> Iterator[None]:
    """As `ops.cli.main` does for commands: what the parts log is not on standard output."""
    with logs_kept():
        structlog.configure(
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
            wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
            cache_logger_on_first_use=False,
        )
        yield


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory, quiet_logs: None) -> tuple[Path, Said]:
    """The folder as `accord init` left it but for a keystore that opens quickly, and what that said. No test changes it."""
    folder = tmp_path_factory.mktemp("made") / "accord"
    said = accord("init", folder, "--name", "General Hospital", "--ae-title", "GENERAL", stdin="")
    assert said.code == 0, said.err
    hurry(folder)
    return folder, said


@pytest.fixture
def folder(made: tuple[Path, Said], tmp_path: Path) -> Path:
    """A copy to work on."""
    copy = tmp_path / "accord"
    shutil.copytree(made[0], copy)
    return copy
