"""Answers as the demo's chat shows them while they grow: of one call, or of rounds with their tree."""

import html
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import aclosing

from starlette.concurrency import iterate_in_threadpool

from pacore.backends import Backend
from pacore.coordination import Event
from pacore.following import follow
from pacore.plan import Plan
from pacore.tree import answer_so_far, headline, tree_html
from vlm.answering import stream_answer
from vlm.reasoning import split_reasoning

MAX_NEW_TOKENS = 1024
REFRESH_SECONDS = 0.05  # each refresh sends a message to the browser: faster than this costs more than it shows
TREE_SECONDS = 0.3
TREE_CHARACTERS = 1_000_000  # a second at most: the tree of a hundred long trajectories is redrawn less often


async def one_answer(model, processor, conversation: list[dict], stop: threading.Event) -> AsyncIterator[tuple]:
    """Streams (chat messages, no tree) of one greedy answer."""
    pieces = stream_answer(model, processor, conversation, max_new_tokens=MAX_NEW_TOKENS, stop=stop)
    async for text in iterate_in_threadpool(growing(pieces, REFRESH_SECONDS)):
        yield answer_messages(*split_reasoning(text), finished=False), ""
    yield answer_messages(*split_reasoning(text), finished=True, stopped=stop.is_set()), ""


async def coordinated_answer(
    backend: Backend, conversation: list[dict], plan: Plan, stop: threading.Event
) -> AsyncIterator[tuple[list[dict], str]]:
    """Streams (chat messages, tree) of a coordinated run; closes the backend, so that nothing works on behind it."""
    started, tree = time.monotonic(), ""
    try:
        run = follow(backend, conversation, plan, stop, lambda: TREE_SECONDS + len(tree) / TREE_CHARACTERS)
        async with aclosing(run):
            async for events, over in run:
                tree = tree_html(events, plan.rounds, time.monotonic() - started, over)
                yield coordinated_messages(events, plan, over, stop.is_set()), tree
    finally:
        await backend.close()


def growing(pieces: Iterable[str], seconds: float) -> Iterator[str]:
    """The text so far, at most once every `seconds`, and once at its end."""
    text, shown_at = "", time.monotonic()
    for piece in pieces:
        text += piece
        if time.monotonic() - shown_at >= seconds:
            yield text
            shown_at = time.monotonic()
    yield text


def reasoning_message(text: str, pending: bool, title: str = "Reasoning") -> dict:
    """A chat message open while `pending`, then folded; verbatim, since a maze of `#` and `-` is not Markdown."""
    metadata = {"title": title, "status": "pending" if pending else "done"}
    content = f'<pre class="reasoning">{html.escape(text, quote=False)}</pre>'
    return {"role": "assistant", "content": content, "metadata": metadata}


def answer_messages(reasoning: str, answer: str, finished: bool, stopped: bool = False) -> list[dict]:
    """Chat messages of a model's words, whole or partial: its reasoning, folded once the answer begins; its answer."""
    messages = []
    if reasoning:
        messages.append(reasoning_message(reasoning, pending=not (answer or finished)))
    if finished and stopped:
        answer = f"{answer}\n\n*Stopped.*"
    elif finished and not answer.strip():
        answer = "*No answer came; the limit of tokens includes the reasoning.*"
    if answer:
        messages.append({"role": "assistant", "content": answer})
    return messages


def coordinated_messages(events: list[Event], plan: Plan, over: bool, stopped: bool) -> list[dict]:
    """Chat messages of a run: where it is, then its final round's words; none of one that failed."""
    reasoning, answer = answer_so_far(events)
    if over and not stopped and not any(event.kind == "outcome" for event in events):
        return []
    if over or reasoning or answer:
        return answer_messages(reasoning, answer, finished=over, stopped=stopped)
    return [reasoning_message("", pending=True, title=headline(events, plan.rounds))]
