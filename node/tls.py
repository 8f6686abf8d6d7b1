"""TLS contexts: who is trusted, which versions, and how a private key gets in without touching a disk in clear.

HTTPS is TLS 1.3 only (RFC 8446). DICOM is TLS 1.2 or later with forward secrecy and AEAD suites, mutual: the
non-downgrading BCP 195 profile of PS3.15 Annex B.12. Holds no key and no roster; which authorities to trust is
an argument. Every context checks certificates strictly (RFC 5280).

An authority vouches for many. Whom of them one speaks with is told by the alternative names of the certificate alone
(RFC 9525 §1.2): the common name of a device is what the device calls itself, and counts for nothing.
"""

from __future__ import annotations

import os
import re
import secrets
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from consent.errors import Invalid

DICOM_TLS12_SUITES = ":".join(
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
    )
)
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class KeyPair(NamedTuple):
    """A certificate chain, leaf first, and its private key; both PEM. The key is clear: keep it in memory."""

    certificate: bytes
    key: bytes


def server_context(pair: KeyPair, client_authorities: Sequence[str] = ()) -> ssl.SSLContext:
    """For an HTTPS listener. With `client_authorities` (PEM), a client must show a certificate under one of them."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, ssl.TLSVersion.TLSv1_3)
    context.set_alpn_protocols(["http/1.1"])
    load_pair(context, pair)
    if client_authorities:
        add_authorities(context, client_authorities)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(authorities: Sequence[str], pair: KeyPair | None = None) -> ssl.SSLContext:
    """For an HTTPS client that trusts `authorities` (PEM) and nobody else, and shows `pair` when asked."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, ssl.TLSVersion.TLSv1_3)
    add_authorities(context, authorities)
    if pair is not None:
        load_pair(context, pair)
    return context


def dicom_server_context(pair: KeyPair, authorities: Sequence[str]) -> ssl.SSLContext:
    """For a DICOM listener: mutual; devices show a certificate under one of `authorities` (PEM)."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, ssl.TLSVersion.TLSv1_2)
    context.set_ciphers(DICOM_TLS12_SUITES)
    load_pair(context, pair)
    add_authorities(context, authorities)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def dicom_client_context(pair: KeyPair, authorities: Sequence[str]) -> ssl.SSLContext:
    """For a DICOM sender: mutual. DICOM peers are addressed by AE title, so that the handshake compares no name.

    Under these authorities may be many: which of them the peer must be is `node.dicom.requestor.Peer`'s to say.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, ssl.TLSVersion.TLSv1_2)
    context.set_ciphers(DICOM_TLS12_SUITES)
    context.check_hostname = False
    load_pair(context, pair)
    add_authorities(context, authorities)
    return context


def add_authorities(context: ssl.SSLContext, authorities: Sequence[str]) -> None:
    """Trust further authorities (PEM). Removing one needs a new context. Raises Invalid when one is not PEM."""
    for authority in authorities:
        try:
            context.load_verify_locations(cadata=authority)
        except (ssl.SSLError, ValueError) as error:
            raise Invalid(
                "A certificate authority is not a PEM certificate.", code="bad-certificate"
            ) from error


def names_in(certificate: bytes) -> frozenset[str]:
    """The DNS names, in small letters, and IP addresses among the alternative names of a certificate (DER)."""
    try:
        names = x509.load_der_x509_certificate(certificate).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except (ValueError, x509.ExtensionNotFound):
        return frozenset()
    hosts = map(str.lower, names.value.get_values_for_type(x509.DNSName))
    return frozenset((*hosts, *map(str, names.value.get_values_for_type(x509.IPAddress))))


def read_fingerprint(text: str) -> str:
    """The SHA-256 of a certificate's DER as somebody wrote it (hex, colons allowed), in small letters. Raises Invalid."""
    digits = text.replace(":", "").lower()
    if not _FINGERPRINT.fullmatch(digits):
        raise Invalid(
            "A certificate is pinned by its SHA-256: 64 hex digits.",
            mend="openssl x509 -in CERTIFICATE -noout -fingerprint -sha256",
            code="bad-fingerprint",
        )
    return digits


def load_pair(context: ssl.SSLContext, pair: KeyPair) -> None:
    """Give `context` its certificate and key; usable again on a live context when a leaf is renewed.

    `ssl` reads keys from files only, so the key passes through anonymous memory, or, where the system has none, through
    a file that is encrypted under a password nobody keeps. Raises Invalid when the two do not belong together.
    """
    try:
        if hasattr(os, "memfd_create"):
            _load_from_memory(context, pair)
        else:
            _load_encrypted(context, pair)
    except ssl.SSLError as error:
        raise Invalid("This certificate and key do not belong together.", code="bad-certificate") from error


def _context(protocol: int, minimum: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = minimum
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.hostname_checks_common_name = False
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def _load_from_memory(context: ssl.SSLContext, pair: KeyPair) -> None:
    descriptor = os.memfd_create("pair", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(pair.certificate + pair.key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _load_encrypted(context: ssl.SSLContext, pair: KeyPair) -> None:
    password = secrets.token_hex(32)
    sealed = load_pem_private_key(pair.key, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode())
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pair.pem")
        file.write_bytes(pair.certificate + sealed)
        context.load_cert_chain(file, password=password)
