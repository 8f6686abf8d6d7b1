"""The grant: the home hospital's signed word that one study may be used elsewhere, by whom, for what, until when.

A grant rests on one consent and never outlives or outreaches it: `issue_grant` only narrows what the consent,
the policy and the request allow, and `alive` asks again at every use. There is no re-delegation; the expiry is
the signed record's own and is mandatory. Format: docs/formats/grant.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar, Self

from consent.directives import Directive, current, permits
from consent.errors import Denied, Sentences
from consent.fields import Fields, unix, whole
from consent.obligations import ExpireAt
from consent.policy import Policy
from consent.signed import Signed
from consent.verdict import Deny, Permit, Verdict
from consent.vocabulary import Grade, Purpose, Right

ANY_CLINICIAN = "*"
"""A grant to a hospital: every clinician who works there."""


class Mode(StrEnum):
    """VIEW: the keys are leased. COPY: a transfer of care, re-encrypted for the receiver."""

    VIEW = "view"
    COPY = "copy"


@dataclass(frozen=True)
class Grant:
    """`consent` and `manifest` are digests of signed records; `holder_key` is the thumbprint of the receiving
    node's HPKE key, to which leases are sealed; `person` is a login at `recipient`, or `ANY_CLINICIAN`."""

    study: str
    patient: str
    home: str
    recipient: str
    person: str
    purpose: Purpose
    rights: frozenset[Right]
    not_before: datetime
    consent: str
    grade_max: Grade
    manifest: str
    holder_key: str
    mode: Mode = Mode.VIEW

    KIND: ClassVar[str] = "grant"
    VERSION: ClassVar[int] = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "not_before", whole(self.not_before))

    def names(self, login: str) -> bool:
        """Whether the grant is for this person."""
        return self.person in (ANY_CLINICIAN, login)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "study": self.study,
            "patient": self.patient,
            "home": self.home,
            "recipient": self.recipient,
            "person": self.person,
            "purpose": self.purpose.value,
            "rights": sorted(self.rights),
            "not_before": unix(self.not_before),
            "consent": self.consent,
            "grade_max": int(self.grade_max),
            "manifest": self.manifest,
            "holder_key": self.holder_key,
            "mode": self.mode.value,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Raise Invalid when a field is missing, of the wrong type, or past its bound."""
        read = Fields(data, cls.KIND)
        return cls(
            study=read.text("study", limit=64),
            patient=read.text("patient", limit=64),
            home=read.text("home", limit=64),
            recipient=read.text("recipient", limit=64),
            person=read.text("person", limit=200),
            purpose=read.choice("purpose", Purpose),
            rights=read.choices("rights", Right),
            not_before=read.moment("not_before"),
            consent=read.text("consent", limit=64),
            grade_max=read.choice("grade_max", Grade),
            manifest=read.text("manifest", limit=64),
            holder_key=read.text("holder_key", limit=64),
            mode=read.choice("mode", Mode),
        )


@dataclass(frozen=True)
class GrantRequest:
    """What the home hospital's clinician wants to grant. `lasts` None means the policy's usual time."""

    study: str
    patient: str
    home: str
    recipient: str
    person: str
    purpose: Purpose
    rights: frozenset[Right]
    grade: Grade
    manifest: str
    holder_key: str
    lasts: timedelta | None = None
    mode: Mode = Mode.VIEW


def issue_grant(
    request: GrantRequest, directive: Signed[Directive], policy: Policy, now: datetime
) -> tuple[Grant, datetime]:
    """Return the grant to sign and when it expires: never more than consent, policy and request allow.

    Rights are cut to those that the consent gives; the end is the earliest of the wish, the policy's longest
    time and the consent's end. Raises Denied with every reason when nothing useful would be left.
    """
    now = whole(now)
    body = directive.body
    rights = request.rights & body.rights
    expires = _end(request, directive, policy, now)
    verdict = permits(body, request.study, request.purpose, request.recipient, None, now)
    reasons = list(verdict.reasons) if isinstance(verdict, Deny) else []
    if body.patient != request.patient or directive.issuer != request.home:
        reasons.append("This consent is another patient's or another hospital's.")
    if directive.expired(now):
        reasons.append("The record of this consent has expired.")
    if not rights:
        reasons.append("The patient's consent gives none of the rights asked for.")
    if request.recipient == request.home:
        reasons.append("A grant is for another hospital.")
    if expires <= now and not reasons:
        reasons.append("The grant would end before it begins.")
    if reasons:
        raise Denied(
            Sentences(reasons),
            reasons=tuple(reasons),
            mend="Record a consent that covers it, or ask for less.",
            code="grant-not-covered",
        )
    grant = Grant(
        study=request.study,
        patient=request.patient,
        home=request.home,
        recipient=request.recipient,
        person=request.person,
        purpose=request.purpose,
        rights=rights,
        not_before=now,
        consent=directive.digest,
        grade_max=request.grade,
        manifest=request.manifest,
        holder_key=request.holder_key,
        mode=request.mode,
    )
    return grant, expires


def alive(
    grant: Signed[Grant],
    directives: Iterable[Signed[Directive]],
    revoked: frozenset[str],
    now: datetime,
) -> Verdict:
    """Whether a grant lives at `now`, and until when at most (an ExpireAt in the permit).

    `directives` are all the versions that this node knows; `revoked` holds record ids of grants that were
    taken back. A newer version of the consent ends the grant unless it still allows all that was granted.
    """
    body = grant.body
    reasons = list(_own_faults(grant, revoked, now))
    known = tuple(directives)
    rests_on = next((item for item in known if item.digest == body.consent), None)
    if rests_on is None:
        return Deny((*reasons, "The consent that the grant rests on is not on record here."))
    latest = _latest(rests_on, known)
    reasons.extend(_consent_faults(grant, latest, now))
    if reasons or grant.expires is None:
        return Deny(tuple(dict.fromkeys(reasons)))
    ends = min(grant.expires, latest.body.end, latest.expires or grant.expires)
    return Permit((ExpireAt(ends),), ("A grant of the home hospital allows it.",))


def _own_faults(grant: Signed[Grant], revoked: frozenset[str], now: datetime) -> Iterable[str]:
    if grant.issuer != grant.body.home:
        yield "The grant is not signed by the study's home hospital."
    if grant.expires is None:
        yield "The grant has no end and is not valid."
    if now < grant.body.not_before:
        yield "The grant has not begun yet."
    if grant.expired(now):
        yield "The grant has expired."
    if grant.id in revoked:
        yield "The grant was revoked."


def _consent_faults(grant: Signed[Grant], latest: Signed[Directive], now: datetime) -> Iterable[str]:
    body = grant.body
    if latest.issuer != body.home or latest.body.patient != body.patient:
        yield "The consent that the grant names is another patient's or another hospital's."
    if latest.expired(now):
        yield "The record of the consent has expired."
    for right in sorted(body.rights):
        verdict = permits(latest.body, body.study, body.purpose, body.recipient, right, now)
        if isinstance(verdict, Deny):
            yield from verdict.reasons


def _latest(directive: Signed[Directive], known: tuple[Signed[Directive], ...]) -> Signed[Directive]:
    same_chain = [
        item
        for item in known
        if (item.issuer, item.body.patient, item.body.chain)
        == (directive.issuer, directive.body.patient, directive.body.chain)
    ]
    return current(same_chain)[0]


def _end(request: GrantRequest, directive: Signed[Directive], policy: Policy, now: datetime) -> datetime:
    parameters = policy.parameters
    wished = request.lasts if request.lasts is not None else timedelta(hours=parameters.grant_default_hours)
    longest = min(wished, timedelta(days=parameters.grant_max_days))
    ends = [whole(now + longest), directive.body.end]
    if directive.expires is not None:
        ends.append(directive.expires)
    return min(ends)
