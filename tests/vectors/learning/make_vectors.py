"""Make the frozen vectors of training plans, decisions and model versions, from the words of docs/formats alone.

Shares no code with the product: each JWS is put together by hand (RFC 7515, RFC 9864) with a fixed key and times, so
running this again gives the same file. One case is one way of failing.
Run: python tests/vectors/learning/make_vectors.py
"""

from __future__ import annotations

import base64
import copy
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

FILE = Path(__file__).parent / "records.json"
NOW = 1795338000
DAY = 24 * 3600
KEY = Ed25519PrivateKey.from_private_bytes(sha256(b"accord vector learning").digest())
PUBLIC = KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

PLAN: dict[str, Any] = {
    "title": "Digits",
    "purpose": "Tell ten classes apart.",
    "researcher": "Dr Tan (hub)",
    "model": {"network": "small-cnn", "width": 16, "hidden": 64},
    "labels": {
        "attribute": "PrimaryAnatomicStructureSequence",
        "scheme": "99ACCORD-DIGITS",
        "codes": ["digit-0", "digit-1"],
    },
    "cohort": {"modality": "DX", "body_part": None, "minimum_patients": 5},
    "image": {"rows": 8, "columns": 8},
    "holdout": {"fraction": 0.2, "code": "REFERENCE"},
    "training": {
        "learning_rate": 0.05,
        "momentum": 0.9,
        "batch_size": 16,
        "local_epochs": 3,
        "update_norm_max": 25.0,
        "seed": 1,
    },
    "schedule": {"rounds": 6, "minimum_sites": 2, "round_seconds": 60, "deadline_seconds": 600},
    "baseline": True,
    "privacy": {"differential_privacy": False, "secure_aggregation": False},
    "app": "a" * 64,
}
DECISION: dict[str, Any] = {
    "plan": "b" * 64,
    "site": "a-general",
    "verdict": "approve",
    "role": "security-officer",
    "max_rounds": 6,
    "sequence": 1,
    "reason": "Reviewed by the board",
}
MODEL: dict[str, Any] = {
    "title": "Digits",
    "plan": "b" * 64,
    "run": "r1",
    "app": "a" * 64,
    "model": {"network": "small-cnn", "width": 16, "hidden": 64},
    "labels": ["digit-0", "digit-1"],
    "parameters": "c" * 64,
    "size_bytes": 155246,
    "approvals": [{"site": "a-general", "decision": "d" * 64}],
    "rounds": [{"round": 1, "sites": ["a-general", "b-central"], "accuracy": None}],
    "accuracy": 0.91,
    "site_accuracy": {"a-general": 0.9, "b-central": 0.92},
    "baseline": {"a-general": 0.6},
    "differential_privacy": False,
    "secure_aggregation": False,
    "software": {"flwr": "1.41.0"},
}
BODIES = {"training-plan": PLAN, "plan-decision": DECISION, "model": MODEL}

CASES: list[tuple[str, str, str, Any, str]] = [
    ("training-plan", "good", "", None, ""),
    ("training-plan", "pickle-for-a-network", "model.network", "pickle", "invalid"),
    ("training-plan", "privacy-that-cannot-be-kept", "privacy.differential_privacy", True, "invalid"),
    ("training-plan", "label-from-free-text", "labels.attribute", "ImageComments", "invalid"),
    ("training-plan", "one-class", "labels.codes", ["digit-0"], "invalid"),
    ("training-plan", "too-few-patients", "cohort.minimum_patients", 1, "invalid"),
    ("training-plan", "one-site", "schedule.minimum_sites", 1, "invalid"),
    ("training-plan", "rounds-without-end", "schedule.rounds", 100000, "invalid"),
    ("training-plan", "no-digest-of-the-code", "app", "latest", "invalid"),
    ("training-plan", "flag-as-text", "baseline", "true", "invalid"),
    ("plan-decision", "good", "", None, ""),
    ("plan-decision", "refusal", "verdict", "refuse", ""),
    ("plan-decision", "neither-yes-nor-no", "verdict", "maybe", "invalid"),
    ("plan-decision", "plan-by-title", "plan", "Digits", "invalid"),
    ("plan-decision", "sequence-zero", "sequence", 0, "invalid"),
    ("model", "good", "", None, ""),
    ("model", "accuracy-above-one", "accuracy", 1.2, "invalid"),
    ("model", "parameters-without-digest", "parameters", "weights.npz", "invalid"),
    ("model", "round-without-sites", "rounds", [{"round": 1, "accuracy": None}], "invalid"),
]


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def token(kind: str, body: Any, *, flip: bool = False, exp: int | None = NOW + DAY) -> str:
    head = canonical({"alg": "Ed25519", "kid": sha256(PUBLIC).hexdigest()[:32], "typ": f"accord-{kind}"})
    statement = {
        "kind": kind,
        "version": 1,
        "id": f"{kind}-1",
        "iss": "hub",
        "iat": NOW,
        "exp": exp,
        "body": body,
    }
    signed = f"{b64(head)}.{b64(canonical(statement))}"
    signature = bytearray(KEY.sign(signed.encode()))
    signature[0] ^= flip
    return f"{signed}.{b64(bytes(signature))}"


def changed(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    result = copy.deepcopy(body)
    place, names = result, path.split(".")
    for name in names[:-1]:
        place = place[name]
    if path:
        place[names[-1]] = value
    return result


def main() -> None:
    cases = [
        {"kind": kind, "name": name, "token": token(kind, changed(BODIES[kind], path, value)), "error": error}
        for kind, name, path, value, error in CASES
    ]
    for kind, body in BODIES.items():
        cases.append(
            {
                "kind": kind,
                "name": "signature-flipped",
                "token": token(kind, body, flip=True),
                "error": "corrupt",
            }
        )
        if kind != "model":
            late = token(kind, body, exp=NOW - 1)
            cases.append({"kind": kind, "name": "expired", "token": late, "error": "invalid"})
    FILE.write_text(
        json.dumps({"now": NOW, "key": base64.b64encode(PUBLIC).decode(), "cases": cases}, indent=1) + "\n",
        "utf-8",
    )


if __name__ == "__main__":
    main()
