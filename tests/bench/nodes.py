"""Nodes of ours: made in a folder, filled by their own ingest while nobody serves, and served as `accord serve` does.

A node seals what it keeps, its web is HTTPS alone, and every answer goes through the rules and the log. With three roots it
answers a sender when two of them have the instance on the disk. It issues the certificates of all its callers.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from consent.errors import Invalid
from consent.vocabulary import Role
from node.config import new_settings
from node.ports import free_ports
from ops.foundation import create_folder, opened
from tests.bench.client import Web
from tests.bench.servers import AE, CLIENTS, Door, Keys, Server, plain_title, process, tls_title

READER = "reader"
QUORUM = 2


@dataclass(frozen=True)
class Node:
    """A node that lies in `folder` and may or may not run."""

    name: str
    folder: Path
    keys: Keys
    roots: tuple[Path, ...]
    plain: int
    tls: int
    http: int
    password: str = field(repr=False)
    token: str = field(repr=False)

    def copies(self) -> list[int]:
        """How many packs lie on each root."""
        return [sum(1 for _ in root.rglob("*.pack")) for root in self.roots]

    def require_copies(self) -> None:
        """Raise RuntimeError unless there is something on every root: else three copies would only be said."""
        if not all(self.copies()):
            raise RuntimeError(f"{self.name} has packs on its roots: {self.copies()}")


def make(folder: Path, *, roots: int = 1) -> Node:
    """A new node with senders and a reader. Raises RuntimeError when this version knows no such number of roots."""
    plain, tls, http = free_ports(3)
    names = ["packs"] if roots == 1 else [f"root{number}" for number in range(1, roots + 1)]
    several = {} if roots == 1 else {"storage": {"roots": names, "quorum": QUORUM}}
    try:
        settings = new_settings(
            folder,
            node={"id": "bench", "name": "Bench", "ae_title": AE},
            http={"port": http},
            dicom={"port": tls, "plain_port": plain},
            peer={"port": 0},
            **several,
        )
    except Invalid as error:
        raise RuntimeError(f"A node with {roots} roots cannot be made: {error}") from error
    create_folder(settings)
    keys = Keys(folder / "callers")
    keys.folder.mkdir()
    password = secrets.token_urlsafe(18)
    token = asyncio.run(_registered(folder, keys, password))
    return Node(
        name="Accord" if roots == 1 else f"Accord, {roots} roots",
        folder=folder,
        keys=keys,
        roots=tuple(folder / name for name in names),
        plain=plain,
        tls=tls,
        http=http,
        password=password,
        token=token,
    )


@contextmanager
def serving(node: Node) -> Iterator[Server]:
    """Run the node."""
    web = Web("127.0.0.1", node.http, {"Authorization": f"Bearer {node.token}"}, node.keys.trusting())
    with process([sys.executable, "-m", "ops", "serve", node.folder], node.http) as pid:
        plain, tls = Door(node.plain, AE), Door(node.tls, AE, node.keys)
        yield Server(node.name, pid, plain, tls, web, node.password)


async def _registered(folder: Path, keys: Keys, password: str) -> str:
    """Register the senders and a reader; return the reader's token."""
    async with opened(folder) as node:
        now = node.clock.now()
        for number in range(CLIENTS):
            pair = node.identity.issue_device_certificate(tls_title(number), now)
            certificate, key = keys.client(number)
            certificate.write_bytes(pair.certificate)
            key.write_bytes(pair.key)
            await node.registry.add_device(tls_title(number), "127.0.0.1", pair.certificate.decode())
            await node.registry.add_device(
                plain_title(number), "127.0.0.1", plain_reason="benchmark on loopback"
            )
        leaf = node.identity.leaf(["localhost", "127.0.0.1"], now)
        keys.server[0].write_bytes(leaf.certificate)
        keys.server[1].write_bytes(leaf.key)
        keys.authority.write_text(node.identity.authority_pem)
        await node.registry.add_person(READER, "Reader", Role.CHIEF_PHYSICIAN, password=password)
        return await node.registry.create_token(READER, ["dicomweb"], 1.0)
