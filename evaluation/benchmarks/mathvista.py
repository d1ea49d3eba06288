"""MathVista, testmini: 1,000 mathematical questions about pictures (Lu et al. 2023, arXiv 2310.02255).

The official program takes the answer out of a response, brings it into the answer's type, and compares texts. For the
first step it has a short path, which is here as it is, and asks GPT-4 for all that is left. Without a judge our own
rules stand in for GPT-4, with one (`--judge-url`) that model does, by a prompt in our words; either may differ from
what GPT-4 took out. `extraction` among the official figures says how many answers were taken out in which way.

Quirk of the second step: what is none of the options becomes the nearest one by edit distance, also where it is
nothing at all. Such answers count as guessed, so that the strict figure leaves them out.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.benchmark import BenchmarkError, Question, Verdict
from evaluation.data import data_folder
from evaluation.judging import Judge
from evaluation.picture_rows import picture_address, picture_rows
from evaluation.prompts import prompt_from
from evaluation.scoring.option_letters import infer_option
from training.verifiers import final_answer

HINTS = {
    "choice": "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.",
    "integer": "Hint: Please answer the question requiring an integer answer and provide the final value, e.g., 1, 2, "
    "3, at the end.",
    "1": "Hint: Please answer the question requiring a floating-point number with one decimal place and provide the "
    "final value, e.g., 1.2, 1.3, 1.4, at the end.",
    "2": "Hint: Please answer the question requiring a floating-point number with two decimal places and provide the "
    "final value, e.g., 1.23, 1.34, 1.45, at the end.",
    "list": "Hint: Please answer the question requiring a Python list as an answer and provide the final list, e.g., "
    "[1, 2, 3], [1.2, 1.3, 1.4], at the end.",
}

# What the data's own column `query` says, where there is none.
QUERY = (
    "{{ hint }}\nQuestion: {{ question }}{% if unit %} (Unit: {{ unit }}){% endif %}"
    "{% if choices %}\nChoices:{% for choice in choices %}\n({{ 'ABCDEFGHIJ'[loop.index0] }}) {{ choice }}{% endfor %}"
    "{% endif %}"
)
FIELDS = ("question", "query", "choices", "unit", "hint")

EXTRACTION = """\
Below are a question and a response to it. Write down the answer that the response gives, and nothing else: of a \
question with choices the option's letter, else the number, or the list as in [1, 2]. Do not solve the question \
yourself, and do not correct the response. Where it gives no answer, write None.

Question: Which number is missing?
Response: The missing number in the sequence is 14, as each step adds 3.
Answer: 14

Question: Which part is blue? Choices: (A) 3/11 (B) 8/11
Response: Eight of the eleven squares are blue.
Answer: B

{query}

