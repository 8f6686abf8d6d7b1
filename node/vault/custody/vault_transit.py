"""The root key in a Vault server: its transit engine encrypts and decrypts, and the key never leaves it.

Speaks the documented HTTP API through hvac, the optional extra `vault`, imported when used. The server's own key versions are in its
answers (`vault:v2:…`), so the key may be rotated there at any time. A token that is no longer taken is read from its source again,
once: an agent beside the node renews it there.

Invariant: nothing but a one-use key is sent (`envelope`); the token appears in no message; every wait is bounded.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from consent.errors import AccordError, Corrupt, NotFound, Sentence
from node.vault.custody import TRANSIT, not_admitted, not_answering, not_installed, require_suite
from node.vault.custody.envelope import altered, open_envelope, seal_in_envelope

WHAT = "The Vault server"
USE = base64.b64encode(b"accord/root/v1").decode()


@dataclass(frozen=True)
class TransitPlace:
    """Which key: server, transit mount, key name; how to be admitted; how long to wait for an answer.

    `token` is asked again when the server refuses the one it gave before. `authorities`: PEM file of who may vouch for the
    server, "" for the system's.
    """

    url: str
    mount: str
    key: str
    token: Callable[[], bytes] = field(repr=False)
    namespace: str = ""
    authorities: str = ""
    wait_seconds: float = 10.0


class VaultTransit:
    """A `Custody` over one key of a transit engine. Made by `open`."""

    def __init__(self, place: TransitPlace) -> None:
        self._place = place
        self._turn = threading.Lock()  # one HTTP session, used from several threads
        self._client: Any = None

    @classmethod
    def open(cls, place: TransitPlace, *, create: bool = False) -> VaultTransit:
        """Connect, and try the key once in both directions; with `create`, have the server make it if there is none.

        Raises Invalid (library missing), NotFound (mount, key), Denied (token), Unavailable.
        """
        custody = cls(place)
        if create:
            custody._asked(
                lambda transit: transit.create_key(
                    name=place.key, key_type="aes256-gcm96", exportable=False, mount_point=place.mount
                )
            )
        if custody.unwrap(custody.wrap(b"probe", b"probe"), b"probe") != b"probe":
            raise Corrupt("The Vault server does not give back what it encrypted.", code="custody-probe")
        return custody

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """See `Custody.wrap`."""

        def outer(one_use: bytes) -> bytes:
            answer = self._asked(
                lambda transit: transit.encrypt_data(
                    name=self._place.key,
                    plaintext=base64.b64encode(one_use).decode(),
                    associated_data=USE,
                    mount_point=self._place.mount,
                )
            )
            return _text(answer, "ciphertext").encode()

        return seal_in_envelope(TRANSIT, outer, key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See `Custody.unwrap`."""
        require_suite(wrapped, (TRANSIT,))

        def outer(sealed: bytes) -> bytes:
            answer = self._asked(
                lambda transit: transit.decrypt_data(
                    name=self._place.key,
                    ciphertext=sealed.decode("ascii", "replace"),
                    associated_data=USE,
                    mount_point=self._place.mount,
                ),
                refused=altered,
            )
            try:
                return base64.b64decode(_text(answer, "plaintext"), validate=True)
            except ValueError as error:
                raise altered() from error

        return open_envelope(wrapped, outer, context)

    def describe(self) -> str:
        """See `Custody.describe`."""
        return Sentence(
            "Vault transit %(url)s, %(mount)s/%(key)s",
            url=self._place.url,
            mount=self._place.mount,
            key=self._place.key,
        )

    def close(self) -> None:
        """See `Custody.close`."""
        with self._turn:
            if self._client is not None:
                self._client.adapter.close()
                self._client = None

    def _asked(self, ask: Callable[[Any], Any], *, refused: Callable[[], AccordError] | None = None) -> Any:
        """One request, and one more with the token read anew when the first was not admitted."""
        hvac, requests = _libraries()
        if not self._turn.acquire(timeout=self._place.wait_seconds):
            raise not_answering(WHAT, f"it is still busy after {self._place.wait_seconds:g} s")
        try:
            try:
                return ask(self._connected(hvac, requests).secrets.transit)
            except (hvac.exceptions.Forbidden, hvac.exceptions.Unauthorized):
                self._client = None
                return ask(self._connected(hvac, requests).secrets.transit)
        except (hvac.exceptions.Forbidden, hvac.exceptions.Unauthorized) as error:
            raise not_admitted(WHAT, "permission denied") from error
        except hvac.exceptions.InvalidRequest as error:
            text = " ".join(map(str, error.errors or ())).lower()
            if "not found" in text:
                raise self._no_key() from error
            raise (refused or (lambda: not_answering(WHAT, "it refuses the request")))() from error
        except hvac.exceptions.InvalidPath as error:
            raise self._no_key() from error
        except (hvac.exceptions.VaultError, requests.RequestException) as error:
            raise not_answering(WHAT, type(error).__name__) from error
        finally:
            self._turn.release()

    def _connected(self, hvac: Any, requests: Any) -> Any:
        if self._client is None:
            place = self._place
            session = requests.Session()
            session.trust_env = False  # neither a proxy nor a .netrc of this machine has a part in this
            session.verify = place.authorities or True
            self._client = hvac.Client(
                url=place.url,
                token=place.token().decode("ascii", "replace"),
                namespace=place.namespace or None,
                timeout=place.wait_seconds,
                allow_redirects=False,
                session=session,
            )
        return self._client

    def _no_key(self) -> NotFound:
        place = self._place
        return NotFound(
            f"The Vault server has no transit key {place.mount}/{place.key}.",
            mend="Make it (vault write -f …/keys/…), or correct custody.vault_mount and custody.vault_key.",
            code="no-root-key",
        )


def _libraries() -> tuple[Any, Any]:
    try:
        import hvac
        import requests
    except ImportError as error:
        raise not_installed("A Vault server", "vault") from error
    return hvac, requests


def _text(answer: Any, name: str) -> str:
    try:
        return str(answer["data"][name])
    except (KeyError, TypeError) as error:
        raise not_answering(WHAT, "its answer is not one of a transit engine") from error
