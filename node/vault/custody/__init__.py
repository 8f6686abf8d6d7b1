"""Who keeps the root key: the seam, and (beside it) its implementations.

The root key never leaves its custody; it only wraps and unwraps the few keys below it: key-encryption keys when they are
made or first used, and the node's named secrets at the start. Study keys never come here.
Format of what is wrapped: docs/formats/keystore.md.
"""

from __future__ import annotations

from typing import Protocol

from consent.errors import Corrupt, Denied, Invalid, Unavailable

LOCAL, TOKEN_GCM, TOKEN_KWP, TRANSIT = 1, 2, 3, 4
"""The first byte of every wrapped key: which kind of custody wrapped it, and how."""
KIND_WORDS = {
    LOCAL: "a built-in keystore",
    TOKEN_GCM: "a PKCS#11 token",
    TOKEN_KWP: "a PKCS#11 token",
    TRANSIT: "a Vault server",
}


class Custody(Protocol):
    """Keeps one root key. Its verbs may block (a device, a network), but not for ever: callers use a thread."""

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Encrypt `key` so that only this custody opens it again, and only for the same `context`.

        Raises Unavailable when the custody does not answer, Denied when it no longer takes our credential.
        """
        ...

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Give the key back.

        Raises Corrupt when key, context or bytes do not belong together, and as `wrap` does.
        """
        ...

    def describe(self) -> str:
        """One line for reports: what kind of custody, which root key. No secret."""
        ...

    def close(self) -> None:
        """Let go of device and network. Nothing is wrapped or unwrapped afterwards."""
        ...


def require_suite(wrapped: bytes, suites: tuple[int, ...]) -> int:
    """The suite of a wrapped key. Raises Corrupt when it is not one of this custody's."""
    suite = wrapped[0] if wrapped else 0
    if suite in suites:
        return suite
    words = KIND_WORDS.get(suite)
    if words is None:
        raise Corrupt("A wrapped key has an unknown suite.", code="wrapped-key")
    raise Corrupt(
        f"A key was wrapped by {words}, which is not the custody that node.toml names.",
        mend="Name the custody that wrapped the keys in [custody]; `accord keys move` moves them to another one.",
        code="other-custody",
    )


def not_answering(what: str, why: str) -> Unavailable:
    """The error for a custody that does not answer."""
    return Unavailable(
        f"{what} does not answer ({why}).",
        mend="Look at its power, cable and network; the node tries again by itself.",
        code="custody-away",
    )


def not_admitted(what: str, why: str) -> Denied:
    """The error for a credential that is not taken."""
    return Denied(
        f"{what} does not take the credential ({why}).",
        mend="Correct what custody.credential in node.toml points to.",
        code="credential",
    )


def not_installed(what: str, extra: str) -> Invalid:
    """The error for an optional library that is missing."""
    return Invalid(
        f"{what} needs a library that is not installed.",
        mend=f"Install it: pip install 'accord-imaging[{extra}]'.",
        code="extra-missing",
    )
