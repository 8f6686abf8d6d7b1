"""The patient's consent as a signed record: what may be shared, for what, with whom, and until when.

A directive belongs to a chain (`chain`, the same through all its versions); the highest version counts, and a
withdrawal is simply the last version. `patient` is the pseudonym at the recording node; no identity is in it.
Leaves keeping and sending to `node.records` and `federation`. Format: docs/formats/consent-directive.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, ClassVar, Self

from consent.errors import Conflict, Invalid
from consent.fields import Fields, unix, whole
from consent.signed import Signed
from consent.verdict import Deny, Permit, Verdict
from consent.vocabulary import Purpose, Right

ALL = ("*",)
"""Every study of the patient, or every member of the region."""

MAX_STUDIES = 5_000
MAX_RECIPIENTS = 1_000
MAX_BASIS_CHARACTERS = 2_000


@dataclass(frozen=True)
class Directive:
    """One version of one consent.

    `studies` and `recipients` are StudyIds and node ids, or `ALL`. `research` allows the de-identified use in
    research, apart from `purposes`. The period is half-open: [start, end). `previous` is the digest of the
    version before. `basis` says how the patient consented ("signed form 17, witnessed by …").
    """

    patient: str
    chain: str
    version: int
    studies: tuple[str, ...]
    purposes: frozenset[Purpose]
    recipients: tuple[str, ...]
    rights: frozenset[Right]
    start: datetime
    end: datetime
    recorded_by: str
    basis: str
    research: bool = False
    withdrawn: bool = False
    previous: str | None = None

    KIND: ClassVar[str] = "consent-directive"
    VERSION: ClassVar[int] = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", whole(self.start))
        object.__setattr__(self, "end", whole(self.end))
        if self.end <= self.start:
            raise Invalid("This consent ends before it starts.", mend="Give an end after the start.")
        if self.version < 1 or (self.version == 1) != (self.previous is None):
            raise Invalid(
                "Version 1 of a consent has no previous version, and every later one names its own."
            )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "patient": self.patient,
            "chain": self.chain,
            "version": self.version,
            "studies": list(self.studies),
            "purposes": sorted(self.purposes),
            "recipients": list(self.recipients),
            "rights": sorted(self.rights),
            "start": unix(self.start),
            "end": unix(self.end),
            "recorded_by": self.recorded_by,
            "basis": self.basis,
            "research": self.research,
            "withdrawn": self.withdrawn,
            "previous": self.previous,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Raise Invalid when a field is missing, of the wrong type, or past its bound."""
        read = Fields(data, cls.KIND)
        return cls(
            patient=read.text("patient", limit=64),
            chain=read.text("chain", limit=64),
            version=read.integer("version", low=1, high=100_000),
            studies=read.texts("studies", limit=MAX_STUDIES),
            purposes=read.choices("purposes", Purpose),
            recipients=read.texts("recipients", limit=MAX_RECIPIENTS),
            rights=read.choices("rights", Right),
            start=read.moment("start"),
            end=read.moment("end"),
            recorded_by=read.text("recorded_by", limit=200),
            basis=read.text("basis", limit=MAX_BASIS_CHARACTERS),
            research=read.flag("research"),
            withdrawn=read.flag("withdrawn"),
            previous=read.optional_text("previous", limit=64),
        )


def withdraw(latest: Signed[Directive], *, recorded_by: str, basis: str) -> Directive:
    """The next version of a consent, withdrawn. Raises Conflict when it already is."""
    if latest.body.withdrawn:
        raise Conflict("This consent has already been withdrawn.", code="already-withdrawn")
    return replace(
        latest.body,
        version=latest.body.version + 1,
        previous=latest.digest,
        withdrawn=True,
        recorded_by=recorded_by,
        basis=basis,
    )


def current(directives: Iterable[Signed[Directive]]) -> tuple[Signed[Directive], ...]:
    """The version that counts of every chain, in the order in which chains first occur.

    Two records of one version can only come from a fault or a forgery by the recorder; then a withdrawal
    counts before a permission, so that a fork never widens.
    """
    latest: dict[tuple[str, str, str], Signed[Directive]] = {}
    for directive in directives:
        key = (directive.issuer, directive.body.patient, directive.body.chain)
        if key not in latest or _rank(directive) > _rank(latest[key]):
            latest[key] = directive
    return tuple(latest.values())


