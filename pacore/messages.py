"""What a trajectory passes on, and the prompt that puts it before the next ones (PaCoRe, arXiv 2601.05593, section 3).

A message is a trajectory compacted to its conclusion. The next round reads the problem with the messages of the last
one, in an order drawn by seed.
"""

import random
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from jinja2 import StrictUndefined, Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pacore.backends import Completion

SUMMARY_PROMPT = (
    "Here is a solution to a problem. State in a few sentences what it found, the evidence it rests on, and its final "
    "answer, so that somebody who does not see the solution can use it.\n\n{text}"
)
CUT = "[…] "  # before a message that lost its beginning


class MessageError(ValueError):
    """A compaction, a template or a prompt that cannot be used; the message names it and the remedy."""


def parse_compaction(how: str) -> tuple[str, int]:
    """(`conclusion` | `tail` | `summary`, N of `tail:N` or 0). Raises MessageError."""
    if how in ("conclusion", "summary"):
        return how, 0
    if match := re.fullmatch(r"tail:([1-9]\d{0,8})", how):
        return "tail", int(match[1])
    raise MessageError(f"compaction is {how!r}; use 'conclusion', 'summary' or 'tail:N' with N tokens.")


def conclusion(completion: Completion) -> str:
    """What follows the last `</think>`, else the whole text: a trajectory cut off in its reasoning passes that on."""
    return completion.text or completion.reasoning


def tail(completion: Completion, tokens: int, count_tokens: Callable[[str], int]) -> str:
    """The last `tokens` tokens of reasoning and text together."""
    whole = "\n".join(part for part in (completion.reasoning, completion.text) if part)
    return last_tokens(whole, tokens, count_tokens)


def last_tokens(text: str, tokens: int, count_tokens: Callable[[str], int]) -> str:
    """The longest end of `text` that begins with a word and has at most `tokens` tokens; never nothing at all."""
    if count_tokens(text) <= tokens:
        return text
    starts = [match.start() for match in re.finditer(r"(?<!\S)\S", text)]
    low, high = 0, len(starts)  # the first start that fits lies in [low, high]
    while low < high:
        middle = (low + high) // 2
        if count_tokens(text[starts[middle] :]) <= tokens:
            high = middle
        else:
            low = middle + 1
    if low < len(starts):
        return text[starts[low] :]
    # The last word alone is too long.
    word = text[starts[-1] :].rstrip() if starts else text
    while len(word) > 1 and count_tokens(word) > tokens:
        word = word[-(len(word) // 2) :]
    return word


def shuffled(messages: Sequence[str], seed: int) -> list[str]:
    """The messages in the order that belongs to `seed`, whatever order they came in."""
    order = list(messages)
    random.Random(seed).shuffle(order)
    return order


def load_template(path: str | Path | None) -> str:
    """The source of the synthesis prompt: ours, or a file's. Raises MessageError where it cannot be used."""
    path = Path(path) if path else Path(__file__).with_name("synthesis.jinja")
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MessageError(f"the template {str(path)!r} cannot be read ({error}); give a text file.") from None
    if not all(message in render(source, "a problem", ["one", "two"]) for message in ("one", "two")):
        raise MessageError(f"the template {str(path)!r} shows no messages; loop over `messages` in it.")
    return source


def render(source: str, problem: str, messages: Sequence[str]) -> str:
    """P(x, M); with no messages it is the problem unchanged. Raises MessageError."""
    if not messages:
        return problem
    try:
        return _template(source).render(problem=problem, messages=list(messages)).strip()
    except Exception as error:  # a template raises whatever its expressions do
        raise MessageError(
            f"the synthesis template does not work ({error}); it may use `problem` and `messages`."
        ) from None


@lru_cache
def _template(source: str) -> Template:
    # Sandboxed: a template may come from anybody, and problems and messages always do.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False)
    return environment.from_string(source)


def last_user_turn(conversation: list[dict]) -> int:
    """Its place. Raises MessageError where the conversation does not end with a user's turn that has text."""
    if not conversation or conversation[-1].get("role") != "user":
        raise MessageError("the conversation does not end with a user's turn; add the question as its last one.")
    if not problem_of(conversation).strip():
        raise MessageError("the last user turn has no text; say what is asked.")
    return len(conversation) - 1


def problem_of(conversation: list[dict]) -> str:
    """The text of the last turn."""
    content = conversation[-1]["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def with_messages(conversation: list[dict], source: str, messages: Sequence[str]) -> list[dict]:
    """The conversation with P(x, M) for its last turn's text; its pictures, and all earlier turns, stay as they are."""
    if not messages:
        return conversation
    at = last_user_turn(conversation)
    text = {"type": "text", "text": render(source, problem_of(conversation), messages)}
    content = conversation[at]["content"]
    pictures = [] if isinstance(content, str) else [part for part in content if part["type"] != "text"]
    return [*conversation[:at], {**conversation[at], "content": [*pictures, text]}]


def fit(messages: Sequence[str], room: int, count_tokens: Callable[[str], int]) -> tuple[list[str], int]:
    """Messages that take at most `room` tokens together, and how many of them were trimmed.

    Fair: there is one limit for all, so the short ones stay whole and the longest lose most; what is cut is their
    beginning, since a conclusion ends with its answer.
    """
    lengths = [count_tokens(message) for message in messages]
    if sum(lengths) <= room:
        return list(messages), 0
    mark = count_tokens(CUT)
    limit, left = 0, room
    for i, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - i)
        if length > share:
            limit = share
            break
        left -= length
    if limit <= mark:
        raise MessageError(
            f"{len(messages)} messages do not fit into the {max(room, 0)} tokens that the context leaves for them; use "
            f"fewer trajectories a round, a smaller max_tokens, or a model with a longer context."
        )
    kept = [
        message if length <= limit else CUT + last_tokens(message, limit - mark, count_tokens)
        for message, length in zip(messages, lengths, strict=True)
    ]
    return kept, sum(length > limit for length in lengths)


def answer_key(text: str) -> str:
    """What a conclusion answers, in a form in which equal answers are equal: for voting, never for judging.

    The last `\\boxed{...}`, else what follows the last "answer:" or "answer is", else the last line.
    """
    text = text.strip()
    if boxed := re.findall(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}", text):
        found = boxed[-1]
    elif marked := list(re.finditer(r"answer\s*(?:is\b|:)\s*", text, re.IGNORECASE)):
        found = text[marked[-1].end() :].partition("\n")[0]
    else:
        found = text.rpartition("\n")[2]
    return " ".join(found.casefold().strip(" \t.*$`'\"").split())
