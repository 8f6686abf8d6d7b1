"""Who a node is: its keys, the certificates it issues under its own authority, and what it shows of itself.

Five keys, each for one use: signing (records), log (checkpoints and cosignatures), HPKE (leases), TLS authority,
learning (Flower node authentication). All grow from 32-byte seeds that the key ring keeps wrapped; nothing here is
stored. The authority's certificate is made from its seed alone, so it is the same after every start.
Leaves TLS contexts to `tls`. Format: docs/formats/identity.md.

Invariants: no private key leaves this object except as a `KeyPair` in memory; the node's id is an alternative name of the
node's own certificates and of nothing else that its authority issues.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from urllib.parse import quote

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from consent.errors import Invalid
from consent.signed import Json
from node.audit.note import Signer
from node.tls import (
    KeyPair,
    add_authorities,
    client_context,
    dicom_client_context,
    dicom_server_context,
    load_pair,
    server_context,
)

__all__ = [
    "Identity",
    "KeyPair",
    "Secret",
    "add_authorities",
    "client_context",
    "dicom_client_context",
    "dicom_server_context",
    "load_pair",
    "node_of",
    "server_context",
]

SEED_BYTES = 32
MLKEM_SEED_BYTES = 64
LEAF_DAYS = 30
MAX_LEAF_DAYS = 398
DEVICE_DAYS = 365
CLOCK_SKEW = timedelta(hours=1)
# Fixed, so that the authority's certificate depends on its seed alone; the roster, not a date, ends its trust.
AUTHORITY_FROM = datetime(2020, 1, 1, tzinfo=UTC)
AUTHORITY_UNTIL = datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)

# Orders of the groups (SEC 2 v2 §2.4.2, §2.5.1): a scalar is drawn from 1 … n-1.
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_P384_ORDER = int(
    "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973", 16
)

Secret = Callable[[str], Awaitable[bytes]]
"""Gives the 32 bytes kept under a name, making them at random when asked the first time (`KeyRing.secret`)."""


@dataclass(frozen=True)
class Identity:
    """A node's keys. Made by `load_or_create`."""

    node_id: str
    name: str
    signing: Ed25519PrivateKey = field(repr=False)
    log_signer: Signer = field(repr=False)
    hpke: hpke.MLKEM768X25519PrivateKey = field(repr=False)
    hpke_public: bytes = field(repr=False)
    authority_key: ec.EllipticCurvePrivateKey = field(repr=False)
    authority: x509.Certificate = field(repr=False)
    learning: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    async def load_or_create(cls, secret: Secret, node_id: str, name: str) -> Identity:
        """Grow every key from its seed; the seeds come into being at the first call."""
        hpke_key, hpke_public = _hpke_key(await secret("identity/hpke"))
        authority_key = _ec_key(await secret("identity/tls-authority"), ec.SECP256R1(), _P256_ORDER)
        return cls(
            node_id=node_id,
            name=name,
            signing=Ed25519PrivateKey.from_private_bytes(_checked(await secret("identity/signing"))),
            log_signer=Signer(origin_of(node_id), _checked(await secret("identity/log"))),
            hpke=hpke_key,
            hpke_public=hpke_public,
            authority_key=authority_key,
            authority=_authority(node_id, authority_key),
            learning=_ec_key(await secret("identity/learning"), ec.SECP384R1(), _P384_ORDER),
        )

    @property
    def origin(self) -> str:
        """The origin line of this node's log, and the name of its log key."""
        return self.log_signer.name

    @property
    def cosigner(self) -> Signer:
        """The key with which this node, as a witness, cosigns checkpoints of others."""
        return self.log_signer.as_cosigner()

    @property
    def authority_pem(self) -> str:
        """The certificate of this node's own authority, PEM."""
        return self.authority.public_bytes(Encoding.PEM).decode()

    @property
    def learning_public(self) -> str:
        """The learning key, one OpenSSH line (ecdsa-sha2-nistp384)."""
        return self.learning.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    def learning_private(self) -> bytes:
        """The learning key in OpenSSH format, unencrypted, for a pipe or sealed memory file; never a disk."""
        return self.learning.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())

    def public(self) -> Json:
        """What others may know, as the roster pins it. Byte strings are standard base64."""
        signing = self.signing.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return {
            "id": self.node_id,
            "name": self.name,
            "signing": base64.b64encode(signing).decode(),
            "log_vkey": self.log_signer.verifier.vkey,
            "hpke": base64.b64encode(self.hpke_public).decode(),
            "tls_ca": self.authority_pem,
            "learning_key": self.learning_public,
        }

    def leaf(self, hosts: Sequence[str], now: datetime, *, days: float = LEAF_DAYS) -> KeyPair:
        """A fresh key and a short-lived certificate for this node, as server and as client.

        It bears the node's id and every host (DNS name or IP address). Raises Invalid when `days` is not
        between 0 and MAX_LEAF_DAYS.
        """
        names = _host_names(dict.fromkeys((self.node_id, *hosts)))
        return self._issue(self.node_id, names, now, days, serves=True)

    def issue_device_certificate(
        self, ae_title: str, now: datetime, *, days: float = DEVICE_DAYS, serves: bool = False
    ) -> KeyPair:
        """A fresh key and certificate for a device, named by its AE title and by no host.

        It opens the DICOM door. For a device that this node calls, `serves` makes it good for answering TLS too: then
        only the names tell it from the node (`node_of`), and a peer that looks at the authority alone takes the one for
        the other. Raises Invalid.
        """
        title = ae_title.strip()
        if not 1 <= len(title) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
            raise Invalid("An AE title has 1 to 16 printable ASCII characters and no backslash.")
        uri = x509.UniformResourceIdentifier(f"urn:accord:{self.node_id}:device:{quote(title, safe='')}")
        return self._issue(title, [uri], now, days, serves=serves)

    def _issue(
        self,
        common_name: str,
        names: Sequence[x509.GeneralName],
        now: datetime,
        days: float,
        *,
        serves: bool,
    ) -> KeyPair:
        if not 0 < days <= MAX_LEAF_DAYS:
            raise Invalid(f"A certificate lasts more than 0 and at most {MAX_LEAF_DAYS} days, not {days}.")
        key = ec.generate_private_key(ec.SECP256R1())
        authority_ski = self.authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if serves:
            usages.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(common_name, self.node_id))
            .issuer_name(self.authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(min(now + timedelta(days=days), AUTHORITY_UNTIL))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_ski.value),
                critical=False,
            )
            .sign(self.authority_key, SHA256())
        )
        chain = certificate.public_bytes(Encoding.PEM) + self.authority.public_bytes(Encoding.PEM)
        return KeyPair(chain, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def node_of(authority: str) -> str:
    """The id of the node whose own authority (PEM) this is: the name that its peers look for in its certificate.

    Raises Invalid when it is not one authority, as `Identity` makes them.
    """
    try:
        (certificate,) = x509.load_pem_x509_certificates(authority.encode("ascii"))
        (organisation,) = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        node_id = str(organisation.value)
        certificate.verify_directly_issued_by(certificate)
        if certificate.subject == _authority_name(node_id):
            return node_id
    except (ValueError, TypeError, InvalidSignature):
        pass
    raise Invalid(
        "This is not the authority of a node.",
        mend="Take the ca.crt that accord device issue-certificate wrote, and nothing else.",
        code="node-authority",
    )


def origin_of(node_id: str) -> str:
    """The origin of a node's log."""
    return f"accord/{node_id}"


def _authority(node_id: str, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = _authority_name(node_id)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(sha256(identifier.digest).digest()[:16], "big") | 1)
        .not_valid_before(AUTHORITY_FROM)
        .not_valid_after(AUTHORITY_UNTIL)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .sign(key, SHA256(), ecdsa_deterministic=True)
    )


