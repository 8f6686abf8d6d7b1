"""Looks into a node's folder after its process has ended: every instance, every log entry, through the node's own parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from consent.errors import AccordError, NotFound
from consent.vocabulary import Action, EventKind
from node.audit.log import Entry, Log
from ops.compose import Node, build_node
from ops.foundation import opened
from tests.faults.slices import Truth, study_uid
from tests.support.served import CHIEF


@dataclass
class Findings:
    """What is wrong with a folder, and how much was looked at."""

    read: int = 0
    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    unlogged: list[str] = field(default_factory=list)
    log_entries: int = 0
    log_faults: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        return not (self.lost or self.corrupt or self.unlogged or self.log_faults)


async def examine(folder: Path, truth: Truth) -> Findings:
    """Read every stored instance of the studies in `truth`, and verify the log."""
    async with opened(folder) as foundation:
        node = await build_node(foundation)
        async with node.archive.running():
            findings = Findings()
            logged = await _logged(node)
            chief = await foundation.registry.principal(CHIEF)
            stored: dict[str, bytes] = {}
            for study in sorted(truth.numbers):
                name = foundation.pseudonyms.study(study_uid(study))
                try:
                    opening = await node.gateway.open(chief, name, action=Action.DOWNLOAD)
                    rows = await node.gateway.rows(opening)
                except NotFound:
                    continue
                if logged[name] != len(rows):
                    findings.unlogged.append(f"{name}: {len(rows)} stored, {logged[name]} in the log")
                for row in rows:
                    try:
                        data = (await node.gateway.instance(opening, row.sop_instance_uid)).data
                        stored[row.sop_instance_uid] = sha256(data).digest()
                    except AccordError as error:
                        findings.corrupt.append(f"{row.sop_instance_uid}: {error}")
                await node.gateway.close_opening(opening)
            verified = await foundation.log.verify()
            await node.gateway.close()
        await node.renderer.close()
    findings.read = len(stored)
    findings.log_entries, findings.log_faults = verified.size, verified.faults
    findings.lost = sorted(truth.acknowledged - stored.keys())
    findings.corrupt += [uid for uid, digest in stored.items() if truth.sent[uid][1] != digest]
    return findings


async def all_entries(folder: Path) -> list[Entry]:
    """Every log entry, oldest first. The node may be running."""
    async with opened(folder) as foundation:
        return [entry async for entry in _entries(foundation.log)]


async def _entries(log: Log) -> AsyncIterator[Entry]:
    after = -1
    while batch := await log.entries(after, 1000):
        for entry in batch:
            yield entry
        after = batch[-1].index


async def _logged(node: Node) -> Counter[str]:
    """Instances that the log says were stored, by study."""
    counts: Counter[str] = Counter()
    async for entry in _entries(node.foundation.log):
        if entry.event.kind is EventKind.INSTANCES_STORED and entry.event.study:
            counts[entry.event.study] += int(entry.event.detail["instances"])  # type: ignore[call-overload]
    return counts
