"""OCRBench: 1,000 questions about text in pictures, in ten types (Liu et al. 2023, arXiv 2305.07895).

Right is a response that contains one of the answers: in lower case with line ends as spaces; for handwritten formulas
in their own case and without any spaces. Quirk: what else the response says does not matter, so "3" is found in "13".
"""

import ast
from collections.abc import Sequence
from pathlib import Path

from evaluation.benchmark import BenchmarkError, Question, Verdict
from evaluation.data import data_folder
from evaluation.picture_rows import picture_address, picture_rows
from evaluation.prompts import prompt_from

FORMULAS = "Handwritten Mathematical Expression Recognition"

# What the official report adds up as "Text Recognition"; 50 questions each.
RECOGNITION = (
    "Regular Text Recognition", "Irregular Text Recognition", "Artistic Text Recognition", "Handwriting Recognition",
    "Digit String Recognition", "Non-Semantic Text Recognition",
)  # fmt: skip
TYPES = (*RECOGNITION, "Scene Text-centric VQA", "Doc-oriented VQA", "Key Information Extraction", FORMULAS)


class OCRBench:
    """A point a question, of 1,000; containment, see above."""

    name = "ocrbench"
    title = "OCRBench"
    version = "1"
    splits = ("test",)
    source = "echo840/OCRBench"
    layout = (
        "Parquet with `question`, `question_type`, `answer`, `dataset`, `image`; or OCRBench.json beside its pictures; "
        "or OCRBench.tsv"
    )

    def load(self, location: str | Path | None, split: str, prompt: str | None = None) -> list[Question]:
        """See `Benchmark.load`; `prompt` has the field `question`, which by default is all that is asked."""
        if split not in self.splits:
            raise BenchmarkError(f"OCRBench has no split {split!r}; it has 'test' alone.")
        folder = data_folder(location, self.source, self.layout, ("data/test-*",))
        write = prompt_from(prompt if prompt is not None else "{{ question }}", ["question"])
        questions = []
        for number, row in enumerate(picture_rows(folder, self.layout), 1):
            kind = _first(row, "question_type", "type", "category")
            answers, asked = _answers(_first(row, "answer", "answers")), row.get("question")
            if kind not in TYPES or not answers or not isinstance(asked, str):
                raise BenchmarkError(
                    f"{str(folder)!r}, row {number}: no `question`, no `answer`, or the type {kind!r}, which is none "
                    f"of OCRBench's ten; it must hold {self.layout}."
                )
            try:
                picture = picture_address(_first(row, "image", "image_path"), folder)
            except (OSError, ValueError) as error:
                raise BenchmarkError(f"{str(folder)!r}, row {number}: {error}; it must hold {self.layout}.") from None
            text = write(question=asked.strip())
            content = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
            groups = {"type": kind}
            if dataset := _first(row, "dataset", "dataset_name"):
                groups["dataset"] = str(dataset)
            turn = {"role": "user", "content": content}
            questions.append(Question(f"ocrbench-{number}", [turn], {"answers": answers, "type": kind}, groups))
        return questions

    def score(self, question: Question, response: str) -> Verdict:
        """See `Benchmark.score`; `parsed` is the answer that was found."""
        formula = question.truth["type"] == FORMULAS
        said = _plain(response, formula)
        found = next((answer for answer in question.truth["answers"] if _plain(answer, formula) in said), None)
        return Verdict(float(found is not None), found or "")

    def summarize(self, scored: Sequence[tuple[Question, Verdict]]) -> dict:
        """Points under the official keys; of 1,000 where every question is answered."""
        points = dict.fromkeys(TYPES, 0)
        for question, verdict in scored:
            points[question.truth["type"]] += int(verdict.score)
        final = sum(points.values())
        recognition = sum(points[kind] for kind in RECOGNITION)
        return {"Text Recognition": recognition} | points | {
            "Final Score": final, "Final Score Norm": final / 10, "questions": len(scored),
        }  # fmt: skip


def _plain(text: str, formula: bool) -> str:
    text = text.strip().replace("\n", " ")
    return text.replace(" ", "") if formula else text.lower()


def _answers(cell: object) -> list[str]:
    """A list, one text, or a list as Python writes it, which is how the TSV has it; [] for anything else."""
    if isinstance(cell, str) and cell.startswith("["):
        try:
            cell = ast.literal_eval(cell)  # the data's text, not a model's
        except (ValueError, SyntaxError):
            return []
    if isinstance(cell, str | int | float):
        cell = [cell]
    return [str(answer) for answer in cell] if isinstance(cell, list) else []


def _first(row: dict, *names: str) -> object:
    return next((row[name] for name in names if row.get(name) is not None), None)


BENCHMARK = OCRBench()
