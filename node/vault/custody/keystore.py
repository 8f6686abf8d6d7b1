"""The built-in custody: a root key in one small file, opened by a credential.

argon2id makes a guess of the passphrase expensive; AES-256-GCM under the result opens the root key. A stolen file
without its credential yields nothing. Holds the file format and wrapping of keys; leaves the hierarchy to `keys`.
Invariant: the file is either the old one or the new one, never half of it. Format: docs/formats/keystore.md.
"""

from __future__ import annotations

import base64
import fcntl
import glob
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nacl.pwhash import argon2id

from consent.errors import Conflict, Corrupt, Denied, Invalid, NotFound, Sentence, Unavailable
from consent.signed import Json, canonical_json, parse_json
from node.vault.blobs import sync_folder
from node.vault.custody import LOCAL, require_suite
from node.vault.custody.envelope import CONTEXT
from node.vault.wrapping import SUITE, open_key, seal_key

FORMAT = "accord-keystore"
NEW_SUFFIX = ".new"
ROOT_BYTES = 32
MIN_CREDENTIAL_BYTES = 8
MAX_CREDENTIAL_BYTES = 4096
MAX_FILE_BYTES = 16 * 1024
MAX_PASSES = 16
MIN_MEMORY_BYTES = 8 * 1024
MAX_MEMORY_BYTES = 1024**3


@dataclass(frozen=True)
class Effort:
    """What one guess costs: passes and bytes of memory (RFC 9106 §4, second recommendation by default)."""

    passes: int = 3
    memory_bytes: int = 64 * 1024 * 1024


