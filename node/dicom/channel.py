"""What a service may say on an association while it serves: several answers to one request, and requests of its own.

A `Channel` stands between the services, which think in messages, and a `Connection`, which has the transport. It keeps
the messages of concurrent operations whole, hands responses to whoever waits for them, and knows what was cancelled.
Whatever ends the association ends every wait here with Unavailable, so that no service outlives its peer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from consent.errors import AccordError, Unavailable

from .messages import (
    RESPONSE,
    Command,
    Context,
    Message,
    Suboperations,
    Verb,
    encode_request,
    encode_response,
    framed,
    framed_pieces,
)
from .negotiation import Terms
from .pdu import Buffer

ANSWER_SECONDS = 60.0
"""How long a peer may take to answer a request of ours, beside a second for each megabyte."""
SLOWEST_BYTES_PER_SECOND = 1_000_000

OVER = "association-over"

Write = Callable[[Sequence[Buffer]], Awaitable[None]]


class Channel:
    """One association from the services' side.

    `write` sends parts in one piece and returns when the transport takes more; it raises Unavailable when the association
    is over. `cut_off` ends the association at once. `calling` is the peer's AE title.
    """

    def __init__(
        self,
        terms: Terms,
        write: Write,
        cut_off: Callable[[], None],
        *,
        max_length: int = 0,
        calling: str = "",
    ) -> None:
        self.terms = terms
        self.calling = calling
        self._cut_off = cut_off
        self._write = write
        self._max_length = max_length
        self._writing = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[Command]] = {}
        self._message_id = 0
        self._under_way: dict[int, bool] = {}
        self._listens = True

    # The connection calls these.

    def take(self, message: Message) -> bool:
        """Take a response or a cancel; False for a request, which is to be served."""
        command = message.command
        if command.verb == Verb.C_CANCEL_RQ:
            if command.message_id in self._under_way:
                self._under_way[command.message_id] = True
            return True
        if not command.verb & RESPONSE:
            self._under_way[command.message_id] = False
            return False
        answer = self._waiting.get(command.message_id)
        if answer is not None and not answer.done():
            answer.set_result(command)
        return True

    def served(self, message: Message) -> None:
        """A request has its final answer: it can be cancelled no more."""
        self._under_way.pop(message.command.message_id, None)

    def no_more(self) -> None:
        """The peer will say no more: whoever waits for its answer waits in vain."""
        self._listens = False
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(_over())

    # The services call these.

    @property
    def listens(self) -> bool:
        """Whether the peer can still answer a request."""
        return self._listens

    def cancelled(self, message: Message) -> bool:
        """Whether the peer has asked to end this operation (C-CANCEL)."""
        return self._under_way.get(message.command.message_id, False)

    async def respond(
        self,
        message: Message,
        status: int,
        comment: str = "",
        *,
        data: bytes | None = None,
        suboperations: Suboperations | None = None,
    ) -> None:
        """Send one response, final or pending. Raises Unavailable when the association is over."""
        command = encode_response(
            message.command, status, comment, has_data=data is not None, suboperations=suboperations
        )
        parts = list(framed(message.context.id, command, command=True, max_length=self._max_length))
        if data is not None:
            parts += framed(message.context.id, data, command=False, max_length=self._max_length)
        async with self._writing:
            await self._write(parts)

    async def send(self, parts: Sequence[Buffer]) -> None:
        """Send what is framed already, in one piece."""
        async with self._writing:
            await self._write(parts)

    async def request(
        self, context: Context, command: Command, pieces: AsyncIterator[bytes] | None = None, size: int = 0
    ) -> Command:
        """Send a request, with `pieces` of together `size` bytes as its data set; return the response's command.

        The message ID is chosen here. Raises Unavailable when the peer breaks off or does not answer in time.
        """
        if not self._listens:
            raise _over()
        self._message_id = self._message_id % 0xFFFF + 1
        number = self._message_id
        answer: asyncio.Future[Command] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            async with asyncio.timeout(ANSWER_SECONDS + size / SLOWEST_BYTES_PER_SECOND):
                async with self._writing:
                    await self._send_request(context, command.numbered(number), pieces, size)
                await answer
        except TimeoutError as error:
            raise Unavailable("The peer did not answer in time.", code="peer-silent") from error
        finally:
            del self._waiting[number]
            answer.cancel()
        return answer.result()

    async def _send_request(
        self, context: Context, command: Command, pieces: AsyncIterator[bytes] | None, size: int
    ) -> None:
        parts = list(framed(context.id, encode_request(command), command=True, max_length=self._max_length))
        if pieces is None:
            await self._write(parts)
            return
        try:
            async for more in framed_pieces(context.id, pieces, size, self._max_length):
                await self._write([*parts, *more])
                parts = []
        except AccordError as error:
            # Half a data set may be out: no other message can follow it.
            self._cut_off()
            raise _over() from error


def _over() -> Unavailable:
    return Unavailable("The association is over.", code=OVER)
