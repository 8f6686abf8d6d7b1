"""Make the frozen vectors of the vault's formats, from the words of docs/formats alone.

Shares no code with the product: the encryptor, the pack builder and the keystore below follow the documents, with fixed
keys, salts and nonces, so that running this again gives the same files. One case is one way of failing.
Run: python tests/vectors/vault/make_vectors.py
"""

from __future__ import annotations

import base64
import json
import struct
from hashlib import sha256, shake_256
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from nacl.pwhash import argon2id

HERE = Path(__file__).parent
STUDY, OTHER_STUDY = "st_" + "a" * 26, "st_" + "b" * 26
CREATED = 1795338000


def fixed(label: str, length: int) -> bytes:
    return shake_256(f"accord vector {label}".encode()).digest(length)


def canonical(value: dict) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# --- sealed object


def header(
    study: str = STUDY, id: str = "in_one", kind: str = "instance", grade: int = 1, suite: int = 1
) -> dict:
    return {"format": "accord-object", "grade": grade, "id": id, "kind": kind, "study": study, "suite": suite}


def object_key(study_key: bytes, id: str) -> bytes:
    return HKDF(SHA256(), 32, None, b"accord/object/v1|" + id.encode()).derive(study_key)


def seal(plain: bytes, key: bytes, head: dict, salt: bytes) -> bytes:
    info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00" + salt + sha256(canonical(head)).digest()
    derived = HKDFExpand(SHA512(), 76, info).derive(key)
    cipher, nonce, body = AESGCM(derived[:32]), int.from_bytes(derived[32:44], "big"), salt + derived[44:]
    for number in range(len(plain) // 16384 + 1):
        chunk = plain[number * 16384 : (number + 1) * 16384]
        body += cipher.encrypt((nonce ^ number).to_bytes(12, "big"), chunk, None)
    return body


def seal_digest(plain: bytes, key: bytes, head: dict, nonce: bytes) -> bytes:
    digest_key = HKDF(SHA256(), 32, None, b"accord/digest/v1").derive(key)
    context = sha256(canonical(head)).digest()
    return nonce + AESGCM(digest_key).encrypt(nonce, sha256(plain).digest(), context)


def flip(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


def sealed_objects() -> dict:
    study_key = fixed("study key", 32)
    key, salt = object_key(study_key, "in_one"), fixed("salt", 24)
    small, two, full = fixed("small", 100), fixed("two", 16400), fixed("full", 16384)
    sealed, long = seal(small, key, header(), salt), seal(two, key, header(), salt)
    three = seal(fixed("three", 32800), key, header(), salt)
    restricted = seal(small, key, header(grade=3), salt)
    digest = seal_digest(small, key, header(), fixed("nonce", 12))
    cases: list[dict] = []

    def case(name: str, expect: str, body: bytes, **changed: object) -> None:
        with_key = changed.pop("key", key)
        cases.append(
            {
                "name": name,
                "expect": expect,
                "key": with_key.hex(),
                "header": header(**changed),
                "body": b64(body),
            }
        )

    case("one chunk", "opens", sealed)
    case("empty payload", "opens", seal(b"", key, header(), salt))
    case("two chunks", "opens", long)
    case("a full chunk and an empty one", "opens", seal(full, key, header(), salt))
    case("other study", "corrupt", sealed, study=OTHER_STUDY)
    case("swapped with another object", "corrupt", sealed, id="in_two", key=object_key(study_key, "in_two"))
    case("other id under the same key", "corrupt", sealed, id="in_two")
    case("other kind", "corrupt", sealed, kind="attributes")
    case("lowered grade", "corrupt", restricted, grade=1)
    case("wrong key", "corrupt", sealed, key=fixed("wrong key", 32))
    case("bit flipped in the salt", "corrupt", flip(sealed, 0))
    case("bit flipped in the commitment", "corrupt", flip(sealed, 24))
    case("bit flipped in a chunk", "corrupt", flip(sealed, 60))
    case("bit flipped in a tag", "corrupt", flip(sealed, len(sealed) - 1))
    case("bit flipped in the second chunk", "corrupt", flip(long, 56 + 16400 + 3))
    case("last byte missing", "corrupt", sealed[:-1])
    case("last chunk missing", "corrupt", long[: 56 + 16400])
    case("only the prefix", "corrupt", sealed[:56])
    case("cut in the prefix", "corrupt", sealed[:55])
    case("nothing", "corrupt", b"")
    case("extended by a byte", "corrupt", sealed + b"\x00")
    case("extended by its own last chunk", "corrupt", long + long[56 + 16400 :])
    case("chunks exchanged", "corrupt", three[:56] + three[16456:32856] + three[56:16456] + three[32856:])
    case("unknown suite", "invalid", sealed, suite=2)
    case("unknown grade", "invalid", sealed, grade=4)
    case("path in the study id", "invalid", sealed, study="st_../../etc")
    payloads = {
        "one chunk": small,
        "empty payload": b"",
        "two chunks": two,
        "a full chunk and an empty one": full,
    }
    for item in cases:
        if item["name"] in payloads:
            item["sha256"] = sha256(payloads[item["name"]]).hexdigest()
    return {
        "study_key": study_key.hex(),
        "object_keys": {"in_one": key.hex()},
        "cases": cases,
        "digests": [
            {"name": "digest", "expect": "opens", "sealed": b64(digest), "sha256": sha256(small).hexdigest()},
            {"name": "digest flipped", "expect": "corrupt", "sealed": b64(flip(digest, 20))},
            {"name": "digest cut", "expect": "corrupt", "sealed": b64(digest[:-1])},
        ],
    }


# --- study pack


def b16(data: bytes) -> bytes:
    return blake3(data).digest(length=16)


def pack_head(study: str = STUDY, version: int = 1, magic: bytes = b"ACCORDPK") -> bytes:
    text = canonical({"created": CREATED, "study": study})
    start = struct.pack(">8sHHI", magic, version, 1, len(text))
    return start + b16(start + text) + text


def frame(at: int, base: int, text: bytes, body_bytes: int, study: str = STUDY) -> bytes:
    start = struct.pack(">4sIQQ", b"ACRD", len(text), body_bytes, base)
    return start + b16(b"accord/record/v1" + study.encode() + at.to_bytes(8, "big") + start + text) + text


def record(at: int, base: int, id: str, kind: str, plain: bytes) -> bytes:
    key = object_key(fixed("study key", 32), id)
    head = header(id=id, kind=kind)
    body = seal(plain, key, head, fixed(f"salt {id}", 24))
    digest = (
        base64.urlsafe_b64encode(seal_digest(plain, key, head, fixed(f"nonce {id}", 12)))
        .rstrip(b"=")
        .decode()
    )
    text = canonical(
        {
            "blake3": blake3(body).hexdigest(),
            "created": CREATED,
            "digest": digest,
            "grade": 1,
            "id": id,
            "kind": kind,
            "plain": len(plain),
            "suite": 1,
        }
    )
    return frame(at, base, text, len(body)) + body


def study_packs() -> dict:
    head = pack_head()
    first = record(len(head), 0, "in_one.a", "attributes", fixed("attributes", 50))
    second = record(len(head) + len(first), 0, "in_one", "instance", fixed("instance", 200))
    group_one = head + first + second
    third = record(len(group_one), len(group_one), "in_two.a", "attributes", fixed("more", 60))
    at_fourth = len(group_one) + len(third)
    fourth = record(at_fourth, len(group_one), "in_two", "instance", fixed("most", 300))
    whole = group_one + third + fourth
    at_second, at_third = len(head) + len(first), len(group_one)
    all_ids = ["in_one.a", "in_one", "in_two.a", "in_two"]
    cases: list[dict] = []

    def case(name: str, data: bytes, **expect: object) -> None:
        found = {"error": None, "objects": all_ids, "end": len(whole), "damages": [], "bad_bodies": []}
        cases.append({"name": name, "pack": b64(data), **found, **expect})

    def torn(name: str, data: bytes, objects: list[str], end: int) -> None:
        case(name, data, objects=objects, end=end, damages=[[end, True, False]])

    case("four objects in two groups", whole)
    case("only a head", head, objects=[], end=len(head))
    case("nothing", b"", objects=[], end=0)
    torn("torn in the head", head[:20], [], 0)
    torn("torn in a frame", whole[: at_fourth + 20], all_ids[:3], at_fourth)
    torn("torn in a header", whole[: at_fourth + 100], all_ids[:3], at_fourth)
    torn("torn in a body", whole[:-1], all_ids[:3], at_fourth)
    torn("zeros behind the end", whole + bytes(5000), all_ids, len(whole))
    case("end missing at a record boundary", whole[:at_fourth], objects=all_ids[:3], end=at_fourth)
    case(
        "extended with something else",
        whole + fixed("else", 200),
        end=len(whole) + 200,
        damages=[[len(whole), False, False]],
    )
    case(
        "bit flipped in a header of the first group",
        flip(whole, at_second + 60),
        objects=["in_one.a", "in_two.a", "in_two"],
        damages=[[at_second, False, True]],
        error="corrupt",
    )
    case(
        "bit flipped in a length of the first group",
        flip(whole, at_second + 14),
        objects=["in_one.a", "in_two.a", "in_two"],
        damages=[[at_second, False, True]],
        error="corrupt",
    )
    case(
        "bit flipped in a header of the last group",
        flip(whole, at_third + 60),
        objects=["in_one.a", "in_one", "in_two"],
        damages=[[at_third, False, False]],
    )
    case("bit flipped in a body", flip(whole, at_third - 5), bad_bodies=["in_one"])
    case(
        "records exchanged",
        head + second + first + third + fourth,
        objects=["in_two.a", "in_two"],
        damages=[[len(head), False, True]],
        error="corrupt",
    )
    case(
        "void record",
        group_one + frame(at_third, 0, b"", len(third) - 40) + third[40:] + fourth,
        objects=["in_one.a", "in_one", "in_two"],
    )
    case("wrong magic", pack_head(magic=b"NOTAPACK") + whole[len(head) :], error="corrupt-head")
    case("bit flipped in the head", flip(whole, 40), error="corrupt-head")
    case("pack of another study", pack_head(OTHER_STUDY), error="corrupt-head")
    case("unknown version", pack_head(version=2) + whole[len(head) :], error="invalid-head")
    case("not a pack at all", fixed("noise", 300), error="corrupt-head")
    return {"study": STUDY, "study_key": fixed("study key", 32).hex(), "cases": cases}


# --- keystore


def keystores() -> dict:
    credential, root, salt, nonce = (
        b"correct horse battery",
        fixed("root", 32),
        fixed("kdf salt", 16),
        fixed("n", 12),
    )
    clear = {
        "format": "accord-keystore",
        "version": 1,
        "suite": 1,
        "id": fixed("id", 16).hex(),
        "kdf": {"name": "argon2id", "opslimit": 1, "memlimit": 8192, "salt": b64(salt)},
    }
    key = argon2id.kdf(32, credential, salt, opslimit=1, memlimit=8192)
    sealed = AESGCM(key).encrypt(nonce, root, canonical(clear))
    good = {**clear, "root": {"nonce": b64(nonce), "ciphertext": b64(sealed)}}
    context = canonical({"grade": 1, "use": "kek", "version": 1})
    wrapped = (
        b"\x01" + nonce + AESGCM(root).encrypt(nonce, fixed("kek", 32), b"accord/custody/v1\x00" + context)
    )
    cases: list[dict] = []

    def case(name: str, expect: str, content: bytes, credential: bytes = credential) -> None:
        cases.append({"name": name, "expect": expect, "file": b64(content), "credential": b64(credential)})

    def edited(**changes: object) -> bytes:
        return canonical({**good, **changes})

    case("keystore", "opens", canonical(good) + b"\n")
    case("wrong credential", "denied", canonical(good), b"incorrect horse")
    case("short credential", "invalid", canonical(good), b"short")
    case(
        "bit flipped in the root",
        "denied",
        edited(root={"nonce": b64(nonce), "ciphertext": b64(flip(sealed, 3))}),
    )
    case("root cut", "denied", edited(root={"nonce": b64(nonce), "ciphertext": b64(sealed[:10])}))
    case("weakened parameters", "denied", edited(kdf={**clear["kdf"], "opslimit": 2}))
    case("exchanged id", "denied", edited(id="00" * 16))
    case("absurd memory", "invalid", edited(kdf={**clear["kdf"], "memlimit": 2**40}))
    case("unknown version", "invalid", edited(version=2))
    case("unknown suite", "invalid", edited(suite=2))
    case("unknown derivation", "corrupt", edited(kdf={**clear["kdf"], "name": "pbkdf2"}))
    case("no root", "corrupt", canonical(clear))
    case("salt is not base64", "corrupt", edited(kdf={**clear["kdf"], "salt": "???"}))
    case("another format", "corrupt", edited(format="something"))
    case("truncated", "corrupt", canonical(good)[:100])
    case("empty", "corrupt", b"")
    other = canonical({"grade": 3, "use": "kek", "version": 1})
    return {
        "cases": cases,
        "wrapped": [
            {
                "name": "kek",
                "expect": "opens",
                "wrapped": b64(wrapped),
                "context": b64(context),
                "key": fixed("kek", 32).hex(),
            },
            {
                "name": "moved to another grade",
                "expect": "corrupt",
                "wrapped": b64(wrapped),
                "context": b64(other),
            },
            {
                "name": "bit flipped",
                "expect": "corrupt",
                "wrapped": b64(flip(wrapped, 20)),
                "context": b64(context),
            },
            {"name": "cut", "expect": "corrupt", "wrapped": b64(wrapped[:12]), "context": b64(context)},
            {
                "name": "unknown suite",
                "expect": "corrupt",
                "wrapped": b64(flip(wrapped, 0)),
                "context": b64(context),
            },
        ],
    }


# --- custodies


def envelopes() -> dict:
    """What a token with a known key would have wrapped by AES-GCM (suite 2)."""
    token, one_use, kek = fixed("token key", 32), fixed("one-use", 32), fixed("kek", 32)
    outer_nonce, nonce = fixed("outer nonce", 12), fixed("inner nonce", 12)
    context = canonical({"grade": 1, "use": "kek", "version": 1})
    outer = outer_nonce + AESGCM(token).encrypt(outer_nonce, one_use, b"accord/root/v1")
    inner = b"\x01" + nonce + AESGCM(one_use).encrypt(nonce, kek, b"accord/custody/v1\x00" + context)
    good = b"\x02" + struct.pack(">H", len(outer)) + outer + inner
    cases: list[dict] = []

    def case(name: str, expect: str, wrapped: bytes, context: bytes = context) -> None:
        cases.append({"name": name, "expect": expect, "wrapped": b64(wrapped), "context": b64(context)})

    case("opens", "opens", good)
    case("another context", "corrupt", good, canonical({"grade": 2, "use": "kek", "version": 1}))
    case("outer part altered", "corrupt", flip(good, 20))
    case("inner part altered", "corrupt", flip(good, len(good) - 1))
    case("length altered", "corrupt", flip(good, 2))
    case("length zero", "corrupt", good[:1] + b"\0\0" + good[3:])
    case("length past the end", "corrupt", good[:1] + b"\xff\xff" + good[3:])
    case("cut", "corrupt", good[:-1])
    case("cut in the length", "corrupt", good[:2])
    case("inner suite unknown", "corrupt", good[: 3 + len(outer)] + b"\x09" + inner[1:])
    return {"token_key": token.hex(), "key": kek.hex(), "cases": cases}


def two_person() -> dict:
    """A two-person keystore of three holders. HPKE is not to be had without chance: made once, then kept."""
    people = {"li": b"passphrase of li", "wang": b"passphrase of wang", "zhao": b"passphrase of zhao"}
    root, identity, nonce = fixed("two-person root", 32), fixed("two-person id", 16).hex(), fixed("n2", 12)
    suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    about = canonical({"grade": 3, "id": identity, "use": "two-person-root"})
    holders, publics = {}, {}
    for login, passphrase in people.items():
        seed, salt = fixed(f"seed {login}", 96), fixed(f"salt {login}", 16)
        lattice = MLKEM768PrivateKey.from_seed_bytes(seed[:64]).public_key()
        curve = X25519PrivateKey.from_private_bytes(seed[64:]).public_key()
        publics[login] = hpke.MLKEM768X25519PublicKey(lattice, curve)
        key = argon2id.kdf(32, passphrase, salt, opslimit=1, memlimit=8192)
        aad = canonical({"holder": login, "id": identity, "use": "two-person-holder"})
        holders[login] = {
            "public": b64(lattice.public_bytes_raw() + curve.public_bytes_raw()),
            "kdf": {"name": "argon2id", "opslimit": 1, "memlimit": 8192, "salt": b64(salt)},
            "nonce": b64(nonce),
            "private": b64(AESGCM(key).encrypt(nonce, seed, aad)),
        }
    pairs = []
    for pair in (["li", "wang"], ["li", "zhao"], ["wang", "zhao"]):
        one = fixed(f"share {pair}", 32)
        other = bytes(a ^ b for a, b in zip(one, root, strict=True))
        shares = []
        for login, share in zip(pair, (one, other), strict=True):
            info = canonical(
                {"grade": 3, "holder": login, "id": identity, "pair": pair, "use": "two-person-share"}
            )
            shares.append(b64(suite.encrypt(share, publics[login], info=info)))
        pairs.append({"holders": pair, "shares": shares})
    file = {
        "format": "accord-two-person-keystore",
        "version": 1,
        "suite": 1,
        "id": identity,
        "grade": 3,
        "check": b64(b"\x01" + nonce + AESGCM(root).encrypt(nonce, b"", about)),
        "holders": holders,
        "pairs": pairs,
    }
    context = canonical({"grade": 3, "use": "kek", "version": 1})
    kek = fixed("restricted kek", 32)
    wrapped = b"\x01" + nonce + AESGCM(root).encrypt(nonce, kek, b"accord/custody/v1\x00" + context)
    return {
        "file": b64(canonical(file) + b"\n"),
        "passphrases": {login: b64(words) for login, words in people.items()},
        "wrapped": b64(wrapped),
        "context": b64(context),
        "key": kek.hex(),
    }


def custodies() -> dict:
    kept = HERE / "custody.json"
    made_once = json.loads(kept.read_text("utf-8"))["two_person"] if kept.exists() else two_person()
    return {"envelopes": envelopes(), "two_person": made_once}


def main() -> None:
    for name, content in (
        ("sealed-object", sealed_objects()),
        ("study-pack", study_packs()),
        ("keystore", keystores()),
        ("custody", custodies()),
    ):
        (HERE / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
