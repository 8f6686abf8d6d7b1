"""The work that a fault falls into, on the parts of a small node, and the archive that it is done to."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from consent.vocabulary import Grade
from tests.faults.inspection import regrading_of, rotation_of
from tests.faults.slices import slice_of
from tests.support.node import NodeFixture

SIDE = 32
FEW_KEYS = 3
Work = Callable[[NodeFixture, str], Coroutine[Any, Any, None]]


async def compact(node: NodeFixture, study: str) -> None:
    assert await node.compaction.compact(study, "system") is not None


async def regrade(node: NodeFixture, study: str) -> None:
    """To the other one of two grades."""
    present = (await node.index.study(study)).grade
    grade = Grade.SENSITIVE if present is Grade.ORDINARY else Grade.ORDINARY
    await regrading_of(node).regrade(study, grade, "system")


async def rotate(node: NodeFixture, study: str) -> None:
    """Another version for the grade of the study, and every study key under it, a few in one transaction."""
    rotation = rotation_of(node)
    grade = (await node.index.study(study)).grade
    version = await rotation.rotate(grade, "system")
    await rotation.rewrap(batch=FEW_KEYS)
    (status,) = [one for one in (await node.keys.status()).grades if one.grade is grade]
    assert [one.version for one in status.versions] == [version]


@dataclass
class Archive:
    """Studies that are written anew, and what was acknowledged of them."""

    kept: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    async def store(self, node: NodeFixture, study: int) -> str:
        instance = slice_of(study, len(self.kept) + 1, SIDE)
        (receipt,) = await node.store(instance)
        self.kept[instance.sop_instance_uid] = (study, sha256(instance.data).digest())
        return receipt.study

    def of(self, *studies: int) -> dict[str, tuple[int, bytes]]:
        """What was acknowledged of these."""
        return {uid: one for uid, one in self.kept.items() if one[0] in studies}
