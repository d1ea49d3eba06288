"""The editor's endpoint over a small editor of the test: what is sent to it, and its steps counted or held."""

import base64
import io
import json
import threading
import time
from contextlib import contextmanager

import endpoint
import numpy as np
from PIL import Image
from small_vlm import noise

from edit.requests import Limits
from edit.server import create_app

PATH = "/v1/images/edits"
PROMPT = "make it red"
# One step, no second branch.
QUICK = {"steps": 1, "guidance_scale": 1, "seed": 3}


def app_of(pipeline, limits=Limits(), **options):  # noqa: B008 - frozen
    return create_app(pipeline, "mini", limits=limits, **options)


def encoded(picture, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


PICTURE = encoded(noise(24, 32))


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64_of(data)}"


def picture_of(entry) -> Image.Image:
    """The picture in an entry of `data`, or in an event."""
    return Image.open(io.BytesIO(base64.b64decode(entry["b64_json"])))


def same(one, other) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def send_form(app, files=PICTURE, prompt=PROMPT, headers=None, raise_app_exceptions=True, **fields):
    """As a form; `files` is the picture's bytes, or httpx's own way of naming several."""
    files = {"image": ("a.png", files)} if isinstance(files, bytes) else files
    data = {"prompt": prompt} | QUICK | fields
    options = {"files": files, "data": {name: value for name, value in data.items() if value is not None}}
    return endpoint.call(
        app, path=PATH, headers=headers or {}, raise_app_exceptions=raise_app_exceptions, **options
    )  # fmt: skip


def send_json(app, image=None, **fields):
    body = {"prompt": PROMPT, "image": base64_of(PICTURE) if image is None else image} | QUICK | fields
    return endpoint.call(app, {name: value for name, value in body.items() if value is not None}, path=PATH)


def events(response) -> list[dict]:
    """The data of a stream's events; each but an error names its type twice."""
    assert response.headers["content-type"].startswith("text/event-stream")
    made = []
    for block in response.text.split("\n\n"):
        if block.startswith("event: "):
            kind, data = block.removeprefix("event: ").split("\ndata: ")
            made.append(json.loads(data))
            assert kind == made[-1].get("type", "error")
    return made


class Steps:
    """Of a pipeline, counted as they begin; each takes `seconds` and waits for `released`, or fails at `fails_at`."""

    def __init__(self, seconds=0.0, held=False, fails_at=None, error=None):
        self.begun, self.released = 0, threading.Event()
        self._seconds, self._fails_at, self._error = seconds, fails_at, error
        if not held:
            self.released.set()

    def __call__(self, *_):
        self.begun += 1
        if self.begun == self._fails_at:
            raise self._error
        time.sleep(self._seconds)
        assert self.released.wait(60)


@contextmanager
def watched(pipeline, **options):
    steps = Steps(**options)
    hook = pipeline.transformer.register_forward_pre_hook(steps)
    try:
        yield steps
    finally:
        steps.released.set()
        hook.remove()
