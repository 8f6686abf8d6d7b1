"""Make the frozen vectors of signed records, consents and grants, from the words of docs/formats alone.

Shares no code with the product: the JWS below is put together by hand (RFC 7515, RFC 9864), with fixed keys and
times, so that running this again gives the same file. One case is one way of failing.
Run: python tests/vectors/consent/make_vectors.py
"""

from __future__ import annotations

import base64
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

FILE = Path(__file__).parent / "records.json"
HOME, ABROAD = "a-general", "b-central"
NOW = 1795338000
DAY = 24 * 3600


def key_of(node: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(sha256(f"accord vector {node}".encode()).digest())


def public(node: str) -> bytes:
    return key_of(node).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def token(
    kind: str,
    body: Any,
    /,
    *,
    issuer: str = HOME,
    signer: str = HOME,
    header: dict[str, Any] | None = None,
    payload: bytes | None = None,
    **claims: Any,
) -> str:
    head = {"alg": "Ed25519", "typ": f"accord-{kind}", "kid": sha256(public(signer)).hexdigest()[:32]}
    statement = {
        "kind": kind,
        "version": 1,
        "id": f"{kind}-1",
        "iss": issuer,
        "iat": NOW,
        "exp": NOW + DAY,
        "body": body,
    }
    signed = f"{b64(canonical(head | (header or {})))}.{b64(payload or canonical(statement | claims))}"
    return f"{signed}.{b64(key_of(signer).sign(signed.encode()))}"


def directive(**changes: Any) -> dict[str, Any]:
    return {
        "patient": "pt_" + "a" * 26,
        "chain": "c1",
        "version": 1,
        "studies": ["*"],
        "purposes": ["ETREAT", "TREAT"],
        "recipients": [ABROAD],
        "rights": ["download", "view"],
        "start": NOW - DAY,
        "end": NOW + 365 * DAY,
        "recorded_by": "li",
        "basis": "signed form 17",
        "research": False,
        "withdrawn": False,
        "previous": None,
    } | changes


def grant(consent: str, **changes: Any) -> dict[str, Any]:
    return {
        "study": "st_" + "a" * 26,
        "patient": "pt_" + "a" * 26,
        "home": HOME,
        "recipient": ABROAD,
        "person": "*",
        "purpose": "TREAT",
        "rights": ["view"],
        "not_before": NOW,
        "consent": consent,
        "grade_max": 1,
        "manifest": "00" * 32,
        "holder_key": "11" * 32,
        "mode": "view",
    } | changes


def digest(record: str) -> str:
    return sha256(record.encode()).hexdigest()


CONSENT = token("consent-directive", directive(), exp=None)
GRANT = token("grant", grant(digest(CONSENT)))


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}


def reading() -> list[dict[str, Any]]:
    """A token, the kind a reader expects, and what it must answer."""
    body = grant(digest(CONSENT))
    head, payload, signature = GRANT.split(".")
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    cases = [
        ("grant", "grant", GRANT, "ok"),
        ("consent", "consent-directive", CONSENT, "ok"),
        ("unknown-claim-kept", "grant", token("grant", body, later="kept"), "ok"),
        ("unknown-field-of-the-body", "grant", token("grant", body | {"later": 1}), "ok"),
        ("signature-flipped", "grant", f"{head}.{payload}.{signature[:-4]}AAAA", "corrupt"),
        ("signature-missing", "grant", f"{head}.{payload}.", "corrupt"),
        ("signed-by-another-member", "grant", token("grant", body, signer=ABROAD), "corrupt"),
        ("issuer-unknown", "grant", token("grant", body, issuer="nobody"), "corrupt"),
        (
            "payload-of-another",
            "grant",
            f"{head}.{token('grant', body, id='x').split('.')[1]}.{signature}",
            "corrupt",
        ),
        ("algorithm-none", "grant", token("grant", body, header={"alg": "none"}), "invalid"),
        ("algorithm-eddsa", "grant", token("grant", body, header={"alg": "EdDSA"}), "invalid"),
        ("typ-of-another-kind", "grant", token("grant", body, header={"typ": "accord-policy"}), "invalid"),
        ("kind-of-another", "grant", token("grant", body, kind="policy"), "invalid"),
        ("another-kind", "grant", CONSENT, "invalid"),
        ("two-parts", "grant", f"{head}.{payload}", "invalid"),
        ("not-base64url", "grant", f"{head}.{payload}+/.{signature}", "invalid"),
        (
            "duplicate-key",
            "grant",
            token("grant", body, payload=b'{"kind":"grant","kind":"grant"}'),
            "invalid",
        ),
        ("nested-too-deep", "grant", token("grant", body, later=deep), "invalid"),
        ("expired", "grant", token("grant", body, iat=NOW - DAY, exp=NOW), "invalid"),
        ("dated-in-the-future", "grant", token("grant", body, iat=NOW + 121), "invalid"),
        ("newer-version", "grant", token("grant", body, version=2), "invalid"),
        ("without-id", "grant", token("grant", body, id=""), "invalid"),
        ("without-body", "grant", token("grant", None), "invalid"),
        ("expiry-not-a-number", "grant", token("grant", body, exp="tomorrow"), "invalid"),
        ("right-unknown", "grant", token("grant", body | {"rights": ["view", "sell"]}), "invalid"),
        ("purpose-unknown", "grant", token("grant", body | {"purpose": "MARKETING"}), "invalid"),
        ("grade-unknown", "grant", token("grant", body | {"grade_max": 4}), "invalid"),
        ("grant-without-holder", "grant", token("grant", without(body, "holder_key")), "invalid"),
        (
            "consent-ends-before-it-starts",
            "consent-directive",
            token("consent-directive", directive(end=NOW - 2 * DAY)),
            "invalid",
        ),
        (
            "consent-version-2-without-previous",
            "consent-directive",
            token("consent-directive", directive(version=2)),
            "invalid",
        ),
    ]
    return [{"name": n, "kind": kind, "token": text, "expect": expect} for n, kind, text, expect in cases]


