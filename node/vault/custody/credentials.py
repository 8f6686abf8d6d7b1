"""Where passphrases, PINs and tokens come from: named in node.toml, never written there.

`file:PATH`, `env:NAME`, `systemd:NAME` (LoadCredential=, systemd.exec(5)) or `ask` (typed at the terminal).
Holds reading them; what they open is the custody's matter. Messages name the source and never the content.
"""

from __future__ import annotations

import getpass
import os
import stat
import sys
from pathlib import Path

from consent.errors import Denied, Invalid, NotFound, Unavailable

MAX_CREDENTIAL_BYTES = 4096
KINDS = ("file", "env", "systemd", "ask")


def check_source(source: str) -> str:
    """Return `source` when it names a place. Raises ValueError in words, for the settings."""
    kind, _, rest = source.partition(":")
    if source and (kind not in KINDS or (kind != "ask") != bool(rest)):
        raise ValueError("write file:PATH, env:NAME, systemd:NAME or ask; never the secret itself")
    return source


def read_credential(source: str, folder: Path, *, what: str = "The credential") -> bytes:
    """The secret that `source` names, without white space at its ends; relative paths are relative to `folder`.

    Raises NotFound (nothing there), Invalid (empty, too long), Denied (a file that everybody may read), Unavailable.
    """
    kind, _, rest = source.partition(":")
    match kind:
        case "file":
            secret = _from_file(folder / rest, what)
        case "env":
            secret = os.environb.get(rest.encode(), b"")
        case "systemd":
            base = os.environ.get("CREDENTIALS_DIRECTORY")
            if not base:
                raise _absent(what, "systemd gave this process no credentials")
            secret = _from_file(Path(base) / Path(rest).name, what)
        case "ask":
            secret = ask(what)
        case _:
            raise Invalid(f"{what} has no source.", mend="Set custody.credential in node.toml.")
    secret = secret.strip()
    if not secret:
        raise _absent(what, f"{source} is empty")
    if len(secret) > MAX_CREDENTIAL_BYTES:
        raise Invalid(f"{what} at {source} is longer than {MAX_CREDENTIAL_BYTES} bytes.")
    return secret


def ask(what: str) -> bytes:
    """Have somebody type it. Raises Unavailable where nobody is."""
    if not sys.stdin.isatty():
        raise Unavailable(
            f"{what} must be typed and there is no terminal.",
            mend="Start the node from a terminal, or keep the credential in a file or with systemd.",
            code="no-terminal",
        )
    return getpass.getpass(f"{what}: ").encode()


def _from_file(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & stat.S_IROTH:
                raise Denied(
                    f"{what} {path} can be read by everybody.",
                    mend=f"chmod 600 {path}",
                    code="open-credential",
                )
            return file.read(MAX_CREDENTIAL_BYTES + 2)
    except OSError as error:
        raise _absent(what, f"{path}: {error.strerror}") from error


def _absent(what: str, why: str) -> NotFound:
    return NotFound(
        f"{what} is not there ({why}).",
        mend="Mount the medium it lies on, or correct where node.toml says it is.",
        code="no-credential",
    )
