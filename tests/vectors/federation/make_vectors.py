"""Makes the frozen vectors of roster and lease. Run once; the files are kept, and tests read only them.

python -m tests.vectors.federation.make_vectors
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consent.signed import canonical_json, sign
from consent.vocabulary import Purpose
from federation.envelope import seal_for
from federation.fields import base64_text
from federation.protocol import Lease, LeaseRequest, lease_info
from federation.roster import Anchor, Roster, Standing, own_entry
from node.identity import Identity

HERE = Path(__file__).parent
NOW = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2, 3, 4)]


async def identity_of(node_id: str) -> Identity:
    """Keys from seeds that the vectors name: SHA-256 of `<node id>/<secret's name>`."""

    async def secret(name: str) -> bytes:
        return hashlib.sha256(f"{node_id}/{name}".encode()).digest()

    return await Identity.load_or_create(secret, node_id, node_id.title())


def anchor(numbers: tuple[int, ...], threshold: int, region: str = "north") -> Anchor:
    keys = tuple(base64_text(KEYS[number].public_key().public_bytes_raw()) for number in numbers)
    return Anchor(region, keys, threshold)


def tokens(roster: Roster, signers: tuple[int, ...], *, days: int = 14, issuer: str = "north") -> list[str]:
    return [
        sign(
            roster,
            record_id=f"{roster.version:032x}",
            issuer=issuer,
            key=KEYS[number],
            issued=NOW,
            expires=NOW + timedelta(days=days),
        ).token
        for number in signers
    ]


def rosters(a: Identity, b: Identity) -> dict[str, Any]:
    trusted = anchor((0, 1, 2), 2)
    first = own_entry(a.public(), "https://a.example:8444")
    second = own_entry(b.public(), "https://b.example:8444")
    good = Roster(5, (first, second), trusted)
    flipped = tokens(good, (0, 1))
    flipped[1] = flipped[1][:-8] + ("A" if flipped[1][-8] != "A" else "B") + flipped[1][-7:]
    new_keys = Roster(6, (first, second), anchor((3,), 1))
    cases: list[tuple[str, list[str], str | None]] = [
        ("two of three sign", tokens(good, (0, 1)), None),
        ("all three sign", tokens(good, (0, 1, 2)), None),
        ("the same contents again", tokens(good, (1, 2)), None),
        ("newer, with one member suspended", tokens(replace(good, version=6, members=(first, replace(second, status=Standing.SUSPENDED))), (0, 2)), None),
        ("new region keys, signed by the old and the new", tokens(new_keys, (0, 1, 3)), None),
        ("new region keys, signed by the old alone", tokens(new_keys, (0, 1)), "roster-signatures"),
        ("new region keys, signed by the new alone", tokens(new_keys, (3,)), "roster-signatures"),
        ("one key signs", tokens(good, (0,)), "roster-signatures"),
        ("one key signs twice", tokens(good, (0, 0)), "roster-signatures"),
        ("a stranger signs", tokens(good, (0, 3)), "roster-signatures"),
        ("nobody signs", [], "roster-signatures"),
        ("signatures over different contents", tokens(good, (0,)) + tokens(replace(good, version=6), (1,)), "roster-signatures"),
        ("a signature is changed", flipped, "bad-signature"),
        ("another issuer", tokens(good, (0, 1), issuer="south"), "bad-signature"),
        ("another region", tokens(replace(good, version=6, anchor=anchor((0, 1, 2), 2, "south")), (0, 1)), "roster-region"),
        ("older", tokens(replace(good, version=4), (0, 1)), "roster-rollback"),
        ("another of the same version", tokens(replace(good, members=(first,)), (0, 1)), "roster-split"),
        ("expired", tokens(replace(good, version=6), (0, 1), days=0), "expired"),
        ("lasts too long", tokens(replace(good, version=6), (0, 1), days=15), "roster-term"),
        ("two members share a key", tokens(replace(good, version=6, members=(first, replace(second, hpke=first.hpke))), (0, 1)), "roster-duplicate"),
    ]  # fmt: skip
    return {
        "now": int(NOW.timestamp()),
        "anchor": trusted.to_json(),
        "known": tokens(good, (0, 1)),
        "cases": [{"name": name, "tokens": listed, "refused": code} for name, listed, code in cases],
    }


def leases(a: Identity, b: Identity, c: Identity) -> dict[str, Any]:
    grant, nonce = "ab" * 32, "cd" * 32
    until = NOW + timedelta(seconds=900)
    keys = {"in_one": bytes(range(32)), "in_one.a": bytes(range(32, 64))}
    plain = canonical_json({name: base64_text(key) for name, key in keys.items()})
    holder = own_entry(b.public(), "https://b.example:8444")
    other = own_entry(c.public(), "https://c.example:8444")
    good = Lease(grant, nonce, until, seal_for(holder.hpke_key, plain, lease_info(grant, nonce, until)))
    flipped = bytearray(good.sealed)
    flipped[-1] ^= 1
    cases: list[tuple[str, Lease, str | None]] = [
        ("good", good, None),
        (
            "sealed for another holder",
            replace(good, sealed=seal_for(other.hpke_key, plain, good.info)),
            "corrupt",
        ),
        ("a bit of the envelope is changed", replace(good, sealed=bytes(flipped)), "corrupt"),
        ("the encapsulated key alone", replace(good, sealed=good.sealed[:1120]), "corrupt"),
        ("another end", replace(good, until=until + timedelta(seconds=1)), "corrupt"),
        ("another nonce", replace(good, nonce="ce" * 32), "corrupt"),
        ("another grant", replace(good, grant="ac" * 32), "corrupt"),
    ]
    request = LeaseRequest(
        "a-general", "12" * 16, "st_" + "a" * 26, tuple(keys), "li", Purpose.TREATMENT, "visit", nonce, 5
    )
    signed = sign(
        request,
        record_id="34" * 16,
        issuer="b-central",
        key=b.signing,
        issued=NOW,
        expires=NOW + timedelta(seconds=300),
    )
    return {
        "now": int(NOW.timestamp()),
        "home": "a-general",
        "holder": "b-central",
        "request": signed.token,
        "grant": grant,
        "nonce": nonce,
        "info": lease_info(grant, nonce, until).hex(),
        "keys": {name: key.hex() for name, key in keys.items()},
        "cases": [{"name": name, "body": body.to_json(), "refused": code} for name, body, code in cases],
    }


async def main() -> None:
    a, b, c = [await identity_of(name) for name in ("a-general", "b-central", "c-clinic")]
    for name, content in (("roster", rosters(a, b)), ("lease", leases(a, b, c))):
        file = HERE / f"{name}.json"
        file.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    asyncio.run(main())