def living() -> list[dict[str, Any]]:
    """A grant, the consents that are known, and whether the grant lives."""

    def version(number: int, before: str, **changes: Any) -> str:
        body = directive(version=number, previous=digest(before), **changes)
        return token("consent-directive", body, exp=None, id=f"d{number}")

    withdrawn = version(2, CONSENT, withdrawn=True)
    wider = version(2, CONSENT, recipients=["*"])
    narrower = version(2, CONSENT, rights=["download"])
    renewed = version(3, withdrawn)
    foreign = token("consent-directive", directive(), issuer=ABROAD, signer=ABROAD, exp=None)
    by_recipient = token("grant", grant(digest(CONSENT)), issuer=ABROAD, signer=ABROAD)
    on_foreign = token("grant", grant(digest(foreign)))
    other_patient = token("grant", grant(digest(CONSENT), patient="pt_" + "b" * 26))
    endless = token("grant", grant(digest(CONSENT)), exp=None)
    cases: list[tuple[str, str, list[str], list[str], int, int | None]] = [
        ("alive", GRANT, [CONSENT], [], NOW, NOW + DAY),
        ("alive-in-its-last-second", GRANT, [CONSENT], [], NOW + DAY - 1, NOW + DAY),
        ("expired", GRANT, [CONSENT], [], NOW + DAY, None),
        ("not-begun", GRANT, [CONSENT], [], NOW - 1, None),
        ("revoked", GRANT, [CONSENT], ["grant-1"], NOW, None),
        ("another-revoked", GRANT, [CONSENT], ["grant-2"], NOW, NOW + DAY),
        ("consent-unknown", GRANT, [], [], NOW, None),
        ("consent-withdrawn", GRANT, [CONSENT, withdrawn], [], NOW, None),
        ("withdrawal-came-first", GRANT, [withdrawn, CONSENT], [], NOW, None),
        ("consent-wider", GRANT, [CONSENT, wider], [], NOW, NOW + DAY),
        ("consent-narrower", GRANT, [CONSENT, narrower], [], NOW, None),
        ("consent-given-again", GRANT, [CONSENT, withdrawn, renewed], [], NOW, NOW + DAY),
        ("signed-by-the-recipient", by_recipient, [CONSENT], [], NOW, None),
        ("consent-of-another-hospital", on_foreign, [foreign], [], NOW, None),
        ("consent-of-another-patient", other_patient, [CONSENT], [], NOW, None),
        ("without-an-end", endless, [CONSENT], [], NOW, None),
    ]
    return [
        {"name": name, "grant": text, "directives": known, "revoked": taken, "now": now, "until": until}
        for name, text, known, taken, now, until in cases
    ]


def main() -> None:
    document = {
        "now": NOW,
        "keys": {node: public(node).hex() for node in (HOME, ABROAD)},
        "reading": reading(),
        "living": living(),
    }
    FILE.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
