"""What servers of the OpenAI protocol share: who may come in, whose turn it is, errors, streams, clients that go."""

import asyncio
import hmac
import ipaddress
import json
import math
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from vlm.receiving import RequestError, shown

KEEP_ALIVE_SECONDS = 10.0  # of silence in a stream; proxies close a connection after 30 to 60
BUSY_SECONDS = 5  # after which a client that was sent away may try again
STOP_SECONDS = 3  # that a stopped server's requests have to end by themselves; then their work is cancelled

BROKEN = RequestError("the server made a mistake; its log says which.", status=500)
STOPPING = RequestError("the server is being stopped; ask again when it is back.", code="stopping", status=503)

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold the stream back
]
KEEP_ALIVE = b": still working\n\n"


def protocol_app(endpoint: str) -> FastAPI:
    """An application whose every error is the protocol's error object.

    Args:
        endpoint: what it serves, as `POST /v1/chat/completions`; who asks for something else is told.
    """
    app = FastAPI(title="Triptych", openapi_url=None)

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return json_reply(error.body(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def not_served(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {shown(request.scope['path'])} is not served here; see {endpoint}."
        return json_reply(RequestError(message, status=error.status_code).body(), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return json_reply(BROKEN.body(), BROKEN.status)

    return app


def json_reply(body: dict, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # In ASCII, since a model's text and a client's words may hold half of a surrogate pair.
    return Response(json.dumps(body), status, headers, "application/json")


def model_list(names: Sequence[str], created: int) -> Response:
    """The answer of `GET /v1/models`."""
    entries = [{"id": name, "object": "model", "created": created, "owned_by": "triptych"} for name in names]
    return json_reply({"object": "list", "data": entries})


def event_line(value: dict | str, kind: str | None = None) -> bytes:
    """One event of a stream. In ASCII, since a model's pieces may end in the middle of a surrogate pair."""
    head = "" if kind is None else f"event: {kind}\n"
    return f"{head}data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()


async def followed(work: asyncio.Task, events: asyncio.Queue) -> AsyncIterator[Any]:
    """What `work` puts into `events`, as it comes, until it is over; None after `KEEP_ALIVE_SECONDS` of silence."""
    over = object()
    work.add_done_callback(lambda _: events.put_nowait(over))
    while True:
        try:
            async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                event = await events.get()
        except TimeoutError:
            event = None
        if event is over:
            return
        yield event


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Any]) -> Any:
    """What `work` returns; it is cancelled as soon as the client closes the connection.

    Raises:
        starlette.requests.ClientDisconnect: that happened.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await stopped(task, watch)


async def stopped(*tasks: asyncio.Task) -> None:
    """Cancels what still runs, and waits until it is over."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Gate:
    """Lets some requests work and some more wait for their turn; what comes beyond that is sent away.

    Args:
        concurrency: requests that are worked on at a time.
        queue: requests that wait for their turn; one more is refused.
        queue_seconds: the longest wait.

    Attributes:
        waiting: requests whose turn has not come.
    """

    def __init__(self, concurrency: int, queue: int, queue_seconds: float):
        self._places, self._queue_seconds = concurrency + queue, queue_seconds
        self._turns, self._present = asyncio.Semaphore(concurrency), 0
        self.waiting = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Room for a request, before its body is read: waiting bodies take memory. Raises RequestError (429)."""
        if self._present >= self._places:
            raise _busy(f"{self._present} requests are worked on or wait")
        self._present += 1
        try:
            yield
        finally:
            self._present -= 1

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """A request's time to work. Raises RequestError (429)."""
        self.waiting += 1
        try:
            async with asyncio.timeout(self._queue_seconds):
                await self._turns.acquire()
        except TimeoutError as error:
            raise _busy(f"no turn came within {self._queue_seconds:g} s") from error
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._turns.release()


def _busy(what: str) -> RequestError:
    message = f"the server is busy ({what}); come again in {BUSY_SECONDS} s."
    return RequestError(message, code="busy", status=429, headers={"Retry-After": str(BUSY_SECONDS)})


class Door:
    """Who may come in, and how often within a minute.

    Wrong keys are counted for the address they come from, so that they cannot be tried out, nor lock the right one out.
    """

    def __init__(self, api_key: str | None, per_minute: int | None):
        if api_key == "":
            raise ValueError("the API key is empty; give one, or none at all to let everyone in.")
        self._key = None if api_key is None else api_key.encode()
        self._per_minute = per_minute
        self._visits: dict[str, deque[float]] = {}  # by client, the times within the last minute
        self._swept = time.monotonic()

    def admit(self, request: Request, counted: bool = True) -> None:
        """Raises RequestError: 401 without the key, 429 too often; `counted` is whether a good visit is one of many."""
        known = self._key is None or self._holds_key(request)
        if counted or not known:
            self._count("the key" if known and self._key else _address(request))
        if not known:
            message = "the API key is missing or wrong; send the header 'Authorization: Bearer KEY'."
            headers = {"WWW-Authenticate": "Bearer"}
            raise RequestError(message, code="invalid_api_key", status=401, headers=headers)

    def _holds_key(self, request: Request) -> bool:
        scheme, _, sent = request.headers.get("authorization", "").partition(" ")
        # In a time that does not tell how much of it was right.
        return scheme.lower() == "bearer" and hmac.compare_digest(sent.strip().encode("latin-1"), self._key)

    def _count(self, client: str) -> None:
        if self._per_minute is None:
            return
        now = time.monotonic()
        if now - self._swept > 60:
            self._visits = {name: times for name, times in self._visits.items() if times[-1] > now - 60}
            self._swept = now
        times = self._visits.setdefault(client, deque())
        while times and times[0] <= now - 60:
            times.popleft()
        if len(times) >= self._per_minute:
            wait = math.ceil(times[0] + 60 - now)
            message = f"more than {self._per_minute} requests within a minute; come again in {wait} s."
            headers = {"Retry-After": str(wait)}
            raise RequestError(message, code="rate_limit_exceeded", status=429, headers=headers)
        times.append(now)


def _address(request: Request) -> str:
    """The client's network address; of IPv6 the block of 2⁶⁴ that one subscriber has."""
    host = request.client.host if request.client else ""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host
    if ip.version == 4 or ip.ipv4_mapped:
        return str(ip)
    return str(ipaddress.ip_network((int(ip), 64), strict=False))


async def serve(app: FastAPI, host: str, port: int) -> None:
    """Serves until Ctrl-C or SIGTERM; after either, KeyboardInterrupt is raised."""
    import uvicorn

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is open is closed, as at Ctrl-C
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=STOP_SECONDS
    )  # fmt: skip
    await uvicorn.Server(config).serve()
