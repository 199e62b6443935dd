"""One request and its answer over a stream, in HTTP/1.1.

h11 writes the request, and reads the head of the answer and every body but a long one of declared
length. That one is received into the very bytes that are handed on, since all that its framing says
is how many there are.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import lru_cache
from io import BytesIO

import h11
import trio

from proxy.egress.answer_meter import MAX_HEAD, READ_BYTES, AnswerMeter
from proxy.egress.errors import BadAnswer, NoAnswer

GATHERED_BYTES = 1024 * 1024
"""The most bytes of a body that are gathered into one piece, so that most pictures come whole.
Others wait for a millisecond while one is hashed."""

GATHERING_SECONDS = 0.1
"""How long bytes are held back to gather more. A fraction of the windows over which rates are
measured (``MIN_BYTES_PER_SECOND``, ``proxy.egress.pressure``)."""

_BREAKS = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


@lru_cache(maxsize=256)
def _with_checked(headers: tuple[tuple[str, str], ...]) -> h11.Request:
    """A request with these headers, checked by h11 once: those to a host are mostly the same.

    Raises:
        h11.LocalProtocolError: one of them is not valid.
    """
    return h11.Request(method="GET", target="/", headers=list(headers))


class Exchange:
    """A request and its answer. The stream is the caller's, who closes it after any exception.

    Args:
        stream: nothing is under way on it.
        is_head: the request is a HEAD.
    """

    def __init__(self, stream: trio.abc.Stream, *, is_head: bool) -> None:
        self._stream = stream
        self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=2 * MAX_HEAD)
        self._meter = AnswerMeter(is_head=is_head)
        self._is_gathered = False

    @property
    def is_over(self) -> bool:
        """Whether all of the answer was read, and the stream may carry another exchange."""
        ours, theirs = self._parser.our_state, self._parser.their_state
        if self._is_gathered:
            is_read = not self._meter.body_left
        else:
            # A length in a folded line is h11's alone, and so is what comes after that body.
            is_read = theirs is h11.DONE and not self._parser.trailing_data[0]
        # Our state is another one where the answer says that the connection ends.
        return is_read and ours is h11.DONE and not self._meter.has_surplus

    async def ask(
        self, method: str, target: str, headers: list[tuple[str, str]], content: bytes | None
    ) -> h11.Response:
        """Send the request, and return the head of the answer.

        Raises:
            NoAnswer: the stream broke before the first byte of an answer.
            BadAnswer: it broke later, or what was received is not HTTP or costs too much.
        """
        try:
            checked = _with_checked(tuple(headers)).headers
            request = h11.Request(method=method, target=target, headers=checked)
            sent = [self._parser.send(request)]
            if content is not None:
                sent.append(self._parser.send(h11.Data(content)))
            sent.append(self._parser.send(h11.EndOfMessage()))
        except h11.LocalProtocolError as error:
            raise self._broken(error) from error
        with suppress(trio.BrokenResourceError):  # it may answer and close before it has read all
            await self._stream.send_all(b"".join(filter(None, sent)))
        while isinstance(event := await self._next_event(), h11.InformationalResponse):
            pass
        if not isinstance(event, h11.Response):
            raise BadAnswer("the connection ended before an answer")
        return event

    async def body(self) -> AsyncGenerator[bytes, None]:
        """The pieces of the body of the answer, as in ``StreamingResponse``."""
        if self._meter.body_left > READ_BYTES:
            self._is_gathered = True
            first, _is_closed = self._parser.trailing_data
            yield await self._gather(first)
            while self._meter.body_left:
                yield await self._gather(b"")
            return
        while isinstance(event := await self._next_event(), h11.Data):
            yield bytes(event.data)

    async def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            while (event := self._parser.next_event()) is h11.NEED_DATA:
                data = await self._read()
                if not data and self._parser.their_state is h11.SEND_RESPONSE:
                    raise ConnectionResetError("closed without an answer")
                self._parser.receive_data(data)
        except (*_BREAKS, h11.RemoteProtocolError) as error:
            raise self._broken(error) from error
        return event

    async def _read(self) -> bytes:
        return self._meter.feed(bytes(await self._stream.receive_some(READ_BYTES)))

    async def _gather(self, first: bytes) -> bytes:
        """The next bytes of a body of declared length, in one piece however they arrive.

        Ends with the piece, with the body, or ``GATHERING_SECONDS`` after the first bytes.

        Args:
            first: those that were received already.
        """
        gathered = len(first)
        size = min(gathered + self._meter.body_left, GATHERED_BYTES)
        # One byte more than is due shows that more was sent: a TLS record cannot be looked into.
        # Python's bytes cannot be received into but through this, which copies them at no time.
        piece = BytesIO(bytes(size + 1))
        with piece.getbuffer() as room:
            room[:gathered] = first
            if not first:
                gathered = await self._receive_into(room, 0)
            with trio.move_on_after(GATHERING_SECONDS):
                while gathered < size:
                    gathered += await self._receive_into(room, gathered)
        piece.truncate(gathered)
        return piece.getvalue()

    async def _receive_into(self, room: memoryview, start: int) -> int:
        """How many bytes of the body were put into ``room`` from ``start``, at least one."""
        try:
            with room[start:] as left:
                if isinstance(self._stream, trio.SocketStream):
                    size = await self._stream.socket.recv_into(left)
                else:
                    data = await self._stream.receive_some(min(len(left), READ_BYTES))
                    size = len(data)
                    left[:size] = data
        except _BREAKS as error:
            raise self._broken(error) from error
        if not size:
            raise BadAnswer(f"the connection ended {self._meter.body_left} bytes before the body")
        return self._meter.take(size)

    def _broken(self, error: Exception) -> BadAnswer:
        broken = BadAnswer if self._meter.received else NoAnswer
        return broken(f"{type(error).__name__}: {error.__cause__ or error}")
