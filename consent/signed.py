"""The signed record: one envelope for every statement that somebody vouches for.

`Signed[T]` is a compact JWS (RFC 7515) with alg Ed25519 (EdDSA fully specified, RFC 9864). Its payload is canonical JSON:
kind, version, id, issuer, issued, expires and the body. Fields that this version does not know are kept in
`unknown` and in the token, so an old node neither breaks nor silently edits a newer statement.

Invariants: a `Signed` made by `verify` had a good signature by a key of its issuer, the expected kind, and
had not expired at `now`; `token` is exactly what was signed; `digest` names the record everywhere.
Format: docs/formats/signed-record.md.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from consent.errors import Corrupt, Invalid

MAX_TOKEN_BYTES = 32 * 1024 * 1024
"""Room for the manifest of a study with tens of thousands of instances. Doors have smaller bounds of their own."""
MAX_DEPTH = 32
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
CLOCK_SKEW_SECONDS = 120

ALGORITHM = "Ed25519"


class _Registry(jws.JWSRegistry):
    """The library's own bound on a payload is smaller than a large study's manifest."""

    max_payload_length = MAX_TOKEN_BYTES


_REGISTRY = _Registry(algorithms=[ALGORITHM])

Json = dict[str, Any]
KeysOf = Callable[[str], tuple[Ed25519PublicKey, ...]]
"""Given an issuer, the keys that may sign for it (empty when it is unknown)."""


class Body(Protocol):
    """What a signed record can carry: frozen, named, versioned, and able to become JSON and back."""

    KIND: ClassVar[str]
    VERSION: ClassVar[int]

    def to_json(self) -> Json:
        """Return plain JSON values."""
        ...

    @classmethod
    def from_json(cls, data: Json) -> Self:
        """Raise Invalid when a needed field is missing or of the wrong type."""
        ...


T = TypeVar("T", bound=Body)


@dataclass(frozen=True)
class Signed(Generic[T]):
    """A verified statement. Equal when its token is."""

    id: str
    issuer: str
    issued: datetime
    expires: datetime | None
    body: T = field(compare=False)
    token: str = field(repr=False)
    unknown: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def kind(self) -> str:
        return self.body.KIND

    @property
    def digest(self) -> str:
        """SHA-256 of the token, hex: the name by which other records and the log refer to this one."""
        return sha256(self.token.encode("ascii")).hexdigest()

    def expired(self, now: datetime) -> bool:
        """Whether the statement has ended; the end itself is outside (half-open)."""
        return self.expires is not None and now >= self.expires


def sign(
    body: T,
    *,
    record_id: str,
    issuer: str,
    key: Ed25519PrivateKey,
    issued: datetime,
    expires: datetime | None,
) -> Signed[T]:
    """Sign `body` as a statement of `issuer`. Times are cut to whole seconds."""
    issued = issued.astimezone(UTC).replace(microsecond=0)
    expires = expires.astimezone(UTC).replace(microsecond=0) if expires else None
    payload = canonical_json(
        {
            "kind": body.KIND,
            "version": body.VERSION,
            "id": record_id,
            "iss": issuer,
            "iat": int(issued.timestamp()),
            "exp": int(expires.timestamp()) if expires else None,
            "body": body.to_json(),
        }
    )
    header = {"alg": ALGORITHM, "typ": f"accord-{body.KIND}", "kid": key_id(key.public_key())}
    token = jws.serialize_compact(header, payload, _private_jwk(key), registry=_REGISTRY)
    return Signed(record_id, issuer, issued, expires, body, token)


def verify(token: str, body_type: type[T], *, keys_of: KeysOf, now: datetime) -> Signed[T]:
    """Check signature, kind and times; return the statement.

    Raises Invalid when the token is malformed, of another kind, not yet valid or expired; Corrupt when no key
    of its issuer made the signature.
    """
    signed = read(token, body_type, keys_of=keys_of)
    if (signed.issued - now).total_seconds() > CLOCK_SKEW_SECONDS:
        raise Invalid(
            f"This {body_type.KIND} is dated in the future.", mend="Check both clocks.", code="not-yet-valid"
        )
    if signed.expired(now):
        raise Invalid(
            f"This {body_type.KIND} has expired.", mend="Ask its issuer for a new one.", code="expired"
        )
    return signed


def read(token: str, body_type: type[T], *, keys_of: KeysOf) -> Signed[T]:
    """As `verify`, for history: an expired statement is returned too."""
    header, payload, claims = peek(token)
    if header.get("alg") != ALGORITHM or header.get("typ") != f"accord-{body_type.KIND}":
        raise Invalid(f"Not a {body_type.KIND}: the header says something else.", code="wrong-kind")
    if claims.get("kind") != body_type.KIND:
        raise Invalid(f"Not a {body_type.KIND}.", code="wrong-kind")
    issuer = _text(claims, "iss")
    _check_signature(token, header, payload, keys_of(issuer), issuer)
    version = claims.get("version")
    if not isinstance(version, int) or version > body_type.VERSION:
        raise Invalid(
            f"This {body_type.KIND} has format version {version!r}; this node reads up to {body_type.VERSION}.",
            mend="Upgrade this node.",
            code="version",
        )
    body = claims.get("body")
    if not isinstance(body, dict):
        raise Invalid(f"This {body_type.KIND} has no body.")
    known = {"kind", "version", "id", "iss", "iat", "exp", "body"}
    issued = _moment(claims, "iat")
    if issued is None:
        raise Invalid(f"This {body_type.KIND} does not say when it was issued.")
    return Signed(
        _text(claims, "id"),
        issuer,
        issued,
        _moment(claims, "exp"),
        body_type.from_json(body),
        token,
        {name: value for name, value in claims.items() if name not in known},
    )


def peek(token: str) -> tuple[Json, bytes, Json]:
    """Split a token into header, payload bytes and claims WITHOUT checking the signature; bounds apply."""
    if len(token) > MAX_TOKEN_BYTES or not token.isascii():
        raise Invalid("The signed record is too long or not ASCII.")
    parts = token.split(".")
    if len(parts) != 3:
        raise Invalid("Not a compact JWS: three parts are needed.")
    try:
        header = parse_json(_unbase64(parts[0]))
        payload = _unbase64(parts[1])
    except ValueError as error:
        raise Invalid("Not a compact JWS: a part is not base64url.") from error
    return header, payload, parse_json(payload)


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """UTF-8 JSON with sorted keys, no spaces, no NaN: the same value always gives the same bytes."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def parse_json(data: bytes) -> Json:
    """Parse a JSON object; duplicate keys, non-objects, NaN and nesting past MAX_DEPTH are Invalid."""
    try:
        value = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"Not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise Invalid("Not a JSON object.")
    _check_depth(value, MAX_DEPTH)
    if _SURROGATE.search(data):
        _check_text(value)
    return value


