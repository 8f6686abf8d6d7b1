"""Builders for signed consents and grants between two hospitals, with keys made once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from consent.decision import CompiledPolicy, Request, Resource, compile_policy
from consent.directives import ALL, Directive
from consent.grants import ANY_CLINICIAN, Grant
from consent.policy import Policy, shipped_policy
from consent.principals import Principal
from consent.signed import Signed, sign
from consent.vocabulary import Action, Grade, Purpose, ResourceKind, Right, Role
from node.policies import shipped_cedar

HOME, ABROAD, ELSEWHERE = "a-general", "b-central", "c-clinic"
PATIENT, STUDY = "pt_1", "st_1"
NOW = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)


@cache
def key_of(node: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(node.encode().ljust(32, b".")[:32])


def keys_of(issuer: str) -> tuple[Ed25519PublicKey, ...]:
    known = (HOME, ABROAD, ELSEWHERE)
    return (key_of(issuer).public_key(),) if issuer in known else ()


@cache
def policy() -> Policy:
    return shipped_policy(shipped_cedar())


@cache
def compiled() -> CompiledPolicy:
    return compile_policy(policy())


def directive(**changes: Any) -> Directive:
    """A consent of the patient to show everything to everybody for treatment, for a year."""
    body = Directive(
        patient=PATIENT,
        chain="chain-1",
        version=1,
        studies=ALL,
        purposes=frozenset({Purpose.TREATMENT, Purpose.EMERGENCY}),
        recipients=ALL,
        rights=frozenset(Right),
        start=NOW - timedelta(days=1),
        end=NOW + timedelta(days=365),
        recorded_by="li",
        basis="signed form",
    )
    return replace(body, **changes)


def signed_directive(*, issuer: str = HOME, issued: datetime = NOW, **changes: Any) -> Signed[Directive]:
    body = directive(**changes)
    record_id = f"{body.chain}-{body.version}"
    return sign(body, record_id=record_id, issuer=issuer, key=key_of(issuer), issued=issued, expires=None)


def next_version(latest: Signed[Directive], **changes: Any) -> Signed[Directive]:
    body = replace(latest.body, version=latest.body.version + 1, previous=latest.digest, **changes)
    record_id = f"{body.chain}-{body.version}"
    key = key_of(latest.issuer)
    return sign(body, record_id=record_id, issuer=latest.issuer, key=key, issued=latest.issued, expires=None)


def grant(consent: Signed[Directive], /, **changes: Any) -> Grant:
    """A grant to every clinician of the other hospital to view the study."""
    body = Grant(
        study=STUDY,
        patient=PATIENT,
        home=HOME,
        recipient=ABROAD,
        person=ANY_CLINICIAN,
        purpose=Purpose.TREATMENT,
        rights=frozenset({Right.VIEW}),
        not_before=NOW,
        consent=consent.digest,
        grade_max=Grade.RESTRICTED,
        manifest="00" * 32,
        holder_key="11" * 32,
    )
    return replace(body, **changes)


def signed_grant(
    consent: Signed[Directive],
    /,
    *,
    issuer: str = HOME,
    record_id: str = "grant-1",
    expires: datetime | None = NOW + timedelta(hours=24),
    **changes: Any,
) -> Signed[Grant]:
    body = grant(consent, **changes)
    return sign(
        body, record_id=record_id, issuer=issuer, key=key_of(issuer), issued=body.not_before, expires=expires
    )


def person(role: Role = Role.CLINICIAN, *, login: str = "li", node: str = HOME, **changes: Any) -> Principal:
    return Principal(login, role, "Dr Li", node, **changes)


def study(**changes: Any) -> Resource:
    return replace(Resource(ResourceKind.STUDY, STUDY, PATIENT, HOME), **changes)


def request(
    who: Principal,
    action: Action = Action.VIEW,
    *,
    purpose: Purpose = Purpose.TREATMENT,
    now: datetime = NOW,
    resource: Resource | None = None,
    **changes: Any,
) -> Request:
    return Request(who, action, resource or study(), purpose, now, **changes)
