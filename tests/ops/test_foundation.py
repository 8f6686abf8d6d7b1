"""A node's folder: nobody but its owner can read it, wherever it was made."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.config import NodeSection, Settings
from ops.foundation import create_folder


@pytest.mark.requirement("V1")
def test_a_folder_that_was_open_to_all_is_closed(tmp_path: Path) -> None:
    """`init` into a folder that was there closes it to others before anything is written."""
    folder = tmp_path / "node"
    folder.mkdir(mode=0o755)
    create_folder(Settings(node=NodeSection(id="a-general", name="A", ae_title="A"), folder=folder))

    assert folder.stat().st_mode & 0o077 == 0