def key_id(key: Ed25519PublicKey) -> str:
    """The first 16 bytes of SHA-256 of the raw public key, hex."""
    return sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:32]


def _check_text(value: Json) -> None:
    """Half of a surrogate pair is no text (RFC 8259 §8.2): nothing behind this could store or send it."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Invalid("Not valid JSON: half of a surrogate pair.") from error


def _check_signature(
    token: str, header: Json, payload: bytes, keys: tuple[Ed25519PublicKey, ...], issuer: str
) -> None:
    for key in keys:
        if header.get("kid") not in (None, key_id(key)):
            continue
        try:
            verified = jws.deserialize_compact(token, _public_jwk(key), registry=_REGISTRY)
        except (JoseError, ValueError):
            continue
        if verified.payload == payload:
            return
    raise Corrupt(
        f"No key of {issuer!r} made this signature.",
        mend="Check that the issuer is in the current roster.",
        code="bad-signature",
    )


def _private_jwk(key: Ed25519PrivateKey) -> OKPKey:
    return OKPKey.import_key(key)


def _public_jwk(key: Ed25519PublicKey) -> OKPKey:
    return OKPKey.import_key(key)


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unbase64(text: str) -> bytes:
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if _base64(data) != text:
        raise ValueError("not canonical base64url")
    return data


def _text(claims: Json, name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not value:
        raise Invalid(f"The signed record lacks {name!r}.")
    return value


def _moment(claims: Json, name: str) -> datetime | None:
    value = claims.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**36:
        raise Invalid(f"The signed record's {name!r} is not a time.")
    return datetime.fromtimestamp(value, UTC)


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_depth(value: Any, left: int) -> None:
    if left == 0:
        raise Invalid(f"JSON nested more than {MAX_DEPTH} deep.")
    if isinstance(value, dict):
        for item in value.values():
            _check_depth(item, left - 1)
    elif isinstance(value, list):
        for item in value:
            _check_depth(item, left - 1)
