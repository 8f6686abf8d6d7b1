"""The roster: who belongs to the region, and the rule by which a new one replaces the one in force. Pure.

The roster is one body signed by at least k of the n region keys (one `Signed[Roster]` token per key, all over
the same payload). It is versioned, expires, and never goes back: a node keeps the highest version that it
has accepted and refuses an older one, a different one of the same number, and any that outlived its term.
It pins each member's TLS authority, signing key, HPKE key, log key and learning key; nothing else is trusted,
least of all an address. Leaves keeping rosters to `members` and making them to `authority`.
Format: docs/formats/roster.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property, partial
from hashlib import sha256
from typing import ClassVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from consent.errors import Conflict, Corrupt, Denied, Invalid, Sentence
from consent.signed import Json, Signed, key_id, peek, verify
from federation.envelope import HPKE_KEY_BYTES, HpkePublicKey, read_hpke_key, thumbprint
from federation.fields import NODE_ID, read_object, unbase64
from node.audit.note import SignatureType, Verifier
from node.identity import origin_of

MAX_MEMBERS = 800
MAX_REGION_KEYS = 16
MAX_PEM_BYTES = 8 * 1024
MAX_URL = 300
MAX_NAME = 120
MAX_KEY_TEXT = 400
MAX_ROSTER_DAYS = 14
REGION = re.compile(r"[a-z0-9-]{2,64}")
URL = re.compile(r"https://[A-Za-z0-9.\-\[\]:]{1,255}")


class Standing(StrEnum):
    """Whether a member takes part."""

    ACTIVE = "active"
    SUSPENDED = "suspended"


HOSPITAL = "hospital"
HUB = "hub"


@dataclass(frozen=True)
class Member:
    """One listed organisation: where it answers and the keys that are pinned for it."""

    id: str
    name: str
    url: str
    tls_ca: str
    signing: str
    hpke: str
    log_vkey: str
    learning_key: str
    roles: tuple[str, ...] = (HOSPITAL,)
    status: Standing = Standing.ACTIVE
    dicom: str | None = None

    @cached_property
    def signing_key(self) -> Ed25519PublicKey:
        """The key that signs this member's records."""
        return Ed25519PublicKey.from_public_bytes(unbase64(self.signing))

    @cached_property
    def hpke_key(self) -> HpkePublicKey:
        """The key that object keys are encrypted to."""
        return read_hpke_key(unbase64(self.hpke))

    @cached_property
    def hpke_thumbprint(self) -> str:
        """Names the HPKE key in a grant, so that a changed key needs a new grant."""
        return thumbprint(unbase64(self.hpke))

    @cached_property
    def authority(self) -> x509.Certificate:
        """The certificate authority under which this member issues its own leafs."""
        return x509.load_pem_x509_certificate(self.tls_ca.encode("ascii"))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the TLS authority's DER, hex: what a discovery hint carries."""
        return sha256(self.authority.public_bytes(Encoding.DER)).hexdigest()

    @cached_property
    def log_verifier(self) -> Verifier:
        """The key that signs this member's log, under the log's name. Raises Invalid when it is not one."""
        return Verifier.from_vkey(self.log_vkey)

    def to_json(self) -> Json:
        return {
            "id": self.id,
            "name": self.name,
            "url": self.url,
            "tls_ca": self.tls_ca,
            "signing": self.signing,
            "hpke": self.hpke,
            "log_vkey": self.log_vkey,
            "learning_key": self.learning_key,
            "roles": list(self.roles),
            "status": str(self.status),
            "dicom": self.dicom,
        }

    @classmethod
    def from_json(cls, data: object) -> Member:
        """Raise Invalid unless every field is present, bounded, every key can be loaded, and the log is the member's."""
        read = read_object(data, "member")
        member = cls(
            id=read.matching("id", NODE_ID),
            name=read.text("name", limit=MAX_NAME),
            url=read.matching("url", URL),
            tls_ca=read.text("tls_ca", limit=MAX_PEM_BYTES),
            signing=read.text("signing", limit=64),
            hpke=read.text("hpke", limit=2 * HPKE_KEY_BYTES),
            log_vkey=read.text("log_vkey", limit=MAX_KEY_TEXT),
            learning_key=read.text("learning_key", limit=MAX_KEY_TEXT, empty=True),
            roles=read.texts("roles", limit=8),
            status=read.choice("status", Standing),
            dicom=read.optional_text("dicom", limit=MAX_URL),
        )
        try:
            _ = member.signing_key, member.hpke_key, member.authority
        except ValueError as error:
            raise Invalid(
                Sentence("Member %(member)s has a key that cannot be read.", member=repr(member.id)),
                code="field",
            ) from error
        if member.log_verifier.type is not SignatureType.ED25519 or member.log_verifier.name != origin_of(
            member.id
        ):
            # Witnesses keep what they saw of a log under its name: nobody lists another's.
            raise Invalid(
                Sentence(
                    "The log_vkey of the member with the id %(member)s is another log's.",
                    member=repr(member.id),
                ),
                code="field",
            )
        return member


