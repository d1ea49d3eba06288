"""MMBench-EN, dev: multiple choice about pictures, judged circularly (Liu et al. 2023, arXiv 2307.06281).

Every question is asked once for each rotation of its options, and counts only where all are right. The published
tables hold the rotations: rotation k of question i has the index i + 1,000,000 k. Where a table does not, we make them.
Responses are read by exact matching, see `scoring.option_letters`; the leaderboard's variant with a language model as
matcher is not reproduced.
"""

from collections.abc import Sequence
from pathlib import Path

from evaluation.benchmark import BenchmarkError, Question, Verdict
from evaluation.data import data_folder
from evaluation.picture_rows import is_missing, picture_address, picture_rows
from evaluation.prompts import prompt_from
from evaluation.scoring.option_letters import infer_option

ROTATION = 1_000_000
LETTERS = "ABCDE"

# As VLMEvalKit asks.
PROMPT = (
    "{% if hint %}Hint: {{ hint }}\n{% endif %}Question: {{ question }}\nOptions:\n"
    "{% for letter, text in options.items() %}{{ letter }}. {{ text }}\n{% endfor %}"
    "Please select the correct answer from the options above."
)
FIELDS = ("question", "options", "hint")

FILES = ("dev-*", "*DEV_EN*", "*dev_en*", "mmbench_dev_2*")

# Official keys of the six abilities.
ABBREVIATIONS = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}


class MMBench:
    """Right is the letter that exact matching finds; the official figures are circular, `vanilla` beside them."""

    name = "mmbench"
    title = "MMBench-EN"
    version = "1"
    splits = ("dev",)
    source = "lmms-lab/MMBench"
    layout = (
        "a TSV or Parquet files named dev-* or *DEV_EN*, with `index`, `question`, `hint`, `A` to `D`, `answer`, "
        "`category`, `l2-category`, `image` (base64)"
    )

    def load(self, location: str | Path | None, split: str, prompt: str | None = None) -> list[Question]:
        """See `Benchmark.load`; `prompt` has the fields `question`, `options` (letter to text) and `hint`.

        The rotations of a question follow each other; the ids are the table's indices.
        """
        if split not in self.splits:
            raise BenchmarkError(f"MMBench has no split {split!r} with answers; it has 'dev' alone.")
        folder = data_folder(location, self.source, self.layout, ("en/dev-*",))
        write = prompt_from(prompt if prompt is not None else PROMPT, FIELDS)
        table = folder / "en" if (folder / "en").is_dir() else folder
        rows = [_named(row) for row in picture_rows(table, self.layout, FILES)]
        by_index = {}
        for number, row in enumerate(rows, 1):
            index = str(row.get("index", "")).strip().removesuffix(".0")
            if not index.isdecimal():
                raise BenchmarkError(f"{str(folder)!r}, row {number}: no `index`; it must hold {self.layout}.")
            if int(index) in by_index:
                raise BenchmarkError(f"{str(folder)!r}: the index {index} is there twice; leave one table there.")
            by_index[int(index)] = row
        groups: dict[int, list[int]] = {}
        for index in sorted(by_index):
            groups.setdefault(index % ROTATION, []).append(index)
        if all(len(rotations) == 1 for rotations in groups.values()):
            by_index, groups = _rotated(by_index)
        return [
            self._question(index, by_index, len(rotations), folder, write)
            for rotations in groups.values() for index in rotations
        ]  # fmt: skip

    def _question(self, index: int, rows: dict[int, dict], rotations: int, folder: Path, write) -> Question:
        row = rows[index]
        options = options_of(row)
        answer = str(row.get("answer") or "").strip()
        if answer not in LETTERS or len(answer) != 1 or row.get(answer) in (None, ""):
            raise BenchmarkError(f"{str(folder)!r}, index {index}: its answer is {answer!r}, which is no option.")
        cell = row.get("image")
        if isinstance(cell, str) and cell.isdecimal() and int(cell) in rows:
            cell = rows[int(cell)].get("image")  # a rotation names the row whose picture it has
        try:
            picture = picture_address(cell, folder)
        except (OSError, ValueError) as error:
            raise BenchmarkError(f"{str(folder)!r}, index {index}: {error}; it must hold {self.layout}.") from None
        hint = "" if is_missing(row.get("hint")) else row["hint"]
        text = write(question=row.get("question") or "", options=options, hint=hint)
        content = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
        truth = {"answer": answer, "options": options, "question": index % ROTATION, "rotations": rotations}
        kinds = {name: row.get(column) for name, column in (("ability", "l2-category"), ("category", "category"))}
        named = {name: str(kind) for name, kind in kinds.items() if not is_missing(kind)}
        return Question(str(index), [{"role": "user", "content": content}], truth, named)

    def score(self, question: Question, response: str) -> Verdict:
        """See `Benchmark.score`: of this rotation alone."""
        named = infer_option(response, question.truth["options"])
        return Verdict(float(named == question.truth["answer"]), named)

    def summarize(self, scored: Sequence[tuple[Question, Verdict]]) -> dict:
        """Fractions under VLMEvalKit's keys, circular; `vanilla` is of the questions as they stand in the table.

        Questions of which a rotation has no answer are left out and counted in `incomplete`.
        """
        circles: dict[int, list[tuple[Question, Verdict]]] = {}
        for question, verdict in scored:
            circles.setdefault(question.truth["question"], []).append((question, verdict))
        whole = {i: circle for i, circle in circles.items() if len(circle) == circle[0][0].truth["rotations"]}
        hits: dict[str, list[float]] = {}
        for circle in whole.values():
            groups, hit = circle[0][0].groups, float(all(verdict.score for _, verdict in circle))
            ability = groups.get("ability")
            for key in ("Overall", ABBREVIATIONS.get(ability, ability), groups.get("category")):
                if key is not None:
                    hits.setdefault(key, []).append(hit)
        plain = [verdict.score for question, verdict in scored if question.id == str(question.truth["question"])]
        figures = {key: _mean(values) for key, values in sorted(hits.items(), key=lambda item: item[0] != "Overall")}
        return figures | {"vanilla": _mean(plain), "incomplete": len(circles) - len(whole)}


def options_of(row: dict) -> dict[str, str]:
    """Letter to text, without the missing ones; quirk: as pandas reads them, so that an option "None" is none."""
    return {letter: str(row[letter]) for letter in LETTERS if not is_missing(row.get(letter))}


def _named(row: dict) -> dict:
    """Columns in lower case, but for the options."""
    return {key if key in LETTERS else key.lower(): value for key, value in row.items() if key}


def _rotated(rows: dict[int, dict]) -> tuple[dict[int, dict], dict[int, list[int]]]:
    """(rows, groups) with all rotations of each question's options: at rotation k an option stands k places later."""
    made, groups = {}, {}
    for index, row in rows.items():
        letters = [letter for letter in LETTERS if row.get(letter) not in (None, "", "nan")]
        for k in range(max(1, len(letters))):
            moved = {letter: letters[(place + k) % len(letters)] for place, letter in enumerate(letters)}
            answer = str(row.get("answer") or "").strip()
            texts = {moved[letter]: row[letter] for letter in letters}
            made[index + k * ROTATION] = row | texts | {"answer": moved.get(answer, answer)}
            groups.setdefault(index, []).append(index + k * ROTATION)
    return made, groups


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None


BENCHMARK = MMBench()
