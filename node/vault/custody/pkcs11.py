"""The root key in a hardware security module: an AES key that never leaves its PKCS#11 token.

Uses AES-GCM where the token offers it, AES key wrap with padding (RFC 5649) otherwise. Holds the session, one at a time,
opened again when the device took it away. Calls run in a thread of our own with a bound: a driver that hangs
makes the custody unavailable and stops nothing else. python-pkcs11 is the optional extra `hsm`, imported when used.

Invariant: nothing but a one-use key is shown to the token (`envelope`); the PIN appears in no message.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from consent.errors import AccordError, NotFound, Sentence, Unavailable
from node.vault.custody import (
    TOKEN_GCM,
    TOKEN_KWP,
    not_admitted,
    not_answering,
    not_installed,
    require_suite,
)
from node.vault.custody.envelope import altered, open_envelope, seal_in_envelope

T = TypeVar("T")
KEY_BITS = 256
TAG_BITS = 128
NONCE_BYTES = 12
WHAT = "The PKCS#11 token"
MECHANISM_WORDS = {
    "": "AES-GCM or AES key wrap with padding",
    "gcm": "AES-GCM",
    "kwp": "AES key wrap with padding",
}


@dataclass(frozen=True)
class TokenPlace:
    """Which key: the driver's file, the token's label, the key's label; how long to wait for an answer.

    `mechanism`: "gcm", "kwp", or "" for the first of the two that the token offers. (Some tokens offer an AES-GCM that
    chooses its own nonce; say "kwp" there.)
    """

    module: str
    token: str
    key: str
    pin: bytes = field(repr=False)
    mechanism: str = ""
    wait_seconds: float = 10.0


class Pkcs11Custody:
    """A `Custody` over an AES-256 key in a token. Made by `open`."""

    def __init__(self, place: TokenPlace) -> None:
        self._place = place
        self._turn = threading.Lock()
        self._session: Any = None
        self._key: Any = None
        self._suite = TOKEN_GCM
        self._maker = ""
        self._closed = False

    @classmethod
    def open(cls, place: TokenPlace, *, create: bool = False) -> Pkcs11Custody:
        """Sign in to the token and find the key; with `create`, make one that cannot be extracted if there is none.

        Raises Invalid (library missing), NotFound (driver, token, key), Denied (PIN), Unavailable.
        """
        custody = cls(place)
        custody._bounded(lambda: custody._sign_in(create=create))
        return custody

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """See `Custody.wrap`."""
        return self._bounded(lambda: self._retried(lambda: self._wrap(key, context)))

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See `Custody.unwrap`."""
        suite = require_suite(wrapped, (TOKEN_GCM, TOKEN_KWP))
        return self._bounded(lambda: self._retried(lambda: self._unwrap(wrapped, suite, context)))

    def describe(self) -> str:
        """See `Custody.describe`."""
        how = "AES-GCM" if self._suite == TOKEN_GCM else "AES-KWP"
        return Sentence(
            "PKCS#11 token %(token)s (%(maker)s), key %(key)s, %(how)s",
            token=repr(self._place.token),
            maker=self._maker,
            key=repr(self._place.key),
            how=how,
        )

    def close(self) -> None:
        """See `Custody.close`."""
        self._closed = True
        with suppress(AccordError):  # a driver that hangs keeps its session, and the node stops without it
            self._alone(self._drop)

    # In the thread that may hang

    def _sign_in(self, *, create: bool = False) -> None:
        library = _library()
        place = self._place
        try:
            driver = library.lib(place.module)
        except library.PKCS11Error as error:
            raise NotFound(
                f"The PKCS#11 driver {place.module} cannot be loaded.",
                mend="Install the device's driver, or correct custody.pkcs11_module in node.toml.",
                code="no-driver",
            ) from error
        try:
            token = _token(library, driver, place.token)
            self._maker = f"{token.manufacturer_id} {token.model}".strip()
            self._suite = self._mechanism(library, token)
            self._session = _session(library, token, place.pin.decode("utf-8", "surrogateescape"), rw=create)
            self._key = self._find(library, create=create)
        except library.PKCS11Error as error:
            self._drop()
            raise _in_words(library, error, place) from error
        except AccordError:
            self._drop()
            raise

    def _mechanism(self, library: Any, token: Any) -> int:
        wanted, offered = self._place.mechanism, token.slot.get_mechanisms()
        if wanted in ("", "gcm") and library.Mechanism.AES_GCM in offered:
            return TOKEN_GCM
        if wanted in ("", "kwp") and library.Mechanism.AES_KEY_WRAP_PAD in offered:
            return TOKEN_KWP
        raise NotFound(
            f"The token {self._place.token!r} does not offer {MECHANISM_WORDS[wanted]}.",
            mend="Correct custody.pkcs11_mechanism, or use another token or the built-in keystore.",
            code="no-mechanism",
        )

    def _find(self, library: Any, *, create: bool) -> Any:
        found = list(
            self._session.get_objects(
                {
                    library.Attribute.CLASS: library.ObjectClass.SECRET_KEY,
                    library.Attribute.LABEL: self._place.key,
                }
            )
        )
        if len(found) == 1:
            return found[0]
        if found:
            raise NotFound(f"The token holds {len(found)} keys named {self._place.key!r}; there must be one.")
        if not create:
            raise NotFound(
                f"The token {self._place.token!r} holds no key named {self._place.key!r}.",
                mend="Correct custody.pkcs11_key, or let `accord keys move --create-key` make it.",
                code="no-root-key",
            )
        attributes = {
            library.Attribute.SENSITIVE: True,
            library.Attribute.EXTRACTABLE: False,
            library.Attribute.ENCRYPT: True,
            library.Attribute.DECRYPT: True,
            library.Attribute.WRAP: True,
            library.Attribute.UNWRAP: True,
        }
        return self._session.generate_key(
            library.KeyType.AES, KEY_BITS, label=self._place.key, store=True, template=attributes
        )

    def _wrap(self, payload: bytes, context: bytes) -> bytes:
        library = _library()

        def outer(key: bytes) -> bytes:
            if self._suite == TOKEN_GCM:
                nonce = os.urandom(NONCE_BYTES)
                return nonce + bytes(self._key.encrypt(key, **_gcm(library, nonce)))
            guest = self._session.create_object(_guest(library, key))
            try:
                return bytes(self._key.wrap_key(guest, mechanism=library.Mechanism.AES_KEY_WRAP_PAD))
            finally:
                guest.destroy()

        return seal_in_envelope(self._suite, outer, payload, context)

    def _unwrap(self, wrapped: bytes, suite: int, context: bytes) -> bytes:
        library = _library()

        def outer(sealed: bytes) -> bytes:
            try:
                if suite == TOKEN_GCM:
                    nonce, rest = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
                    return bytes(self._key.decrypt(rest, **_gcm(library, nonce)))
                guest = self._key.unwrap_key(
                    library.ObjectClass.SECRET_KEY,
                    library.KeyType.AES,
                    sealed,
                    mechanism=library.Mechanism.AES_KEY_WRAP_PAD,
                    store=False,
                    template={library.Attribute.EXTRACTABLE: True, library.Attribute.SENSITIVE: False},
                )
                value = bytes(guest[library.Attribute.VALUE])
                guest.destroy()
            except library.PKCS11Error as error:
                if _lost(library, error):
                    raise
                # Tokens say "general error" to a wrong tag and to a failing device alike: ask for something that must work.
                self._wrap(b"probe", b"probe")
                raise altered() from error
            return value

        return open_envelope(wrapped, outer, context)

    def _retried(self, call: Callable[[], T]) -> T:
        """Once more on a new session when the device took the old one away."""
        library = _library()
        if self._key is None:
            self._sign_in()
        try:
            return call()
        except library.PKCS11Error as error:
            self._drop()
            if not _lost(library, error):
                raise _in_words(library, error, self._place) from error
        self._sign_in()
        try:
            return call()
        except library.PKCS11Error as error:
            self._drop()
            raise _in_words(library, error, self._place) from error

    def _drop(self) -> None:
        session, self._session, self._key = self._session, None, None
        if session is not None:
            try:
                session.close()
            except RuntimeError:  # it is gone already: that is what was wanted
                pass

    # Around it

    def _bounded(self, call: Callable[[], T]) -> T:
        """Run `call` alone, unless this was closed."""
        if self._closed:
            raise Unavailable("The node is closing.", code="custody-away")
        return self._alone(call)

    def _alone(self, call: Callable[[], T]) -> T:
        """Run `call` while no other is and give it `wait_seconds`; a driver that hangs keeps only its own thread."""
        wait = self._place.wait_seconds
        if not self._turn.acquire(timeout=wait):
            raise not_answering(WHAT, f"it is still busy with the last request after {wait:g} s")
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(call())
            except BaseException as error:  # whatever it was: who waits is to hear of it
                done.set_exception(error)
            finally:
                self._turn.release()

        threading.Thread(target=run, name="pkcs11", daemon=True).start()
        try:
            return done.result(wait)
        except TimeoutError:
            raise not_answering(WHAT, f"nothing came within {wait:g} s") from None


