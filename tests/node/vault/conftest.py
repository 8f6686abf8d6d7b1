"""A real vault in a folder of its own: keystore, database, key ring, packs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.database import Database
from node.vault.blobs import FileBlobs
from node.vault.custody.keystore import Keystore
from node.vault.keys import KeyRing
from node.vault.reader import Reader
from node.vault.vault import Vault
from tests.support.clock import FakeClock
from tests.support.custodies import QUICK
from tests.support.databases import database_in

CREDENTIAL = b"correct horse battery staple"
STUDY = "st_" + "a" * 26


@dataclass
class Rig:
    folder: Path
    database: Database
    clock: FakeClock
    keys: KeyRing
    blobs: FileBlobs
    vault: Vault
    reader: Reader

    def fresh_ring(self) -> KeyRing:
        """The same keys as after a restart: nothing cached."""
        return KeyRing(Keystore.open(self.folder / "keystore", CREDENTIAL), self.database, self.clock)

    def pack(self, study: str = STUDY) -> Path:
        return self.blobs.root / study[-2:] / f"{study}.pack"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    database = database_in(tmp_path / "node.db")
    clock = FakeClock()
    keystore = Keystore.create(tmp_path / "keystore", CREDENTIAL, effort=QUICK)
    keys = KeyRing(keystore, database, clock)
    blobs = FileBlobs(tmp_path / "packs")
    vault = Vault(blobs, keys, clock)
    yield Rig(tmp_path, database, clock, keys, blobs, vault, Reader(blobs))
    await vault.close()
    await database.close()
