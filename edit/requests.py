"""What a client asks of the editor, as the OpenAI protocol's form or as JSON: read, and checked before it waits."""

import re
import secrets
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from vlm.receiving import (
    RequestError,
    body_pieces,
    check_limits,
    decoded_picture,
    first_error,
    inline_bytes,
    refuse_unsupported,
    shown,
    too_many_bytes,
)

# Many more than the protocol has of either.
FORM_FILES, FORM_FIELDS = 20, 100

# Of a side, which the file format cannot say more of.
WEBP_SIDE = 16_383


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        body_bytes: of a request, the picture included.
        picture_bytes: of the encoded picture.
        pixels: of the picture, checked before it is decoded, and of the size it is asked back in.
        aspect: how many times longer than the other a side may be; what is edited has as many pixels as a square one,
            but for the shorter side, which has a least size.
        results: of a request.
        steps: of sampling, a result.
        queue: requests that wait for the one that is worked on; one more is refused.
        queue_seconds: the longest wait.
        per_minute: requests of a client within a minute; None for no limit. All who hold the key are one client.
    """

    body_bytes: int = 32 * 2**20
    picture_bytes: int = 20 * 2**20
    pixels: int = 25_000_000
    aspect: int = 16
    results: int = 10
    steps: int = 100
    queue: int = 8
    queue_seconds: float = 300.0
    per_minute: int | None = 120

    def __post_init__(self):
        check_limits(vars(self))


@dataclass(frozen=True)
class EditRequest:
    """A request that was understood.

    Attributes:
        encoded: the picture; it is not decoded yet.
        where: the field that the picture came in.
        size: (width, height) in which the result is wanted; None for the picture's own.
        seed: the first result's; drawn where the client gave none.
        steps, guidance: None for the editor's own.
        reflections: results that are inspected at most; 0 for none.
        quality: of JPEG and WebP, 0 to 100.
        partial_images: previews that are wanted in a stream, at most.
    """

    encoded: bytes
    where: str
    prompt: str
    negative_prompt: str
    results: int
    size: tuple[int, int] | None
    seed: int
    steps: int | None
    guidance: float | None
    strength: float
    plan: bool
    reflections: int
    output_format: str
    quality: int
    stream: bool
    partial_images: int


# The protocol's fields, and behind them those of diffusion. Unknown ones are ignored, as other servers do, but for
# those in `_REFUSED`.


class _Body(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    model: str | None = Field(None, max_length=300)
    image: Any = None  # see `_picture`
    images: Any = None
    prompt: str = Field(max_length=32_000)
    n: int | None = Field(None, ge=1)
    size: str | None = Field(None, max_length=100)
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100)
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)

    negative_prompt: str | None = Field(None, max_length=32_000)
    seed: int | None = Field(None, ge=0, lt=2**53)  # what every client's numbers hold
    steps: int | None = Field(None, ge=1)
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=0, le=100)
    strength: float | None = Field(None, gt=0, le=1)
    plan: bool | None = None
    reflect: bool | None = None
    reflections: int | None = Field(None, ge=1, le=10)


# Fields that would change the answer and are not supported, each with the values that ask for nothing.
_REFUSED = {
    "mask": (),
    "markup": (),
    "svg": (),
    "frame_count": (),
    "response_format": ("b64_json",),
    "background": ("auto", "opaque"),
    "quality": ("auto", "standard"),
    "input_fidelity": (),
    "complexity": (),
}


async def read_form(request: Request, limit: int) -> dict[str, Any]:
    """The fields of a multipart body by their names: text, or bytes of pictures; a list where a name came twice.

    Raises:
        RequestError: more than `limit` bytes, no form, or a file where there is no picture.
        starlette.requests.ClientDisconnect: the client went away.
    """
    parser = MultiPartParser(
        request.headers,
        body_pieces(request, limit),
        max_files=FORM_FILES,
        max_fields=FORM_FIELDS,
        max_part_size=limit,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, UnicodeError) as error:
        reason = getattr(error, "message", "its text is not in its charset").rstrip(".")
        message = f"the form cannot be read ({shown(reason)}); send multipart/form-data, as an OpenAI client does."
        raise RequestError(message, code="invalid_form") from error
    values: dict[str, list] = {}
    try:
        for name, value in form.multi_items():
            name = name.removesuffix("[]")  # how clients write a list
            if isinstance(value, UploadFile):
                if name not in ("image", "images"):
                    message = f"{shown(name)} is a file, which is not supported; only image is taken as one."
                    raise RequestError(message, name, "unsupported")
                value = await value.read()
            if value != "":  # how they write that nothing is meant
                values.setdefault(name, []).append(value)
    finally:
        await form.close()
    return {name: parts[0] if len(parts) == 1 else parts for name, parts in values.items()}


def parse(values: dict[str, Any], strict: bool, name: str, limits: Limits) -> EditRequest:
    """The request in the fields of a body.

    Args:
        strict: whether a number has to be one, as in JSON; a form has only text.
        name: the editor's.

    Raises:
        RequestError: a field is wrong, missing, not supported or above a limit.
    """
    refuse_unsupported(values, _REFUSED)
    try:
        fields = _Body.model_validate(values, strict=strict)
    except ValidationError as error:
        raise first_error(error, values) from error
    if fields.model not in (None, name):
        message = f"there is no model {shown(fields.model)}; send {shown(name)}, or leave it out."
        raise RequestError(message, "model", "model_not_found", status=404)
    if not fields.prompt.strip():
        message = "the prompt is empty; say what to change, like 'make the red circle blue'."
        raise RequestError(message, "prompt")
    results = fields.n or 1
    if fields.stream and results > 1:
        raise RequestError(f"n is {results}, and a stream shows one edit; leave n out, or stream.", "n", "unsupported")
    steps = "steps" if fields.num_inference_steps is None else "num_inference_steps"
    for field, value, most in (("n", results, limits.results), (steps, getattr(fields, steps), limits.steps)):
        if value is not None and value > most:
            raise RequestError(f"{field} is {value}, at most {most} are made; ask for fewer.", field)
    output_format, quality = fields.output_format or "png", fields.output_compression
    if output_format == "png" and quality not in (None, 100):
        message = f"output_compression is {quality}, and a PNG loses nothing; send output_format 'jpeg' or 'webp' too."
        raise RequestError(message, "output_compression")
    encoded, where = _picture(values, limits)
    return EditRequest(
        encoded=encoded,
        where=where,
        prompt=fields.prompt,
        negative_prompt=fields.negative_prompt or "",
        results=results,
        size=_size(fields.size, limits),
        seed=secrets.randbelow(2**31) if fields.seed is None else fields.seed,
        steps=getattr(fields, steps),
        guidance=fields.guidance_scale,
        strength=1.0 if fields.strength is None else fields.strength,
        plan=bool(fields.plan),
        reflections=(fields.reflections or 3) if fields.reflect else 0,
        output_format=output_format,
        quality=100 if quality is None else quality,
        stream=bool(fields.stream),
        partial_images=fields.partial_images or 0,
    )


def _picture(values: dict[str, Any], limits: Limits) -> tuple[bytes, str]:
    """The one picture, and the field that it is in. Raises RequestError."""
    given = []
    for name in ("image", "images"):
        value = values.get(name)
        if isinstance(value, list):
            given += [(f"{name}[{number}]", one) for number, one in enumerate(value)]
        elif value is not None:
            given.append((name, value))
    if len(given) != 1:
        many = f"{len(given)} pictures were sent" if given else "there is no picture"
        raise RequestError(f"{many}; an edit is of one, send that as image.", "image")
    where, value = given[0]
    if isinstance(value, dict):
        if "image_url" not in value:
            message = f"{where} is {shown(value)}; send an image_url with a data: URL, for no files are kept here."
            raise RequestError(message, where)
        where, value = f"{where}.image_url", value["image_url"]
    if isinstance(value, bytes):
        if len(value) > limits.picture_bytes:
            raise too_many_bytes(where, limits.picture_bytes)
        return value, where
    if not isinstance(value, str):
        raise RequestError(f"{where} is {shown(value)}; send a file, a data: URL or base64.", where)
    scheme = re.match(r"\s*([A-Za-z][A-Za-z0-9+.-]*):", value)
    if scheme is None:
        value = "data:;base64," + "".join(value.split())  # the `base64` program breaks lines
    elif scheme[1].lower() != "data":
        message = f"{where}: {shown(value)} is an address, which this server does not fetch; send a data: URL."
        raise RequestError(message, where)
    return inline_bytes(value, where, limits.picture_bytes), where


def _size(size: str | None, limits: Limits) -> tuple[int, int] | None:
    if size in (None, "auto"):
        return None
    sides = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size)
    if sides is None:
        raise RequestError(f"size is {shown(size)}; send 'auto' or WIDTHxHEIGHT, as '1024x768'.", "size")
    width, height = int(sides[1]), int(sides[2])
    if width * height > limits.pixels:
        raise RequestError(f"size is {size}, at most {limits.pixels:,} pixels are made; ask for fewer.", "size")
    return width, height


def decode(asked: EditRequest, limits: Limits) -> Image.Image:
    """The picture of a request, in the size in which its result is wanted.

    It is resized before it is edited, not after: the editor then works in the size level that fits.

    Raises:
        RequestError: it is no picture, above a limit, or has not the shape that is asked for.
    """
    picture = decoded_picture(asked.encoded, asked.where, limits.pixels)
    longer, shorter = max(picture.size), min(picture.size)
    if longer > limits.aspect * shorter:
        message = (
            f"{asked.where}: the picture is {picture.width}x{picture.height}, and a side may be {limits.aspect} times "
            f"as long as the other; cut it."
        )
        raise RequestError(message, asked.where, "picture_too_long")
    if asked.size is not None and asked.size != picture.size:
        width, height = asked.size
        fitting = (max(1, round(height * picture.width / picture.height)), height)
        if abs(width - fitting[0]) > 1 and abs(height - width * picture.height / picture.width) > 1:
            message = (
                f"size is {width}x{height}, which would distort a picture of {picture.width}x{picture.height}; send "
                f"'auto' or {fitting[0]}x{fitting[1]}."
            )
            raise RequestError(message, "size")
        picture = picture.resize(asked.size, Image.Resampling.LANCZOS)
    if asked.output_format == "webp" and max(picture.size) > WEBP_SIDE:
        message = f"a WebP picture has sides of {WEBP_SIDE:,} pixels at most; send output_format 'png' or 'jpeg'."
        raise RequestError(message, "output_format")
    return picture
