"""The editor as an endpoint of the OpenAI protocol, `POST /v1/images/edits`.

A request is the protocol's form or a JSON object of the same fields, and behind them those of diffusion: `seed`,
`num_inference_steps` (or `steps`), `guidance_scale`, `strength`, `negative_prompt`, `plan`, `reflect`, `reflections`. A
client that goes away stops its work.
"""

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import torch
from fastapi import FastAPI, Request, Response
from PIL import Image
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from edit.answers import Edits, Show, make
from edit.conditioning import ConditioningError
from edit.inputs import EditError
from edit.pipeline import EditPipeline
from edit.requests import EditRequest, Limits, decode, parse, read_form
from vlm.pictures import PictureError
from vlm.receiving import RequestError, content_type, json_object, read_body
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

JSON, FORM = "application/json", "multipart/form-data"

logger = logging.getLogger(__name__)


def create_app(
    pipeline: EditPipeline,
    name: str,
    *,
    api_key: str | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> FastAPI:
    """The application; the caller serves it.

    Args:
        name: what clients call the editor.
        api_key: that clients must send as bearer; None lets everyone in. `/health` is always open.

    Raises:
        ValueError: `api_key` is empty.
    """
    service = Service(pipeline, name, limits, api_key)
    app = protocol_app("POST /v1/images/edits")
    born = int(time.time())

    @app.post("/v1/images/edits")
    async def images_edits() -> Response:
        return Exchange(service)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        service.door.admit(request)
        return model_list([name], born)

    @app.get("/health")
    async def health() -> Response:
        return json_reply({"status": "ok", "model": name})

    return app


class Service:
    """What the requests of one application share."""

    def __init__(self, pipeline: EditPipeline, name: str, limits: Limits, api_key: str | None):
        self.limits = limits
        self.door, self.gate = Door(api_key, limits.per_minute), Gate(1, limits.queue, limits.queue_seconds)
        # One at a time: hostile JSON takes twenty times its size while it is read.
        self._parsing = asyncio.Lock()
        self._pipeline, self._name = pipeline, name
        # One thread, for one pipeline: the next edit waits for the last step of one that was given up.
        self._device = ThreadPoolExecutor(1, thread_name_prefix="edit")

    async def read(self, request: Request) -> EditRequest:
        """Raises RequestError, and ClientDisconnect where the client went away."""
        if content_type(request, FORM, JSON) == FORM:
            values = await read_form(request, self.limits.body_bytes)
            return await asyncio.to_thread(parse, values, False, self._name, self.limits)
        body = await read_body(request, self.limits.body_bytes)
        async with self._parsing:
            return await asyncio.to_thread(
                lambda: parse(json_object(body), True, self._name, self.limits)
            )  # fmt: skip

    async def edit(self, asked: EditRequest, picture: Image.Image, show: Show | None = None) -> Edits:
        """The edits; they are stopped where the caller is. Raises RequestError."""
        stop, loop = threading.Event(), asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._device, make, self._pipeline, asked, picture, stop, show)
        except (ConditioningError, EditError) as error:
            raise RequestError(str(error)) from error
        except PictureError as error:
            raise RequestError(f"{asked.where}: {error}", asked.where, "invalid_picture") from error
        except torch.OutOfMemoryError as error:
            message = "the device has too little memory for this; ask for fewer results, or send a smaller picture."
            # The same again would fail again.
            headers = {"x-should-retry": "false"}
            raise RequestError(message, code="out_of_memory", status=503, headers=headers) from error
        finally:
            stop.set()


class Exchange(Response):
    """One request, from the client's first byte to its last."""

    def __init__(self, service: Service):
        super().__init__()
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, request, begun = self._service, Request(scope, receive), False

        async def begin(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            service.door.admit(request)
            _refuse_pages(request)
            with service.gate.place():
                asked = await service.read(request)
                await unless_gone(receive, self._answer(asked, scope, receive, begin))
        except ClientDisconnect:
            pass
        except asyncio.CancelledError as error:  # how a server that is stopped ends what still runs
            if not begun:
                raise STOPPING from error

    async def _answer(self, asked: EditRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer when its turn has come."""
        service = self._service
        async with service.gate.turn():
            # In a thread, since decoding takes long enough to be felt by every other request.
            picture = await asyncio.to_thread(decode, asked, service.limits)
            if asked.stream:
                return await self._stream(asked, picture, send)
            edits = await service.edit(asked, picture)
        reply = await asyncio.to_thread(lambda: json_reply(edits.whole()))
        await reply(scope, receive, send)

    async def _stream(self, asked: EditRequest, picture: Image.Image, send: Send) -> None:
        loop, begun = asyncio.get_running_loop(), False
        events: asyncio.Queue[dict] = asyncio.Queue()

        async def write(data: bytes, more: bool = True) -> None:
            nonlocal begun
            if not begun:
                begun = True
                await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
            await send({"type": "http.response.body", "body": data, "more_body": more})

        def show(event: dict) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        work = asyncio.create_task(self._service.edit(asked, picture, show))
        try:
            async for event in followed(work, events):
                await write(KEEP_ALIVE if event is None else event_line(event, event["type"]))
            event = work.result().completed()
            await write(event_line(event, event["type"]), more=False)
        except (Exception, asyncio.CancelledError) as error:
            if not begun:  # what is wrong with a request shows at once, and has a status then
                raise
            await write(event_line(_failure(error).body(), "error"), more=False)
        finally:
            await stopped(work)


def _failure(error: BaseException) -> RequestError:
    """What a client may know of why a stream ends."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return STOPPING
    logger.error("a streamed edit failed", exc_info=error)
    return BROKEN


def _refuse_pages(request: Request) -> None:
    """Browsers let any page send forms to any server, and say so. Raises RequestError (403)."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        message = "the request comes from a web page of another server, which is not served; ask from a program."
        raise RequestError(message, code="foreign_page", status=403)