class Keystore:
    """A `Custody` over a file. Made by `create` or `open`; both hash the credential and so take a moment."""

    def __init__(self, root: bytes, identity: str) -> None:
        self._aead = AESGCM(root)
        self._identity = identity

    @staticmethod
    def change_credential(path: Path, old: bytes, new: bytes, *, effort: Effort | None = None) -> None:
        """Let another credential open the file, and the old one no more; the root key stays, the file is replaced whole.

        A copy of the old file still opens with the old credential. Raises as `open` and `create` do.
        """
        check_credential(new)
        content, root = _opened(path, old)
        content["kdf"] = new_kdf(effort or Effort())
        replace_file(path, _sealed(content, root, new))

    @classmethod
    def create(cls, path: Path, credential: bytes, *, effort: Effort | None = None) -> Keystore:
        """Make a new root key and write its file (mode 0600). Raises Conflict when one is there already."""
        check_credential(credential)
        effort = effort or Effort()
        root = secrets.token_bytes(ROOT_BYTES)
        content: Json = {
            "format": FORMAT,
            "version": 1,
            "suite": SUITE,
            "id": secrets.token_hex(16),
            "kdf": new_kdf(effort),
        }
        write_new_file(path, _sealed(content, root, credential))
        return cls(root, content["id"])

    @classmethod
    def open(cls, path: Path, credential: bytes) -> Keystore:
        """Open the file with its credential; what a crash left beside it goes.

        Raises NotFound, Corrupt (not a keystore), Invalid (version, bounds) or Denied (wrong credential).
        """
        content, root = _opened(path, credential)
        remove_leftovers(path)
        return cls(root, str(content["id"]))

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """See `Custody.wrap`."""
        return seal_key(self._aead, key, CONTEXT + context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See `Custody.unwrap`."""
        require_suite(wrapped, (LOCAL,))
        return open_key(self._aead, wrapped, CONTEXT + context)

    def describe(self) -> str:
        """See `Custody.describe`."""
        return Sentence("built-in keystore %(id)s (argon2id, AES-256-GCM)", id=self._identity[:8])

    def close(self) -> None:
        """See `Custody.close`."""


def _opened(path: Path, credential: bytes) -> tuple[Json, bytes]:
    """The file without its root, and the root key."""
    check_credential(credential)
    content = read_file(path, FORMAT)
    try:
        root = content.pop("root")
        nonce, sealed = bytes_of(root["nonce"]), bytes_of(root["ciphertext"])
        key = stretch(credential, content["kdf"])
        str(content["id"])
    except (KeyError, TypeError, ValueError) as error:
        raise _not_a_keystore("a field is missing or malformed") from error
    try:
        return content, AESGCM(key).decrypt(nonce, sealed, canonical_json(content))
    except (InvalidTag, ValueError) as error:
        raise Denied(
            "The credential does not open the keystore, or the keystore was altered.",
            mend="Give the credential that it was made with, or restore the keystore from its backup.",
            code="credential",
        ) from error


def _sealed(content: Json, root: bytes, credential: bytes) -> bytes:
    """The file's bytes, the root key sealed under the credential and bound to everything else in it."""
    nonce = secrets.token_bytes(12)
    sealed = AESGCM(stretch(credential, content["kdf"])).encrypt(nonce, root, canonical_json(content))
    whole = {**content, "root": {"nonce": text_of(nonce), "ciphertext": text_of(sealed)}}
    return canonical_json(whole) + b"\n"


def new_kdf(effort: Effort) -> Json:
    """How a credential is to be stretched, with a new salt."""
    return {
        "name": "argon2id",
        "opslimit": effort.passes,
        "memlimit": effort.memory_bytes,
        "salt": text_of(secrets.token_bytes(argon2id.SALTBYTES)),
    }


def stretch(credential: bytes, kdf: Json) -> bytes:
    """argon2id(credential), 32 bytes. Raises Corrupt or Invalid (bounds) for a `kdf` that is not one of ours."""
    passes, memory = kdf["opslimit"], kdf["memlimit"]
    if kdf["name"] != "argon2id" or not isinstance(passes, int) or not isinstance(memory, int):
        raise _not_a_keystore("unknown key derivation")
    if not 1 <= passes <= MAX_PASSES or not MIN_MEMORY_BYTES <= memory <= MAX_MEMORY_BYTES:
        raise Invalid(
            "The keystore asks for an unreasonable amount of work.",
            mend="Restore the keystore from its backup.",
            code="keystore-bounds",
        )
    salt = bytes_of(kdf["salt"])
    return argon2id.kdf(32, credential, salt, opslimit=passes, memlimit=memory)


def check_credential(credential: bytes) -> None:
    """Raise Invalid when it is too short or too long to be one."""
    if not MIN_CREDENTIAL_BYTES <= len(credential) <= MAX_CREDENTIAL_BYTES:
        raise Invalid(
            f"A credential has {MIN_CREDENTIAL_BYTES} to {MAX_CREDENTIAL_BYTES} bytes.",
            mend="Choose a longer passphrase or another file.",
            code="credential-length",
        )


def read_file(path: Path, name: str) -> Json:
    """The content of a keystore file of format `name`. Raises NotFound, Unavailable, Corrupt, Invalid."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFound(f"There is no keystore at {path}.", mend="Initialise the node first.") from error
    except OSError as error:
        raise Unavailable(f"The keystore at {path} cannot be read ({error.strerror}).") from error
    if len(data) > MAX_FILE_BYTES:
        raise _not_a_keystore("it is too long")
    try:
        content = parse_json(data)
    except Invalid as error:
        raise _not_a_keystore("not JSON") from error
    if content.get("format") != name:
        raise _not_a_keystore("it says something else")
    if content.get("version") != 1 or content.get("suite") != SUITE:
        raise Invalid(
            "The keystore has a version or suite that this node does not know.",
            mend="Upgrade this node.",
            code="suite",
        )
    return content


def write_new_file(path: Path, data: bytes) -> None:
    """Write a keystore that must not be there yet, durably. Raises Conflict; Unavailable: then there is none."""
    # Unlike rename, link never replaces a keystore that is there.
    _write(path, data, lambda temporary: os.link(temporary, path))
    try:
        _sync_name(path, "Nothing was made. Look at the disk, then try again.")
    except Unavailable:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def replace_file(path: Path, data: bytes) -> None:
    """Write a keystore in the place of the one that is there: the old one or the new one, never half. Raises Unavailable."""
    _write(path, data, lambda temporary: temporary.replace(path))
    _sync_name(
        path, "The new file is in place; a power cut may bring the old one back: keep both credentials."
    )


def _write(path: Path, data: bytes, place: Callable[[Path], object]) -> None:
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{NEW_SUFFIX}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with open(descriptor, "wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # by this `remove_leftovers` knows that somebody writes it
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                place(temporary)
        finally:
            with suppress(OSError):  # what is left goes when the keystore is opened
                temporary.unlink(missing_ok=True)
    except FileExistsError as error:
        raise Conflict(
            f"There is a keystore at {path} already.", mend="Open it, or choose a place."
        ) from error
    except OSError as error:
        raise _not_written(path, error, "Check that the folder exists, is writable and has space.") from error


def _sync_name(path: Path, mend: str) -> None:
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise _not_written(path, error, mend) from error


def _not_written(path: Path, error: OSError, mend: str) -> Unavailable:
    return Unavailable(
        Sentence(
            "The keystore cannot be written to %(folder)s (%(fault)s).",
            folder=path.parent,
            fault=error.strerror,
        ),
        mend=mend,
    )


def remove_leftovers(path: Path) -> None:
    """Remove what a process that was killed left beside a keystore: it opens with a credential that may have been given up.

    What cannot be removed now is another time.
    """
    with suppress(OSError):
        for left in path.parent.glob(f"{glob.escape(path.name)}.????????{NEW_SUFFIX}"):
            descriptor = os.open(left, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while somebody writes it
                left.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def _not_a_keystore(why: str) -> Corrupt:
    return Corrupt(
        f"This is not a readable keystore: {why}.",
        mend="Restore the keystore from its backup.",
        code="keystore",
    )


def text_of(data: bytes) -> str:
    """Bytes as a keystore file has them: Base64."""
    return base64.b64encode(data).decode()


def bytes_of(text: str) -> bytes:
    """What `text_of` made a text of. Raises ValueError, TypeError."""
    return base64.b64decode(text, validate=True)
