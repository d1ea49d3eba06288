"""A server that speaks OpenAI's chat protocol and fails as it is told, in a thread of the test.

    with FaultServer([status(500), say("4")]) as server:
        ...  # server.url, server.calls, server.peak, server.gone

A script is a list of replies, one a call (the last for all further ones), or a function of a `Call` that returns one;
without one, every call is answered.
"""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Call:
    """What arrived: `number` from 0, the JSON body, headers with names in lower case; `at`, of the monotonic clock."""

    number: int
    body: dict
    headers: dict[str, str]
    sent: asyncio.StreamWriter = field(repr=False)
    at: float = field(default_factory=time.monotonic)

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream"))

    async def head(self, code: int = 200, headers: dict | None = None, length: int | None = None) -> None:
        """Without a length the body is chunked."""
        kind = "text/event-stream" if self.streams and code == 200 else "application/json"
        size = {"Transfer-Encoding": "chunked"} if length is None else {"Content-Length": length}
        lines = {"Content-Type": kind} | size | (headers or {})
        self.sent.write(
            f"HTTP/1.1 {code} X\r\n".encode() + b"".join(f"{k}: {v}\r\n".encode() for k, v in lines.items())
        )
        self.sent.write(b"\r\n")
        await self.sent.drain()

    async def chunk(self, data: bytes) -> None:
        """An empty one ends the body."""
        self.sent.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await self.sent.drain()

    async def whole(self, data: bytes, code: int = 200, headers: dict | None = None) -> None:
        await self.head(code, headers, len(data))
        self.sent.write(data)
        await self.sent.drain()


Reply = Callable[[Call], Awaitable[None]]


def say(
    text: str = "4",
    *,
    reasoning: str = "",
    name: str = "reasoning_content",
    delay: float = 0.0,
    usage: tuple[int, int] | None = (7, 3),
    finish: str | None = "stop",
    logprobs: Sequence[float] = (),
    piece: int = 3,
) -> Reply:
    """An answer, streamed in pieces of so many characters where the call asks for it; finish None: it never ends."""

    async def reply(call: Call) -> None:
        await asyncio.sleep(delay)
        if not call.streams:
            message = {"role": "assistant", "content": text} | ({name: reasoning} if reasoning else {})
            await call.whole(json.dumps(_answer({"message": message}, finish, logprobs, usage)).encode())
            return
        await call.head()
        for event in _events(text, reasoning, name, finish, logprobs, usage, piece):
            await call.chunk(event)
        await call.chunk(b"")

    return reply


def status(code: int, message: str = "boom", headers: dict | None = None, body: object = None) -> Reply:
    async def reply(call: Call) -> None:
        answer = {"error": {"message": message, "type": "test"}} if body is None else body
        await call.whole(answer if isinstance(answer, bytes) else json.dumps(answer).encode(), code, headers)

    return reply


def raw(answer: object) -> Reply:
    """A 200 with any JSON, or with any bytes as they are; where the call streams, as its only event."""
    data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    async def reply(call: Call) -> None:
        await call.whole(b"data: " + data + b"\n\ndata: [DONE]\n\n" if call.streams else data)

    return reply


def hang() -> Reply:
    async def reply(call: Call) -> None:
        await asyncio.Event().wait()

    return reply


def reset(text: str = "Half an answer") -> Reply:
    """The connection is reset in the middle of the body."""

    async def reply(call: Call) -> None:
        await _half(call, text)
        call.sent.transport.abort()

    return reply


def truncated(text: str = "Half an answer") -> Reply:
    """The body ends in good form in the middle of its JSON, or of its events."""

    async def reply(call: Call) -> None:
        await _half(call, text)
        await call.chunk(b"")

    return reply


