"""What a client of the OpenAI protocol sends: read, checked, and turned into a conversation and a plan."""

import asyncio
import json
import re
import reprlib
from dataclasses import dataclass, replace
from math import inf
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pacore.agreement import Adaptive
from pacore.backends import Backend
from pacore.coordination import BUDGETS, Budget, Plan, PlanError, parse_rounds

BODY_SECONDS = 60.0  # for a whole body; one that trickles in must not hold its place for ever


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        body_bytes: of a request, pictures by data URL included.
        picture_bytes: of one encoded picture.
        pixels: of a request's pictures together, checked before each is decoded; a pixel takes 3 bytes then.
        pictures: of a request.
        trajectories: of a request, the final one included.
        concurrency: requests that are worked on at a time.
        queue: requests that wait for their turn; one more is refused.
        queue_seconds: the longest wait.
        per_minute: requests of a client within a minute; None for no limit. All who hold the key are one client.
    """

    body_bytes: int = 32 * 2**20
    picture_bytes: int = 20 * 2**20
    pixels: int = 64_000_000
    pictures: int = 16
    trajectories: int = 128
    concurrency: int = 4
    queue: int = 16
    queue_seconds: float = 60.0
    per_minute: int | None = 120

    def __post_init__(self):
        for name, value in vars(self).items():
            least = 0 if name == "queue" else 1
            if value is not None and value < least:
                raise ValueError(f"the limit {name} is {value}; give {least} or more.")


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


@dataclass(frozen=True)
class Chat:
    """A request that was understood.

    Attributes:
        messages: `[{role, content: [{type: text, text} | {type: image_url, url}]}]`; pictures are not read yet.
        plan: the server's own, with what the client asked for.
    """

    model: str
    messages: list[dict]
    plan: Plan
    stream: bool
    include_usage: bool


# The protocol's fields. Unknown ones are ignored, as other servers do, but for those in `_REFUSED`.


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Text(_Strict):
    type: Literal["text"]
    text: str


class _Address(_Strict):
    url: str


class _Picture(_Strict):
    type: Literal["image_url"]
    image_url: _Address

    @field_validator("image_url", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: list[Annotated[_Text | _Picture, Field(discriminator="type")]] = Field(max_length=100, fail_fast=True)

    @field_validator("content", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return [{"type": "text", "text": value}] if isinstance(value, str) else value


class _Options(BaseModel):
    # Forbidden are the options that are the operator's, such as the template's path: a file of the server's.
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")


class _Adaptive(_Options):
    start: int = Adaptive.start
    step: int = Adaptive.step
    confidence: float = Adaptive.confidence


class _Budget(_Options):
    tokens: float = Field(inf, gt=0)
    seconds: float = Field(inf, gt=0)


class _Pacore(_Options):
    rounds: Any = None  # see `_rounds`
    quorum: float | None = None
    compaction: str | None = Field(None, max_length=100)
    views: bool | None = None
    adaptive: _Adaptive | None = None
    budget: _Budget | None = None

    @field_validator("adaptive", mode="before")
    @classmethod
    def _by_default(cls, value: Any) -> Any:
        return {} if value is True else value


class _StreamOptions(_Strict):
    include_usage: bool | None = None


class _Body(_Strict):
    model: str = Field(max_length=300)
    messages: list[_Message] = Field(min_length=1, max_length=2000, fail_fast=True)
    pacore: _Pacore | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31)
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    stop: list[Annotated[str, Field(min_length=1, max_length=200)]] | None = Field(None, max_length=4)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    @field_validator("pacore", mode="before")
    @classmethod
    def _rounds_alone(cls, value: Any) -> Any:
        return {"rounds": value} if isinstance(value, str | list) else value

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


# Fields that would change the answer and are not supported, each with the values that ask for nothing.
_REFUSED = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"], []),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
}


async def read_body(request: Request, limit: int) -> bytes:
    """The body, counted while it arrives, since a chunked one declares no length.

    Raises:
        RequestError: not JSON by its type, more than `limit` bytes, or slower than `BODY_SECONDS`.
        starlette.requests.ClientDisconnect: the client went away.
    """
    # Browsers let any page post other types to any server; this one they ask about first.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        message = f"the content type is {kind[:60]!r}; send the header 'Content-Type: application/json'."
        raise RequestError(message, status=415)
    message = f"the request has more than {limit:,} bytes; send smaller or fewer pictures."
    too_large = RequestError(message, code="request_too_large", status=413)
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > limit:
                    raise too_large
    except TimeoutError as error:
        message = f"the request's body was not complete after {BODY_SECONDS:g} s; send it again."
        raise RequestError(message, status=408) from error
    return bytes(body)


def parse(body: bytes, backend: Backend, plan: Plan, limits: Limits) -> Chat:
    """The request in `body`; what it leaves open is taken from `plan`. Raises RequestError."""
    values = _json_object(body)
    for name, harmless in _REFUSED.items():
        value = values.get(name)
        if value is not None and value not in harmless:
            expected = f"; leave it out or send {json.dumps(harmless[0])}" if harmless else "; leave it out"
            raise RequestError(f"{name} is {shown(value)}, which is not supported{expected}.", name, "unsupported")
    try:
        fields = _Body.model_validate(values)
    except ValidationError as error:
        raise _first_error(error, values) from error
    last = fields.messages[-1].role
    if last != "user":
        raise RequestError(f"the last message is the {last}'s; end with the user's question.", "messages")
    return Chat(
        model=fields.model,
        messages=_messages(fields.messages, limits),
        plan=_plan(fields, backend, plan, limits),
        stream=bool(fields.stream),
        include_usage=bool(fields.stream_options and fields.stream_options.include_usage),
    )


def _json_object(body: bytes) -> dict:
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


def _first_error(error: ValidationError, values: dict) -> RequestError:
    """Pydantic's first complaint in the protocol's words."""
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


def _messages(messages: list[_Message], limits: Limits) -> list[dict]:
    """The turns, with pictures where the protocol has them: in the user's. Raises RequestError."""
    turns, pictures = [], 0
    for number, message in enumerate(messages):
        where = f"messages[{number}].content"
        content = []
        for part in message.content:
            if isinstance(part, _Text):
                content.append({"type": "text", "text": part.text})
                continue
            if message.role != "user":
                raise RequestError(f"{where}: the {message.role}'s turn holds a picture; send it in a user's.", where)
            pictures += 1
            content.append({"type": "image_url", "url": part.image_url.url})
        if not content:
            raise RequestError(f"{where} is empty; send some text, or leave the message out.", where)
        turns.append({"role": "system" if message.role == "developer" else message.role, "content": content})
    if pictures > limits.pictures:
        message = f"the request has {pictures} pictures, at most {limits.pictures} are taken; send fewer."
        raise RequestError(message, "messages")
    return turns


