"""A root key that two people must unlock together: each has a passphrase, neither can do anything alone.

Two to six holders; any two of them open it. Each holder has a key pair whose private half is sealed under argon2id(passphrase); for
every pair of holders the root key is split into two shares, one sealed to each. So a passphrase can be changed by its holder
alone, and a stolen file with one passphrase yields nothing. Holds file, unlocking and locking; leaves who may try to the doors.

Invariants: the root key is in memory only between an unlocking and a locking; a first passphrase waits for the second for
OFFER_LASTS at most; guesses are bounded. Format: docs/formats/keystore.md, "Two-person keystore".
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import combinations
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consent.errors import Conflict, Corrupt, Denied, Invalid, Unavailable
from consent.signed import Json, canonical_json
from consent.vocabulary import Grade
from node.vault.custody import LOCAL, require_suite
from node.vault.custody.envelope import CONTEXT
from node.vault.custody.keystore import (
    ROOT_BYTES,
    Effort,
    bytes_of,
    check_credential,
    new_kdf,
    read_file,
    remove_leftovers,
    replace_file,
    stretch,
    text_of,
    write_new_file,
)
from node.vault.wrapping import SUITE, open_key, seal_key

FORMAT = "accord-two-person-keystore"
MIN_HOLDERS, MAX_HOLDERS = 2, 6
OFFER_LASTS = timedelta(minutes=5)
MAX_WRONG = 5
WRONG_FORGOTTEN = timedelta(minutes=15)
_SEED_BYTES = 64 + 32
_MLKEM_KEY_BYTES = 1184
_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


@dataclass(frozen=True)
class _Offer:
    """What the first holder opened, waiting for a second."""

    holder: str
    key: hpke.MLKEM768X25519PrivateKey
    at: datetime


class TwoPersonKeystore:
    """A `Custody` of one grade's root key, locked until two holders have given their passphrases."""

    def __init__(self, path: Path, content: Json) -> None:
        self._path = path
        self._content = content
        self._root: AESGCM | None = None
        self._offer: _Offer | None = None
        self._wrong: dict[str, list[datetime]] = {}
        """When each holder's passphrase was given wrongly: nobody's guesses keep another holder out."""
        self._turn = threading.Lock()  # offers come from threads

    @classmethod
    def create(
        cls, path: Path, grade: Grade, passphrases: Mapping[str, bytes], *, effort: Effort | None = None
    ) -> TwoPersonKeystore:
        """Make a new root key for `grade` that any two of these holders (login to passphrase) unlock; return it unlocked.

        Raises Invalid (too few or many holders, a short passphrase, two that are alike), Conflict when there is a file.
        """
        if not MIN_HOLDERS <= len(passphrases) <= MAX_HOLDERS:
            raise Invalid(
                f"{MIN_HOLDERS} to {MAX_HOLDERS} people hold such a keystore.",
                mend="Name each with a login of their own.",
                code="holders",
            )
        if len(set(passphrases.values())) != len(passphrases):
            raise Invalid(
                "Two holders have the same passphrase.", mend="Each chooses their own, unseen by the other."
            )
        root = secrets.token_bytes(ROOT_BYTES)
        content: Json = {
            "format": FORMAT,
            "version": 1,
            "suite": SUITE,
            "id": secrets.token_hex(16),
            "grade": int(grade),
            "holders": {},
            "pairs": [],
        }
        content["check"] = text_of(seal_key(AESGCM(root), b"", _about(content)))
        for login, passphrase in sorted(passphrases.items()):
            seed = secrets.token_bytes(_SEED_BYTES)
            public = _public(seed)
            holder = _sealed_holder(content, login, seed, passphrase, effort or Effort())
            content["holders"][login] = {"public": text_of(public), **holder}
        for first, second in combinations(sorted(passphrases), 2):
            content["pairs"].append(_split(content, root, first, second))
        write_new_file(path, canonical_json(content) + b"\n")
        made = cls(path, content)
        made._root = AESGCM(root)
        return made

    @classmethod
    def open(cls, path: Path) -> TwoPersonKeystore:
        """Read the file; what comes is locked, and what a crash left beside it goes. Raises NotFound, Corrupt, Invalid."""
        content = _read(path)
        remove_leftovers(path)
        return cls(path, content)

    @property
    def grade(self) -> Grade:
        """The grade whose keys it keeps."""
        return Grade(self._content["grade"])

    @property
    def holders(self) -> tuple[str, ...]:
        """The logins of those who hold it."""
        return tuple(sorted(self._content["holders"]))

    @property
    def locked(self) -> bool:
        """Whether two holders still must unlock it."""
        return self._root is None

    def waiting(self, now: datetime) -> str:
        """The holder whose passphrase waits for a second one; "" when none does."""
        offer = self._offer
        return offer.holder if offer is not None and now - offer.at < OFFER_LASTS else ""

    def offer(self, holder: str, passphrase: bytes, now: datetime) -> bool:
        """Take a holder's passphrase; return whether the keystore is unlocked now: it takes two different ones.

        Blocking: hashes the passphrase. Raises Denied (no holder, wrong passphrase), Unavailable after too many wrong
        ones, Conflict when it is unlocked already.
        """
        with self._turn:
            if self._root is not None:
                raise Conflict("These keys are unlocked already.", code="unlocked")
            wrong = [at for at in self._wrong.get(holder, ()) if now - at < WRONG_FORGOTTEN]
            if len(wrong) >= MAX_WRONG:
                raise Unavailable(
                    "Too many wrong passphrases were given for these keys.",
                    mend=f"Wait {WRONG_FORGOTTEN // timedelta(minutes=1)} minutes.",
                    code="too-many-guesses",
                )
            self._content = _read(self._path)  # a passphrase may have been changed beside the running node
            try:
                key = _private(self._seed(holder, passphrase))
            except Denied as error:
                if error.code == "credential":  # a stranger has nothing to guess
                    self._wrong[holder] = [*wrong, now]
                raise
            first = self._offer
            if first is None or now - first.at >= OFFER_LASTS or first.holder == holder:
                self._offer = _Offer(holder, key, now)
                return False
            self._root = self._join({first.holder: first.key, holder: key})
            self._offer = None
            self._wrong.clear()
            return True

    def lock(self) -> None:
        """Forget the root key and what waits."""
        with self._turn:
            self._root, self._offer = None, None

    def change_passphrase(self, holder: str, old: bytes, new: bytes, *, effort: Effort | None = None) -> None:
        """Let a holder have another passphrase; the file is replaced whole. Raises Denied, Invalid, Unavailable."""
        with self._turn:
            seed = self._seed(holder, old)
            sealed = _sealed_holder(self._content, holder, seed, new, effort or Effort())
            public = self._content["holders"][holder]["public"]
            holders = {**self._content["holders"], holder: {"public": public, **sealed}}
            content = {**self._content, "holders": holders}
            try:
                replace_file(self._path, canonical_json(content) + b"\n")
            finally:  # also when it is in place and only its name may not last
                self._content = _read(self._path)

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """See `Custody.wrap`. Raises Unavailable while it is locked."""
        return seal_key(self._unlocked(), key, CONTEXT + context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See `Custody.unwrap`. Raises Unavailable while it is locked."""
        require_suite(wrapped, (LOCAL,))
        return open_key(self._unlocked(), wrapped, CONTEXT + context)

    def describe(self) -> str:
        """See `Custody.describe`."""
        state = "locked" if self.locked else "unlocked"
        return f"two-person keystore {str(self._content['id'])[:8]} ({len(self.holders)} holders, {state})"

    def close(self) -> None:
        """See `Custody.close`."""
        self.lock()

    def _unlocked(self) -> AESGCM:
        root = self._root
        if root is None:
            raise Unavailable(
                "These keys are locked: two people must unlock them.",
                mend="Have two of the key holders unlock them.",
                code="grade-locked",
            )
        return root

    def _seed(self, login: str, passphrase: bytes) -> bytes:
        holder = self._content["holders"].get(login)
        if holder is None:
            raise Denied(
                "You are not one of the people who hold these keys.",
                mend=f"Ask one of them: {', '.join(self.holders)}.",
                code="no-holder",
            )
        check_credential(passphrase)
        try:
            key = AESGCM(stretch(passphrase, holder["kdf"]))
            nonce, sealed = bytes_of(holder["nonce"]), bytes_of(holder["private"])
            return key.decrypt(nonce, sealed, _about_holder(self._content, login))
        except (InvalidTag, KeyError, TypeError, ValueError) as error:
            raise Denied(
                "This is not your passphrase for these keys, or the keystore was altered.",
                mend="Try again, or restore the keystore from its backup.",
                code="credential",
            ) from error

    def _join(self, keys: Mapping[str, hpke.MLKEM768X25519PrivateKey]) -> AESGCM:
        names = sorted(keys)
        try:
            pair = next(pair for pair in self._content["pairs"] if pair["holders"] == names)
            shares = [
                _SUITE.decrypt(bytes_of(share), keys[name], info=_about_share(self._content, names, name))
                for name, share in zip(names, pair["shares"], strict=True)
            ]
            root = AESGCM(_xor(*shares))
            open_key(root, bytes_of(self._content["check"]), _about(self._content))
        except (StopIteration, InvalidTag, KeyError, TypeError, ValueError, Corrupt) as error:
            raise Corrupt(
                "The shares of these two holders do not open the keystore: it was altered.",
                mend="Restore the keystore from its backup.",
                code="keystore",
            ) from error
        return root


def _read(path: Path) -> Json:
    content = read_file(path, FORMAT)
    try:
        Grade(content["grade"])
        if not MIN_HOLDERS <= len(content["holders"]) <= MAX_HOLDERS or not content["pairs"]:
            raise ValueError("holders")
        bytes_of(content["check"])
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(
            "This is not a readable keystore: a field is missing or malformed.",
            mend="Restore the keystore from its backup.",
            code="keystore",
        ) from error
    return content


def _split(content: Json, root: bytes, first: str, second: str) -> Json:
    """The root key in two shares, each sealed to one holder."""
    one = secrets.token_bytes(ROOT_BYTES)
    names = [first, second]
    shares = []
    for name, share in zip(names, (one, _xor(one, root)), strict=True):
        public = _read_public(bytes_of(content["holders"][name]["public"]))
        shares.append(text_of(_SUITE.encrypt(share, public, info=_about_share(content, names, name))))
    return {"holders": names, "shares": shares}


def _sealed_holder(content: Json, login: str, seed: bytes, passphrase: bytes, effort: Effort) -> Json:
    check_credential(passphrase)
    _require_text(passphrase)
    kdf = new_kdf(effort)
    nonce = secrets.token_bytes(12)
    sealed = AESGCM(stretch(passphrase, kdf)).encrypt(nonce, seed, _about_holder(content, login))
    return {"kdf": kdf, "nonce": text_of(nonce), "private": text_of(sealed)}


def _require_text(passphrase: bytes) -> None:
    """Raise Invalid for what nobody could type at the page where the grade is unlocked."""
    try:
        passphrase.decode()
    except UnicodeDecodeError as error:
        raise Invalid(
            "A holder's passphrase is text in UTF-8.", mend="Choose another one.", code="credential-text"
        ) from error


def _about(content: Json) -> bytes:
    return canonical_json({"grade": content["grade"], "id": content["id"], "use": "two-person-root"})


def _about_holder(content: Json, login: str) -> bytes:
    return canonical_json({"holder": login, "id": content["id"], "use": "two-person-holder"})


def _about_share(content: Json, names: Sequence[str], name: str) -> bytes:
    return canonical_json(
        {
            "grade": content["grade"],
            "holder": name,
            "id": content["id"],
            "pair": list(names),
            "use": "two-person-share",
        }
    )


def _private(seed: bytes) -> hpke.MLKEM768X25519PrivateKey:
    return hpke.MLKEM768X25519PrivateKey(
        MLKEM768PrivateKey.from_seed_bytes(seed[:64]), X25519PrivateKey.from_private_bytes(seed[64:])
    )


def _public(seed: bytes) -> bytes:
    lattice = MLKEM768PrivateKey.from_seed_bytes(seed[:64]).public_key().public_bytes_raw()
    return lattice + X25519PrivateKey.from_private_bytes(seed[64:]).public_key().public_bytes_raw()


def _read_public(raw: bytes) -> hpke.MLKEM768X25519PublicKey:
    return hpke.MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM_KEY_BYTES]),
        X25519PublicKey.from_public_bytes(raw[_MLKEM_KEY_BYTES:]),
    )


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