def trickle(pause: float, text: str = "slow " * 40) -> Reply:
    """A byte, or an event with a byte of text, every so many seconds."""

    async def reply(call: Call) -> None:
        await call.head()
        answer = json.dumps(_answer({"message": {"content": text}}, "stop", (), None)).encode()
        pieces = _events(text, "", "", "stop", (), None, 1) if call.streams else [bytes([byte]) for byte in answer]
        for piece in pieces:
            await call.chunk(piece)
            await asyncio.sleep(pause)
        await call.chunk(b"")

    return reply


async def _half(call: Call, text: str) -> None:
    await call.head()
    if call.streams:
        for event in _events(text, "", "", None, (), None, 3):
            await call.chunk(event)
    else:
        answer = json.dumps(_answer({"message": {"content": text}}, "stop", (), (7, 3))).encode()
        await call.chunk(answer[: len(answer) // 2])
    await asyncio.sleep(0.01)  # it is received before the connection goes


def _answer(said: dict, finish: str | None, logprobs: Sequence[float], usage: tuple[int, int] | None) -> dict:
    choice = {"index": 0, "finish_reason": finish} | said
    if logprobs:
        choice["logprobs"] = {"content": [{"token": "t", "logprob": value} for value in logprobs]}
    answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "stub", "choices": [choice]}
    return answer | ({"usage": _usage(usage)} if usage else {})


def _usage(usage: tuple[int, int]) -> dict:
    return {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}


def _events(text, reasoning, name, finish, logprobs, usage, piece) -> list[bytes]:
    deltas = [{"role": "assistant", "content": ""}]
    deltas += [{name: reasoning[i : i + piece]} for i in range(0, len(reasoning), piece)]
    deltas += [{"content": text[i : i + piece]} for i in range(0, len(text), piece)]
    events = [_answer({"delta": delta}, None, (), None) for delta in deltas]
    if logprobs:
        events.append(_answer({"delta": {}}, None, logprobs, None))
    if finish:
        events.append(_answer({"delta": {}}, finish, (), None))
        if usage:
            events.append({"object": "chat.completion.chunk", "choices": [], "usage": _usage(usage)})
    lines = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    return lines + [b"data: [DONE]\n\n"] * bool(finish)


class FaultServer:
    """A context manager. Its port is one that is free, unless it is given.

    Attributes:
        url: of the protocol, ending with /v1.
        calls: those to /chat/completions, in the order of their coming; counted before they are answered.
        peak: most calls that were in work at once.
        gone: calls whose client went away before the answer was whole.
    """

    def __init__(
        self,
        script: Sequence[Reply] | Callable[[Call], Reply] = (),
        models: Sequence[dict] = ({"id": "stub"},),
        port: int = 0,
    ):
        self._port = port
        self._script, self._models = script or [say()], {"object": "list", "data": list(models)}
        self.calls: list[Call] = []
        self.peak = self.gone = self._working = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> "FaultServer":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_) -> None:
        self.die()

    def die(self) -> None:
        """What kill -9 looks like from outside: every connection is reset, the next is refused."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._talk, "127.0.0.1", self._port, limit=2**26, backlog=1024)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._ready.set()
        await self._end.wait()
        server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {
                    name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)
                }
                data = await reader.readexactly(int(headers.get("content-length", 0)))
                call = Call(len(self.calls), json.loads(data or b"{}"), headers, writer)
                if head[0].split()[1].endswith("/models"):
                    await call.whole(json.dumps(self._models).encode())
                    continue
                self.calls.append(call)
                if not await self._answer(call, reader):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, call: Call, reader: asyncio.StreamReader) -> bool:
        """Whether the client stayed to the end."""
        self._working += 1
        self.peak = max(self.peak, self._working)
        script = self._script
        reply = script(call) if callable(script) else script[min(call.number, len(script) - 1)]
        working = asyncio.ensure_future(reply(call))
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self.gone += 1
                return False
            working.result()
            return not call.sent.is_closing()
        finally:
            self._working -= 1
            for task in (working, leaving):
                task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)
