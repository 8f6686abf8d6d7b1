"""Peers that are slow, idle, half-open or too many, up to the caps: they are cut in time, and a good client keeps its latency.

The good client stores by C-STORE and searches by QIDO-RS from an address of its own, first alone, then while the caps of
the others' addresses are full. What it may take meanwhile is bounded by what it took alone, in the same run.
`ACCORD_SLOW_PEERS=full` also waits for those deadlines of the node that are a minute long.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median, quantiles

import aiohttp
import pytest

from consent.errors import AccordError
from node.dicom.negotiation import VERIFICATION
from node.dicom.pdu import Proposal
from node.dicom.sender import send
from node.gateway.held import HELD_BYTES
from tests.faults.conftest import Counts
from tests.faults.peers import SERVED_SECONDS, From, new_address, refusals_from, serves
from tests.faults.slices import outgoing, slice_of, study_uid
from tests.faults.slow import BIG_SLICES, BIG_STUDY, CUT_SECONDS, HTTP, SIDE, Slow, is_closed_at_once
from tests.support.dicomweb import DicomWeb
from tests.support.served import AE, DIGITISER, Served

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.journey,
    pytest.mark.slow,
    pytest.mark.requirement("F4"),
]
FULL = os.environ.get("ACCORD_SLOW_PEERS") == "full"
GOOD = "127.0.0.2"
ALONE = 15
P50_TIMES, P50_SECONDS = 4, 0.3
P95_SECONDS = 1.5
"""The good client's median may be so many times that of its time alone, or so many seconds, whichever is more."""
GROWTH_BYTES = 1024 * 1024
"""What the node may hold for each slow peer, beside what is opened ahead for all together."""


@dataclass
class Latency:
    """Seconds of one kind of request."""

    seconds: list[float] = field(default_factory=list)

    @property
    def p50(self) -> float:
        return median(self.seconds)

    @property
    def p95(self) -> float:
        return quantiles(self.seconds, n=20)[-1]

    def bounded_by(self, alone: Latency) -> bool:
        """Whether slow peers did not slow it: generous to a busy machine, too little for a node that waits for them."""
        return self.p50 <= max(P50_TIMES * alone.p50, P50_SECONDS) and self.p95 <= max(
            P50_TIMES * alone.p95, P95_SECONDS
        )


@pytest.mark.timeout(300)
async def test_slow_peers(node: Served, counts: Counts) -> None:
    """Heads that drip, bodies that trickle, readers that stop, silence and half PDUs, up to the caps of their addresses."""
    await _store_the_big_study(node)
    stored, searched = Latency(), Latency()
    async with DicomWeb(node.web, node.token, node.web_context(), GOOD) as web:
        for _ in range(ALONE):
            await _good(node, web, stored, searched)
        before = node.resident_peak_bytes()
        slow = await Slow.begin(node)
        assert await is_closed_at_once(node, slow.http), "the cap of connections of one address is not full"
        stored_during, searched_during = Latency(), Latency()
        async with DicomWeb(node.web, node.token, node.web_context(), GOOD) as fresh:  # it still gets in
            while not slow.cut_off:
                await _good(node, fresh, stored_during, searched_during)
                await asyncio.sleep(0.1)
        grown = node.resident_peak_bytes() - before
    answers, whole, stalled = await slow.end(wait_for_cut=FULL)
    await serves(node)
    hung = sum(seconds >= CUT_SECONDS for seconds in slow.ended()) + answers.count(0) + whole.count(False)
    counts(
        hung=hung + stalled.count(False),
        slow_peers=slow.number,
        cut_after_max_seconds=round(max(slow.ended()), 1),
        slow_stores_answered=answers.count(200),
        slow_readers_whole=whole.count(True),
        stalled_readers_cut=stalled.count(True),
        good=len(stored_during.seconds) + len(searched_during.seconds),
        store_p50_ms_alone=round(stored.p50 * 1e3),
        store_p50_ms_during=round(stored_during.p50 * 1e3),
        store_p95_ms_during=round(stored_during.p95 * 1e3),
        search_p50_ms_alone=round(searched.p50 * 1e3),
        search_p50_ms_during=round(searched_during.p50 * 1e3),
        search_p95_ms_during=round(searched_during.p95 * 1e3),
        grown_mib=grown >> 20,
    )
    assert max(slow.ended()) < CUT_SECONDS
    assert set(answers) == {200}, "a slow body that comes whole is stored"
    assert all(whole), "a reader that goes on gets the rest"
    assert all(stalled), "a reader that never goes on is cut"
    assert stored_during.bounded_by(stored), (stored_during, stored)
    assert searched_during.bounded_by(searched), (searched_during, searched)
    assert grown < HELD_BYTES + slow.number * GROWTH_BYTES
    assert await refusals_from(node, slow.quiet) and await refusals_from(node, slow.partial)


