"""MMStar: 1,500 questions that cannot be answered without the picture (Chen et al. 2024, arXiv 2403.20330).

Six abilities ("category") of three finer ones each. Responses are read by VLMEvalKit's exact matching, as leaderboards
do, see `scoring.option_letters`; where the rule of the authors' own program, which looks at how a response begins, says
otherwise, the verdict's note tells.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from evaluation.benchmark import BenchmarkError, Question, Verdict
from evaluation.benchmarks.mmbench import PROMPT, options_of
from evaluation.data import data_folder
from evaluation.picture_rows import is_missing, picture_address, picture_rows
from evaluation.prompts import prompt_from
from evaluation.scoring.option_letters import infer_option

LETTERS = "ABCD"

# The hub's Parquet file has the options in the question; its TSV may have them in columns.
INLINE = "{{ question }}\nPlease select the correct answer from the options above."
_INLINE_OPTION = re.compile(r"(?:\A|\n|, |Options: )(?:([A-D]): |\(([A-D])\) )")


class MMStar:
    """Right is the letter that exact matching finds."""

    name = "mmstar"
    title = "MMStar"
    version = "1"
    splits = ("val",)
    source = "Lin-Chen/MMStar"
    layout = "mmstar.parquet or MMStar.tsv with `index`, `question`, `answer`, `category`, `l2_category`, `image`"

    def load(self, location: str | Path | None, split: str, prompt: str | None = None) -> list[Question]:
        """See `Benchmark.load`; `prompt` has the fields `question` and `options` (letter to text, may be empty)."""
        if split not in self.splits:
            raise BenchmarkError(f"MMStar has no split {split!r}; it has 'val' alone.")
        folder = data_folder(location, self.source, self.layout, ("mmstar.parquet",))
        fields = ("question", "options")
        write = prompt_from(prompt, fields) if prompt is not None else None
        ours = {kind: prompt_from(text, (*fields, "hint")) for kind, text in (("columns", PROMPT), ("inline", INLINE))}
        questions = []
        for number, row in enumerate(picture_rows(folder, self.layout), 1):
            answer, asked = str(row.get("answer") or "").strip().strip("()"), row.get("question")
            if answer not in LETTERS or len(answer) != 1 or not isinstance(asked, str) or is_missing(row.get("index")):
                raise BenchmarkError(
                    f"{str(folder)!r}, row {number}: no `index`, no `question` or an `answer` that is none of A to D; "
                    f"it must hold {self.layout}."
                )
            try:
                picture = picture_address(row.get("image"), folder)
            except (OSError, ValueError) as error:
                raise BenchmarkError(f"{str(folder)!r}, row {number}: {error}; it must hold {self.layout}.") from None
            columns = options_of(row)
            options = columns or _inline_options(asked)
            if write is not None:
                text = write(question=asked, options=options)
            else:
                text = ours["columns" if columns else "inline"](question=asked, options=options, hint="")
            groups = {"category": row.get("category"), "l2_category": row.get("l2_category", row.get("l2-category"))}
            content = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
            questions.append(
                Question(str(row["index"]), [{"role": "user", "content": content}],
                         {"answer": answer, "options": options}, {k: str(v) for k, v in groups.items() if v})
            )  # fmt: skip
        return questions

    def score(self, question: Question, response: str) -> Verdict:
        """See `Benchmark.score`."""
        answer = question.truth["answer"]
        named = infer_option(response, question.truth["options"])
        authors = _begins_with(answer, response)
        differs = authors != (named == answer)
        note = f"by the authors' own rule it is {'right' if authors else 'wrong'}" if differs else ""
        return Verdict(float(named == answer), named, note=note)

    def summarize(self, scored: Sequence[tuple[Question, Verdict]]) -> dict:
        """Fractions under the authors' keys; the weights are those of the questions that were answered."""
        hits: dict[str, list[float]] = {"final score": []}
        for question, verdict in scored:
            category, finer = (question.groups.get(key, "") for key in ("category", "l2_category"))
            for key in ("final score", category, f"{category}({finer})"):
                hits.setdefault(key, []).append(verdict.score)
        return {key: round(sum(values) / len(values), 6) for key, values in hits.items() if values}


def _inline_options(question: str) -> dict[str, str]:
    """Letter to text from "Options: A: …, B: …" or lines "(A) …"; the letters alone where the texts cannot be told."""
    found = list(_INLINE_OPTION.finditer(question))
    ends = [*(match.start() for match in found), len(question)][1:]
    options = {
        match[1] or match[2]: question[match.end() : end].strip(" ,\n") for match, end in zip(found, ends, strict=True)
    }
    in_order = list(options) == list(LETTERS[: len(options)]) and len(options) == len(found) > 1
    return options if in_order else dict.fromkeys(LETTERS, "")


def _begins_with(letter: str, response: str) -> bool:
    """The authors' own rule: "x…", "(x…", "option x…" or "the answer is x…", in lower case."""
    said = response.lower().strip().replace("\n", " ")
    return any(said.startswith(start + letter.lower()) for start in ("", "(", "option ", "the answer is "))


BENCHMARK = MMStar()
