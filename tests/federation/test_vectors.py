"""The frozen vectors of roster and lease: one for each way of failing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from consent.errors import AccordError, Corrupt
from consent.fields import unix
from consent.signed import parse_json, verify
from federation.envelope import open_sealed_for
from federation.fields import unbase64
from federation.protocol import Lease, LeaseRequest
from federation.roster import Anchor, accept
from tests.federation.conftest import identity_of

VECTORS = Path(__file__).parents[1] / "vectors" / "federation"
ROSTER: dict[str, Any] = json.loads((VECTORS / "roster.json").read_text("utf-8"))
LEASE: dict[str, Any] = json.loads((VECTORS / "lease.json").read_text("utf-8"))


def named(case: dict[str, Any]) -> str:
    return str(case["name"])


@pytest.mark.requirement("E1")
@pytest.mark.parametrize("case", ROSTER["cases"], ids=named)
def test_roster_vectors(case: dict[str, Any]) -> None:
    """Each roster is accepted, or refused for exactly its own reason, when version 5 is in force."""
    now = datetime.fromtimestamp(ROSTER["now"], UTC)
    anchor = Anchor.from_json(ROSTER["anchor"])
    known = accept(ROSTER["known"], anchor, None, now)

    if case["refused"] is None:
        assert accept(case["tokens"], anchor, known, now).roster.version >= 5
        return
    with pytest.raises(AccordError) as caught:
        accept(case["tokens"], anchor, known, now)
    assert caught.value.code == case["refused"]


@pytest.mark.requirement("E4")
@pytest.mark.parametrize("case", LEASE["cases"], ids=named)
async def test_lease_vectors(case: dict[str, Any]) -> None:
    """The good lease opens with the holder's key and gives the object keys; every other opens nothing."""
    holder = await identity_of(LEASE["holder"])
    lease = Lease.from_json(case["body"])

    if case["refused"] is None:
        assert lease.info.hex() == LEASE["info"]
        opened = parse_json(open_sealed_for(holder.hpke, lease.sealed, lease.info))
        assert {name: unbase64(key).hex() for name, key in opened.items()} == LEASE["keys"]
        assert lease.to_json() == case["body"]
        return
    with pytest.raises(Corrupt):
        open_sealed_for(holder.hpke, lease.sealed, lease.info)


@pytest.mark.requirement("E4")
async def test_lease_request_vector() -> None:
    """A lease request as it was signed is still read the same."""
    holder = await identity_of(LEASE["holder"])
    now = datetime.fromtimestamp(LEASE["now"], UTC)
    keys = (holder.signing.public_key(),)
    signed = verify(LEASE["request"], LeaseRequest, keys_of=lambda issuer: keys, now=now)

    assert unix(signed.issued) == LEASE["now"]
    assert signed.body.objects == tuple(LEASE["keys"])
    assert LeaseRequest.from_json(signed.body.to_json()) == signed.body