async def _store_the_big_study(node: Served) -> None:
    slices = [outgoing(slice_of(BIG_STUDY, number, SIDE)) for number in range(BIG_SLICES)]
    assert all([sent.ok async for sent in send(node.plain(), slices)])
    async with DicomWeb(node.web, node.token, node.web_context()) as web, asyncio.timeout(SERVED_SECONDS):
        while len((await web.retrieve(f"/studies/{study_uid(BIG_STUDY)}"))[1]) < BIG_SLICES:
            await asyncio.sleep(0.1)


async def _good(node: Served, web: DicomWeb, stored: Latency, searched: Latency) -> None:
    stored.seconds.append(await serves(node))
    began = time.perf_counter()
    async with asyncio.timeout(SERVED_SECONDS):
        status, _, _ = await web.request("GET", f"/studies?StudyInstanceUID={study_uid(BIG_STUDY)}")
    assert status == 200
    searched.seconds.append(time.perf_counter() - began)


@pytest.mark.requirement("C1")
async def test_idle_associations_up_to_the_caps(node: Served) -> None:
    """One address may hold 16 associations and all together 64: past that a clear rejection; others are served."""
    greedy, crowd = new_address(), [new_address() for _ in range(3)]
    held: list[From] = []
    try:
        answers = [await _hold(node, greedy, held) for _ in range(20)]
        assert answers == ["AssociateAc"] * 16 + ["AssociateRj"] * 4
        for _ in range(5):
            await serves(node)
        for address in crowd:
            answers += [await _hold(node, address, held) for _ in range(16)]
        assert answers.count("AssociateAc") == 64
        with pytest.raises(AccordError, match="too many associations"):
            await serves(node)
        for peer in held[:8]:
            peer.writer.transport.abort()
        await _serves_again(node)
    finally:
        for peer in held:
            peer.writer.transport.abort()
    await _serves_again(node)
    assert {entry.event.detail["code"] for entry in await refusals_from(node, greedy)} == {
        "too-many-associations-of-peer"
    }


async def _serves_again(node: Served) -> None:
    """A good device is let in as soon as the node has seen that others have gone."""
    async with asyncio.timeout(SERVED_SECONDS):
        while True:
            with suppress(AccordError):
                await serves(node)
                return
            await asyncio.sleep(0.05)


async def _hold(node: Served, address: str, held: list[From]) -> str:
    peer = await From(node.plain_port, address).__aenter__()
    held.append(peer)
    verification = (Proposal(1, VERIFICATION, ("1.2.840.10008.1.2",)),)
    return type(await peer.associate(called=AE, calling=DIGITISER, contexts=verification)).__name__


async def test_flood_of_connections(node: Served) -> None:
    """One address that opens hundreds of connections is kept to its share; a device elsewhere is served meanwhile."""
    greedy = new_address()
    opened = await asyncio.gather(
        *(asyncio.open_connection("127.0.0.1", node.plain_port, local_addr=(greedy, 0)) for _ in range(300)),
        return_exceptions=True,
    )
    try:
        for _ in range(5):
            await serves(node)
    finally:
        for pair in opened:
            if not isinstance(pair, BaseException):
                pair[1].transport.abort()
    assert await refusals_from(node, greedy)
    await serves(node)


async def test_connections_of_https_up_to_the_caps(node: Served, counts: Counts) -> None:
    """One address may hold 128 connections and all together 1024: past that they are closed at once, and room is room again."""
    addresses = [new_address() for _ in range(HTTP.connections_total // HTTP.connections_per_peer)]
    held: list[asyncio.StreamWriter] = []
    try:
        for address in addresses:
            for _ in range(HTTP.connections_per_peer):
                _, writer = await asyncio.open_connection(
                    "127.0.0.1", node.http_port, local_addr=(address, 0)
                )
                held.append(writer)
            if address != addresses[-1]:
                assert await is_closed_at_once(node, address)
                await _good_from(node)
        assert await is_closed_at_once(node, GOOD), "all connections are taken, and one more was let in"
        await serves(node)  # the doors of DICOM are others
        for writer in held[: HTTP.connections_per_peer]:
            writer.transport.abort()
        async with asyncio.timeout(SERVED_SECONDS):
            while not await _is_let_in(node):
                await asyncio.sleep(0.05)
        counts(hung=0, connections=len(held))
    finally:
        for writer in held:
            writer.transport.abort()


async def _is_let_in(node: Served) -> bool:
    with suppress(aiohttp.ClientConnectionError):
        await _good_from(node)
        return True
    return False


async def _good_from(node: Served) -> None:
    async with (
        DicomWeb(node.web, node.token, node.web_context(), GOOD) as web,
        asyncio.timeout(SERVED_SECONDS),
    ):
        status, _, _ = await web.request("GET", "/studies?limit=1")
    assert status in (200, 204)
