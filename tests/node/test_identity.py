"""A node's keys, what they sign, and TLS between real sockets."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from consent.errors import Invalid
from consent.signed import canonical_json
from node import tls
from node.identity import (
    Identity,
    KeyPair,
    client_context,
    dicom_client_context,
    dicom_server_context,
    node_of,
    server_context,
)
from node.tls import names_in
from tests.support.seeds import seeds

NOW = datetime.now(UTC)


async def _identity(node_id: str = "a-general", salt: str = "") -> Identity:
    return await Identity.load_or_create(seeds(salt or node_id), node_id, "A General Hospital")


async def test_a_restart_finds_the_same_keys_and_the_same_authority() -> None:
    """Everything grows from the kept seeds, so nothing that others have pinned changes."""
    first, second = await _identity(), await _identity()
    assert first.public() == second.public()
    assert first.authority_pem == second.authority_pem
    other = await _identity(salt="other seeds")
    for name in ("signing", "hpke", "log_vkey", "tls_ca", "learning_key"):
        assert first.public()[name] != other.public()[name]


async def test_the_authority_made_from_a_fixed_seed_never_changes() -> None:
    """A library upgrade that altered its bytes would break what every roster pins: this fingerprint is frozen."""
    identity = await _identity(salt="frozen")
    assert identity.authority.fingerprint(SHA256()).hex() == (
        "7c85c772fc07d11efc14af00e9f7782f7986ce9cda6b098e62e0bdd187c5149b"
    )


async def test_the_keys_grown_from_fixed_seeds_never_change() -> None:
    """Every derivation is part of the format: another result would make a node a stranger to its own past."""
    public = (await _identity(salt="frozen")).public()
    del public["tls_ca"]
    assert sha256(canonical_json(public)).hexdigest() == (
        "c5a41553b79a5e88bde8e049bc6f9c4b1f6cb9f268f4d0c7348165d19e744ea5"
    )


@pytest.mark.requirement("T1", "T2")
async def test_openssl_verifies_leaf_and_device_certificates_strictly(tmp_path: Path) -> None:
    """An independent verifier accepts both chains under RFC 5280's strict rules, for their uses."""
    identity = await _identity()
    (tmp_path / "ca.pem").write_text(identity.authority_pem)
    calling = identity.issue_device_certificate("CT 1", NOW)
    pairs = [
        (identity.leaf(["localhost", "127.0.0.1"], NOW), {"sslserver", "sslclient"}),
        (identity.issue_device_certificate("WS 1", NOW, serves=True), {"sslserver", "sslclient"}),
        (calling, {"sslclient"}),
    ]
    for pair, purposes in pairs:
        (tmp_path / "leaf.pem").write_bytes(pair.certificate)
        for purpose in ("sslserver", "sslclient"):
            command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile"]
            found = subprocess.run(
                [*command, str(tmp_path / "ca.pem"), str(tmp_path / "leaf.pem")],
                capture_output=True,
                text=True,
                check=False,
            )
            assert (found.returncode == 0) == (purpose in purposes), found.stderr


async def test_a_leaf_bears_the_node_and_its_hosts_and_is_short_lived() -> None:
    """SAN holds node id, names and addresses; the key is the certificate's; the term is what was asked."""
    pair = (await _identity()).leaf(["node.example", "::1", "127.0.0.1"], NOW, days=2)
    leaf = x509.load_pem_x509_certificate(pair.certificate)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a-general", "node.example"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["::1", "127.0.0.1"]
    assert leaf.not_valid_after_utc - NOW < timedelta(days=2, seconds=1)
    assert load_pem_private_key(pair.key, None).public_key() == leaf.public_key()


async def test_a_device_certificate_cannot_speak_for_the_node() -> None:
    """It names an AE title as a URI and no host at all."""
    pair = (await _identity()).issue_device_certificate("CT1", NOW)
    leaf = x509.load_pem_x509_certificate(pair.certificate)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == []
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["urn:accord:a-general:device:CT1"]


@pytest.mark.requirement("T1", "T2")
@pytest.mark.parametrize("title", ["a-general", "localhost"])
async def test_a_device_named_as_a_host_does_not_answer_for_it(title: str) -> None:
    """The common name of a certificate is its device's choice, and no client takes it for a host's name."""
    a = await _identity()
    server = server_context(a.issue_device_certificate(title, NOW, serves=True))
    with pytest.raises(ssl.SSLCertVerificationError, match="ostname mismatch"):
        await _exchange(server, client_context([a.authority_pem]), name=title)


