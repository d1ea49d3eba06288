"""Where trajectories come from: one asynchronous call, a conversation in, a completion out.

A call that fails raises `BackendError`; it is never an empty completion.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vlm.sampling import Sampling

__all__ = ["Backend", "BackendError", "Completion", "Sampling"]


@dataclass(frozen=True)
class Completion:
    """What a backend said.

    Attributes:
        text: without the reasoning.
        reasoning: what stood between `<think>` and the last `</think>`, or the server's own field for it; "" if none.
        finish: `stop`, or `length` where `max_tokens` or the context ended it.
        logprobs: of the completion's tokens, reasoning included; None where the backend does not give them.
        seconds: from sending to the last token, retries included.
        attempts: calls it took.
    """

    text: str
    reasoning: str
    prompt_tokens: int
    completion_tokens: int
    finish: str
    logprobs: tuple[float, ...] | None = None
    seconds: float = 0.0
    attempts: int = 1


class BackendError(RuntimeError):
    """A trajectory that could not be had, after all retries; one line with what happened and the remedy.

    Attributes:
        attempts: calls that were made for it.
        fatal: every other call will fail in the same way (no such model, a bad key, a server that was never there).
    """

    def __init__(self, message: str, attempts: int = 1, fatal: bool = False):
        super().__init__(message)
        self.attempts, self.fatal = attempts, fatal


class Backend(Protocol):
    """Anything that completes conversations.

    Attributes:
        name: of the model, as the journal and the server show it.
        context: tokens that prompt and completion may have together; None where unknown.
    """

    name: str
    context: int | None

    async def complete(
        self, conversation: list[dict], sampling: Sampling, on_text: Callable[[str, str], None] | None = None
    ) -> Completion:
        """Completes the conversation's last turn.

        Args:
            conversation: `[{role, content: [{type: image, image: PIL, path or data URL} | {type: text, text}, …]}]`;
                `content` may be a plain string.
            on_text: called with (kind, piece) as text arrives, kind `reasoning` or `text`.

        Raises:
            BackendError: it failed for good. Cancelling the task stops the work at the backend.
        """
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, for budgets and the context guard; an estimate where there is no tokenizer."""
        ...

    async def close(self) -> None: ...
