"""The wipe certificate: an edge agent's signed word that the media beside a device hold no image any more.

A device with an agent goes to maintenance or retires only with one that is signed by that agent's key, is about this
device, is fresh, and was made after the device was last seen. Format: docs/formats/wipe-certificate.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from consent.errors import Denied, Invalid
from consent.fields import Fields, unix
from consent.signed import CLOCK_SKEW_SECONDS, Signed, verify

WIPE_LASTS: Final = timedelta(hours=72)
"""How old a wipe may be when the device leaves service."""
MAX_WIPE_CHARACTERS: Final = 16 * 1024
MAX_STEPS: Final = 32
KEY_DESTROYED: Final = "spool-key-destroyed"
"""The step without which nothing was wiped: what is left of the spool is ciphertext without a key."""


@dataclass(frozen=True)
class WipeCertificate:
    """`device` is the AE title, `wiped` the moment. `done` are the steps that were carried out and checked,
    `unproven` those whose effect the agent cannot prove (such as overwriting flash memory)."""

    KIND: ClassVar[str] = "wipe-certificate"
    VERSION: ClassVar[int] = 1

    device: str
    wiped: datetime
    done: tuple[str, ...]
    unproven: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "wiped": unix(self.wiped),
            "done": list(self.done),
            "unproven": list(self.unproven),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Raise Invalid when a field is missing or of the wrong type."""
        fields = Fields(data, "wipe certificate")
        return cls(
            fields.text("device", limit=16),
            fields.moment("wiped"),
            fields.texts("done", limit=MAX_STEPS),
            fields.texts("unproven", limit=MAX_STEPS),
        )


def issuer_of(ae_title: str) -> str:
    """Who signs: the agent beside the device."""
    return f"edge:{ae_title}"


def read_agent_key(text: str) -> str:
    """Return an agent's key (Ed25519, raw, 64 hex digits) in lower case. Raises Invalid when it is none."""
    try:
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(text.strip())).public_bytes_raw().hex()
    except ValueError as error:
        raise Invalid(
            "This is not the key of an edge agent.",
            mend="Give the 64 hexadecimal digits that the agent shows.",
            code="agent-key",
        ) from error


def check_wipe(
    token: str,
    *,
    ae_title: str,
    agent: str,
    last_seen: datetime | None,
    now: datetime,
    since: datetime | None = None,
) -> Signed[WipeCertificate]:
    """Return the statement when it lets the device leave service. `since` is when it came into use.

    Raises Invalid for one that is malformed or expired, Corrupt when the agent did not sign it, Denied when it does not
    cover this device now.
    """
    if len(token) > MAX_WIPE_CHARACTERS:
        raise Invalid("This wipe certificate is too long.", code="wipe-certificate")
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(agent))
    issuer = issuer_of(ae_title)
    signed = verify(
        token.strip(), WipeCertificate, keys_of=lambda who: (key,) if who == issuer else (), now=now
    )
    _require_covering(signed.body, ae_title, last_seen, now)
    if since is not None and signed.body.wiped < _second(since):
        # What stood beside it before says nothing of what it may have taken in since, seen here or not.
        raise Denied(
            "It was put in use since it was wiped.", mend=wipe_needed().mend, code="wipe-certificate"
        )
    return signed


def wipe_needed() -> Denied:
    """The refusal of a change of state without a wipe certificate."""
    return Denied(
        "An edge agent stands beside this device: its media must be wiped before it leaves service.",
        mend="Run accord edge wipe at the device and give the certificate that it writes.",
        code="wipe-certificate",
    )


def _require_covering(
    body: WipeCertificate, ae_title: str, last_seen: datetime | None, now: datetime
) -> None:
    """Raise Denied unless the statement is about this device as it is now."""
    mend = wipe_needed().mend
    if body.device != ae_title:
        raise Denied("This wipe certificate is another device's.", mend=mend, code="wipe-certificate")
    if KEY_DESTROYED not in body.done:
        raise Denied("The spool's key was not destroyed.", mend=mend, code="wipe-certificate")
    if (body.wiped - now).total_seconds() > CLOCK_SKEW_SECONDS:
        raise Denied("It says that it was wiped in the future.", mend=mend, code="wipe-certificate")
    if now - body.wiped > WIPE_LASTS:
        raise Denied("It was wiped too long ago.", mend=mend, code="wipe-certificate")
    if last_seen is not None and body.wiped < _second(last_seen):
        raise Denied("It has been seen here since it was wiped.", mend=mend, code="wipe-certificate")


def _second(moment: datetime) -> datetime:
    """The whole second of a moment: a statement has no finer time, so within one second it came after."""
    return moment.replace(microsecond=0)