async def test_the_names_of_a_certificate_are_its_alternative_names_alone() -> None:
    """A node's leaf bears the node and its hosts; a device's none, also when its common name is the node's id."""
    a = await _identity()
    der = [
        x509.load_pem_x509_certificate(pair.certificate).public_bytes(Encoding.DER)
        for pair in (a.leaf(["::1", "node.example"], NOW), a.issue_device_certificate("a-general", NOW))
    ]
    assert [names_in(one) for one in der] == [{"a-general", "::1", "node.example"}, set()]
    assert names_in(b"no certificate") == set()


async def test_an_authority_says_whose_it_is() -> None:
    """Every authority that a node makes names the node; nothing else does, neither a leaf nor two at once."""
    a, b = await _identity("a-general"), await _identity("b-central")
    assert (node_of(a.authority_pem), node_of(b.authority_pem)) == ("a-general", "b-central")
    leaf = a.leaf([], NOW).certificate.decode()
    for wrong in (
        "",
        "-----BEGIN",
        leaf,
        leaf.partition("-----END")[0],
        a.authority_pem + b.authority_pem,
        "ü",
    ):
        with pytest.raises(Invalid, match="not the authority of a node"):
            node_of(wrong)


@pytest.mark.parametrize("ae_title", ["", " ", "A" * 17, "C\\T", "CTÜ", "C\nT"])
async def test_a_wrong_ae_title_gets_no_certificate(ae_title: str) -> None:
    """PS3.5 §6.2 bounds an AE title."""
    with pytest.raises(Invalid, match="AE title"):
        (await _identity()).issue_device_certificate(ae_title, NOW)


@pytest.mark.parametrize("days", [0, -1, 399])
async def test_a_leaf_of_a_senseless_term_is_refused(days: int) -> None:
    """Neither dead at birth nor for ever."""
    with pytest.raises(Invalid, match="lasts"):
        (await _identity()).leaf([], NOW, days=days)


async def test_a_host_that_is_no_name_is_refused() -> None:
    """A label that is not ASCII is not a DNS name."""
    with pytest.raises(Invalid, match="neither a DNS name"):
        (await _identity()).leaf(["krankenhaus-süd"], NOW)


async def test_a_seed_of_a_wrong_length_is_refused() -> None:
    """A short seed is a broken key ring, not a key."""

    async def short(_name: str) -> bytes:
        return b"short"

    with pytest.raises(Invalid, match="seed"):
        await Identity.load_or_create(short, "a", "A")


@pytest.mark.requirement("T2")
async def test_what_is_sealed_to_the_public_hpke_key_opens_with_the_private_one() -> None:
    """The published 1216 bytes are the key that the private part opens."""
    identity = await _identity()
    mlkem, x25519 = identity.hpke_public[:1184], identity.hpke_public[1184:]
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    public = hpke.MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(mlkem), X25519PublicKey.from_public_bytes(x25519)
    )
    suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    assert suite.decrypt(suite.encrypt(b"lease", public, info=b"x"), identity.hpke, info=b"x") == b"lease"


