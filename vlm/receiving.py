"""What a server of the OpenAI protocol is sent: bodies within limits, JSON, pictures, and the errors about them."""

import asyncio
import base64
import io
import json
import re
import reprlib
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any

from PIL import Image
from pydantic import ValidationError
from starlette.requests import Request

from vlm.pictures import PictureError, open_picture

BODY_SECONDS = 60.0  # for a whole body; one that trickles in must not hold its place for ever

# Pillow knows formats that start other programs or read like a script (EPS, PSD …); strangers get the common ones.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class RequestError(Exception):
    """A request that is refused or failed, as the protocol says it: a status and an error object.

    Attributes:
        param: the field that is wrong, as `messages[0].content`; None where it is not one.
        code: a word for programs; None where the status says enough.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.message, self.param, self.code, self.status, self.headers = message, param, code, status, headers

    def body(self) -> dict:
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def check_limits(limits: Mapping[str, float | None]) -> None:
    """Of an endpoint, by name; None is no limit. Raises ValueError for one that lets nothing through."""
    for name, value in limits.items():
        least = 0 if name == "queue" else 1
        if value is not None and value < least:
            raise ValueError(f"the limit {name} is {value}; give {least} or more.")


def content_type(request: Request, *kinds: str) -> str:
    """Which of `kinds` the body says it is. Raises RequestError (415) where it is none of them."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in kinds:
        message = f"the content type is {kind[:60]!r}; send the header 'Content-Type: {' or '.join(kinds)}'."
        raise RequestError(message, status=415)
    return kind


async def body_pieces(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it arrives, counted, since a chunked one declares no length.

    Raises:
        RequestError: more than `limit` bytes, or slower than `BODY_SECONDS`.
        starlette.requests.ClientDisconnect: the client went away.
    """
    message = f"the request has more than {limit:,} bytes; send smaller or fewer pictures."
    too_large = RequestError(message, code="request_too_large", status=413)
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large
    stream, size = request.stream(), 0
    end = asyncio.get_running_loop().time() + BODY_SECONDS
    while True:
        try:
            async with asyncio.timeout_at(end):
                piece = await anext(stream, None)
        except TimeoutError as error:
            message = f"the request's body was not complete after {BODY_SECONDS:g} s; send it again."
            raise RequestError(message, status=408) from error
        if piece is None:
            return
        size += len(piece)
        if size > limit:
            raise too_large
        yield piece


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises as `body_pieces`."""
    body = bytearray()
    async for piece in body_pieces(request, limit):
        body += piece
    return bytes(body)


def json_object(body: bytes) -> dict:
    """The object that a body is. Raises RequestError."""

    def refuse(constant: str):
        raise ValueError(f"{constant} is not JSON")

    try:
        text = body.decode()
        values = json.loads(text, parse_constant=refuse)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(values, ensure_ascii=False).encode()  # half of a surrogate pair fails here, not in a later step
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).partition(";")[0].split())[:100]
        message = f"the body is not JSON in UTF-8 ({reason}); send a JSON object."
        raise RequestError(message, code="invalid_json") from error
    if not isinstance(values, dict):
        raise RequestError(f"the body is {shown(values)}; send a JSON object.", code="invalid_json")
    return values


def refuse_unsupported(values: Mapping[str, Any], unsupported: Mapping[str, Collection]) -> None:
    """Raises RequestError for a field that would change the answer and is not supported.

    Args:
        unsupported: by field, the values that ask for nothing.
    """
    for name, harmless in unsupported.items():
        value = values.get(name)
        if value is not None and value not in harmless:
            expected = f"; leave it out or send {json.dumps(next(iter(harmless)))}" if harmless else "; leave it out"
            raise RequestError(f"{name} is {shown(value)}, which is not supported{expected}.", name, "unsupported")


def first_error(error: ValidationError, values: dict) -> RequestError:
    """Pydantic's first complaint about `values` in the protocol's words."""
    first = error.errors(include_url=False, include_context=False)[0]
    where, value, message = "", values, first["msg"]
    for step in first["loc"]:
        known = isinstance(step, int) if isinstance(value, list) else isinstance(value, dict) and step in value
        if known:
            where += f"[{step}]" if isinstance(step, int) else f".{step}" if where else step
            value = value[step]
        # What is not there is pydantic's own name for a branch, nothing the client wrote, unless it is what is missing.
    if first["type"] == "missing":
        where += f".{first['loc'][-1]}" if where else first["loc"][-1]
    message = re.sub(r" or instance of \w+", "", message[:1].lower() + message[1:])
    if first["type"] != "missing":
        message += f" (it is {shown(first['input'])})"
    return RequestError(f"{where}: {message}.", where)


# In full, a hostile value would take as long to write down as to read.
_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxlevel, _SHORT.fillvalue = 80, 3, "…"


def shown(value: Any) -> str:
    """The value as a message shows it: on one line, its beginning and its end."""
    text = _SHORT.repr(value)
    return text if len(text) <= 80 else f"{text[:50]}…{text[-20:]}"


def inline_bytes(url: str, where: str, limit: int) -> bytes:
    """The bytes of a `data:image/…;base64,…` URL. Raises RequestError."""
    header, _, payload = url.partition(",")
    if len(payload) > 4 * (limit // 3 + 1):
        raise too_many_bytes(where, limit)
    try:
        if not header.lower().endswith(";base64"):
            raise ValueError(header)
        return base64.b64decode(payload, validate=True)
    except ValueError as error:  # binascii.Error is one
        message = f"{where}: the data: URL is not base64; send data:image/png;base64,… ."
        raise RequestError(message, where) from error


def too_many_bytes(where: str, limit: int) -> RequestError:
    """Of a picture that is larger than `limit` before it is decoded."""
    message = f"{where}: a picture has more than {limit:,} bytes; send a smaller one."
    return RequestError(message, where, "picture_too_large")


def decoded_picture(encoded: bytes, where: str, pixels: int) -> Image.Image:
    """The picture as upright RGB; refused before it is decoded where it is too large. Raises RequestError."""
    size = "too many"
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if image.width * image.height <= pixels:
                return open_picture(image)
            size = f"{image.width}x{image.height}"
    except PictureError as error:
        raise RequestError(f"{where}: {error}", where, "invalid_picture") from error
    except Image.DecompressionBombError:
        pass
    except Exception as error:  # a damaged header fails in types of each format's own
        message = f"{where}: {len(encoded):,} bytes are no picture that can be read; send {', '.join(FORMATS)}."
        raise RequestError(message, where, "invalid_picture") from error
    message = f"{where}: a picture has {size} pixels, the request has room for {pixels:,} more; send smaller ones."
    raise RequestError(message, where, "picture_too_large")