def own_entry(
    public: Json, url: str, *, dicom: str | None = None, roles: tuple[str, ...] = (HOSPITAL,)
) -> Member:
    """What a node asks the roster to list, from `Identity.public()` and the address others shall use."""
    return Member.from_json(
        {**public, "url": url, "dicom": dicom, "roles": list(roles), "status": str(Standing.ACTIVE)}
    )


@dataclass(frozen=True)
class Anchor:
    """The region's keys and how many of them must sign. Comes from an invitation, then from each roster."""

    region: str
    keys: tuple[str, ...]
    threshold: int

    @cached_property
    def public_keys(self) -> tuple[Ed25519PublicKey, ...]:
        return tuple(Ed25519PublicKey.from_public_bytes(unbase64(key)) for key in self.keys)

    def to_json(self) -> Json:
        return {"region": self.region, "keys": list(self.keys), "threshold": self.threshold}

    @classmethod
    def from_json(cls, data: object) -> Anchor:
        """Raise Invalid unless the keys are distinct and the threshold can be reached."""
        read = read_object(data, "set of region keys")
        keys = read.texts("keys", limit=MAX_REGION_KEYS)
        threshold = read.integer("threshold", low=1, high=MAX_REGION_KEYS)
        if len(set(keys)) != len(keys) or threshold > len(keys):
            raise Invalid("The region's keys must differ, and the threshold must not exceed them.")
        anchor = cls(read.matching("region", REGION), keys, threshold)
        try:
            _ = anchor.public_keys
        except ValueError as error:
            raise Invalid("A region key cannot be read.", code="field") from error
        return anchor


@dataclass(frozen=True)
class Roster:
    """The list itself. Frozen; a change is a new version."""

    KIND: ClassVar[str] = "roster"
    VERSION: ClassVar[int] = 1

    version: int
    members: tuple[Member, ...]
    anchor: Anchor

    @cached_property
    def by_id(self) -> Mapping[str, Member]:
        return {member.id: member for member in self.members}

    def to_json(self) -> Json:
        return {
            "version": self.version,
            "members": [member.to_json() for member in self.members],
            "anchor": self.anchor.to_json(),
        }

    @classmethod
    def from_json(cls, data: Json) -> Roster:
        """Raise Invalid when two members share an id or a key: each key names one organisation."""
        read = read_object(data, "roster")
        members = read.objects("members", Member.from_json, limit=MAX_MEMBERS)
        for name in ("id", "tls_ca", "signing", "hpke", "log_vkey"):
            values = [getattr(member, name) for member in members]
            if len(set(values)) != len(values):
                raise Invalid(
                    Sentence("Two members of the roster share the same %(name)s.", name=name),
                    code="roster-duplicate",
                )
        return cls(read.integer("version", low=1), members, Anchor.from_json(read.mapping("anchor")))


@dataclass(frozen=True)
class AcceptedRoster:
    """A roster that enough region keys signed, with the tokens that prove it to the next reader."""

    signed: Signed[Roster]
    tokens: tuple[str, ...]

    @property
    def roster(self) -> Roster:
        return self.signed.body


