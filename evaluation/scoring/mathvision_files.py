"""MathVision's official figures: of outputs as they are published, held against its file of questions."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.benchmark import BenchmarkError
from evaluation.scoring.latex_answers import LETTERS, is_right, read_answer
from evaluation.scoring.modern import verify

LAYOUT = "one model's outputs, JSONL whose rows have `id` and `response`"
KEY_LAYOUT = "test.jsonl or testmini.jsonl, whose rows have `id`, `options`, `answer`, `level` and `subject`"


@dataclass(frozen=True)
class Truth:
    """What a question's answer is.

    Attributes:
        answer: a value; with options the letter of one of them.
        options: their texts, or none.
    """

    answer: str
    options: list[str]
    subject: str
    level: str

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "Truth":
        """Raises ValueError for a row that is none of MathVision's."""
        options, answer = row.get("options"), row.get("answer")
        options = [] if options is None else options
        if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
            raise ValueError("its `options` are no list of texts")
        answer = "" if answer is None else str(answer)
        if not answer.strip() or (options and answer not in LETTERS[: len(options)]):
            raise ValueError(f"its `answer` is {answer[:40]!r}, with {len(options)} options")
        subject, level = row.get("subject"), row.get("level")
        if not isinstance(subject, str) or not isinstance(level, int | str):
            raise ValueError("it has no `subject` or no `level`")
        return cls(answer, options, subject, str(level))

    def holds(self, answer: str) -> bool:
        """Whether an answer that `read_answer` took is right by the official rule."""
        return is_right(answer, self.answer, self.options)

    def verified(self, response: str) -> float | None:
        """What math-verify says of the whole response; see `modern.verify`."""
        value = self.options[LETTERS.index(self.answer)] if self.options else self.answer
        # A word is not mathematics, and as LaTeX would be the product of its letters.
        mathematics = any(c.isdigit() or c == "\\" for c in value)
        values = [value.replace("$", "")] if mathematics or not self.options else []
        return verify(response, values, [self.answer] if self.options else [])


def accuracy_table(judged: Iterable[tuple[Truth, bool]]) -> dict[str, str]:
    """The official keys: all, each level and subject, and both together; "right/total=percent%" of each."""
    counts: dict[str, list[int]] = {}
    for truth, right in judged:
        level, subject = f"level{truth.level}", truth.subject
        for key in ("-all", f"-{level}", subject, f"{subject}_{level}", f"-{level}_{subject}"):
            count = counts.setdefault(key, [0, 0])
            count[0] += right
            count[1] += 1
    return {key: f"{right}/{total}={round(right / total * 100, 2)}%" for key, (right, total) in sorted(counts.items())}


def score_mathvision(outputs: str | Path, key: str | Path, modern: bool = False) -> dict:
    """The official figures, and what stands beside them.

    As in the official program they are of the rows of the outputs, each of which counts, and the answer is always read
    anew.

    Args:
        outputs: see `LAYOUT`.
        key: see `KEY_LAYOUT`.
        modern: also ask math-verify, which takes some hundredths of a second an answer.

    Returns:
        `accuracy_table`'s, and `samples`: by id `parsed` and `correct`, with `modern` also math-verify's verdict;
        `notes`: what has to be said about the outputs; with `modern` also that, math-verify's figure.

    Raises:
        BenchmarkError: a file that is not there or not in its layout, or a question that the key does not have.
    """
    truths = _key(Path(key))
    judged, samples, empty = [], {}, 0
    for place, row in _rows(Path(outputs), LAYOUT):
        id, response = str(row.get("id")), row.get("response", 0)
        if id not in truths:
            raise BenchmarkError(f"{place}: it is of the question {id[:40]!r}, which {str(key)!r} does not have.")
        if response is not None and not isinstance(response, str):
            raise BenchmarkError(f"{place}: it has no text in `response`; give {LAYOUT}.")
        empty += not (response or "").strip()
        answer = read_answer(response or "")
        right = truths[id].holds(answer)
        samples[id] = {"parsed": answer, "correct": right}
        judged.append((truths[id], right))
        if modern:
            samples[id]["modern"] = truths[id].verified(response or "")
    if not samples:
        raise BenchmarkError(f"{str(outputs)!r} has no outputs; give {LAYOUT}.")
    notes = [f"{empty} responses are empty and count as wrong."] if empty else []
    if again := len(judged) - len(samples):
        notes.append(f"{again} outputs are of questions that have another one; all count, as in the official program.")
    if missing := len(truths) - len(samples):
        notes.append(f"{missing} of the key's {len(truths)} questions have no output; the figures are of the others.")
    return accuracy_table(judged) | {"samples": samples, "notes": notes} | (_modern(samples) if modern else {})


def _modern(samples: dict[str, dict]) -> dict[str, str]:
    said = [sample["modern"] for sample in samples.values() if sample["modern"] is not None]
    return {"modern": f"{int(sum(said))}/{len(said)}={round(sum(said) / max(1, len(said)) * 100, 2)}%"}


def _key(path: Path) -> dict[str, Truth]:
    truths = {}
    for place, row in _rows(path, KEY_LAYOUT):
        try:
            truths[str(row.get("id"))] = Truth.of_row(row)
        except ValueError as error:
            raise BenchmarkError(f"{place}: {error}; give {KEY_LAYOUT}.") from None
    if not truths:
        raise BenchmarkError(f"{str(path)!r} has no questions; give {KEY_LAYOUT}.")
    return truths


def _rows(path: Path, layout: str) -> Iterator[tuple[str, dict]]:
    """(where it stands, row). Raises BenchmarkError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BenchmarkError(f"{str(path)!r} cannot be read ({reason}); give {layout}.") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{str(path)!r}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise BenchmarkError(f"{place}: it is no JSON object; give {layout}.")
            yield place, row
