"""Copies that this hospital holds of other hospitals' studies: taken under a grant, obeying it, and shredded with it.

The life of a held grant (`held` has its table): granted → held → ended → shredded. A grant ends when its home says so,
when it has run out, or when its home or this hospital is suspended; then its keys are forgotten, the copy is overwritten
and removed (unless another living grant keeps it), and a signed receipt goes to the home until it has been taken.
Fetching and verifying the pack is `fetching`, its end `shredding`; keys are `leased_keys`. Decisions are the gateway's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import insert, select, update

from consent.decision import Deny, Facts
from consent.directives import Directive
from consent.errors import AccordError, Conflict, Denied, Invalid, Sentence, Sentences
from consent.grants import Grant, alive
from consent.principals import Principal
from consent.signed import Signed, verify
from consent.vocabulary import EventKind, Purpose
from federation.asking import Asking
from federation.client import PeerClient
from federation.fields import RECORD_ID, read_object
from federation.held import (
    LIVING,
    HeldState,
    HeldStudy,
    held_grant,
    held_row,
    living_rows,
    received_event,
)
from federation.members import Members
from federation.protocol import MAX_GRANTS_ASKED, PREFIX, GrantEnded, Json
from federation.roster import Member
from federation.shredding import Shredding, each
from node.audit.event import Event
from node.audit.log import Log
from node.clock import Clock
from node.database import Database, Tx
from node.identity import Identity
from node.records import Records
from node.vault.blobs import FileBlobs
from node.vault.manifest import Manifest

__all__ = ["LIVING", "HeldState", "HeldStudy", "Holdings"]

logger = structlog.get_logger()

MAX_LISTED = 500


class Holdings:
    """What is held here. Packs lie in `root/<home>`, one blob store for each home."""

    def __init__(
        self,
        *,
        root: Path,
        database: Database,
        log: Log,
        clock: Clock,
        identity: Identity,
        members: Members,
        client: PeerClient,
        records: Records,
        asking: Asking,
    ) -> None:
        self._root = root
        self._database = database
        self._log = log
        self._clock = clock
        self._identity = identity
        self._members = members
        self._client = client
        self._records = records
        self._asking = asking
        self._on_end: list[Callable[[str], None]] = []
        self.shredding = Shredding(
            root=root,
            database=database,
            log=log,
            clock=clock,
            identity=identity,
            client=client,
            records=records,
        )

    def on_end(self, forget: Callable[[str], None]) -> None:
        """Have `forget(grant id)` called at the moment a grant ends here."""
        self._on_end.append(forget)

    def incoming(self, home: str) -> FileBlobs:
        """Where packs lie that have not all come, or were not verified yet: nothing there counts."""
        return FileBlobs(self.blobs(home).root / "incoming")

    def blobs(self, home: str) -> FileBlobs:
        """Where the packs of one home lie. Raises Denied for anything but a listed member: it becomes a folder."""
        if home not in self._members.current().by_id:
            raise Denied(Sentence("%(home)s is not in the roster.", home=repr(home)), code="peer-unlisted")
        return FileBlobs(self._root / home)

    async def receive(self, member: Member, body: Json, address: str | None) -> str:
        """Take a grant that answers a request of ours, with the consent it rests on; return its id.

        Raises Invalid, Corrupt or Denied when either is not what it must be. Repeating it changes nothing.
        """
        read = read_object(body, "grant")
        now = self._clock.now()
        keys_of = self._members.keys_of
        grant = verify(read.text("grant", limit=64 * 1024), Grant, keys_of=keys_of, now=now)
        consent = verify(read.text("consent", limit=512 * 1024), Directive, keys_of=keys_of, now=now)
        request_id = read.matching("request", RECORD_ID)
        self._check(member, grant, consent)
        person, home = await self._asking.asker(request_id)
        if home != member.id or not grant.body.names(person):
            raise Denied("Nobody here asked for this grant.", code="not-asked")
        async with self._database.write() as tx:
            known = (
                await tx.execute(select(held_grant.c.request).where(held_grant.c.id == grant.id))
            ).first()
            if known is None:
                await self._keep(tx, member, grant, consent, request_id, person, address)
        # Also when it was known: the first time may have been cut short here.
        await self._asking.granted(known.request if known else request_id, grant.id)
        return grant.id

    async def _keep(
        self,
        tx: Tx,
        member: Member,
        grant: Signed[Grant],
        consent: Signed[Directive],
        request_id: str,
        person: str,
        address: str | None,
    ) -> None:
        await self._records.keep(tx, consent, subjects=[_subject(consent.issuer, consent.body.patient)])
        await self._records.keep(tx, grant, subjects=[_subject(member.id, grant.body.study)])
        await tx.execute(
            insert(held_grant).values(
                id=grant.id,
                home=member.id,
                study=grant.body.study,
                person=person,
                request=request_id,
                state=HeldState.GRANTED,
                received=self._clock.now(),
                expires=grant.expires,
                size_bytes=0,
                faults=0,
                words="",
            )
        )
        await self._log.append(tx, received_event(member, grant, address))

    async def told_ended(self, member: Member, token: str) -> None:
        """Take the home's word that one of its grants has ended, and act on it at once."""
        notice = verify(token, GrantEnded, keys_of=self._members.keys_of, now=self._clock.now())
        if notice.issuer != member.id or notice.body.holder != self._identity.node_id:
            raise Denied("This notice is not for this hospital.", code="wrong-party")
        row = await held_row(self._database, notice.body.grant)
        if row.home != member.id:
            raise Denied("This grant is not yours.", code="wrong-party")
        await self.end(row.id, notice.body.reason)

    async def held(self, who: Principal) -> tuple[HeldStudy, ...]:
        """What is shared with this person, the latest end first; what ended lately stays in the list."""
        query = select(held_grant).order_by(held_grant.c.expires.desc()).limit(MAX_LISTED)
        async with self._database.read() as tx:
            rows = (await tx.execute(query.where(held_grant.c.person == who.id))).all()
        return tuple([await self._read(row) for row in rows])

    async def one(self, grant_id: str) -> HeldStudy:
        """One held grant. Raises NotFound."""
        return await self._read(await held_row(self._database, grant_id))

    async def grant(self, grant_id: str) -> Signed[Grant]:
        """The signed grant. Raises NotFound."""
        await held_row(self._database, grant_id)
        return await self._records.get(grant_id, Grant)

    async def manifest(self, grant: Signed[Grant]) -> Manifest:
        """The home's signed list of what the grant covers, once it has been fetched."""
        return (await self._records.by_digest(grant.body.manifest, Manifest)).body

    async def facts(self, home: str, study: str) -> Facts:
        """What `decide` must know about a study of another hospital, as of now: for the gateway."""
        rows = await living_rows(self._database, home, study)
        living = [await self._records.get(row.id, Grant) for row in rows]
        patients = dict.fromkeys(grant.body.patient for grant in living)
        directives: list[Signed[Directive]] = []
        for patient in patients:
            directives += await self._records.find(Directive, subject=_subject(home, patient))
        active = self._members.is_active(home) and self._members.is_active(self._identity.node_id)
        return Facts(grants=tuple(living), directives=tuple(directives), member_active=active)

    async def ended(self, home: str, study: str, who: Principal) -> str:
        """With which words the last grant for this person ended; "" when there was none, or one lives: for the gateway."""
        query = select(held_grant.c.state, held_grant.c.words).where(
            held_grant.c.home == home, held_grant.c.study == study, held_grant.c.person == who.id
        )
        async with self._database.read() as tx:
            rows = (await tx.execute(query.order_by(held_grant.c.expires.desc()).limit(MAX_LISTED))).all()
        if not rows or any(HeldState(row.state) in LIVING for row in rows):
            return ""
        return str(rows[0].words) or "The grant has ended."

    async def usable(self, home: str, study: str, login: str, purpose: Purpose) -> Signed[Grant]:
        """The held grant under which this person may ask for a lease now, the longest. Raises Denied."""
        now = self._clock.now()
        facts = await self.facts(home, study)
        fitting = [
            grant
            for grant in facts.grants
            if grant.body.names(login)
            and grant.body.purpose is purpose
            and alive(grant, facts.directives, facts.revoked, now).permitted
        ]
        if not fitting or not facts.member_active:
            raise Denied(
                "No grant of the home hospital lets you open this study now.",
                reasons=("No grant of the home hospital lets you open this study now.",),
                mend="Ask the home hospital again.",
                code="no-grant",
            )
        return max(fitting, key=lambda grant: (grant.expires is not None, grant.expires))

    async def sweep(self) -> None:
        """A job: end what must end, shred what has ended, send receipts. An away home delays no other."""
        async with self._database.read() as tx:
            rows = (await tx.execute(select(held_grant).where(held_grant.c.state.in_(LIVING)))).all()
        by_home: dict[str, list[str]] = {}
        for row in rows:
            if words := await self._over_or_unreadable(row):
                await each(row.id, self._write_end(row.id, words))
            else:
                by_home.setdefault(row.home, []).append(row.id)
        for home, grants in by_home.items():
            for start in range(0, len(grants), MAX_GRANTS_ASKED):
                await self._ask_states(home, grants[start : start + MAX_GRANTS_ASKED])
        await self.shredding.sweep()

    async def end(self, grant_id: str, words: str) -> None:
        """End a grant here: keys forgotten, copy shredded, receipt on its way. Repeating it changes nothing."""
        await self._write_end(grant_id, words)
        await self.shredding.finish(grant_id)

    async def _write_end(self, grant_id: str, words: str) -> None:
        """Keys forgotten, and the end written down; the copy is `shredding`'s to remove."""
        async with self._database.write() as tx:
            await tx.execute(
                update(held_grant)
                .where(held_grant.c.id == grant_id, held_grant.c.state.in_(LIVING))
                .values(state=HeldState.ENDED, words=words[:500])
            )
        for forget in self._on_end:
            forget(grant_id)

    async def require_living(self, grant_id: str) -> HeldState:
        """How a grant stands; ask within the turn. Raises NotFound, or Conflict when it has ended."""
        state = HeldState((await held_row(self._database, grant_id)).state)
        if state not in LIVING:
            raise Conflict("This grant has ended.", mend="Ask the home hospital again.", code="grant-ended")
        return state

    async def fetched(self, grant: Signed[Grant], manifest: Signed[Manifest]) -> None:
        """The pack of a grant has come, was verified, and lies in its place."""
        body = manifest.body
        async with self._database.write() as tx:
            await self._records.keep(tx, manifest, subjects=[_subject(body.home, body.study)])
            # The size also of a grant that ended meanwhile: its receipt must say that a copy was here.
            this = update(held_grant).where(held_grant.c.id == grant.id)
            await tx.execute(this.values(size_bytes=body.size))
            await tx.execute(
                this.where(held_grant.c.state == HeldState.GRANTED).values(state=HeldState.HELD, words="")
            )
            await self._log.append(
                tx,
                Event(
                    EventKind.PACK_HELD,
                    "system",
                    study=body.study,
                    purpose=grant.body.purpose,
                    detail={
                        "grant": grant.id,
                        "home": body.home,
                        "manifest": manifest.digest,
                        "objects": len(body.objects),
                        "size_bytes": body.size,
                    },
                ),
            )

    async def failed(self, grant_id: str, words: str, *, fault: bool) -> None:
        """Fetching did not end well; `fault` counts what was damaged or forged."""
        async with self._database.write() as tx:
            await tx.execute(
                update(held_grant)
                .where(held_grant.c.id == grant_id, held_grant.c.state == HeldState.GRANTED)
                .values(words=words[:500], faults=held_grant.c.faults + int(fault))
            )

    async def waiting(self, max_faults: int) -> tuple[str, ...]:
        """The grants whose pack is still to be fetched, and did not fail too often."""
        query = select(held_grant.c.id).where(
            held_grant.c.state == HeldState.GRANTED, held_grant.c.faults < max_faults
        )
        async with self._database.read() as tx:
            return tuple(str(row.id) for row in await tx.execute(query))

    def _check(self, home: Member, grant: Signed[Grant], consent: Signed[Directive]) -> None:
        body = grant.body
        if grant.issuer != home.id or body.home != home.id or body.recipient != self._identity.node_id:
            raise Denied("This grant is another hospital's, or for another one.", code="wrong-party")
        if body.holder_key != self._members.member(self._identity.node_id).hpke_thumbprint:
            raise Denied("This grant is for another key than this hospital's.", code="holder-key")
        if consent.issuer != home.id or consent.digest != body.consent:
            raise Invalid("The consent is not the one that the grant rests on.", code="wrong-consent")
        verdict = alive(grant, (consent,), frozenset(), self._clock.now())
        if isinstance(verdict, Deny):
            raise Denied(Sentences(verdict.reasons), reasons=verdict.reasons, code="grant-dead")

    async def _over(self, row: Any) -> str:
        """Why a living grant must end without asking its home; empty when it need not."""
        if self._members.is_suspended(row.home):
            return f"{row.home} is suspended."
        if self._members.is_suspended(self._identity.node_id):
            return "This hospital is suspended."
        grant = await self._records.get(row.id, Grant)
        known = await self._records.find(Directive, subject=_subject(row.home, grant.body.patient))
        verdict = alive(grant, known, frozenset(), self._clock.now())
        return "" if verdict.permitted else " ".join(verdict.reasons)

    async def _over_or_unreadable(self, row: Any) -> str:
        """As `_over`; a grant whose record or consent is damaged opens nothing, and ends at the latest when it would."""
        try:
            return await self._over(row)
        except AccordError as error:
            await self.shredding.tell_unreadable(row, error)
            return "The grant has run out." if row.expires <= self._clock.now() else ""

    async def _ask_states(self, home: str, grants: list[str]) -> None:
        try:
            answer = await self._client.post(home, f"{PREFIX}/grants/states", {"ids": grants})
        except AccordError:
            return  # the home does not answer: the lease runs out by itself, and expiry is known here
        for grant_id in grants:
            await each(grant_id, self._take_state(grant_id, answer.get(grant_id)))

    async def _take_state(self, grant_id: str, answer: object) -> None:
        state = read_object(answer, "grant's state")
        if not state.flag("alive"):
            await self.end(grant_id, state.text("words", limit=500, empty=True) or "The grant has ended.")

    async def _read(self, row: Any) -> HeldStudy:
        grant = await self._records.get(row.id, Grant)
        return HeldStudy(
            row.id,
            row.home,
            row.study,
            row.person,
            row.request,
            HeldState(row.state),
            grant.body.purpose,
            tuple(sorted(grant.body.rights)),
            row.expires,
            row.size_bytes,
            row.words,
        )


def _subject(home: str, name: str) -> str:
    # Another hospital's pseudonyms live in a name space of their own.
    return f"{home}/{name}"