def accept(
    tokens: Sequence[str], anchor: Anchor, known: AcceptedRoster | None, now: datetime
) -> AcceptedRoster:
    """Judge a roster by the keys trusted so far; return it when it may replace `known`.

    Raises Invalid (malformed, expired, too long-lived, another region), Corrupt (too few good signatures, or
    two rosters of one version), Conflict (older than the one known).
    """
    trusted = known.roster.anchor if known else anchor
    signed = _signed_by_enough(tokens, trusted, now)
    roster = signed.body
    if roster.anchor.region != trusted.region:
        raise Invalid("This roster is of another region.", code="roster-region")
    if roster.anchor != trusted:
        # New region keys must be vouched for by the old ones (checked above) and prove themselves.
        _signed_by_enough(tokens, roster.anchor, now)
    if signed.expires is None or signed.expires - signed.issued > timedelta(days=MAX_ROSTER_DAYS):
        raise Invalid(
            Sentence("A roster must expire within %(most)s days.", most=MAX_ROSTER_DAYS), code="roster-term"
        )
    accepted = AcceptedRoster(signed, tuple(tokens))
    if known is not None:
        _check_succession(known, accepted)
    return accepted


def _check_succession(known: AcceptedRoster, new: AcceptedRoster) -> None:
    if new.roster.version < known.roster.version:
        raise Conflict(
            Sentence(
                "Roster version %(version)s is older than %(known)s, which is in force here.",
                version=new.roster.version,
                known=known.roster.version,
            ),
            mend="Fetch the current roster from the hub; if the hub itself offers an old one, raise the alarm.",
            code="roster-rollback",
        )
    if new.roster.version == known.roster.version and new.roster != known.roster:
        raise Corrupt(
            Sentence("Two different rosters carry version %(version)s.", version=new.roster.version),
            mend="The region's keys have signed two histories: stop, and call the hub's operator.",
            code="roster-split",
        )


def _signed_by_enough(tokens: Sequence[str], anchor: Anchor, now: datetime) -> Signed[Roster]:
    if not 1 <= len(tokens) <= MAX_REGION_KEYS:
        raise Invalid(
            Sentence("A roster comes with 1 to %(most)s signatures.", most=MAX_REGION_KEYS),
            code="roster-signatures",
        )
    payloads = {peek(token)[1] for token in tokens}
    if len(payloads) != 1:
        raise Invalid("The roster's signatures are over different contents.", code="roster-signatures")
    signers: set[str] = set()
    first: Signed[Roster] | None = None
    for token in tokens:
        for key in anchor.public_keys:
            if key_id(key) in signers or not _names(token, key):
                continue
            signed = verify(token, Roster, keys_of=partial(_only, anchor, key), now=now)
            first = first or signed
            signers.add(key_id(key))
    if first is None or len(signers) < anchor.threshold:
        raise Corrupt(
            Sentence(
                "%(good)s of the %(needed)s region signatures needed are good.",
                good=len(signers),
                needed=anchor.threshold,
            ),
            mend="Fetch the roster from the hub again; if it stays so, call the hub's operator.",
            code="roster-signatures",
        )
    return first


def _names(token: str, key: Ed25519PublicKey) -> bool:
    return peek(token)[0].get("kid") == key_id(key)


def _only(anchor: Anchor, key: Ed25519PublicKey, issuer: str) -> tuple[Ed25519PublicKey, ...]:
    return (key,) if issuer == anchor.region else ()


def issuer_of_leaf(roster: Roster, certificate_der: bytes) -> Member:
    """Find the member whose pinned authority issued this TLS leaf.

    Identity comes from the authority that signed, not from any name inside: a member can issue under its own
    authority only. The leaf must carry the node's own name, so that a device certificate of a hospital
    cannot speak for the hospital. Raises Denied.
    """
    leaf = x509.load_der_x509_certificate(certificate_der)
    for member in roster.members:
        if _issued_by(leaf, member.authority):
            if member.id not in _names_of(leaf):
                raise Denied(
                    Sentence("This certificate of %(member)s is not its node's own.", member=member.id),
                    code="peer-leaf",
                )
            if member.status is not Standing.ACTIVE:
                raise Denied(
                    Sentence("Member %(member)s is suspended.", member=member.id), code="peer-suspended"
                )
            return member
    raise Denied("No member of the roster issued this certificate.", code="peer-unlisted")


def _issued_by(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _names_of(leaf: x509.Certificate) -> list[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return names.value.get_values_for_type(x509.DNSName)
