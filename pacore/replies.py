"""What a client of the OpenAI protocol is sent: completions, chunks, and the progress between them."""

import time
import uuid

from pacore.backends import Backend
from pacore.coordination import Event, Outcome, Plan

BRIEF = 200  # characters of a trajectory's message that are shown as progress


def usage(outcome: Outcome, backend: Backend) -> dict:
    """The tokens of every trajectory; all but those of the answer itself count as reasoning."""
    answer = outcome.answer
    answer_tokens = answer.completion_tokens
    if answer.reasoning:  # counted together with the text, which alone is the answer
        answer_tokens = min(answer_tokens, backend.count_tokens(answer.text))
    return {
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "total_tokens": outcome.prompt_tokens + outcome.completion_tokens,
        "completion_tokens_details": {"reasoning_tokens": max(0, outcome.completion_tokens - answer_tokens)},
        "pacore": {
            "rounds": [len(trajectories) for trajectories in outcome.rounds],
            "failures": outcome.failures,
            "seconds": round(outcome.seconds, 3),
            "notes": list(outcome.notes),
        },
    }


class Reply:
    """The envelope that all parts of one answer share."""

    def __init__(self, model: str):
        self._common = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, outcome: Outcome, usage: dict) -> dict:
        answer = outcome.answer
        message = {"role": "assistant", "content": answer.text, "reasoning_content": answer.reasoning, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}
        return {**self._common, "object": "chat.completion", "choices": [choice], "usage": usage}

    def chunk(self, delta: dict, finish: str | None = None) -> dict:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._common, "object": "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self, usage: dict) -> dict:
        return {**self._common, "object": "chat.completion.chunk", "choices": [], "usage": usage}


class Progress:
    """Turns a coordination's events into deltas: the rounds as reasoning, the final trajectory as what it is."""

    def __init__(self, plan: Plan):
        self._last = len(plan.rounds)
        self._width = self._in = 0
        self._reasoned, self._text = False, ""

    def deltas(self, event: Event) -> list[dict]:
        if event.kind == "text":
            return self._piece(event.channel, event.piece)
        if event.kind == "round":
            self._width, self._in = event.width, 0
            trajectories = "1 trajectory" if event.width == 1 else f"{event.width} trajectories"
            line = "the answer" if event.round >= self._last else trajectories
            return [_reasoning(f"Round {event.round + 1} of {self._last + 1}: {line}\n")]
        if event.kind != "trajectory":
            return []
        trajectory, number = event.trajectory, f"number {event.index + 1}"
        if trajectory.completion is None:
            line = f"{number} was cancelled" if trajectory.cancelled else f"{number} failed: {_brief(trajectory.error)}"
            return [_reasoning(f"{line}\n")]
        self._in += 1
        if event.round >= self._last:
            return []  # its text was sent as it came
        return [_reasoning(f"{self._in} of {self._width} in, {number}: {_brief(trajectory.message)}\n")]

    def _piece(self, channel: str, piece: str) -> list[dict]:
        if channel == "reasoning":
            self._reasoned = True
            return [_reasoning(piece)]
        piece = piece if self._text else piece.lstrip()  # models begin with empty lines, completions do not
        self._text += piece
        return [{"content": piece}] if piece else []

    def rest(self, outcome: Outcome) -> list[dict]:
        """What the events did not bring: all of an answer that came from the journal, the end of one cut off."""
        answer = outcome.answer
        deltas = [_reasoning(answer.reasoning)] if answer.reasoning and not self._reasoned else []
        text, sent = answer.text.lstrip(), self._text.rstrip()
        if text.startswith(self._text):
            rest = text[len(self._text) :]
        elif text.startswith(sent):
            rest = text[len(sent) :].lstrip()
        else:  # the model's second try went another way, or the budget's end left an earlier answer the best
            rest = f"\n\n[That was cut off. The whole answer:]\n\n{answer.text}"
        return [*deltas, {"content": rest}] if rest else deltas


def _reasoning(text: str) -> dict:
    return {"reasoning_content": text}


def _brief(text: str) -> str:
    """A message on one line; of a long one its end, where its conclusion stands."""
    text = " ".join(text.split())
    return text if len(text) <= BRIEF else f"…{text[-BRIEF:]}"