Response: {response}
Answer:"""

# The parts of the report; of `metadata`, but for the first two.
KEYS = ("question_type", "answer_type", "language", "source", "category", "task", "context", "grade", "skills")
SHOWN = ("task", "context", "grade")

LONGEST_EXTRACTION = 1000  # characters; of what is longer its end is compared with the options
_NUMBER = re.compile(r"-?(?:\d[\d,]*)?\.?\d+(?:[eE][-+]?\d{1,3})?")
_LIST = re.compile(r"\[([^\[\]\n]{1,400})\]")


@dataclass(frozen=True)
class MathVista:
    """See the module; `judge` takes answers out of responses, our rules where there is none."""

    judge: Judge | None = None

    name = "mathvista"
    title = "MathVista"
    version = "1"
    splits = ("testmini",)
    source = "AI4Math/MathVista"
    layout = (
        "testmini-*.parquet, or testmini.json beside images/, with `pid`, `question`, `choices`, `answer`, "
        "`question_type`, `answer_type`, `precision`, `metadata`, `decoded_image` or `image`"
    )

    def judged_by(self, judge: Judge) -> "MathVista":
        return MathVista(judge)

    def load(self, location: str | Path | None, split: str, prompt: str | None = None) -> list[Question]:
        """See `Benchmark.load`; `prompt` has the fields `question`, `query` (all of the official prompt), `choices`,
        `unit` and `hint`."""
        if split not in self.splits:
            raise BenchmarkError(f"MathVista has no split {split!r} with answers; it has 'testmini' alone.")
        folder = data_folder(location, self.source, self.layout, ("data/testmini-*",))
        query = prompt_from(QUERY, ("question", "choices", "unit", "hint"))
        write = prompt_from(prompt, FIELDS) if prompt is not None else None
        questions = []
        for number, row in enumerate(picture_rows(folder, self.layout, ("testmini*", "*")), 1):
            try:
                truth, fields = _truth(row), _fields(row)
                picture = picture_address(row.get("decoded_image") or row.get("image"), folder)
            except (OSError, ValueError) as error:
                raise BenchmarkError(f"{str(folder)!r}, row {number}: {error}; it must hold {self.layout}.") from None
            truth["query"] = row.get("query") or query(**fields)
            text = write(**fields, query=truth["query"]) if write is not None else truth["query"]
            content = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
            groups = {key: str(truth["parts"][key]) for key in SHOWN if truth["parts"].get(key)}
            turn = {"role": "user", "content": content}
            questions.append(Question(str(row.get("pid", number)), [turn], truth, groups))
        return questions

    def score(self, question: Question, response: str) -> Verdict:
        """See `Benchmark.score`; with a judge, raises BenchmarkError where it cannot be had."""
        truth = question.truth
        extraction, way = _short_path(response, truth), "the official short path"
        if extraction is None and self.judge is None:
            extraction, way = _by_rules(response, truth), "our rules"
        elif extraction is None:
            asked = EXTRACTION.format(query=truth["query"], response=response)
            conversation = [{"role": "user", "content": [{"type": "text", "text": asked}]}]
            extraction = self.judge.ask(conversation, _one_line, f"mathvista {question.id}")
            way = f"the judge {self.judge.name}"
        parsed, nearest = _normalised(extraction, truth)
        note = f"taken out by {way}" + ("; the nearest option" if nearest else "")
        return Verdict(float(parsed == truth["answer"]), parsed or "", guessed=nearest, note=note)

    def summarize(self, scored: Sequence[tuple[Question, Verdict]]) -> dict:
        """`accuracy` in per cent, and the official tables: {key: {value: {accuracy, correct, total}}}."""
        counts: dict[str, dict[str, list[float]]] = {key: {} for key in KEYS}
        for question, verdict in scored:
            for key in KEYS:
                values = question.truth["parts"].get(key)
                for value in values if isinstance(values, list) else [values]:
                    if value is not None:
                        counts[key].setdefault(str(value), []).append(verdict.score)
        every = [verdict.score for _, verdict in scored]
        ways = Counter(v.note.removeprefix("taken out by ").partition(";")[0] for _, v in scored)
        said = ", ".join(f"{count} by {way}" for way, count in ways.items())
        tables = {key: {value: _share(own) for value, own in values.items()} for key, values in counts.items()}
        return {"accuracy": round(100 * sum(every) / max(1, len(every)), 2), "extraction": said,
                "average": _share(every)} | tables  # fmt: skip


def _share(values: Sequence[float]) -> dict:
    correct = int(sum(values))
    return {"accuracy": correct / max(1, len(values)), "correct": correct, "total": len(values)}


def _truth(row: dict) -> dict:
    """Raises ValueError, which says what is wrong with the row."""
    kind, answer, choices = row.get("answer_type"), row.get("answer"), list(row.get("choices") or [])
    if row.get("question_type") not in ("multi_choice", "free_form") or not isinstance(row.get("question"), str):
        raise ValueError("no `question`, or a `question_type` that is neither multi_choice nor free_form")
    if not isinstance(answer, str) or not answer:
        raise ValueError("no `answer`")
    if row["question_type"] == "multi_choice" and (answer not in choices or len(choices) > 10):
        raise ValueError(f"its answer {answer!r} is none of its choices")
    if row["question_type"] == "free_form" and kind not in ("integer", "float", "list"):
        raise ValueError(f"its `answer_type` is {kind!r}; it must be integer, float or list")
    parts = {"question_type": row["question_type"], "answer_type": kind} | dict(row.get("metadata") or {})
    return {"answer": answer, "choices": choices, "precision": int(row.get("precision") or 0),
            "parts": {key: parts[key] for key in KEYS if parts.get(key) is not None}}  # fmt: skip


def _fields(row: dict) -> dict:
    kind = "choice" if row["question_type"] == "multi_choice" else row["answer_type"]
    hint = HINTS["2" if int(row.get("precision") or 0) == 2 else "1"] if kind == "float" else HINTS[kind]
    return {"question": row["question"], "choices": list(row.get("choices") or []), "unit": row.get("unit") or "",
            "hint": hint}  # fmt: skip


# Taking the answer out


def _short_path(response: str, truth: dict) -> str | None:
    """The official program's, `--quick_extract` included; None where it asks GPT-4."""
    kind = truth["parts"].get("answer_type")
    if response == "" or (truth["choices"] and response in truth["choices"]):
        return response
    try:
        if kind == "integer":
            return str(int(response))
        if kind == "float":
            return str(float(response))
    except ValueError:  # no number, or one of thousands of digits
        pass
    opening, closing = 'The answer is "', '".'
    for line in response.split("\n"):
        start, end = line.find(opening), line.rfind(closing)
        if 0 <= start <= end - len(opening):
            return line[start + len(opening) : end]
    return None


