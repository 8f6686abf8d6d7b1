"""What node.toml says of the policy: tighter than the region's is in force, looser is refused at the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from consent.errors import Denied
from node.config import new_settings
from ops.foundation import create_folder, opened


def make(folder: Path, **policy: float) -> Path:
    node = {"id": "a-general", "name": "General Hospital", "ae_title": "GENERAL"}
    create_folder(new_settings(folder, node=node, policy=policy))
    return folder


async def test_a_hospital_may_tighten_its_numbers(tmp_path: Path) -> None:
    """Shorter leases and shorter grants hold from the start."""
    async with opened(make(tmp_path / "a", lease_seconds=60.0, grant_default_hours=8.0)) as node:
        assert node.policies.parameters.lease_seconds == 60
        assert node.policies.parameters.grant_default_hours == 8


async def test_a_hospital_may_not_loosen_them(tmp_path: Path) -> None:
    """A longer usual grant than the region's does not open; the error names the number."""
    with pytest.raises(Denied, match="grant_default_hours"):
        async with opened(make(tmp_path / "a", grant_default_hours=48.0)):
            pass
