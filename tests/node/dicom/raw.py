"""A DICOM peer that says exactly what a test wants it to say, right or wrong."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Self

from node.dicom.messages import Command, Verb, encode_request, parse_command
from node.dicom.pdu import AssociateRq, Pdu, Proposal, data_head, decode, encode, pdvs
from tests.support.dicom import EXPLICIT, Instance

CT = "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION = "1.2.840.10008.1.1"
CONTEXTS = (
    Proposal(1, CT, (EXPLICIT,)),
    Proposal(3, VERIFICATION, ("1.2.840.10008.1.2",)),
)


def request(
    *, called: str = "NODE", calling: str = "CT1", contexts: tuple[Proposal, ...] = CONTEXTS, **more: object
) -> AssociateRq:
    """An A-ASSOCIATE-RQ of a known device for CT and verification."""
    return AssociateRq(called, calling, contexts, **more)  # type: ignore[arg-type]


def store_command(instance: Instance, message_id: int = 1, **more: object) -> bytes:
    """A C-STORE-RQ command set; `more` changes fields of the command."""
    fields = {"sop_class_uid": instance.sop_class_uid, "sop_instance_uid": instance.sop_instance_uid, **more}
    return encode_request(Command(Verb.C_STORE_RQ, message_id, has_data=True, **fields))  # type: ignore[arg-type]


def data_pdu(context_id: int, data: bytes, *, command: bool, last: bool) -> bytes:
    """One P-DATA-TF with one value."""
    return data_head(context_id, len(data), command=command, last=last) + data


def store_message(
    instance: Instance, message_id: int = 1, *, piece: int = 16_000, context_id: int = 1
) -> bytes:
    """A whole C-STORE-RQ message in P-DATA-TFs of `piece` bytes."""
    out = data_pdu(context_id, store_command(instance, message_id), command=True, last=True)
    for start in range(0, len(instance.data), piece):
        last = start + piece >= len(instance.data)
        out += data_pdu(context_id, instance.data[start : start + piece], command=False, last=last)
    return out


async def eventually(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until `condition()` is true; fail when it is not in time."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


class Raw:
    """A TCP connection that speaks PDUs when asked to and bytes otherwise."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()

    def send(self, *parts: bytes | Pdu) -> None:
        """Write bytes or PDUs."""
        self.writer.write(b"".join(part if isinstance(part, bytes) else encode(part) for part in parts))

    async def receive(self) -> tuple[int, bytes]:
        """The next PDU's type and body; (0, b"") when the peer has closed."""
        async with asyncio.timeout(5):
            try:
                head = await self.reader.readexactly(6)
                return head[0], await self.reader.readexactly(struct.unpack(">I", head[2:])[0])
            except (asyncio.IncompleteReadError, ConnectionError):
                return 0, b""

    async def pdu(self) -> Pdu | None:
        """The next PDU that is not data; None when the peer has closed."""
        kind, body = await self.receive()
        return decode(kind, body) if kind else None

    async def response(self) -> Command:
        """The next DIMSE response."""
        kind, body = await self.receive()
        assert kind == 4, (kind, body)
        (value,) = pdvs(body, 0, len(body))
        return parse_command(body[value.start : value.end])

    async def associate(self, **fields: object) -> Pdu | None:
        """Ask for an association; return the answer."""
        self.send(request(**fields))  # type: ignore[arg-type]
        return await self.pdu()