def _by_rules(response: str, truth: dict) -> str:
    """In place of GPT-4: what follows the last "answer is" or stands in the last box, read by the answer's type."""
    said = final_answer(response)
    if truth["choices"]:
        options = dict(zip("ABCDEFGHIJ", truth["choices"], strict=False))
        named = infer_option(said, options) or infer_option(response, options)
        if named in options:
            return named
        there = [letter for letter, text in options.items() if re.search(rf"(?<!\w){re.escape(text)}(?!\w)", said)]
        return there[0] if len(there) == 1 else said
    if truth["parts"].get("answer_type") == "list":
        lists = _LIST.findall(said) or _LIST.findall(response)
        return "[" + ", ".join(part.strip() for part in lists[-1].split(",")) + "]" if lists else said
    numbers = _NUMBER.findall(said[-LONGEST_EXTRACTION:]) or _NUMBER.findall(response[-LONGEST_EXTRACTION:])
    return numbers[-1].replace(",", "") if numbers else said


def _one_line(words: str) -> str:
    lines = [line.strip() for line in words.split("\n") if line.strip()]
    if not lines:
        raise ValueError("no answer at all")
    return lines[0].removeprefix("Answer:").strip()[:LONGEST_EXTRACTION]


# Bringing it into the answer's type


def _normalised(extraction: str, truth: dict) -> tuple[str | None, bool]:
    """(the prediction as text, whether it is but the nearest option); None for what is no number."""
    kind, choices = truth["parts"].get("answer_type"), truth["choices"]
    if choices:
        said = extraction.strip()
        if bracketed := re.search(r"\(([a-zA-Z])\)", said):
            said = bracketed[1].upper()
        place = ord(said) - ord("A") if len(said) == 1 else -1
        if 0 <= place < len(choices):
            return choices[place], False
        if said in choices:
            return said, False
        distances = [edit_distance(said[-LONGEST_EXTRACTION:], choice) for choice in choices]
        return choices[distances.index(min(distances))], True
    try:
        if kind == "integer":
            return str(int(float(extraction))), False
        if kind == "float":
            return str(round(float(extraction), truth["precision"])), False
    except (ValueError, OverflowError):
        return None, False
    return extraction, False


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's: insertions, deletions and replacements that make one text the other."""
    codes = np.array([ord(sign) for sign in a], dtype=np.int64)
    places = np.arange(len(a) + 1)
    row = places.copy()
    for count, sign in enumerate(b, 1):
        replaced = np.minimum(row[1:] + 1, row[:-1] + (codes != ord(sign)))
        # Each further insertion costs 1: the least of all earlier places, plus the way from there.
        row = np.minimum.accumulate(np.concatenate([[count], replaced]) - places) + places
    return int(row[-1])


BENCHMARK = MathVista()