async def test_the_learning_key_is_p384_in_openssh_form() -> None:
    """What Flower's node authentication reads."""
    identity = await _identity()
    private = load_ssh_private_key(identity.learning_private(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.curve.name == "secp384r1"
    assert load_ssh_public_key(identity.learning_public.encode()) == private.public_key()


async def _exchange(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str = "127.0.0.1"
) -> tuple[str, str]:
    """Send a word over a real socket; return what came back and the TLS version."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(await reader.readexactly(4))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        writer.close()

    listener = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=client, server_hostname=name
            )
            try:
                writer.write(b"ping")
                await writer.drain()
                answer = (await reader.readexactly(4)).decode()
                return answer, writer.get_extra_info("ssl_object").version()
            finally:
                writer.close()


REFUSED = (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)


@pytest.mark.requirement("T1", "T2")
async def test_two_nodes_speak_tls13_and_know_each_other() -> None:
    """Mutual: each trusts the other's authority and nobody else."""
    a, b = await _identity("a-general"), await _identity("b-central")
    server = server_context(a.leaf(["127.0.0.1"], NOW), [b.authority_pem])
    client = client_context([a.authority_pem], b.leaf([], NOW))
    assert await _exchange(server, client) == ("ping", "TLSv1.3")


@pytest.mark.requirement("T2")
async def test_a_stranger_a_missing_certificate_and_a_wrong_name_are_refused() -> None:
    """Each ends the handshake; no byte of ours is answered."""
    a, b, c = await _identity("a-general"), await _identity("b-central"), await _identity("c-clinic")
    leaf = a.leaf(["127.0.0.1"], NOW)
    server = server_context(leaf, [b.authority_pem])
    for client in (client_context([a.authority_pem], c.leaf([], NOW)), client_context([a.authority_pem])):
        with pytest.raises(REFUSED):
            await _exchange(server, client)
    trusting = client_context([a.authority_pem], b.leaf([], NOW))
    with pytest.raises(ssl.SSLCertVerificationError):
        await _exchange(server, trusting, name="elsewhere.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        await _exchange(server, client_context([b.authority_pem], b.leaf([], NOW)))


async def test_an_expired_leaf_is_refused() -> None:
    """A leaf of yesterday opens nothing today."""
    a = await _identity()
    server = server_context(a.leaf(["127.0.0.1"], NOW - timedelta(days=3), days=1))
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        await _exchange(server, client_context([a.authority_pem]))


async def test_tls12_is_refused_at_the_https_door() -> None:
    """HTTPS is TLS 1.3 only."""
    a = await _identity()
    old = client_context([a.authority_pem])
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    with pytest.raises(REFUSED):
        await _exchange(server_context(a.leaf(["127.0.0.1"], NOW)), old)


@pytest.mark.requirement("T1")
async def test_dicom_tls_is_mutual_and_takes_tls12_with_aead_only() -> None:
    """A device that can do no better than TLS 1.2 gets in with an AEAD suite, and not with CBC."""
    a = await _identity()
    server = dicom_server_context(a.leaf(["127.0.0.1"], NOW), [a.authority_pem])
    device = a.issue_device_certificate("CT1", NOW)
    assert await _exchange(server, dicom_client_context(device, [a.authority_pem])) == ("ping", "TLSv1.3")
    old = dicom_client_context(device, [a.authority_pem])
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert await _exchange(server, old) == ("ping", "TLSv1.2")
    old.set_ciphers("ECDHE-ECDSA-AES128-SHA")
    with pytest.raises(REFUSED):
        await _exchange(server, old)
    stranger = (await _identity("c-clinic")).issue_device_certificate("CT1", NOW)
    with pytest.raises(REFUSED):
        await _exchange(server, dicom_client_context(stranger, [a.authority_pem]))


@pytest.mark.parametrize("memory", [True, False], ids=["memory file", "encrypted file"])
async def test_a_private_key_is_never_in_clear_on_disk(
    memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a context is loaded from is anonymous memory, or an encrypted file that is gone afterwards."""
    a = await _identity()
    seen: list[bytes] = []
    original = ssl.SSLContext.load_cert_chain

    def spy(
        self: ssl.SSLContext, certfile: str, keyfile: str | None = None, password: str | None = None
    ) -> None:
        if not os.path.realpath(certfile).startswith("/memfd:"):
            seen.append(Path(certfile).read_bytes())
        original(self, certfile, keyfile, password)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", spy)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if not memory:
        monkeypatch.setattr(tls, "hasattr", lambda _module, _name: False, raising=False)
    server = server_context(a.leaf(["127.0.0.1"], NOW))
    assert len(seen) == (0 if memory else 1)
    assert all(b"BEGIN ENCRYPTED PRIVATE KEY" in text and b"BEGIN PRIVATE" not in text for text in seen)
    assert list(tmp_path.iterdir()) == []
    assert (await _exchange(server, client_context([a.authority_pem])))[0] == "ping"


async def test_a_key_of_another_certificate_and_a_broken_authority_are_refused() -> None:
    """The error says which input is wrong."""
    a = await _identity()
    one, two = a.leaf([], NOW), a.leaf([], NOW)
    with pytest.raises(Invalid, match="belong together"):
        server_context(KeyPair(one.certificate, two.key))
    with pytest.raises(Invalid, match="PEM"):
        client_context(["not a certificate"])


async def test_keys_do_not_show_in_a_repr() -> None:
    """A stray log line cannot hold a private key."""
    assert "key" not in repr(await _identity()).lower()
