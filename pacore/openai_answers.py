"""What an OpenAI-compatible server sends back: its form, the growing answer, and what a listener hears of it."""

import json
from collections.abc import Callable
from typing import Any, Self

from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from pacore.openai_faults import Fault, one_line, refusal
from vlm.reasoning import CLOSE_TAG, OPEN_TAG, ReasoningSplitter, split_reasoning

_OTHER_PROTOCOL = "check that the server speaks OpenAI's chat protocol"


class Message(BaseModel):
    """A whole message or a streamed piece of one; servers write the reasoning under either name, or under both."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Token(BaseModel):
    logprob: float


class Logprobs(BaseModel):
    content: list[Token] | None = None


class Choice(BaseModel):
    message: Message | None = None
    delta: Message | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class Usage(BaseModel):
    prompt_tokens: NonNegativeInt = 0
    completion_tokens: NonNegativeInt = 0


class Answer(BaseModel):
    """A whole answer, or one event of a streamed one; the last event may have no choices, only the usage."""

    choices: list[Choice]
    usage: Usage | None = None


class Meta(BaseModel):
    n_ctx: int | None = None


class Model(BaseModel):
    """An entry of `/models`; the context is vLLM's and SGLang's field, OpenRouter's, or llama.cpp's."""

    id: str
    max_model_len: int | None = None
    context_length: int | None = None
    meta: Meta | None = None

    @property
    def context(self) -> int | None:
        return self.max_model_len or self.context_length or (self.meta and self.meta.n_ctx)


class Models(BaseModel):
    data: list[Model] = Field(default_factory=list)


def read(form: type[BaseModel], answer: object) -> Any:
    """The server's JSON in its form.

    Raises:
        Fault: it has another form, or says that the server failed.
    """
    if isinstance(answer, str):  # what the client gives for anything but JSON's own content type
        try:
            answer = json.loads(answer)
        except ValueError as error:
            raise Fault(f"not JSON but {one_line(answer)!r}", "check the base URL and what stands before it") from error
    if isinstance(answer, dict) and answer.get("error"):
        raise refusal(answer["error"])
    try:
        return form.model_validate(answer)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise Fault(f"an answer of another form ({where}: {first['msg']})", _OTHER_PROTOCOL) from error


class Said:
    """An answer as it grows.

    Args:
        told: hears it; None where nobody listens.

    Attributes:
        reasoning, content: pieces, in the order of their coming.
        finish: the server's own `finish_reason`.
    """

    def __init__(self, told: "Told | None"):
        self.reasoning: list[str] = []
        self.content: list[str] = []
        self.logprobs: list[float] = []
        self.finish: str | None = None
        self.usage: Usage | None = None
        self._told, self._marks = told, ReasoningSplitter()

    def add(self, part: object) -> None:
        """Takes a whole answer or one event. Raises Fault: see `read`."""
        answer = read(Answer, part)
        self.usage = answer.usage or self.usage
        if not answer.choices:
            return
        choice = answer.choices[0]
        self.finish = choice.finish_reason or self.finish
        if choice.logprobs and choice.logprobs.content:
            self.logprobs += [token.logprob for token in choice.logprobs.content]
        message = choice.message or choice.delta or Message()
        if reasoning := message.reasoning_content or message.reasoning:
            self.reasoning.append(reasoning)
            self._tell("reasoning", reasoning)
        if message.content:
            self.content.append(message.content)
            # A server that sorts out the reasoning has taken the marks away.
            pieces = [("text", message.content)] if self.reasoning else self._marks.split(message.content)
            for kind, piece in pieces:
                self._tell(kind, piece)

    def check(self) -> None:
        """Raises Fault: what came is not a whole answer."""
        if self.finish is None:
            # Also what a stream looks like whose connection ended early but in good form.
            raise Fault("an answer without a finished choice", _OTHER_PROTOCOL)
        if self.finish in ("abort", "error"):
            raise Fault(f"the server gave up (finish_reason {self.finish!r})")
        if self.finish == "content_filter":
            raise Fault("the server's content filter withheld the answer", "change the question", passing=False)
        counted = self.usage is not None and self.usage.completion_tokens > 0
        if not counted and not "".join(self.reasoning + self.content).strip():
            raise Fault("an empty answer without a token")

    def split(self) -> tuple[str, str]:
        """(reasoning, text): by the server's own fields, or else by the marks in the content."""
        reasoning, whole = "".join(self.reasoning).strip(), "".join(self.content)
        content = whole.strip()
        start = content[: len(OPEN_TAG)]
        if not reasoning and content and (OPEN_TAG.startswith(start) or CLOSE_TAG in content):
            return split_reasoning(whole)  # with the space at its end: what stands before that is no half mark
        return reasoning, content

    def _tell(self, kind: str, piece: str) -> None:
        if self._told is not None:
            self._told.hear(kind, piece)


class Told:
    """What a listener has heard over all tries of a call: nothing twice, and nothing that contradicts it.

    A new try is silent until it has repeated what was heard, and stays silent where it says something else, because
    what was heard cannot be taken back. The space around a text is kept back, as the completion drops it.
    """

    def __init__(self, on_text: Callable[[str, str], None]):
        self._on_text = on_text
        self._heard: dict[str, list[str]] = {"reasoning": [], "text": []}
        self.restart()

    def restart(self) -> Self:
        """A new try begins."""
        self._due: dict[str, str | None] = {kind: "".join(pieces) for kind, pieces in self._heard.items()}
        self._space = dict.fromkeys(self._heard, "")
        self._begun = dict.fromkeys(self._heard, False)
        return self

    def hear(self, kind: str, piece: str) -> None:
        piece = self._space[kind] + piece if self._begun[kind] else piece.lstrip()
        solid = piece.rstrip()
        self._space[kind] = piece[len(solid) :]
        if not solid:
            return
        self._begun[kind] = True
        due = self._due[kind]
        if due is None:
            return
        common = min(len(due), len(solid))
        if due[:common] != solid[:common]:
            self._due[kind] = None
            return
        self._due[kind] = due[common:]
        if fresh := solid[common:]:
            self._heard[kind].append(fresh)
            self._on_text(kind, fresh)