def _plan(fields: _Body, backend: Backend, plan: Plan, limits: Limits) -> Plan:
    """The server's plan with what the client asked for. Raises RequestError."""
    asked = fields.pacore or _Pacore()
    rounds, param = asked.rounds, "pacore"
    if fields.model != backend.name:
        base, _, suffix = fields.model.rpartition(":")
        if base != backend.name:
            message = f"there is no model {shown(fields.model)}; choose from {', '.join(model_names(backend))}."
            raise RequestError(message, "model", "model_not_found", status=404)
        if rounds is not None:
            raise RequestError(f"the rounds stand in the model's name (:{suffix}) and in pacore; choose one.", param)
        rounds, param = suffix, "model"
    sampling = {
        "temperature": fields.temperature,
        "top_p": fields.top_p,
        "top_k": fields.top_k,
        "max_tokens": _max_tokens(fields, backend),
        "stop": None if fields.stop is None else tuple(fields.stop),
    }
    try:
        options = {
            "rounds": _rounds(rounds),
            "sampling": replace(plan.sampling, **_given(sampling)),
            "seed": fields.seed,
            "quorum": asked.quorum,
            "compaction": asked.compaction,
            "views": asked.views,
            "adaptive": asked.adaptive and Adaptive(**asked.adaptive.model_dump()),
            "budget": asked.budget and _tighter(plan.budget or Budget(), asked.budget),
        }
        plan = replace(plan, **_given(options))
    except ValueError as error:  # PlanError is one
        raise RequestError(str(error), param) from error
    if sum(plan.rounds) + 1 > limits.trajectories:
        message = (
            f"the rounds {shown(list(plan.rounds))} have more than {limits.trajectories} trajectories, with the final"
        )
        raise RequestError(f"{message} one; ask for smaller rounds.", param)
    return plan


def model_names(backend: Backend) -> list[str]:
    """What a client may write as the model; other rounds work too, as `:16,4`."""
    return [backend.name, *(f"{backend.name}:{budget}" for budget in BUDGETS)]


def _rounds(asked: Any) -> tuple[int, ...] | None:
    """The widths; None where nothing was asked. Raises PlanError."""
    if asked is None:
        return None
    short = isinstance(asked, str | list) and len(asked) <= 100
    if not short or not (isinstance(asked, str) or all(type(width) is int and abs(width) < 10**6 for width in asked)):
        raise PlanError(f"the rounds are {shown(asked)}; give {', '.join(BUDGETS)} or widths, as [16, 4].")
    return parse_rounds(asked)


def _tighter(budget: Budget, asked: _Budget) -> Budget:
    """The server's budget, lowered where the client asks for less."""
    return replace(budget, tokens=min(budget.tokens, asked.tokens), seconds=min(budget.seconds, asked.seconds))


def _max_tokens(fields: _Body, backend: Backend) -> int | None:
    name = "max_tokens" if fields.max_completion_tokens is None else "max_completion_tokens"
    asked = getattr(fields, name)
    if asked is not None and backend.context is not None and asked >= backend.context:
        message = f"{name} is {asked:,}, the model takes {backend.context:,} tokens with the prompt; ask for fewer."
        raise RequestError(message, name)
    return asked


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
