"""PaCoRe's endpoint over a backend of the test, and what is sent to it and read from its answers."""

import asyncio
import base64
import io
import json
import socket
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import uvicorn
from PIL import Image

from pacore.backends import BackendError, Completion
from pacore.coordination import Outcome, Plan, Trajectory
from pacore.server import create_app

QUESTION = [{"role": "user", "content": "How many?"}]


class Scripted:
    """A backend that says the same each time: 10 tokens in, 7 out. With `hold` it waits to be released or cancelled."""

    name, context = "mini", 4096

    def __init__(self, fails=(), hold=False):
        self.asked, self.stopped, self.fails, self.hold = [], 0, fails, hold
        self.released = threading.Event()

    async def complete(self, conversation, sampling, on_text=None):
        self.asked.append((conversation, sampling))
        number = len(self.asked)
        try:
            while self.hold and not self.released.is_set():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        await asyncio.sleep(0)
        if number in self.fails:
            raise BackendError(f"call {number} answered 500 three times; look at the model's log.", attempts=3)
        for kind, piece in (
            ("reasoning", "I count. "),
            ("reasoning", "Four."),
            ("text", "\n\nAnswer:"),
            ("text", " 4"),
        ):
            if on_text:
                on_text(kind, piece)
        return Completion("Answer: 4", "I count. Four.", 10, 7, "stop")

    def count_tokens(self, text):
        return len(text.split())

    async def close(self):
        pass


def app_of(backend=None, **options):
    options.setdefault("plan", Plan(rounds=(2,)))
    return create_app(backend or Scripted(), **options)


def call(app, body=None, method="POST", path="/v1/chat/completions", raise_app_exceptions=True, **options):
    """One request without a socket; `body` is JSON unless it is bytes."""
    if body is not None:
        options["content"] = body if isinstance(body, bytes) else json.dumps(body)
        options.setdefault("headers", {"Content-Type": "application/json"})
    transport = httpx.ASGITransport(app, raise_app_exceptions=raise_app_exceptions)

    async def send():
        async with httpx.AsyncClient(transport=transport, base_url="http://pacore") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def ask(app, **fields):
    return call(app, {"model": "mini", "messages": QUESTION} | fields)


def events(response):
    """The data of a stream's events, [DONE] as it is."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def joined(chunks, kind):
    return "".join(choice["delta"].get(kind) or "" for chunk in chunks for choice in chunk["choices"])


def metric(app, name):
    """A sample's value, or None."""
    text = call(app, method="GET", path="/metrics").text
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} ")), None)


def picture_url(size=(6, 4), kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def with_picture(*urls):
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "high"}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "How many?"}]}]


def refusal(response, status):
    """The error object of a response, checked for its form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and set(response.json()) == {"error"}
    assert error["message"] and "\n" not in error["message"] and len(error["message"]) < 400
    assert "instance of" not in error["message"]  # pydantic's words for a class of ours
    return error


def plans(seen):
    """A `solve` that keeps what it was given and answers at once."""

    async def solve(backend, conversation, plan, *, problem="", journal=None, on_event=None, stream=True):
        seen.append(SimpleNamespace(conversation=conversation, plan=plan, journal=journal))
        answer = Completion("4", "", 1, 1, "stop")
        return Outcome(answer, ((Trajectory(0, 0, 0, answer, "", ""),),), 1, 1, 0.0, 0, ())

    return solve


async def until(condition, seconds=120.0):
    """Waits for another task's or thread's doing; the condition may be a coroutine function."""
    end = time.monotonic() + seconds
    while not (await condition() if asyncio.iscoroutinefunction(condition) else condition()):
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.005)


@contextmanager
def served(app):
    """The address of the app behind uvicorn, in a thread."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while thread.is_alive() and not server.started:
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
