"""Grants over a study that got another grade end: its copies elsewhere were sealed under a key that is destroyed.

Learnt from the log, as everything that happens on the floor below: each entry `StudyRegraded` ends the study's living grants once,
on record, and their holders are told. Who still needs the study asks again and gets it as it is now.
"""

from __future__ import annotations

from sqlalchemy import select

from consent.vocabulary import EventKind
from federation.grants import REVOKED
from federation.notices import GrantState, Notices, issued_grant
from node.audit.following import news, settle
from node.audit.log import Log
from node.database import Database
from node.records import Records

READER = "regraded-grants"
ACTOR = "job:grants"
WORDS = "The study was given another grade; its copy opens no more. Ask for it again."


class Regraded:
    """Follows the log for the home hospital."""

    def __init__(self, *, database: Database, log: Log, records: Records, notices: Notices) -> None:
        self._database = database
        self._log = log
        self._records = records
        self._notices = notices

    async def follow(self) -> int:
        """A duty: end what must end; return how many grants. Raises Conflict when another process was faster."""
        read = await news(self._log, READER, {EventKind.STUDY_REGRADED})
        if not read.worth_settling:
            return 0
        studies = {entry.event.study for entry in read.entries}
        living = select(issued_grant).where(
            issued_grant.c.study.in_(studies), issued_grant.c.state == GrantState.ALIVE
        )
        ended: list[str] = []
        async with self._database.write() as tx:
            for row in (await tx.execute(living)).all():
                if await self._notices.end(tx, row, WORDS, ACTOR):
                    await self._records.mark(tx, row.id, REVOKED)
                    ended.append(row.id)
            await settle(self._log, tx, read)
        for grant_id in ended:
            await self._notices.notify(grant_id)
        return len(ended)