def _authority_name(node_id: str) -> x509.Name:
    return _name(f"{node_id} authority", node_id)


def _name(common_name: str, node_id: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, node_id),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _host_names(hosts: Sequence[str] | dict[str, None]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host.strip("[]"))))
        except ValueError:
            try:
                names.append(x509.DNSName(host))
            except (ValueError, TypeError) as error:
                raise Invalid(f"{host!r} is neither a DNS name nor an IP address.") from error
    return names


def _hpke_key(seed: bytes) -> tuple[hpke.MLKEM768X25519PrivateKey, bytes]:
    material = _expand(seed, b"accord/identity-hpke/v1", MLKEM_SEED_BYTES + SEED_BYTES)
    mlkem = MLKEM768PrivateKey.from_seed_bytes(material[:MLKEM_SEED_BYTES])
    x25519 = X25519PrivateKey.from_private_bytes(material[MLKEM_SEED_BYTES:])
    public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
    return hpke.MLKEM768X25519PrivateKey(mlkem, x25519), public


def _ec_key(seed: bytes, curve: ec.EllipticCurve, order: int) -> ec.EllipticCurvePrivateKey:
    # 64 bits more than the order make the bias of the remainder negligible (FIPS 186-5 A.2.1).
    length = (order.bit_length() + 64) // 8
    material = _expand(seed, f"accord/identity-{curve.name}/v1".encode(), length)
    return ec.derive_private_key(int.from_bytes(material, "big") % (order - 1) + 1, curve)


def _expand(seed: bytes, info: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length=length, salt=None, info=info).derive(_checked(seed))


def _checked(seed: bytes) -> bytes:
    if len(seed) != SEED_BYTES:
        raise Invalid(f"A key's seed has {SEED_BYTES} bytes, not {len(seed)}.")
    return seed
