"""What a client of the OpenAI protocol sends: read, checked, and turned into a conversation and a plan."""

from dataclasses import dataclass, replace
from math import inf
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pacore.agreement import Adaptive
from pacore.backends import Backend
from pacore.coordination import BUDGETS, Budget, Plan, PlanError, parse_rounds
from vlm.receiving import RequestError, check_limits, first_error, json_object, refuse_unsupported, shown


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
        check_limits(vars(self))


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


def parse(body: bytes, backend: Backend, plan: Plan, limits: Limits) -> Chat:
    """The request in `body`; what it leaves open is taken from `plan`. Raises RequestError."""
    values = json_object(body)
    refuse_unsupported(values, _REFUSED)
    try:
        fields = _Body.model_validate(values)
    except ValidationError as error:
        raise first_error(error, values) from error
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
