"""A study that gets another grade at home: its grants end, its copies open no more, and it can be asked for again."""

from __future__ import annotations

from pathlib import Path

import pytest

from consent.errors import AccordError
from consent.vocabulary import EventKind, Grade
from federation.held import HeldState
from federation.notices import GrantState
from federation.regraded import Regraded
from node.regrading import Regrading
from tests.support.region import region


@pytest.mark.requirement("V1", "E4")
async def test_a_new_grade_ends_the_studys_grants_and_no_other(tmp_path: Path) -> None:
    """The holder shreds its copy on being told; the log says why; other studies' grants live on; a new one can be had."""
    async with region(tmp_path, nodes=("a-general", "b-central")) as r:
        first, other = await r.share(), await r.share()
        node = r.a.node
        regrading = Regrading(
            vault=node.vault, blobs=node.blobs, keys=node.keys, index=node.index, ingest=node.ingest,
            log=node.log, database=node.database, clock=node.clock,
        )  # fmt: skip
        following = Regraded(database=node.database, log=node.log, records=node.records, notices=r.a.notices)
        assert await following.follow() == 0
        await regrading.regrade(first.grant.body.study, Grade.SENSITIVE, "person:officer@a-general")
        assert await following.follow() == 1
        assert await following.follow() == 0
        (one,) = [one for one in await r.a.grants.issued(first.owner) if one.id == first.grant.id]
        assert one.state is not GrantState.ALIVE and "another grade" in one.words
        assert (await r.b.holdings.one(first.grant.id)).state is HeldState.SHREDDED
        assert (await r.b.holdings.one(other.grant.id)).state is HeldState.HELD
        (revoked,) = await r.a.log.search(kind=EventKind.GRANT_REVOKED)
        assert (revoked.event.actor, revoked.event.study) == ("job:grants", first.grant.body.study)
        with pytest.raises(AccordError):
            await r.b.node.gateway.open(first.asker, first.grant.body.study, home="a-general")
