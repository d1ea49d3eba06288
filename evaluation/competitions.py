"""Problems of mathematical competitions: a text, an answer, and a request to box it."""

from collections.abc import Sequence
from pathlib import Path

from evaluation.benchmark import BenchmarkError, Question, Verdict
from evaluation.data import data_folder, read_rows
from evaluation.prompts import prompt_from

LAYOUT = "Parquet or JSONL files whose rows have `problem` and `answer`"


def load_problems(
    name: str, location: str | Path | None, source: str, instruction: str, prompt: str | None
) -> list[Question]:
    """The problems in the data's order, their answer as text in `truth`.

    Args:
        instruction: what follows a problem, where no `prompt` replaces it, with the field `problem`.

    Raises:
        BenchmarkError: see `data_folder`; or a row without a problem or an answer.
    """
    folder = data_folder(location, source, LAYOUT)
    write = prompt_from(prompt if prompt is not None else "{{ problem }}\n\n" + instruction, ["problem"])
    questions = []
    for number, row in enumerate(read_rows(folder, LAYOUT), 1):
        problem, answer = row.get("problem"), row.get("answer")
        if not isinstance(problem, str) or not problem.strip() or not str(answer if answer is not None else "").strip():
            raise BenchmarkError(f"{str(folder)!r}, row {number}: no `problem` or no `answer`; it must hold {LAYOUT}.")
        turn = {"role": "user", "content": [{"type": "text", "text": write(problem=problem.strip())}]}
        truth = {"answer": str(answer).strip()}
        questions.append(Question(f"{name}-{_number(row, number)}", [turn], truth, _groups(row)))
    return questions


def _number(row: dict, place: int) -> str:
    known = row.get("problem_idx", row.get("id"))
    return str(known if known is not None else place)


def _groups(row: dict) -> dict[str, str]:
    """By the kinds of problem that MathArena's data name."""
    kinds = row.get("problem_type") or []
    return {"topic": ", ".join([kinds] if isinstance(kinds, str) else kinds)} if kinds else {}


def percent_right(scored: Sequence[tuple[Question, Verdict]]) -> float:
    """As competitions are reported, to two decimals."""
    return round(100 * sum(verdict.score for _, verdict in scored) / max(1, len(scored)), 2)
