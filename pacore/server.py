"""PaCoRe as an endpoint of the OpenAI protocol, in front of any backend.

A client asks for rounds with `pacore` in the body (`"medium"`, `"16,4"`, `[16, 4]`, `{"rounds": …, "quorum": …}`) or in
the name of the model (`mini:high`, `mini:16,4`); else the server's own plan holds. One that goes away stops its work.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from pacore import coordination
from pacore.backends import Backend, BackendError
from pacore.coordination import Event, Outcome, PacoreError, Plan, PlanError
from pacore.journal import Journal
from pacore.metrics import Metrics, Tally
from pacore.pictures import read_pictures
from pacore.replies import Progress, Reply, usage
from pacore.requests import Chat, Limits, model_names, parse
from vlm.receiving import RequestError, content_type, read_body
from vlm.serving import (
    BROKEN,
    KEEP_ALIVE,
    STOPPING,
    STREAM_HEADERS,
    Door,
    Gate,
    event_line,
    followed,
    json_reply,
    model_list,
    protocol_app,
    stopped,
    unless_gone,
)

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
    app = protocol_app("POST /v1/chat/completions")
    born = int(time.time())

    @app.post("/v1/chat/completions")
    async def chat_completions() -> Response:
        return Exchange(service)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        service.door.admit(request)
        return model_list(model_names(backend), born)

    @app.get("/health")
    async def health() -> Response:
        return json_reply({"status": "ok", "model": backend.name})

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        service.door.admit(request, counted=False)
        return Response(service.metrics.text(service.gate.waiting), media_type="text/plain; version=0.0.4")

    return app


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
        self.door = Door(api_key, limits.per_minute)
        self.gate = Gate(limits.concurrency, limits.queue, limits.queue_seconds)
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
                # Browsers let any page post other types to any server; this one they ask about first.
                content_type(request, "application/json")
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
            status = STOPPING.status
            if not begun:
                raise STOPPING from error
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
            reply = json_reply(Reply(chat.model).whole(outcome, usage(outcome, service.backend)))
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

        events: asyncio.Queue[Event] = asyncio.Queue()
        work = asyncio.create_task(service.solve(conversation, chat.plan, events.put_nowait))

        async def follow() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
            await write_deltas([{"role": "assistant", "content": ""}])
            async for event in followed(work, events):
                if event is None:
                    await write(KEEP_ALIVE)
                else:
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
                failure = STOPPING
            except Exception:
                logger.exception("a streamed answer failed")
                failure = BROKEN
            # Without [DONE]: nobody may take what was sent for a whole answer.
            await write(event_line(failure.body()), more=False)
            return failure.status
        finally:
            await stopped(work)
