"""Make the frozen vectors of wipe certificates, from docs/formats/wipe-certificate.md alone.

Shares no code with the product: the JWS is put together by hand with fixed keys and times, so that running this again
gives the same file. One case is one way of failing. Run: python tests/vectors/consent/make_wipes.py
"""

from __future__ import annotations

import base64
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FILE = Path(__file__).parent / "wipes.json"
NOW = 1795338000
HOUR = 3600
AGENT = Ed25519PrivateKey.from_private_bytes(sha256(b"accord vector agent").digest())
STRANGER = Ed25519PrivateKey.from_private_bytes(sha256(b"accord vector stranger").digest())
BODY = {"device": "CT1", "wiped": NOW - HOUR, "done": ["spool-key-destroyed"], "unproven": ["flash"]}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def token(
    body: Any = None,
    /,
    *,
    key: Ed25519PrivateKey = AGENT,
    kind: str = "wipe-certificate",
    issuer: str = "edge:CT1",
    issued: int = NOW - HOUR,
    expires: int = NOW + 24 * HOUR,
    version: int = 1,
) -> str:
    header = {"alg": "Ed25519", "typ": f"accord-{kind}"}
    payload = {
        "kind": kind, "version": version, "id": "0f" * 16, "iss": issuer, "iat": issued, "exp": expires,
        "body": BODY | (body or {}),
    }  # fmt: skip
    signed = f"{b64(canonical(header))}.{b64(canonical(payload))}"
    return f"{signed}.{b64(key.sign(signed.encode()))}"


def case(name: str, expect: str, record: str, *, seen: int | None = None) -> dict[str, Any]:
    return {"name": name, "expect": expect, "token": record, "last_seen": seen}


CASES = [
    case("good", "ok", token()),
    case("good-seen-before", "ok", token(), seen=NOW - 2 * HOUR),
    case("seen-since", "denied", token(), seen=NOW - HOUR + 1),
    case("another-device", "denied", token({"device": "CT2"})),
    case("key-left", "denied", token({"done": ["spool-overwritten"]})),
    case("too-old", "denied", token({"wiped": NOW - 72 * HOUR - 1})),
    case("old-enough", "ok", token({"wiped": NOW - 72 * HOUR})),
    case("another-key", "corrupt", token(key=STRANGER)),
    case("another-issuer", "corrupt", token(issuer="edge:CT2")),
    case("another-kind", "invalid", token(kind="grant")),
    case("newer-version", "invalid", token(version=2)),
    case("expired", "invalid", token(expires=NOW)),
    case("from-the-future", "invalid", token(issued=NOW + 121)),
    case("done-is-no-list", "invalid", token({"done": "spool-key-destroyed"})),
    case("too-many-steps", "invalid", token({"done": [f"step-{n}" for n in range(33)]})),
    case("too-long", "invalid", token({"unproven": ["x" * 1000] * 30})),
    case("cut-short", "corrupt", token()[:-1]),
]


def main() -> None:
    agent = AGENT.public_key().public_bytes_raw().hex()
    FILE.write_text(
        json.dumps({"now": NOW, "agent": agent, "device": "CT1", "cases": CASES}, indent=1) + "\n", "utf-8"
    )


if __name__ == "__main__":
    main()
