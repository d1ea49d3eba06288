"""Questions from a file, answers to a file: killed at any point it goes on, and pays again for calls in flight alone.

A line of the input is `{"id": …, "messages": [{role, content}, …]}`, or `{"question": …, "images": [path, …]}`;
`prompt` is accepted for `question`, and without an `id` the line's number is one. Pictures' paths are relative to the
input file.
"""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pacore.backends import Backend
from pacore.coordination import Outcome, PacoreError, Plan, PlanError, solve
from pacore.journal import Journal


class BatchError(ValueError):
    """A file that cannot be read or written, or a line that is not a question; names it and the remedy."""


@dataclass(frozen=True)
class Question:
    """A line of the input."""

    id: str
    conversation: list[dict]


def read_questions(path: Path) -> list[Question]:
    """All of them, checked before anything is paid for. Raises BatchError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BatchError(f"{str(path)!r} cannot be read ({error}); give a JSONL file in UTF-8.") from None
    questions: dict[str, Question] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        question = _question(line, f"{path}, line {number}", number, path.parent)
        if question.id in questions:
            raise BatchError(f"{path}, line {number}: the id {question.id!r} is there twice; give each its own.")
        questions[question.id] = question
    if not questions:
        raise BatchError(f"{str(path)!r} holds no questions; write a JSON object with `question` a line.")
    return list(questions.values())


def _question(line: str, where: str, number: int, folder: Path) -> Question:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BatchError(f"{where}: not JSON ({error}).") from None
    if not isinstance(row, dict):
        raise BatchError(f"{where}: not a JSON object.")
    id_ = str(row.get("id", number))
    asked = row.get("question", row.get("prompt"))
    if isinstance(asked, str) and asked.strip():
        images = row.get("images", [])
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
            raise BatchError(f"{where}: `images` must be a list of paths.")
        parts = [{"type": "image", "image": _path(image, folder)} for image in images]
        return Question(id_, [{"role": "user", "content": [*parts, {"type": "text", "text": asked}]}])
    messages = row.get("messages", row.get("conversation"))
    if not isinstance(messages, list) or not messages:
        raise BatchError(f"{where}: neither a `question` with text nor `messages`.")
    return Question(id_, [_turn(turn, where, folder) for turn in messages])


def _turn(turn: object, where: str, folder: Path) -> dict:
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        raise BatchError(f"{where}: a message must have a `role` and `content`.")
    content = turn.get("content")
    if isinstance(content, str):
        return {"role": turn["role"], "content": content}
    if not isinstance(content, list):
        raise BatchError(f"{where}: a message's `content` must be text or a list of parts.")
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        elif kind == "image" and isinstance(part.get("image", part.get("path")), str):
            parts.append({"type": "image", "image": _path(part.get("image", part.get("path")), folder)})
        else:
            raise BatchError(f"{where}: a part must be {{type: text, text}} or {{type: image, image: path}}.")
    return {"role": turn["role"], "content": parts}


def _path(image: str, folder: Path) -> str:
    return image if image.startswith("data:") else str(folder / image)


def read_answered(path: Path) -> set[str]:
    """Ids that `path` holds answers to; the half line of a killed run, if there is one, is cut off."""
    if not path.exists():
        return set()
    try:
        whole = path.read_bytes()
        kept = whole[: whole.rfind(b"\n") + 1]
        rows = [json.loads(line) for line in kept.splitlines() if line.strip()]
        answered = {row["id"] for row in rows if not row["error"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BatchError(f"{str(path)!r} is no output of this command ({error}); write to another file.") from None
    # Failures are asked again, and would otherwise be there twice.
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows if not row["error"])
    if text.encode() != whole:
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    return answered


def record(question: Question, outcome: Outcome | None, error: str) -> dict:
    """A line of the output."""
    row: dict = {"id": question.id, "answer": None, "error": error}
    if outcome is None:
        return row
    row |= {"answer": outcome.answer.text, "reasoning": outcome.answer.reasoning, "finish": outcome.answer.finish}
    row["usage"] = {
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "seconds": round(outcome.seconds, 3),
        "failures": outcome.failures,
    }
    row["notes"] = list(outcome.notes)
    row["rounds"] = [
        [{"message": t.message, "error": t.error, "cancelled": t.cancelled} for t in trajectories]
        for trajectories in outcome.rounds
    ]
    return row


async def run_batch(
    backend: Backend,
    questions: list[Question],
    plan: Plan,
    out: Path,
    journal: Journal,
    at_once: int,
    on_row: Callable[[dict], None],
) -> None:
    """Answers the questions, `at_once` of them at a time, and appends a line to `out` as each is done.

    A question that fails has a line with its `error`.

    Raises:
        BackendError: every other question would fail in the same way; those in work are cancelled.
        JournalError: a trajectory cannot be recorded.
    """
    waiting: Iterator[Question] = iter(questions)
    with out.open("a", encoding="utf-8") as file:

        async def work() -> None:
            for question in waiting:
                outcome, error = None, ""
                try:
                    outcome = await solve(backend, question.conversation, plan, problem=question.id, journal=journal)
                except (PacoreError, PlanError) as failure:
                    error = str(failure)
                row = record(question, outcome, error)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
                on_row(row)

        tasks = [asyncio.create_task(work()) for _ in range(min(at_once, len(questions)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
