"""A node's DICOMweb door on a free port, without TLS, and people's ways in: for tests that speak plain HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from aiohttp import web
from dicomweb_client.api import DICOMwebClient

from consent.principals import Principal
from consent.vocabulary import Role
from node.access.sessions import Sessions
from node.dicom.dicomweb import ROUTES
from node.dicom.multipart import MultipartParser, MultipartWriter, Part, parameters
from node.web.keys import (
    CLOCK,
    GATEWAY,
    IDENTITY,
    INGEST,
    LOG,
    POLICIES,
    PSEUDONYMS,
    REGISTRY,
    RENDERER,
    SESSIONS,
)
from node.web.kit import make_app, serve
from tests.support.node import NodeFixture, small_node

V = TypeVar("V")


@dataclass
class Door:
    """A node's DICOMweb door on a free port, and a person's way in."""

    node: NodeFixture
    url: str
    http: aiohttp.ClientSession

    async def token(self, who: Principal) -> str:
        return await self.node.registry.create_token(who.id, ["dicomweb"])

    async def client(self, who: Principal) -> DICOMwebClient:
        """dicomweb-client as this person."""
        return DICOMwebClient(self.url, headers={"Authorization": f"Bearer {await self.token(who)}"})

    async def get(
        self, who: Principal, path: str, accept: str = "*/*", **more: str
    ) -> tuple[int, dict[str, str], bytes]:
        headers = {"Authorization": f"Bearer {await self.token(who)}", "Accept": accept, **more}
        async with self.http.get(self.url + path, headers=headers) as answer:
            return answer.status, dict(answer.headers), await answer.read()

    async def post(
        self, who: Principal, body: bytes, kind: str, path: str = "/studies"
    ) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {await self.token(who)}", "Content-Type": kind}
        async with self.http.post(self.url + path, data=body, headers=headers) as answer:
            return answer.status, json.loads(await answer.read())


@asynccontextmanager
async def open_door(tmp_path: Path) -> AsyncIterator[Door]:
    """A node in this process behind its DICOMweb routes."""
    async with small_node(tmp_path) as node:
        sessions = Sessions(
            node.database,
            node.log,
            node.clock,
            key=await node.keys.secret("registry"),
            node=node.node_id,
            passwords=node.registry.passwords,
        )
        services: dict[web.AppKey[Any], Any] = {
            GATEWAY: node.gateway,
            RENDERER: node.renderer,
            INGEST: node.ingest,
            PSEUDONYMS: node.index.pseudonyms,
            REGISTRY: node.registry,
            SESSIONS: sessions,
            CLOCK: node.clock,
            IDENTITY: node.identity,
            LOG: node.log,
            POLICIES: node.policies,
        }
        listener = await serve(make_app(routes=ROUTES, services=services), "127.0.0.1", 0)
        async with aiohttp.ClientSession() as http:
            yield Door(node, f"http://127.0.0.1:{listener.port}/dicom-web", http)
        await listener.stop()


async def chief(door: Door) -> Principal:
    """Somebody who may see and take everything."""
    return await door.node.person(Role.CHIEF_PHYSICIAN)


async def off_loop(work: Callable[[], V]) -> V:
    """What a blocking client returns."""
    return await asyncio.to_thread(work)


def multipart(*bodies: bytes) -> tuple[bytes, str]:
    """A STOW-RS body and its content type."""
    writer = MultipartWriter("application/dicom")
    parts = [
        writer.head("application/dicom", len(body), first=number == 0) + body
        for number, body in enumerate(bodies)
    ]
    return b"".join(parts) + writer.end(), writer.content_type


def parts_of(kind: str, body: bytes) -> list[bytes]:
    """The bodies of a multipart answer."""
    return [part.body for part in whole_parts_of(kind, body)]


def whole_parts_of(kind: str, body: bytes) -> list[Part]:
    """The parts of a multipart answer."""
    parser = MultipartParser(parameters(kind)[1]["boundary"])
    found = list(parser.feed(body))
    parser.finish()
    return found
