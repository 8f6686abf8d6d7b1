"""A device's client certificate: reading it, its end, and the overlap of a renewal.

What counts is the fingerprint of the very certificate that was registered (`admission`); who signed it does not.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from consent.errors import Conflict, Invalid, Sentence

MAX_CERTIFICATE_CHARACTERS: Final = 64 * 1024
OVERLAP: Final = timedelta(days=14)
"""How long the former certificate is let in beside a renewed one, unless told otherwise."""
MAX_OVERLAP: Final = timedelta(days=60)
EXPIRING: Final = timedelta(days=30)
"""So long before its end a certificate is called expiring."""


def read_certificate(pem: str) -> tuple[str, str]:
    """Return the first certificate of `pem` as PEM, and its SHA-256. Raises Invalid when there is none."""
    try:
        if len(pem) > MAX_CERTIFICATE_CHARACTERS:
            raise ValueError("too long")
        certificate = x509.load_pem_x509_certificate(pem.encode("ascii"))
    except ValueError as error:
        raise Invalid(
            "This is not a certificate.",
            mend="Give the device's own certificate as a PEM file (-----BEGIN CERTIFICATE-----).",
            code="certificate",
        ) from error
    return certificate.public_bytes(Encoding.PEM).decode("ascii"), sha256(
        certificate.public_bytes(Encoding.DER)
    ).hexdigest()


def read_living_certificate(pem: str, now: datetime) -> tuple[str, str]:
    """As `read_certificate`. Raises Invalid for one whose days are over too."""
    certificate, fingerprint = read_certificate(pem)
    if certificate_end(certificate) <= now:
        raise Invalid(
            "This certificate has ended.", mend="Give one that is valid now.", code="certificate-ended"
        )
    return certificate, fingerprint


@lru_cache(maxsize=4096)
def certificate_end(pem: str) -> datetime:
    """The moment from which a certificate that `read_certificate` returned is no longer valid."""
    return x509.load_pem_x509_certificate(pem.encode("ascii")).not_valid_after_utc


def require_serving(pem: str) -> None:
    """Raise Invalid for a certificate that its device cannot answer a TLS call with (RFC 5280 §4.2.1.12)."""
    certificate = x509.load_pem_x509_certificate(pem.encode("ascii"))
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return  # not confined to any use; what else is wrong with it the handshake tells
    if ExtendedKeyUsageOID.SERVER_AUTH not in usages:
        raise Invalid(
            "This node calls the device, and its certificate is not good for being called.",
            mend="Issue it with --serves, or give one for server and client use.",
            code="certificate-use",
        )


def check_overlap(overlap: timedelta) -> timedelta:
    """Return it. Raises Invalid when it is negative or longer than MAX_OVERLAP."""
    if not timedelta(0) <= overlap <= MAX_OVERLAP:
        raise Invalid(
            Sentence("Two certificates overlap for 0 to %(days)s days.", days=MAX_OVERLAP.days),
            mend="Choose a number of days in between.",
            code="certificate-overlap",
        )
    return overlap


def overlap_end(former_pem: str, overlap: timedelta, now: datetime) -> datetime:
    """Until when a former certificate is let in beside its successor: never past its own end."""
    return min(now + overlap, certificate_end(former_pem))


def require_other(fingerprint: str, known: str | None) -> None:
    """Raise Conflict when a certificate that should be new is the one that is known."""
    if fingerprint == known:
        raise Conflict(
            "This certificate is the one that is registered already.",
            mend="Give the new one, or let this node issue one.",
            code="same-certificate",
        )
