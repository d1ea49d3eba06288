"""A backend that says what a function tells it to, after as long as it tells it to; it counts what it was asked."""

import asyncio
from collections.abc import Callable

from pacore.backends import BackendError, Completion, Sampling


class ScriptedBackend:
    """`say(conversation, sampling, call)` gives a text, a Completion or an exception; `delay(call)` seconds before it.

    A call's place in the order of arrival is `call`. Tokens are words.
    """

    def __init__(self, say: Callable, delay: Callable = lambda call: 0.0, context: int | None = None):
        self.name, self.context = "scripted", context
        self.say, self.delay = say, delay
        self.calls: list[tuple[list[dict], Sampling]] = []
        self.cancelled = 0
        self.finished = 0
        self.running = self.peak = 0

    async def complete(self, conversation, sampling, on_text=None) -> Completion:
        call = len(self.calls)
        self.calls.append((conversation, sampling))
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await asyncio.sleep(self.delay(call))
            said = self.say(conversation, sampling, call)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if isinstance(said, BaseException):
            raise said
        self.finished += 1
        if not isinstance(said, Completion):
            said = Completion(said, "", self.count_tokens(self.last_text(call)), self.count_tokens(said), "stop")
        if on_text:
            on_text("text", said.text)
        return said

    def last_text(self, call: int) -> str:
        """What the last turn of a call said."""
        content = self.calls[call][0][-1]["content"]
        if isinstance(content, str):
            return content
        return "\n".join(part["text"] for part in content if part["type"] == "text")

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    async def close(self) -> None:
        pass


def failing(message: str = "the server is on fire", fatal: bool = False) -> BackendError:
    return BackendError(message, fatal=fatal)
