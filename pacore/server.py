"""PaCoRe as an endpoint of the OpenAI protocol, in front of any backend.

A client asks for rounds with `pacore` in the body (`"medium"`, `"16,4"`, `[16, 4]`, `{"rounds": …, "quorum": …}`) or in
the name of the model (`mini:high`, `mini:16,4`); else the server's own plan holds. One that goes away stops its work.
"""

import asyncio
import hmac
import ipaddress
import json
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from pacore import coordination
from pacore.backends import Backend, BackendError
from pacore.coordination import Event, Outcome, PacoreError, Plan, PlanError
from pacore.journal import Journal
from pacore.metrics import Metrics, Tally
from pacore.pictures import read_pictures
from pacore.replies import Progress, Reply, event_line, usage
from pacore.requests import Chat, Limits, RequestError, model_names, parse, read_body, shown

KEEP_ALIVE_SECONDS = 10.0  # of silence in a stream; proxies close a connection after 30 to 60
BUSY_SECONDS = 5  # after which a client that was sent away may try again
STOP_SECONDS = 3  # that a stopped server's requests have to end by themselves; then their work is cancelled
GONE = 499  # nginx's status for a client that closed the connection

logger = logging.getLogger(__name__)


def create_app(
    backend: Backend,
    *,
    plan: Plan,
    api_key: str | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    allow_http_pictures: bool = False,
    journal: Journal | None = None,
    solve: Callable[..., Awaitable[Outcome]] = coordination.solve,
) -> FastAPI:
    """The application; the caller serves it, and closes the backend and the journal after it.

    Args:
        plan: of requests that ask for nothing else; its options that clients cannot set are everyone's.
        api_key: that clients must send as bearer; None lets everyone in. `/health` is always open.
        allow_http_pictures: whether pictures on the public web are fetched, not only taken from data URLs.
        journal: where finished trajectories are kept; the same question, seed and plan then cost nothing again.

    Raises:
        ValueError: `api_key` is empty.
    """
    service = Service(backend, plan, limits, api_key, allow_http_pictures, journal, solve)
    app = FastAPI(title="Triptych", openapi_url=None)
    born = int(time.time())

    @app.post("/v1/chat/completions")
    async def chat_completions() -> Response:
        return Exchange(service)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        service.door.admit(request)
        names = model_names(backend)
        entries = [{"id": name, "object": "model", "created": born, "owned_by": "triptych"} for name in names]
        return _json({"object": "list", "data": entries})

    @app.get("/health")
    async def health() -> Response:
        return _json({"status": "ok", "model": backend.name})

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        service.door.admit(request, counted=False)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return _json(error.body(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def not_served(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {shown(request.scope['path'])} is not served here; see POST /v1/chat/completions."
        return _json(RequestError(message, status=error.status_code).body(), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return _json(_BROKEN.body(), _BROKEN.status)

    return app


_BROKEN = RequestError("the server made a mistake; its log says which.", status=500)
_STOPPING = RequestError("the server is being stopped; ask again when it is back.", code="stopping", status=503)


def _json(body: dict, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # In ASCII, since a model's text and a client's words may hold half of a surrogate pair.
    return Response(json.dumps(body), status, headers, "application/json")


class Service:
    """What the requests of one application share."""

    def __init__(
        self,
        backend: Backend,
        plan: Plan,
        limits: Limits,
        api_key: str | None,
        allow_http_pictures: bool,
        journal: Journal | None,
        solve: Callable[..., Awaitable[Outcome]],
    ):
        self.backend, self.plan, self.limits = backend, plan, limits
        self.metrics = Metrics()
        self.door, self.gate = Door(api_key, limits.per_minute), Gate(limits, self.metrics)
        # One at a time: hostile JSON takes twenty times its size while it is read.
        self.parsing = asyncio.Lock()
        self._allow_http_pictures, self._journal, self._solve = allow_http_pictures, journal, solve

    async def conversation(self, chat: Chat) -> list[dict]:
        return await read_pictures(chat.messages, self.limits, self._allow_http_pictures)

    async def solve(
        self, conversation: list[dict], plan: Plan, on_event: Callable[[Event], None] | None = None
    ) -> Outcome:
        """The answer. Raises RequestError with what a client may know of why there is none."""
        tally = Tally(self.metrics)

        def counted(event: Event) -> None:
            tally.take(event)
            if on_event is not None:
                on_event(event)

        try:
            return await self._solve(
                self.backend, conversation, plan, journal=self._journal, on_event=counted, stream=on_event is not None
            )
        except PlanError as error:
            raise RequestError(str(error), "pacore") from error
        except (PacoreError, BackendError) as error:
            # The backend has tried again already; a client that does so too would pay for every trajectory anew.
            headers = {"x-should-retry": "false"}
            raise RequestError(str(error), code="backend_failed", status=502, headers=headers) from error
        except asyncio.CancelledError:
            tally.abandon()
            raise


class Exchange(Response):
    """One chat completion, from the client's first byte to its last."""

    def __init__(self, service: Service):
        super().__init__()
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, request = self._service, Request(scope, receive)
        started, status, begun = time.monotonic(), 500, False
        service.metrics.in_flight += 1

        async def begin(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            service.door.admit(request)
            with service.gate.place():
                body = await read_body(request, service.limits.body_bytes)
                async with service.parsing:
                    chat = await asyncio.to_thread(parse, body, service.backend, service.plan, service.limits)
                del body
                status = await unless_gone(receive, self._answer(chat, scope, receive, begin))
        except RequestError as error:
            status = error.status
            raise
        except ClientDisconnect:
            status = GONE
        except asyncio.CancelledError as error:  # how a server that is stopped ends what still runs
            status = _STOPPING.status
            if not begun:
                raise _STOPPING from error
        finally:
            service.metrics.in_flight -= 1
            service.metrics.finished(status, time.monotonic() - started)

    async def _answer(self, chat: Chat, scope: Scope, receive: Receive, send: Send) -> int:
        """Sends the answer when its turn has come; the status that was sent, or that a broken stream would have had."""
        service = self._service
        async with service.gate.turn():
            conversation = await service.conversation(chat)
            if chat.stream:
                return await self._stream(chat, conversation, send)
            outcome = await service.solve(conversation, chat.plan)
            reply = _json(Reply(chat.model).whole(outcome, usage(outcome, service.backend)))
            await reply(scope, receive, send)
            return 200

    async def _stream(self, chat: Chat, conversation: list[dict], send: Send) -> int:
        service, reply, progress = self._service, Reply(chat.model), Progress(chat.plan)
        no_usage = {"usage": None} if chat.include_usage else {}

        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        async def write_deltas(deltas: list[dict], finish: str | None = None) -> None:
            for delta in deltas:
                await write(event_line(reply.chunk(delta, finish) | no_usage))

        events: asyncio.Queue[Event | None] = asyncio.Queue()
        work = asyncio.create_task(service.solve(conversation, chat.plan, events.put_nowait))
        work.add_done_callback(lambda _: events.put_nowait(None))

        async def follow() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
            await write_deltas([{"role": "assistant", "content": ""}])
            while True:
                try:
                    async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                        event = await events.get()
                except TimeoutError:
                    await write(b": still working\n\n")
                    continue
                if event is None:
                    break
                await write_deltas(progress.deltas(event))
            outcome = work.result()
            await write_deltas(progress.rest(outcome))
            await write_deltas([{}], outcome.answer.finish)
            if chat.include_usage:
                await write(event_line(reply.usage_chunk(usage(outcome, service.backend))))
            await write(event_line("[DONE]"), more=False)

        try:
            try:
                await follow()
                return 200
            except RequestError as error:
                failure = error
            except asyncio.CancelledError:
                failure = _STOPPING
            except Exception:
                logger.exception("a streamed answer failed")
                failure = _BROKEN
            # Without [DONE]: nobody may take what was sent for a whole answer.
            await write(event_line(failure.body()), more=False)
            return failure.status
        finally:
            await _stopped(work)


_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold the stream back
]


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, int]) -> int:
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
        await _stopped(task, watch)


async def _stopped(*tasks: asyncio.Task) -> None:
    """Cancels what still runs, and waits until it is over."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Gate:
    """Lets some requests work and some more wait for their turn; what comes beyond that is sent away."""

    def __init__(self, limits: Limits, metrics: Metrics):
        self._limits, self._metrics = limits, metrics
        self._turns, self._present = asyncio.Semaphore(limits.concurrency), 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Room for a request, before its body is read: waiting bodies take memory. Raises RequestError (429)."""
        if self._present >= self._limits.concurrency + self._limits.queue:
            raise _busy(f"{self._present} requests are worked on or wait")
        self._present += 1
        try:
            yield
        finally:
            self._present -= 1

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """A request's time to work. Raises RequestError (429)."""
        self._metrics.waiting += 1
        try:
            async with asyncio.timeout(self._limits.queue_seconds):
                await self._turns.acquire()
        except TimeoutError as error:
            raise _busy(f"no turn came within {self._limits.queue_seconds:g} s") from error
        finally:
            self._metrics.waiting -= 1
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
