"""The one way in: digest → decide → grade → seal → durable → acknowledge → index and log.

C-STORE, STOW-RS, import and edge forwarding hand an `Arrival` to `Ingest.receive`; when it returns, the instance
is durable in its study's pack, sealed. Index rows and the log entry follow within a second in one
transaction (`flusher`); after a crash `recovery` finds them in the packs again.

Invariants: one SOP Instance UID keeps the bytes it first came with; a study belongs to one patient; an instance
that was acknowledged is in a pack, and in the index and the log sooner or later.
Leaves parsing to `imaging`, sealing to `vault`, rows to `index`, framing to the doors.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from consent.decision import CompiledPolicy, Facts, Request, Resource, Verdict, decide
from consent.errors import AccordError, Conflict, Denied, Invalid, NotFound
from consent.policy import flags_of, grade_of
from consent.principals import Principal
from consent.vocabulary import Action, Grade, Purpose, ResourceKind, Role
from node.arrival import ATTRIBUTES_SUFFIX, Arrival, Receipt, Source, describe, new_entry
from node.audit.log import Log
from node.clock import Clock
from node.database import Database
from node.descriptions import Descriptions
from node.flusher import Flusher, Origin, Stored
from node.imaging.attributes import Attributes, read_attributes
from node.imaging.elements import TOO_MANY_ELEMENTS, encoding_of
from node.index import Entry, Index
from node.policies import Policies
from node.recovery import recover
from node.refusals import refused, summary
from node.vault.vault import ATTRIBUTES, INSTANCE, NewObject, Vault

__all__ = ["Arrival", "Ingest", "Receipt", "Source"]

MAX_STUDIES = 1024
"""Studies whose patient and grade are remembered."""
MAX_VERDICTS = 1024
VERDICT_LASTS = timedelta(seconds=1)
QUICK_ELEMENTS = 2_000
"""A header with fewer, as nearly all have, is read in place, in less than a thread takes to begin."""


@dataclass
class _Study:
    """What is remembered of a study. `patient` is None until an instance of it is stored or being stored."""

    patient: str | None
    grade: Grade
    storing: int = 0
    durable: bool = False


@dataclass(frozen=True)
class _Named:
    """An arrival under its pseudonyms, graded."""

    study: str
    series: str
    instance: str
    patient: str
    grade: Grade
    department: str | None
    fingerprint: bytes


@dataclass(frozen=True)
class _Claim:
    """An instance that is being stored, or is stored and not yet in the index."""

    study: str
    fingerprint: bytes
    stored: asyncio.Future[None]


_Asked = tuple[Principal, str, Grade, str | None]


class Ingest:
    """Takes instances in. `async with ingest:` runs in the background what follows the answer."""

    def __init__(
        self,
        *,
        node_id: str,
        policies: Policies,
        vault: Vault,
        index: Index,
        log: Log,
        database: Database,
        clock: Clock,
    ) -> None:
        self._node_id = node_id
        self._policies = policies
        self._vault = vault
        self._index = index
        self._log = log
        self._database = database
        self._clock = clock
        self._flusher = Flusher(database, index, log, self._committed)
        self.descriptions = Descriptions(vault, index, self._flusher)
        self._studies: OrderedDict[str, _Study] = OrderedDict()
        self._claims: dict[str, _Claim] = {}
        self._verdicts: dict[_Asked, tuple[CompiledPolicy, datetime, Verdict]] = {}
        self._opening = asyncio.Lock()
        self._locked: set[str] = set()
        self._storing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Ingest:
        self._flusher.start()
        self.descriptions.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.descriptions.stop()
        if self._storing:
            await asyncio.wait(self._storing)
        await self._flusher.stop()

    async def receive(self, arrival: Arrival, source: Source) -> Receipt:
        """Take one instance in; when this returns it is durable.

        Raises Denied (the rules), Invalid (the data set), Conflict (the UID is taken by other bytes, or the study by
        another patient), Unavailable (disk or database); of a refusal nothing stays but a log entry.
        """
        self._flusher.require_room()
        try:
            attributes = await _attributes(arrival, source)
            _require_same(arrival, attributes)
            named = await self._name(attributes, arrival.sha256)
            self._decide(named, source.principal).or_raise()
            duplicate = await self._store_once(arrival, attributes, named, source)
        except (Denied, Invalid, Conflict) as error:
            await self.refused(error, source)
            raise
        return Receipt(
            named.study,
            named.series,
            named.instance,
            duplicate,
            len(arrival.data),
            attributes.study_instance_uid,
            attributes.series_instance_uid,
        )

    async def refused(self, error: AccordError, source: Source) -> None:
        """Put on record what was refused, here or at a door before it became an arrival: the first in full."""
        for event in refused(error, source):
            await self._log.record(event)

    async def summarise(self, source: Source) -> None:
        """Put on record how many more were refused: for a door, when the request or association is over."""
        for event in summary(source):
            await self._log.record(event)

    async def flushed(self) -> None:
        """Return when every instance acknowledged so far is in the index and the log. Raises Unavailable."""
        await self._flusher.flushed()

    async def recover(self) -> int:
        """Put into index and log what the packs hold and the index lacks; return how many instances.

        Call before the doors open.
        """
        return await recover(self._vault, self._index, self._log, self._database, self._locked)

    async def recover_unlocked(self) -> int:
        """A duty: `recover` for the studies whose keys were locked then; return how many instances were indexed."""
        if not self._locked:
            return 0
        await self.flushed()
        return await recover(self._vault, self._index, self._log, self._database, self._locked, again=True)

    def regraded(self, study: str, grade: Grade) -> None:
        """Let what comes from now on join the study at its new grade, or a higher one."""
        known = self._studies.get(study)
        if known is not None:
            known.grade = grade

    async def _name(self, attributes: Attributes, digest: bytes) -> _Named:
        """Give the instance its pseudonyms, hold it against its study, and grade it. Raises Conflict."""
        names = self._index.pseudonyms
        study = names.study(attributes.study_instance_uid)
        patient = names.patient(attributes.patient_id, attributes.study_instance_uid)
        department = attributes.department or None
        grade = grade_of(
            self._policies.policy,
            attributes.modality or None,
            attributes.body_part or None,
            department,
            flags_of(attributes.confidentiality),
        )
        known = await self._study(study)
        _require_patient(known, patient, attributes)
        return _Named(
            study,
            names.series(attributes.series_instance_uid),
            names.instance(attributes.sop_instance_uid),
            known.patient or patient,
            max(known.grade, grade),
            department,
            self._index.fingerprint(digest),
        )

    def _decide(self, named: _Named, principal: Principal) -> Verdict:
        """The rules' word; asked once a second for instances that look the same to them."""
        policy, now = self._policies.current, self._clock.now()
        key = (principal, named.study, named.grade, named.department)
        last = self._verdicts.get(key)
        if last is not None and last[0] is policy and timedelta(0) <= now - last[1] < VERDICT_LASTS:
            return last[2]
        thing = Resource(
            ResourceKind.STUDY, named.study, named.patient, self._node_id, named.grade, named.department
        )
        request = Request(principal, Action.INGEST, thing, Purpose.TREATMENT, now)
        # Only the device gate makes principals with this role, after it has checked title, address and certificate.
        verdict = decide(policy, request, Facts(device_registered=principal.role is Role.DEVICE))
        if len(self._verdicts) >= MAX_VERDICTS:
            self._verdicts.clear()
        self._verdicts[key] = (policy, now, verdict)
        return verdict

    async def _store_once(
        self, arrival: Arrival, attributes: Attributes, named: _Named, source: Source
    ) -> bool:
        """Store the instance unless it is here; return whether it was. Raises Conflict for other bytes.

        Of two that arrive at once one claims the UID and the other waits until it is durable, or takes its place
        when it fails.
        """
        while True:
            claim = self._claims.get(named.instance)
            if claim is not None:
                _require_equal(named, claim.study, claim.fingerprint)
                await asyncio.wait([claim.stored])
                if not claim.stored.cancelled():
                    return True
                continue
            holder = await self._index.holder(named.instance)
            if holder is not None:
                _require_equal(named, *holder)
                return True
            if named.instance not in self._claims:
                break
        # From here to the claim nothing else runs: the patient of a new study is bound together with it.
        study = self._studies.setdefault(named.study, _Study(None, named.grade))
        _require_patient(study, named.patient, attributes)
        study.patient = study.patient or named.patient
        study.storing += 1
        claim = _Claim(named.study, named.fingerprint, asyncio.get_running_loop().create_future())
        self._claims[named.instance] = claim
        # A sender that hangs up must not leave an append without its row: the work is ours once begun.
        task = asyncio.create_task(self._store(arrival, attributes, named, source, claim, study))
        self._storing.add(task)
        task.add_done_callback(self._finished)
        await asyncio.shield(task)
        return False

    async def _store(
        self,
        arrival: Arrival,
        attributes: Attributes,
        named: _Named,
        source: Source,
        claim: _Claim,
        study: _Study,
    ) -> None:
        """Seal, wait until it is durable, and hand the row to the flusher."""
        received = self._clock.now()
        document = describe(attributes, arrival.sha256, received, source)
        description = NewObject(
            named.instance + ATTRIBUTES_SUFFIX, ATTRIBUTES, document, sha256(document).digest()
        )
        data_set = NewObject(named.instance, INSTANCE, arrival.data, arrival.sha256)
        self._flusher.begin(named.study)
        try:
            stored = await self._vault.append(named.study, named.grade, [description, data_set])
        except BaseException:
            self._flusher.abandon(named.study)
            self._withdraw(named, claim, study)
            raise
        study.storing -= 1
        study.durable = True
        study.grade = max(study.grade, named.grade)
        names = self._index.pseudonyms
        entry = new_entry(attributes, named.patient, arrival.sha256, received, names, *stored)
        origin = Origin(source.principal.actor, source.channel, source.address or None)
        self._flusher.put(Stored(entry, origin))
        self.descriptions.note(entry, arrival.data)
        claim.stored.set_result(None)

    def _withdraw(self, named: _Named, claim: _Claim, study: _Study) -> None:
        """Let go of what an instance that was not stored had claimed."""
        del self._claims[named.instance]
        claim.stored.cancel()
        study.storing -= 1
        if not study.storing and not study.durable:
            study.patient = None

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._storing.discard(task)
        if not task.cancelled():
            task.exception()  # whoever hung up will not ask

    def _committed(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._claims.pop(entry.instance, None)

    async def _study(self, name: str) -> _Study:
        """What is known of a study, from memory or from the index."""
        study = self._studies.get(name)
        if study is None:
            async with self._opening:
                study = self._studies.get(name) or await self._recall(name)
        self._studies.move_to_end(name)
        return study

    async def _recall(self, name: str) -> _Study:
        try:
            row = await self._index.study(name)
            study = _Study(row.patient, row.grade, durable=True)
        except NotFound:
            study = _Study(None, Grade.ORDINARY)
        self._studies[name] = study
        for old in list(self._studies)[: max(0, len(self._studies) - MAX_STUDIES)]:
            if not self._studies[old].storing and not self._flusher.behind(old):
                del self._studies[old]
        return study


async def _attributes(arrival: Arrival, source: Source) -> Attributes:
    """The attributes of an arrival. Raises Invalid. A long header, or a deflated one, holds nobody else up."""
    data, syntax = arrival.data, arrival.transfer_syntax_uid
    if not encoding_of(syntax).deflated:
        try:
            return source.heads.read(data, syntax, most=QUICK_ELEMENTS)
        except Invalid as error:
            if error.code != TOO_MANY_ELEMENTS:
                raise
    return await asyncio.to_thread(read_attributes, data, syntax)


def _require_patient(study: _Study, patient: str, attributes: Attributes) -> None:
    # A data set without Patient ID goes with the study it names.
    if attributes.patient_id and study.patient not in (None, patient):
        raise Conflict(
            "This Study Instance UID belongs to another patient here.",
            mend="Correct the patient at the device, or give the study a UID of its own.",
            code="patient-mismatch",
        )


def _require_same(arrival: Arrival, attributes: Attributes) -> None:
    announced = (arrival.sop_class_uid, arrival.sop_instance_uid)
    if announced != (attributes.sop_class_uid, attributes.sop_instance_uid):
        raise Invalid(
            "SOP class or instance UID differ between the message and the data set.",
            mend="The sender must announce the instance that it sends.",
            code="uid-mismatch",
        )
    if arrival.study_instance_uid not in ("", attributes.study_instance_uid):
        raise Invalid(
            "The instance belongs to another study than the one it was sent to.",
            mend="Send it to its own study, or to no study in particular.",
            code="study-mismatch",
        )


def _require_equal(named: _Named, study: str, fingerprint: bytes) -> None:
    if (study, fingerprint) != (named.study, named.fingerprint):
        raise Conflict(
            "An instance with this SOP Instance UID and other contents is here already; the first one was kept.",
            mend="Give a changed instance a UID of its own.",
            code="instance-differs",
        )
