"""How a node comes into the region: the invitation it is given and the descriptor it answers with.

The invitation is one file, handed over by a channel that the two operators trust; it pins the hub's TLS
authority and the region's keys, and carries a code that works once. The descriptor says who the node is and is
signed by the very key it names. Pure, except `join`, which carries the two through a client.
Format: docs/formats/roster.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consent.errors import AccordError, Invalid
from consent.signed import Signed, peek, sign, verify
from federation.fields import read_object
from federation.protocol import MESSAGE_SECONDS
from federation.roster import MAX_PEM_BYTES, URL, Anchor, Member, Standing

MAX_INVITATION_BYTES = 64 * 1024
INVITATION_HOURS = 72

Json = dict[str, Any]


@dataclass(frozen=True)
class Invitation:
    """Where the hub is, what it is known by, the region's keys, and a code that works once."""

    KIND: ClassVar[str] = "invitation"
    VERSION: ClassVar[int] = 1

    hub_url: str
    hub_ca: str
    anchor: Anchor
    code: str
    note: str = ""

    def to_json(self) -> Json:
        return {
            "hub_url": self.hub_url,
            "hub_ca": self.hub_ca,
            "anchor": self.anchor.to_json(),
            "code": self.code,
            "note": self.note,
        }

    @classmethod
    def from_json(cls, data: Json) -> Self:
        read = read_object(data, "invitation")
        return cls(
            hub_url=read.matching("hub_url", URL),
            hub_ca=read.text("hub_ca", limit=MAX_PEM_BYTES),
            anchor=Anchor.from_json(read.mapping("anchor")),
            code=read.text("code", limit=64),
            note=read.text("note", limit=200, empty=True),
        )


@dataclass(frozen=True)
class Descriptor:
    """A node's word about itself: what the roster is to list."""

    KIND: ClassVar[str] = "member-descriptor"
    VERSION: ClassVar[int] = 1

    region: str
    member: Member

    def to_json(self) -> Json:
        return {"region": self.region, "member": self.member.to_json()}

    @classmethod
    def from_json(cls, data: Json) -> Self:
        read = read_object(data, "member descriptor")
        return cls(read.text("region", limit=64), Member.from_json(read.mapping("member")))


def read_invitation(text: str, now: datetime) -> Signed[Invitation]:
    """Read an invitation file. Raises Invalid (malformed, expired) or Corrupt (edited on its way).

    It is signed by a key that it itself names, so the signature guards against damage, not against a forger:
    what makes it trustworthy is the hand that gave it.
    """
    token = text.strip()
    if len(token) > MAX_INVITATION_BYTES:
        raise Invalid(f"An invitation is at most {MAX_INVITATION_BYTES // 1024} KiB.")
    try:
        body = peek(token)[2].get("body")
        anchor = Anchor.from_json(body.get("anchor") if isinstance(body, dict) else None)
        keys = anchor.public_keys
        return verify(token, Invitation, keys_of=lambda issuer: keys * (issuer == anchor.region), now=now)
    except AccordError as error:
        mend = error.mend or "Ask the hub's operator for a new invitation and give the file as it came."
        raise type(error)(f"The invitation cannot be used: {error.message}", mend=mend) from error


def describe(
    member: Member, *, region: str, key: Ed25519PrivateKey, record_id: str, now: datetime
) -> Signed[Descriptor]:
    """Sign what this node wants the roster to say of it; good for a few minutes."""
    return sign(
        Descriptor(region, replace(member, status=Standing.ACTIVE)),
        record_id=record_id,
        issuer=member.id,
        key=key,
        issued=now,
        expires=now + timedelta(seconds=MESSAGE_SECONDS),
    )


def read_descriptor(token: str, region: str, now: datetime) -> Member:
    """Check a descriptor by the key it names; return the member as the roster may list it."""
    claims = peek(token)[2]
    body = claims.get("body")
    stated = Descriptor.from_json(body if isinstance(body, dict) else {}).member
    keys = (stated.signing_key,)
    signed = verify(token, Descriptor, keys_of=lambda issuer: keys * (issuer == stated.id), now=now)
    if signed.body.region != region:
        raise Invalid("This descriptor is for another region.", code="region")
    return replace(signed.body.member, status=Standing.ACTIVE)
