"""What tests need about custodies: a cheap keystore, a SoftHSM token in a folder, a server that speaks Vault's transit API."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from node.config import load_settings
from node.vault.custody.keystore import Effort, Keystore

SOFTHSM = next(
    (
        path
        for path in ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so")
        if Path(path).exists()
    ),
    "",
)
PIN = b"24680"
QUICK = Effort(passes=1, memory_bytes=8192)


def hurry(folder: Path) -> None:
    """Let the keystore of a node's folder cost little to open, at every start: what a guess costs is tested elsewhere."""
    settings = load_settings(folder)
    credential = settings.path(settings.keys.credential_file).read_bytes().strip()
    Keystore.change_credential(settings.path(settings.keys.keystore), credential, credential, effort=QUICK)


def make_token(folder: Path, label: str) -> None:
    """A SoftHSM token named `label`, its store and configuration in `folder` (SOFTHSM2_CONF)."""
    store = folder / "tokens"
    store.mkdir(parents=True, exist_ok=True)
    configuration = folder / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {store}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    os.environ["SOFTHSM2_CONF"] = str(configuration)
    subprocess.run(
        [
            "softhsm2-util",
            "--init-token",
            "--free",
            "--label",
            label,
            "--pin",
            PIN.decode(),
            "--so-pin",
            "13579",
        ],
        check=True,
        capture_output=True,
    )


class TransitServer:
    """The part of Vault's HTTP API that a transit key needs, over real AES-GCM keys.

    /v1/{mount}/keys/{name}, …/rotate, /encrypt/{name}, /decrypt/{name}; errors as Vault words them. `token` may be
    changed, and the server `sealed`, while it runs.
    """

    def __init__(self, token: str = "hvs.test-token", mount: str = "transit") -> None:
        self.token = token
        self.mount = mount
        self.sealed = False
        self.keys: dict[str, list[bytes]] = {}
        self.seen: list[dict[str, Any]] = []
        self.url = ""

    @contextmanager
    def running(self, port: int = 0) -> Iterator[TransitServer]:
        server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def answer(self, path: str, token: str | None, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.seen.append(body)
        if self.sealed:
            return 503, {"errors": ["Vault is sealed"]}
        if token != self.token:
            return 403, {"errors": ["permission denied"]}
        parts = path.strip("/").split("/")
        if parts[:2] != ["v1", self.mount]:
            return 404, {"errors": [f"no handler for route {path!r}"]}
        match parts[2:]:
            case ["keys", name]:
                self.keys.setdefault(name, [os.urandom(32)])
                return 200, {"data": {"name": name, "type": body.get("type", "aes256-gcm96")}}
            case ["keys", name, "rotate"]:
                self.keys[name].append(os.urandom(32))
                return 200, {"data": {"latest_version": len(self.keys[name])}}
            case [("encrypt" | "decrypt") as verb, name] if name in self.keys:
                associated = base64.b64decode(body.get("associated_data", ""))
                return getattr(self, f"_{verb}")(self.keys[name], body, associated)
            case ["encrypt" | "decrypt", _]:
                return 400, {"errors": ["encryption key not found"]}
        return 404, {"errors": ["unsupported path"]}

    @staticmethod
    def _encrypt(
        versions: list[bytes], body: dict[str, Any], associated: bytes
    ) -> tuple[int, dict[str, Any]]:
        nonce = os.urandom(12)
        plain = base64.b64decode(body["plaintext"])
        sealed = nonce + AESGCM(versions[-1]).encrypt(nonce, plain, associated)
        text = f"vault:v{len(versions)}:{base64.b64encode(sealed).decode()}"
        return 200, {"data": {"ciphertext": text, "key_version": len(versions)}}

    @staticmethod
    def _decrypt(
        versions: list[bytes], body: dict[str, Any], associated: bytes
    ) -> tuple[int, dict[str, Any]]:
        try:
            prefix, version, text = body["ciphertext"].split(":")
            sealed = base64.b64decode(text, validate=True)
            number = int(version.removeprefix("v"))
            if prefix != "vault" or not 1 <= number <= len(versions):
                raise ValueError
            plain = AESGCM(versions[number - 1]).decrypt(sealed[:12], sealed[12:], associated)
        except InvalidTag:
            return 400, {"errors": ["cipher: message authentication failed"]}
        except ValueError:
            return 400, {"errors": ["invalid ciphertext"]}
        return 200, {"data": {"plaintext": base64.b64encode(plain).decode()}}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        transit = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                status, answer = transit.answer(self.path, self.headers.get("X-Vault-Token"), body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_PUT = do_POST  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        return Handler