def _library() -> Any:
    try:
        import pkcs11
    except ImportError as error:
        raise not_installed("A PKCS#11 token", "hsm") from error
    return pkcs11


def _token(library: Any, driver: Any, label: str) -> Any:
    try:
        return driver.get_token(token_label=label)
    except library.PKCS11Error:
        driver.reinitialize()  # a driver sees a token that came after it was loaded only then
        return driver.get_token(token_label=label)


def _session(library: Any, token: Any, pin: str, *, rw: bool) -> Any:
    try:
        return token.open(user_pin=pin, rw=rw)
    except (
        library.UserAlreadyLoggedIn
    ):  # a token knows processes, not sessions: this one is signed in already
        return token.open(rw=rw)


def _gcm(library: Any, nonce: bytes) -> dict[str, Any]:
    parameters = library.GCMParams(nonce, b"accord/root/v1", TAG_BITS)
    return {"mechanism": library.Mechanism.AES_GCM, "mechanism_param": parameters}


def _guest(library: Any, key: bytes) -> dict[Any, Any]:
    """A key for the length of one call, so that the token can wrap it."""
    return {
        library.Attribute.CLASS: library.ObjectClass.SECRET_KEY,
        library.Attribute.KEY_TYPE: library.KeyType.AES,
        library.Attribute.VALUE: key,
        library.Attribute.TOKEN: False,
        library.Attribute.EXTRACTABLE: True,
        library.Attribute.SENSITIVE: False,
    }


def _lost(library: Any, error: Exception) -> bool:
    return isinstance(
        error,
        (
            library.DeviceRemoved,
            library.KeyHandleInvalid,
            library.ObjectHandleInvalid,
            library.SessionClosed,
            library.SessionHandleInvalid,
            library.TokenNotPresent,
            library.UserNotLoggedIn,
        ),
    )


def _in_words(library: Any, error: Exception, place: TokenPlace) -> AccordError:
    why = type(error).__name__
    match error:
        case library.NoSuchToken() | library.MultipleTokensReturned():
            return NotFound(
                f"There is no single token labelled {place.token!r} behind {place.module}.",
                mend="Plug it in, initialise it, or correct custody.pkcs11_token in node.toml.",
                code="no-token",
            )
        case library.PinIncorrect() | library.PinLenRange() | library.PinInvalid() | library.PinExpired():
            return not_admitted(WHAT, why)
        case library.PinLocked() | library.UserPinNotInitialized():
            return not_admitted(WHAT, f"{why}: the token's security officer must set the PIN anew")
        case _:
            return not_answering(WHAT, why)
