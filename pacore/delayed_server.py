"""An OpenAI-compatible server whose answers take as long as their seeds say: what `pacore.benchmark` measures against.

It runs in a process of its own, as it would otherwise take the client's time. uvicorn carries a bare ASGI application:
fastapi would add nothing but its own time to a server that looks at one number.
"""

import asyncio
import json
import multiprocessing
import random
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NamedTuple, Self

import uvicorn

WORKING = "From left to right the bars are read against the scale, and their heights are added up one by one. "
PIECES = 8  # of a streamed answer, spread evenly over its time


@dataclass(frozen=True)
class Delays:
    """How long answers take: log-normal, and a share of them `slow_factor` times as long.

    Attributes:
        median: in seconds, of those that are not slow.
        spread: standard deviation of the logarithm.
        slow_share: of the calls, each for itself.
    """

    median: float
    spread: float = 0.5
    slow_share: float = 0.0
    slow_factor: float = 20.0

    def of(self, seed: int) -> float:
        """Seconds that a call with this sampling seed takes, in every run."""
        rng = random.Random(seed)
        delay = self.median * rng.lognormvariate(0.0, self.spread)
        return delay * self.slow_factor if rng.random() < self.slow_share else delay


class Answered(NamedTuple):
    """A call, whoever was there to hear the answer: its seed, the seconds drawn, and those that it took beyond them."""

    seed: int
    delay: float
    late: float


class DelayedServer:
    """A context manager; the process ends with it, or with ours.

    Attributes:
        url: of the protocol.
    """

    def __init__(self, delays: Delays):
        self._pipe, theirs = multiprocessing.Pipe()
        # Spawned: a fork would take the client's event loop and threads along.
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(delays, theirs), name="delayed server", daemon=True)
        self._process.start()
        theirs.close()
        self.url = f"http://127.0.0.1:{self._pipe.recv()}/v1"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._pipe.close()
        self._process.join()

    def log(self) -> tuple[int, list[Answered]]:
        """How many calls came so far, and those whose answers are through."""
        self._pipe.send("log")
        return self._pipe.recv()


def _serve(delays: Delays, pipe: Connection) -> None:
    """The process."""
    application = _Application(delays)
    config = uvicorn.Config(application, lifespan="off", log_level="critical", timeout_keep_alive=600, backlog=2048)
    server = uvicorn.Server(config)

    def on_word() -> None:
        try:
            pipe.recv()
        except EOFError:  # the client closed its end, or is dead
            asyncio.get_running_loop().remove_reader(pipe.fileno())
            server.should_exit = server.force_exit = True
        else:
            pipe.send((application.calls, application.answered))

    async def run() -> None:
        asyncio.get_running_loop().add_reader(pipe.fileno(), on_word)
        # asyncio sends without delay only where the protocol is named; else every answer comes 40 ms late.
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen(2048)
            pipe.send(listening.getsockname()[1])
            await server.serve(sockets=[listening])

    asyncio.run(run())


class _Application:
    def __init__(self, delays: Delays):
        self.calls, self.answered, self._delays = 0, [], delays

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        started = time.monotonic()
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if scope["path"].endswith("/models"):
            await _whole(send, {"object": "list", "data": [{"id": "delayed", "object": "model"}]})
            return
        asked = json.loads(body)
        self.calls += 1
        seed, delay = asked["seed"], self._delays.of(asked["seed"])

        async def until(share: float) -> None:
            await asyncio.sleep(max(0.0, started + share * delay - time.monotonic()))

        text = WORKING * 4 + f"Answer: {seed % 7}"
        usage = {"prompt_tokens": len(body) // 4, "completion_tokens": len(text) // 4}
        if asked.get("stream"):
            await _stream(send, text, usage, until)
        else:
            await until(1.0)
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            await _whole(send, {"object": "chat.completion", "choices": [choice], "usage": usage})
        self.answered.append(Answered(seed, delay, time.monotonic() - started - delay))


async def _whole(send: Callable, answer: dict) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


async def _stream(send: Callable, text: str, usage: dict, until: Callable[[float], Awaitable[None]]) -> None:
    async def event(choices: list[dict], **more) -> None:
        data = json.dumps({"object": "chat.completion.chunk", "choices": choices} | more)
        await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})

    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    size = -(-len(text) // PIECES)
    for piece in range(PIECES):
        await until((piece + 1) / PIECES)
        await event([{"index": 0, "delta": {"content": text[piece * size : (piece + 1) * size]}}])
    await event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    await event([], usage=usage)
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
