"""Recording what a patient has agreed to: decide, sign as the next version, keep, log, in one transaction.

The signed statement is `consent.directives.Directive`; this is its only writer at a node. Patients are
pseudonyms. Grants that rest on a withdrawn consent end because every use asks `consent.grants.alive` again;
telling other hospitals is the federation's, which reads the log.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from consent.decision import Deny, Facts, Permit, Request, Resource, decide
from consent.directives import ALL, MAX_BASIS_CHARACTERS, Directive, current, withdraw
from consent.errors import Denied, Invalid
from consent.principals import Principal
from consent.signed import Signed, sign
from consent.vocabulary import Action, EventKind, Outcome, Purpose, ResourceKind, Right
from node.access.care import Care
from node.audit.log import Event, Log
from node.clock import Clock
from node.database import Database
from node.identity import Identity
from node.policies import Policies
from node.records import Records

MIN_BASIS_CHARACTERS = 3


@dataclass(frozen=True)
class Terms:
    """What the patient agreed to, as entered. `basis` says how ("signed form 17, witnessed by …")."""

    purposes: frozenset[Purpose]
    rights: frozenset[Right]
    end: datetime
    basis: str
    recipients: tuple[str, ...] = ALL
    studies: tuple[str, ...] = ALL
    research: bool = False


class Consents:
    """The consents recorded at one node."""

    def __init__(
        self,
        database: Database,
        records: Records,
        log: Log,
        policies: Policies,
        care: Care,
        identity: Identity,
        clock: Clock,
    ) -> None:
        self._database = database
        self._records = records
        self._log = log
        self._policies = policies
        self._care = care
        self._identity = identity
        self._clock = clock

    async def record(
        self, who: Principal, patient: str, terms: Terms, *, address: str = ""
    ) -> Signed[Directive]:
        """Record a new consent. Raises Denied with the reasons, Invalid when the terms say nothing."""
        now = self._clock.now()
        await self.check(who, patient, address=address)
        _check(terms)
        chain = secrets.token_hex(16)
        directive = Directive(
            patient=patient,
            chain=chain,
            version=1,
            studies=terms.studies,
            purposes=terms.purposes,
            recipients=terms.recipients,
            rights=terms.rights,
            start=now,
            end=terms.end,
            recorded_by=who.actor,
            basis=terms.basis.strip(),
            research=terms.research,
        )
        return await self._keep(who, directive, EventKind.CONSENT_RECORDED, now, address)

    async def withdraw(
        self, who: Principal, record_id: str, basis: str, *, address: str = ""
    ) -> Signed[Directive]:
        """Record that the patient took a consent back: the last version of its chain.

        Raises NotFound, Denied, or Conflict when it has been withdrawn before.
        """
        found = await self._records.get(record_id, Directive)
        await self.check(who, found.body.patient, address=address)
        if not MIN_BASIS_CHARACTERS <= len(basis.strip()) <= MAX_BASIS_CHARACTERS:
            raise _no_basis()
        latest = next(
            one for one in await self.of_patient(found.body.patient) if one.body.chain == found.body.chain
        )
        directive = withdraw(latest, recorded_by=who.actor, basis=basis.strip())
        return await self._keep(who, directive, EventKind.CONSENT_WITHDRAWN, self._clock.now(), address)

    async def get(self, who: Principal, record_id: str, *, address: str = "") -> Signed[Directive]:
        """One version of a consent, for somebody who may record consents of this patient."""
        found = await self._records.get(record_id, Directive)
        await self.check(who, found.body.patient, address=address)
        return found

    async def of_patient(self, patient: str) -> tuple[Signed[Directive], ...]:
        """The version that counts of each of the patient's consents, newest first."""
        directives = await self._records.find(Directive, subject=patient)
        return tuple(sorted(current(directives), key=lambda one: one.issued, reverse=True))

    async def verdict(self, who: Principal, patient: str) -> Permit | Deny:
        """Whether `who` may record and read consents of this patient; nothing is logged."""
        now = self._clock.now()
        resource = Resource(ResourceKind.CONSENT, patient, patient, self._identity.node_id)
        request = Request(who, Action.RECORD_CONSENT, resource, Purpose.TREATMENT, now)
        facts = Facts(relationship=await self._care.related(who.id, patient, now))
        return decide(self._policies.current, request, facts)

    async def check(self, who: Principal, patient: str, *, address: str = "") -> None:
        """Raise Denied, and log it, unless `who` may record and read consents of this patient."""
        match await self.verdict(who, patient):
            case Permit():
                return
            case Deny(reasons):
                await self._log.record(
                    Event(
                        EventKind.ACCESS_REFUSED,
                        who.actor,
                        outcome=Outcome.REFUSED,
                        patient=patient,
                        address=address,
                        reason=" ".join(reasons),
                        detail={"action": Action.RECORD_CONSENT.value},
                    )
                )
                raise Denied(
                    "You may not record or read this patient's consent.",
                    reasons=reasons,
                    mend="Ask somebody who treats the patient, or have your treatment relationship recorded.",
                )

    async def _keep(
        self, who: Principal, directive: Directive, kind: EventKind, now: datetime, address: str
    ) -> Signed[Directive]:
        signed = sign(
            directive,
            record_id=secrets.token_hex(16),
            issuer=self._identity.node_id,
            key=self._identity.signing,
            issued=now,
            expires=None,
        )
        async with self._database.write() as tx:
            await self._records.keep(tx, signed, subjects=_subjects(directive))
            await self._log.append(
                tx,
                Event(
                    kind,
                    who.actor,
                    patient=directive.patient,
                    address=address,
                    detail={"consent": signed.digest, "id": signed.id, "version": directive.version},
                ),
            )
        return signed


def _subjects(directive: Directive) -> Iterable[str]:
    return [directive.patient, *(study for study in directive.studies if study not in ALL)]


def _check(terms: Terms) -> None:
    if not terms.research and not (terms.purposes and terms.rights):
        raise Invalid(
            "This consent allows nothing.",
            mend="Choose at least one purpose and one kind of use, or research.",
            code="empty-consent",
        )
    if not MIN_BASIS_CHARACTERS <= len(terms.basis.strip()) <= MAX_BASIS_CHARACTERS:
        raise _no_basis()
    if not terms.studies or not terms.recipients:
        raise Invalid(
            "A consent names studies and hospitals, or all of them.",
            mend="Choose some, or choose all.",
            code="empty-consent",
        )


def _no_basis() -> Invalid:
    return Invalid(
        "A consent needs to say how the patient gave or withdrew it.",
        mend="Name the form, its date and who was present.",
        code="basis",
    )
