"""A rotation's rewrapping: study keys in a real database, under a real key ring, beside somebody else's transactions.

No server takes part: it is the node's own work, and no other archive has the like. CPU seconds are those of the process,
all threads; what others waited for the database meanwhile is measured with small transactions of theirs.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import insert, text

import node.schema  # noqa: F401  (its tables are made)
from consent.vocabulary import Grade
from node.audit.log import Log
from node.clock import TrustedClock
from node.database import Database
from node.identity import Identity
from node.policies import Policies
from node.rotation import Rotation
from node.vault.custody.keystore import Effort, Keystore
from node.vault.key_tables import vault_study_key
from node.vault.keys import KeyRing
from node.vault.rewrapping import study_context
from node.vault.wrapping import seal_key
from tests.bench.results import Results
from tests.support.databases import database_in

CREDENTIAL = b"a benchmark's credential"
FILL_ROWS = 20_000
GOAL_SECONDS = 90.0
"""For a million."""


def rewrap(folder: Path, results: Results, *, keys: int) -> str:
    """Rotate the ordinary grade over `keys` study keys and rewrap them; return a line in words."""
    return asyncio.run(_rewrap(folder, results, keys))


async def _rewrap(folder: Path, results: Results, count: int) -> str:
    database, clock = database_in(folder / "rewrap.db"), TrustedClock()
    custody = Keystore.create(folder / "keystore.json", CREDENTIAL, effort=Effort(1, 8192))
    ring = KeyRing(custody, database, clock)
    identity = await Identity.load_or_create(ring.secret, "bench", "Benchmark")
    log = Log(
        database,
        key=await ring.secret("audit"),
        origin=identity.origin,
        signer=identity.log_signer,
        clock=clock,
    )
    rotation = Rotation(ring, database, log, Policies(), clock)
    await ring.study_key(None, "st_first", Grade.ORDINARY, create=True)
    await _fill(database, ring, clock, count - 1)
    await rotation.rotate(Grade.ORDINARY, "system")
    waits: list[float] = []
    others = asyncio.create_task(_others(database, waits))
    wall, cpu = time.monotonic(), time.process_time()
    done = await rotation.rewrap()
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    others.cancel()
    (grade,) = (await ring.status()).grades
    assert (done.moved, grade.behind, grade.study_keys, len(grade.versions)) == (count, 0, count, 1), done
    await log.close()
    await database.close()
    results.add(f"rewrap {count:,} study keys", "Accord", "s", wall, cpu_seconds=cpu)
    waits.sort()
    return (
        f"Rewrapped {count:,} study keys in {wall:.1f} s, {cpu:.1f} CPU s "
        f"(goal: {GOAL_SECONDS * count / 1e6:.0f} s); meanwhile others' transactions took "
        f"{waits[len(waits) // 2] * 1000:.0f} ms at the median, {waits[round(0.95 * (len(waits) - 1))] * 1000:.0f} ms at p95."
    )


async def _fill(database: Database, ring: KeyRing, clock: TrustedClock, count: int) -> None:
    async with database.read() as tx:
        kek: AESGCM = await ring._keks.opened(tx, Grade.ORDINARY, 1)
    now = clock.now()
    for start in range(0, count, FILL_ROWS):
        rows = []
        for number in range(start, min(start + FILL_ROWS, count)):
            study = f"st_{os.urandom(13).hex()}"
            wrapped = seal_key(kek, os.urandom(32), study_context(study, Grade.ORDINARY, 1))
            rows.append({"study": study, "grade": 1, "kek_version": 1, "wrapped": wrapped, "created": now})
        async with database.write() as tx:
            await tx.execute(insert(vault_study_key), rows)


async def _others(database: Database, waits: list[float]) -> None:
    """What an ingest or a sign-in does meanwhile: a small durable transaction, twenty times a second."""
    while True:
        began = time.monotonic()
        async with database.write() as tx:
            await tx.execute(text("UPDATE vault_secret SET created = created + 1 WHERE name = 'audit'"))
        waits.append(time.monotonic() - began)
        await asyncio.sleep(0.05)