def permits(
    directive: Directive, study: str, purpose: Purpose, recipient: str, right: Right | None, now: datetime
) -> Verdict:
    """Whether this version of a consent allows one right (None: any) on one study to one member, now.

    The caller knows that the study is the directive's patient's and that the version is the current one.
    """
    refusals = [
        words for broken, words in _limits(directive, study, purpose, recipient, right, now) if broken
    ]
    return Deny(tuple(refusals)) if refusals else Permit(reasons=("The patient has consented.",))


def permits_research(directive: Directive, study: str, now: datetime) -> Verdict:
    """Whether this version of a consent allows the de-identified use of one study in research, now."""
    refusals = [words for broken, words in _standing(directive, study, now) if broken]
    if not directive.research:
        refusals.append("The patient's consent does not include research.")
    return Deny(tuple(refusals)) if refusals else Permit(reasons=("The patient has consented to research.",))


def _standing(directive: Directive, study: str, now: datetime) -> tuple[tuple[bool, str], ...]:
    return (
        (directive.withdrawn, "The patient withdrew consent."),
        (now < directive.start, "The patient's consent has not begun yet."),
        (now >= directive.end, "The patient's consent has ended."),
        (not _covers(directive.studies, study), "The patient's consent does not cover this study."),
    )


def _limits(
    directive: Directive, study: str, purpose: Purpose, recipient: str, right: Right | None, now: datetime
) -> tuple[tuple[bool, str], ...]:
    wrong_purpose = purpose not in directive.purposes
    wrong_right = right is not None and right not in directive.rights
    return (
        *_standing(directive, study, now),
        (wrong_purpose, "The patient's consent does not allow this purpose."),
        (not _covers(directive.recipients, recipient), "The patient's consent does not name this hospital."),
        (wrong_right, "The patient's consent does not allow this use."),
    )


def _covers(named: tuple[str, ...], one: str) -> bool:
    return "*" in named or one in named


def _rank(directive: Signed[Directive]) -> tuple[int, bool, datetime, str]:
    return (directive.body.version, directive.body.withdrawn, directive.issued, directive.digest)


_FHIR_ACTIONS = {Right.VIEW: "access", Right.DOWNLOAD: "collect", Right.PRINT: "use"}
_PURPOSE_SYSTEM = "http://terminology.hl7.org/CodeSystem/v3-ActReason"


def to_fhir(directive: Signed[Directive]) -> dict[str, Any]:
    """The directive as an HL7 FHIR R4 Consent resource, for other systems; the signed record stays the source."""
    body = directive.body
    purposes = sorted(body.purposes | ({Purpose.RESEARCH} if body.research else set()))
    provision: dict[str, Any] = {
        "type": "permit",
        "period": {"start": body.start.isoformat(), "end": body.end.isoformat()},
        "purpose": [{"system": _PURPOSE_SYSTEM, "code": purpose.value} for purpose in purposes],
        "action": [_concept("consentaction", _FHIR_ACTIONS[right]) for right in sorted(body.rights)],
    }
    if "*" not in body.recipients:
        provision["actor"] = [
            {
                "role": _concept("v3-ParticipationType", "IRCP"),
                "reference": {"identifier": {"system": "urn:accord:node", "value": node}},
            }
            for node in body.recipients
        ]
    if "*" not in body.studies:
        provision["data"] = [
            {
                "meaning": "instance",
                "reference": {"identifier": {"system": "urn:accord:study", "value": study}},
            }
            for study in body.studies
        ]
    return {
        "resourceType": "Consent",
        "id": body.chain,
        "meta": {"versionId": str(body.version)},
        "identifier": [{"system": "urn:accord:record", "value": directive.digest}],
        "status": "inactive" if body.withdrawn else "active",
        "scope": _concept(
            "consentscope", "research" if purposes == [Purpose.RESEARCH] else "patient-privacy"
        ),
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": {
            "identifier": {"system": f"urn:accord:patient:{directive.issuer}", "value": body.patient}
        },
        "dateTime": directive.issued.isoformat(),
        "policyRule": _concept("v3-ActCode", "OPTIN"),
        "provision": provision,
    }


def _concept(system: str, code: str) -> dict[str, Any]:
    return {"coding": [{"system": f"http://terminology.hl7.org/CodeSystem/{system}", "code": code}]}
