"""Who must not get in: a node that the roster does not list, and a member without a grant."""

from __future__ import annotations

import ssl

import aiohttp

from consent.errors import AccordError, NotFound
from node.tls import client_context
from ops.demo.processes import Site
from ops.demo.region import Region
from ops.demo.report import hold
from ops.foundation import opened
from ops.region import build_channel

ROSTER_PATH = "/peer/v1/roster"


async def knock_as_stranger(region: Region) -> dict[str, str]:
    """Call every member's peer door with the unlisted node's certificate; return how each refused."""
    refused: dict[str, str] = {}
    async with opened(region.stranger.folder) as stranger:
        leaf = stranger.identity.leaf(["d-unlisted"], stranger.clock.now())
        for site in region.sites:
            context = client_context([region.authorities[site.id]], leaf)
            url = f"https://127.0.0.1:{site.ports['peer']}{ROSTER_PATH}"
            connector = aiohttp.TCPConnector(ssl=context)
            async with aiohttp.ClientSession(connector=connector) as session:
                try:
                    async with session.get(url) as response:
                        if response.status in (401, 403):
                            refused[site.id] = f"status {response.status}"
                except (aiohttp.ClientError, ssl.SSLError, OSError) as error:
                    refused[site.id] = f"TLS ({type(error).__name__})"
    return refused


async def ask_as_member(region: Region, asker: Site, home: Site, grant: str) -> str:
    """As a listed member, ask for a pack under another's grant; return the words of the refusal."""
    from federation.client import PeerClient

    async with opened(asker.folder) as base:
        client = PeerClient(members=base.members, channel=build_channel(base), log=base.log)
        try:
            await client.get(home.id, f"/peer/v1/packs/{grant}/manifest")
        except NotFound as error:
            return error.message
        except AccordError as error:
            return error.message
        finally:
            await client.close()
    hold(False, f"{asker.name} got a manifest without a grant")
    return ""
