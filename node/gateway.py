"""The one way out: facts → decide → record → open a view or release sealed bytes.

Whoever shows, sends or trains on an image asks here. Nothing is returned before the rules have said yes with facts
as of now, the deed is durable in the log, and the bytes were proved to be those that arrived. Obligations are
carried out here: the watermark is burned in, ends are kept, emergencies are told.

This is the only module that reads the vault. Leaves rules to `consent`, bytes to `shelves`, pictures to `imaging`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from time import monotonic
from typing import TypeVar

import structlog

from consent.decision import Request, Resource, Verdict, decide
from consent.emergency import EmergencyClaim
from consent.errors import AccordError, Corrupt, Denied, Invalid, NotFound
from consent.obligations import Deidentify, Watermark
from consent.principals import Principal
from consent.refusals import IMAGES, NOTHING_PERMITS
from consent.signed import Signed
from consent.verdict import Deny, Permit
from consent.vocabulary import Action, EventKind, Grade, Purpose, ResourceKind
from node import deeds
from node.access.care import Care
from node.audit.log import Event, Log
from node.clearance import OPENINGS, RELEASES, Clearance
from node.clock import Clock
from node.descriptions import Descriptions, bulk_path, joined, model_line
from node.facts import FactFinder
from node.identity import Identity
from node.imaging.deidentify import DeidentifiedInstance
from node.imaging.frames import element_value, encapsulated_frame, native_range
from node.imaging.rendering import Renderer
from node.imaging.watermark import WatermarkText
from node.index import Index, InstanceRow, Level, Match, Page, Query, SeriesRow
from node.index.query import is_wild
from node.openings import Contents, InstanceBytes, InstanceView, Opening, Rendered, SeriesView, Visit
from node.policies import Policies
from node.records import Records
from node.shelves import Archive, Copies, HeldCopies, ObjectKeys, Shelf, stored_object
from node.sight import Sight
from node.vault.blobs import BlobStore
from node.vault.keys import KeyRing, object_key
from node.vault.manifest import Manifest
from node.vault.reader import Reader
from node.vault.vault import METADATA

__all__ = ["Gateway", "InstanceBytes", "InstanceView", "ObjectKeys", "Opening", "Rendered", "SeriesView"]

V = TypeVar("V")
logger = structlog.get_logger()

IDLE = timedelta(minutes=30)
"""An opening that shows nothing for so long is over."""
FACTS_LAST_SECONDS = 1.0
"""How long facts serve one opening while it streams; a rendered frame always asks anew."""
MAX_VISITS = 20_000
MAX_SIGHTS = 256
MAX_WHOLE_BYTES = 64 * 1024 * 1024
"""Data sets up to this size are read at once; larger ones in pieces, twice: to verify, then to send."""
MAX_RENDER_BYTES = 512 * 1024 * 1024
PIECE_BYTES = 4 * 1024 * 1024
MAX_HEAD_BYTES = 8 * 1024 * 1024
READ_AHEAD = 3
MAX_METADATA_INSTANCES = 20_000
MEDIA_TYPES = {"webp": "image/webp", "jpeg": "image/jpeg", "png": "image/png"}


_Use = tuple[Principal, str, Action, Purpose, str | None, str, str | None]


class Gateway:
    """Everything that leaves one node. `close` writes the last summaries."""

    def __init__(
        self,
        *,
        identity: Identity,
        policies: Policies,
        blobs: BlobStore,
        keys: KeyRing,
        index: Index,
        log: Log,
        care: Care,
        records: Records,
        renderer: Renderer,
        descriptions: Descriptions,
        clock: Clock,
    ) -> None:
        self._identity = identity
        self._policies = policies
        self._keys = keys
        self._index = index
        self._log = log
        self._renderer = renderer
        self._descriptions = descriptions
        self._clock = clock
        self._facts = FactFinder(care, records, log)
        self._reader = Reader(blobs)
        self._archive = Archive(identity.node_id, self._reader, keys, index, self._facts)
        self._held: tuple[HeldCopies, ObjectKeys] | None = None
        self._visits: OrderedDict[str, Visit] = OrderedDict()
        self._asked: dict[str, float] = {}
        self._uses: dict[_Use, str] = {}
        self._sights: dict[tuple[Principal, Purpose], tuple[float, Sight]] = {}

    def hold(self, copies: HeldCopies, keys: ObjectKeys) -> None:
        """Let copies of other nodes' studies be opened too, with keys that their homes release."""
        self._held = (copies, keys)

    # Finding

    async def search(
        self, who: Principal, level: Level, query: Query, purpose: Purpose, address: str | None
    ) -> Page:
        """Answer a search with what this person may find. Raises Denied when that can be nothing.

        What they may find is part of the search itself, so totals and pages betray nothing else.
        """
        sight = self._sight(who, purpose)
        # Who may find everybody's studies needs no list of patients.
        patients = frozenset() if sight.sees_all else await self._facts.patients_of(who, self._clock.now())
        if (refusal := sight.refusal()) is not None:
            raise await self._refused(who, Action.SEARCH, purpose, address, refusal)
        page = await self._index.search(query, sight.visible(patients))
        kept = tuple(match for match in page.matches if sight.shows(match, match.patient in patients))
        await self._log.record(
            Event(
                EventKind.STUDIES_SEARCHED,
                who.actor,
                patient=self._patient_asked(query),
                purpose=purpose,
                address=address,
                detail={"level": level.value, "keys": sorted(query.keys), "answers": len(kept)},
            )
        )
        return Page(kept, page.more)

    # Opening

    async def open(
        self,
        who: Principal,
        study: str,
        *,
        action: Action = Action.VIEW,
        purpose: Purpose = Purpose.TREATMENT,
        emergency: EmergencyClaim | None = None,
        address: str | None = None,
        home: str = "",
        session: str | None = None,
    ) -> Opening:
        """Open a study; when this returns, that is on record.

        `action` is to view, to download or to print: permission to do something else with a study, to bring it in or
        to ask for it, opens nothing. Raises NotFound, or Denied with the reasons once the refusal is on record.
        """
        home = "" if home == self._identity.node_id else home
        shelf = self._shelf(home)
        resource = await shelf.resource(study)
        verdict = await self._ask(shelf, who, action, resource, purpose, emergency)
        if action not in IMAGES:
            verdict = Deny((NOTHING_PERMITS,))
        if isinstance(verdict, Permit) and verdict.owes(Deidentify):
            verdict = Deny(("This may only be seen de-identified, which a viewer does not offer.",))
        if isinstance(verdict, Deny):
            raise await self._refused(who, action, purpose, address, verdict, resource, emergency)
        opening = Opening(
            id=secrets.token_hex(16),
            study=study,
            home=home,
            who=who,
            purpose=purpose,
            action=action,
            obligations=verdict.obligations,
            reasons=verdict.reasons,
            expires=verdict.expires,
            session=session,
        )
        now = self._clock.now()
        await self._log.record(deeds.opened(opening, resource, emergency, address))
        self._visits[opening.id] = Visit(opening, resource, emergency, address, verdict, now, now, now)
        self._asked[opening.id] = monotonic()
        await self._make_room()
        return opening

    async def visit(
        self,
        who: Principal,
        study: str,
        *,
        action: Action,
        purpose: Purpose = Purpose.TREATMENT,
        address: str | None = None,
        home: str = "",
        session: str | None = None,
    ) -> Opening:
        """The living opening for the same person, study and use, or a new one: for doors without a viewer's visit."""
        use = (who, study, action, purpose, address, home, session)
        visit = self._visits.get(self._uses.get(use, ""))
        if visit is not None and not self._over(visit):
            return visit.opening
        opening = await self.open(
            who, study, action=action, purpose=purpose, address=address, home=home, session=session
        )
        self._uses[use] = opening.id
        if len(self._uses) > MAX_VISITS:
            self._uses = {use: one for use, one in self._uses.items() if one in self._visits}
        return opening

    async def close_opening(self, opening: Opening) -> None:
        """End an opening and put on record what was seen."""
        visit = self._visits.pop(opening.id, None)
        self._asked.pop(opening.id, None)
        if visit is None:
            return
        if self._held is not None:
            self._held[1].close_opening(opening.id)
        await self._log.record(deeds.closed(visit, self._clock.now()))

    async def sweep(self) -> None:
        """A job: close the openings that have ended or idled too long."""
        for visit in [visit for visit in self._visits.values() if self._over(visit)]:
            await self.close_opening(visit.opening)

    async def close(self) -> None:
        """Close every opening."""
        for visit in list(self._visits.values()):
            await self.close_opening(visit.opening)

    # Looking

    async def series(self, opening: Opening) -> tuple[SeriesView, ...]:
        """The series of an opened study and their instances, in order."""
        visit = await self._still(opening)
        return (await self._contents(visit)).series

    async def rows(
        self, opening: Opening, series_uid: str = "", sop_uid: str = ""
    ) -> tuple[InstanceRow, ...]:
        """The instances of an opened study, one series or one instance of it, in order. Raises NotFound."""
        visit = await self._still(opening)
        if sop_uid:
            row, contents = await self._row(visit, sop_uid)
            found = series_uid in ("", contents.series_of[sop_uid])
            rows: tuple[InstanceRow, ...] = (row,) if found else ()
        else:
            contents = await self._contents(visit)
            rows = tuple(
                contents.instances[instance.uid]
                for series in contents.series
                if series_uid in ("", series.uid)
                for instance in series.instances
            )
        if not rows:
            raise NotFound("There is no such series or instance in this study.")
        return rows

    async def frame(
        self,
        opening: Opening,
        sop_uid: str,
        frame: int = 1,
        *,
        window: tuple[float, float] | None = None,
        size: int | None = None,
        fmt: str = "webp",
    ) -> Rendered:
        """One frame (from 1) as a picture, decided anew, with the watermark burned in where it is owed.

        Raises Denied when it may not be shown any more, Corrupt when it is not what arrived, NotFound, Invalid.
        """
        visit = await self._still(opening, fresh=True)
        media_type = MEDIA_TYPES.get(fmt, fmt)
        row, contents = await self._row(visit, sop_uid)
        if not 1 <= frame <= row.frames:
            raise NotFound(f"There is no frame {frame}; the instance has {row.frames}.")
        if row.size_bytes > MAX_RENDER_BYTES:
            raise Invalid("This instance is too large to be drawn here.", mend="Download it.")
        data = await self._read(visit, row)
        picture = await self._renderer.render(
            data,
            row.transfer_syntax_uid,
            frame,
            window=window,
            size=size,
            media_type=media_type,
            watermark=self._watermark(visit, contents, sop_uid, frame),
        )
        visit.pictures += 1
        visit.seen.add((sop_uid, frame))
        return Rendered(picture, media_type)

    # Taking

    async def instance(self, opening: Opening, sop_uid: str) -> InstanceBytes:
        """A data set as it arrived. The opening must be a DOWNLOAD."""
        visit = await self._taking(opening)
        row, _ = await self._row(visit, sop_uid)
        if row.size_bytes > MAX_RENDER_BYTES:
            raise Invalid("This instance is too large to be handed over at once.", mend="Stream it.")
        data = await self._read(visit, row)
        self._count(visit, row)
        return InstanceBytes(data, row.sop_class_uid, sop_uid, row.transfer_syntax_uid)

    async def stream(
        self, opening: Opening, rows: Sequence[InstanceRow]
    ) -> AsyncGenerator[tuple[InstanceRow, AsyncIterator[bytes]], None]:
        """Data sets one after the other, each in pieces that were verified; the next are read meanwhile.

        Decides again as it goes. A failure ends the stream: what was sent before was good.
        """
        waiting: deque[tuple[InstanceRow, asyncio.Task[bytes] | None]] = deque()
        left = deque(rows)
        try:
            while left or waiting:
                while left and len(waiting) < READ_AHEAD:
                    row = left.popleft()
                    whole = row.size_bytes <= MAX_WHOLE_BYTES
                    visit = await self._taking(opening)
                    task = asyncio.create_task(self._read(visit, row)) if whole else None
                    waiting.append((row, task))
                row, task = waiting.popleft()
                visit = await self._taking(opening)
                yield row, self._pieces(visit, row) if task is None else _single(await task)
                self._count(visit, row)
        finally:
            for _, task in waiting:
                if task is not None:
                    task.cancel()
            await asyncio.gather(*(task for _, task in waiting if task), return_exceptions=True)

    async def stored_frames(self, opening: Opening, sop_uid: str, numbers: Iterable[int]) -> list[bytes]:
        """Frames as they are stored, not decoded. The opening must be a DOWNLOAD.

        At the first touch the whole instance is verified; after that the chunks that hold the frame are.
        """
        visit = await self._taking(opening)
        row, _ = await self._row(visit, sop_uid)
        if row.pixel is None:
            raise Invalid("This instance has no pixels that can be cut out.", mend="Retrieve the instance.")
        first = (sop_uid, 0) not in visit.seen
        if first or row.pixel["encapsulated"]:
            data = await self._read(visit, row)
            visit.seen.add((sop_uid, 0))
            frames = [_cut(data, row, number) for number in numbers]
        else:
            places = [
                native_range(row.pixel, row.rows, row.columns, row.frames, number) for number in numbers
            ]
            frames = [await self._read_range(visit, row, *place) for place in places]
        visit.pictures += len(frames)
        visit.sent_bytes += sum(map(len, frames))
        return frames

    async def bulk(self, opening: Opening, sop_uid: str, tag: str) -> bytes:
        """The value of one top-level element, as stored. The opening must be a DOWNLOAD. Raises NotFound, Invalid."""
        visit = await self._taking(opening)
        row, _ = await self._row(visit, sop_uid)
        if row.size_bytes > MAX_RENDER_BYTES:
            raise Invalid("This instance is too large for this.", mend="Retrieve it.")
        value = element_value(await self._read(visit, row), row.transfer_syntax_uid, int(tag, 16))
        visit.sent_bytes += len(value)
        return value

    async def metadata(self, opening: Opening, series_uid: str = "", sop_uid: str = "") -> bytes:
        """DICOM JSON of a study, a series or an instance as one array; BulkDataURIs begin behind `studies/`."""
        visit = await self._still(opening)
        if opening.home or sop_uid:
            rows = await self.rows(opening, series_uid, sop_uid)
            return joined((await self._lines(visit, rows)).values())
        names = self._index.pseudonyms
        wanted = names.series(series_uid) if series_uid else None
        all_series = await self._index.series(opening.study)
        found = [one for one in all_series if wanted in (None, one.series)]
        if not found:
            raise NotFound("There is no such series in this study.")
        parts = []
        for one in found:
            place = one.metadata
            if place is not None and place.count == one.instance_count:
                stored = stored_object(place.object_id, METADATA, place.placement)
                key = await self._archive.key(opening.study, stored)
                parts.append(await self._proved(visit, self._reader.read(opening.study, stored, key)))
            else:
                parts.append(await self._make_metadata(visit, one))
        return parts[0] if len(parts) == 1 else joined(part[1:-1] for part in parts if len(part) > 2)

    # For other hospitals: sealed bytes, the list of them, and single keys. The exchange decides who may have them, and
    # each time shows its permit.

    async def manifest(self, study: str, cleared: Clearance) -> Signed[Manifest]:
        """The signed manifest over the study's pack as it lies now, with the digest of every object.

        `cleared` is a permit to grant access to this patient's studies. Raises NotFound, Denied.
        """
        row = await self._index.study(study)
        cleared.require_grant(row.patient, self._identity.node_id, self._clock.now())
        objects = await self._reader.objects(study)
        keys = await self._object_keys(study, [stored.object_id for stored in objects])
        return await self._reader.manifest(
            study,
            home=self._identity.node_id,
            keys=keys,
            signing_key=self._identity.signing,
            now=self._clock.now(),
        )

    async def pack_bytes(self, study: str, offset: int, length: int, cleared: Clearance) -> bytes:
        """Sealed bytes of the pack as they lie; fewer at its end. Raises NotFound, Denied without a permit to fetch."""
        cleared.require_study(study, self._identity.node_id, RELEASES, self._clock.now())
        return await self._reader.pack_bytes(study, offset, length)

    async def object_keys(
        self, study: str, object_ids: Sequence[str], cleared: Clearance
    ) -> Mapping[str, bytes]:
        """The keys of single objects, never the study key. Raises NotFound, Denied without a permit to open."""
        cleared.require_study(study, self._identity.node_id, OPENINGS, self._clock.now())
        return await self._object_keys(study, object_ids)

    async def _object_keys(self, study: str, object_ids: Sequence[str]) -> Mapping[str, bytes]:
        grades = {stored.object_id: stored.grade for stored in await self._reader.objects(study)}
        if missing := [name for name in object_ids if name not in grades]:
            raise NotFound(f"{len(missing)} of these objects are not in this study.")
        study_keys: dict[Grade, bytes] = {}
        for grade in {grades[name] for name in object_ids}:
            study_keys[grade] = await self._keys.study_key(None, study, grade)
        return {name: object_key(study_keys[grades[name]], name) for name in object_ids}

    # For research: de-identified in a confined worker before anything else sees it.

    async def training_instances(
        self,
        who: Principal,
        query: Query,
        *,
        plan: str,
        plan_approved: bool,
        project_key: bytes,
        address: str | None = None,
        have: Callable[[str, str], bool] | None = None,
    ) -> AsyncIterator[tuple[str, DeidentifiedInstance]]:
        """De-identified instances of patients who consent to research now, each with the patient's pseudonym.

        Studies that the rules refuse are passed over; instances that cannot be made safe are left out. `plan` is the
        digest of the approved plan, for the log. `have(patient, study)` is asked for each study that may be used
        now; when the caller holds its images from an earlier round already, it is not read again.
        """
        async for match in self._every_match(query):
            facts = await self._facts.for_research(match.patient, plan_approved=plan_approved)
            resource = Resource(
                ResourceKind.STUDY, match.study, match.patient, self._identity.node_id, match.grade,
                match.department, deidentified=True,
            )  # fmt: skip
            now = self._clock.now()
            request = Request(who, Action.TRAIN, resource, Purpose.RESEARCH, now)
            verdict = decide(self._policies.current, request, facts)
            if isinstance(verdict, Deny) or not verdict.owes(Deidentify):
                continue
            if have is not None and have(match.patient, match.study):
                continue
            opening = Opening(
                secrets.token_hex(16), match.study, "", who, Purpose.RESEARCH, Action.TRAIN,
                verdict.obligations, verdict.reasons, verdict.expires,
            )  # fmt: skip
            await self._log.record(deeds.opened(opening, resource, None, address, plan=plan))
            visit = Visit(opening, resource, None, address, verdict, now, now, now)
            for row in (await self._archive.contents(visit)).instances.values():
                if query.level is Level.SERIES and row.series != match.series:
                    continue
                if row.size_bytes > MAX_WHOLE_BYTES:
                    continue
                data = await self._read(visit, row)
                made = await self._renderer.deidentify(data, row.transfer_syntax_uid, project_key=project_key)
                if isinstance(made, DeidentifiedInstance):
                    yield match.patient, made

    async def _every_match(self, query: Query) -> AsyncIterator[Match]:
        offset = query.offset
        while True:
            page = await self._index.search(replace(query, offset=offset))
            for match in page.matches:
                yield match
            offset += query.limit
            if not page.more:
                return

    # What the above is made of

    def _shelf(self, home: str) -> Shelf:
        if not home:
            return self._archive
        if self._held is None:
            raise NotFound("No copies of other hospitals' studies are held here.")
        copies, keys = self._held
        return Copies(home, Reader(copies.blobs(home)), copies, keys)

    async def _ask(
        self,
        shelf: Shelf,
        who: Principal,
        action: Action,
        resource: Resource,
        purpose: Purpose,
        claim: EmergencyClaim | None,
    ) -> Verdict:
        now = self._clock.now()
        facts = await shelf.facts(who, resource, now, self._policies.parameters, claim)
        request = Request(who, action, resource, purpose, now, claim)
        return decide(self._policies.current, request, facts)

    async def _still(self, opening: Opening, *, fresh: bool = False) -> Visit:
        """The visit, if it still may go on; facts are asked anew when they are old, or at once when `fresh`."""
        visit = self._visits.get(opening.id)
        if visit is None or visit.opening != opening:
            raise NotFound(
                "This viewing session is not open.", mend="Open the study again.", code="opening-gone"
            )
        if self._over(visit):
            await self.close_opening(opening)
            raise Denied(
                "This opening has ended.",
                reasons=("This opening has ended.",),
                mend="Open the study again if you still may.",
                code="opening-ended",
            )
        if fresh or monotonic() - self._asked[opening.id] > FACTS_LAST_SECONDS:
            await self._ask_again(visit)
        visit.used = self._clock.now()
        return visit

    async def _ask_again(self, visit: Visit) -> None:
        opening = visit.opening
        try:
            shelf = self._shelf(opening.home)
            verdict = await self._ask(
                shelf, opening.who, opening.action, visit.resource, opening.purpose, visit.claim
            )
        except NotFound as error:
            verdict = Deny((error.message,))
        if isinstance(verdict, Deny):
            await self.close_opening(opening)
            raise await self._refused(
                opening.who, opening.action, opening.purpose, visit.address, verdict, visit.resource
            )
        visit.permit, visit.decided = verdict, self._clock.now()
        self._asked[opening.id] = monotonic()

    async def _taking(self, opening: Opening) -> Visit:
        if opening.action is not Action.DOWNLOAD:
            raise Denied(
                "This was opened to be looked at, not to be taken.",
                reasons=("This was opened to be looked at, not to be taken.",),
                mend="Open it for download.",
            )
        return await self._still(opening)

    async def _contents(self, visit: Visit) -> Contents:
        if visit.contents is None or not visit.opening.home:
            contents = self._shelf(visit.opening.home).contents(visit)
            visit.contents = await self._proved(visit, contents)
        return visit.contents

    async def _row(self, visit: Visit, sop_uid: str) -> tuple[InstanceRow, Contents]:
        contents = visit.contents or await self._contents(visit)
        row = contents.instances.get(sop_uid)
        if row is None:  # it may have arrived since
            contents = await self._contents(visit)
            row = contents.instances.get(sop_uid)
        if row is None:
            raise NotFound("There is no such instance in this study.")
        return row, contents

    async def _read(self, visit: Visit, row: InstanceRow) -> bytes:
        return await self._proved(visit, self._shelf(visit.opening.home).read(visit, row))

    async def _read_range(self, visit: Visit, row: InstanceRow, offset: int, length: int) -> bytes:
        shelf = self._shelf(visit.opening.home)
        return await self._proved(visit, shelf.read_range(visit, row, offset, length))

    async def _pieces(self, visit: Visit, row: InstanceRow) -> AsyncIterator[bytes]:
        """A large data set: read through once to verify its digest, then again to hand it over."""
        starts = range(0, row.size_bytes, PIECE_BYTES)
        hasher = sha256()
        for start in starts:
            piece = await self._read_range(visit, row, start, min(PIECE_BYTES, row.size_bytes - start))
            await asyncio.to_thread(hasher.update, piece)
        if hasher.digest() != row.sha256:
            raise await self._integrity_failed(visit, Corrupt("An instance is not what arrived."))
        for start in starts:
            yield await self._read_range(visit, row, start, min(PIECE_BYTES, row.size_bytes - start))

    async def _make_metadata(self, visit: Visit, series: SeriesRow) -> bytes:
        """Metadata of a series that was not made at ingest; kept for the next time."""
        rows = await self.rows(visit.opening, series.series_instance_uid)
        lines = await self._lines(visit, rows)
        if len(lines) == series.instance_count:
            try:
                await self._descriptions.keep(visit.resource.id, series.series, visit.grade, lines)
            except AccordError as error:
                # It was made and is answered; it will be made again.
                logger.warning("metadata not kept", series=series.series, error=error.message)
        return joined(lines.values())

    async def _lines(self, visit: Visit, rows: Sequence[InstanceRow]) -> dict[str, bytes]:
        if len(rows) > MAX_METADATA_INSTANCES:
            raise Invalid("This study has too many instances for one answer.", mend="Ask for one series.")
        contents = await self._contents(visit)
        study_uid = contents.study_instance_uid
        lines: dict[str, bytes] = {}
        for row in rows:
            # Up to the pixels, or all of it where none are.
            size = min(row.pixel["offset"] if row.pixel else row.size_bytes, MAX_HEAD_BYTES)
            head = await self._read_range(visit, row, 0, size)
            path = bulk_path(study_uid, contents.series_of[row.sop_instance_uid], row.sop_instance_uid)
            lines[row.instance] = model_line(head, row.transfer_syntax_uid, path)
        return lines

    async def _proved(self, visit: Visit, reading: Awaitable[V]) -> V:
        """Await a read; when the bytes are not what was written, that is on record before it is told."""
        try:
            return await reading
        except Corrupt as error:
            raise await self._integrity_failed(visit, error) from error
        except NotFound as error:
            # What the index knows and the archive lacks was taken away, unless its keys were destroyed on purpose.
            if visit.opening.home or error.code == "no-study-key":
                raise
            raise await self._integrity_failed(visit, Corrupt("The pack is missing.")) from error

    async def _integrity_failed(self, visit: Visit, error: Corrupt) -> Corrupt:
        await self._log.record(deeds.integrity_failed(visit, error.message))
        return Corrupt(
            "This image is not what arrived and is not shown.",
            mend="The security officer has been told; restore the study from a good copy.",
            code=error.code,
        )

    async def _refused(
        self,
        who: Principal,
        action: Action,
        purpose: Purpose,
        address: str | None,
        verdict: Deny,
        resource: Resource | None = None,
        claim: EmergencyClaim | None = None,
    ) -> Denied:
        """Put a refusal on record; return the error to raise."""
        await self._log.record(deeds.refused(who, action, purpose, address, verdict, resource, claim))
        return Denied(" ".join(verdict.reasons), reasons=verdict.reasons)

    def _watermark(self, visit: Visit, contents: Contents, sop_uid: str, frame: int) -> WatermarkText | None:
        if not visit.permit.owes(Watermark):
            return None
        opening = visit.opening
        lines = (
            contents.patient_id or visit.resource.patient or "",
            f"{opening.who.name} ({opening.who.id}@{opening.who.node})",
            self._clock.now().strftime("%Y-%m-%d %H:%M UTC"),
            f"{self._identity.node_id} {opening.id[:8]}",
        )
        seed = sha256(f"{opening.who.id}|{opening.id}|{sop_uid}|{frame}".encode()).digest()
        return WatermarkText(lines, int.from_bytes(seed[:4]))

    def _sight(self, who: Principal, purpose: Purpose) -> Sight:
        """What this person may find; the rules are asked again when they have changed, or after a moment."""
        made, sight = self._sights.get((who, purpose), (0.0, None))
        policy = self._policies.current
        if sight is None or sight.policy is not policy or monotonic() - made > FACTS_LAST_SECONDS:
            sight = Sight(policy, who, purpose, self._clock.now(), self._identity.node_id)
            if len(self._sights) >= MAX_SIGHTS:
                self._sights.clear()
            self._sights[(who, purpose)] = (monotonic(), sight)
        return sight

    def _patient_asked(self, query: Query) -> str | None:
        """The pseudonym of the patient that a search names exactly, so that the log finds it by patient."""
        value = query.keys.get("PatientID", "")
        return self._index.pseudonyms.patient(value.strip()) if value and not is_wild(value) else None

    def _over(self, visit: Visit) -> bool:
        now = self._clock.now()
        return (visit.expires is not None and now >= visit.expires) or now - visit.used >= IDLE

    async def _make_room(self) -> None:
        while len(self._visits) > MAX_VISITS:
            await self.close_opening(next(iter(self._visits.values())).opening)

    @staticmethod
    def _count(visit: Visit, row: InstanceRow) -> None:
        visit.instances += 1
        visit.sent_bytes += row.size_bytes


def _cut(data: bytes, row: InstanceRow, number: int) -> bytes:
    assert row.pixel is not None
    if row.pixel["encapsulated"]:
        return encapsulated_frame(data, row.pixel["offset"], row.frames, number)
    offset, length = native_range(row.pixel, row.rows, row.columns, row.frames, number)
    return data[offset : offset + length]


async def _single(data: bytes) -> AsyncIterator[bytes]:
    yield data
