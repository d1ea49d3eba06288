"""A judged folder of edits as a run, so that reports show it as they show answers: its figures, groups, every sample.

A picture is an answer, its overall score as a fraction is the answer's, and the picture before is the question's.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from evaluation.benchmark import Question, Verdict
from evaluation.benchmarks import edit_benchmark_named
from evaluation.edit_benchmark import EditBenchmark
from evaluation.edit_runs import painting_of, source_beside
from evaluation.runs import Answer, Asked, Run, RunError, Settings, read_rows
from evaluation.summary import summarize


@dataclass(frozen=True)
class Painted(Answer):
    """A picture that was judged.

    Attributes:
        picture: its path.
        scores: by name, as the benchmark gives them.
        words: the judge's, by what it was asked about.
    """

    picture: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JudgedEdits:
    """The benchmark of such a run, which was judged before; for `evaluation.summary` and the page."""

    benchmark: EditBenchmark
    figures: dict

    @property
    def title(self) -> str:
        return self.benchmark.title

    @property
    def version(self) -> str:
        return self.benchmark.version

    def summarize(self, scored: Sequence[tuple[Question, Verdict]]) -> dict:
        return self.figures


@dataclass(frozen=True)
class _Head:
    """judged.json"""

    benchmark: str
    version: str
    split: str
    judge: str | None
    missing: dict[str, Any]
    figures: dict[str, Any]


@dataclass(frozen=True)
class _Row:
    """Of scores.jsonl."""

    name: str
    groups: dict[str, str]
    instruction: str = ""
    scores: dict[str, float] | None = None
    words: dict[str, str] = field(default_factory=dict)
    error: str = ""


HEAD, ROW = TypeAdapter(_Head), TypeAdapter(_Row)


def holds_edits(folder: Path) -> bool:
    """Whether pictures were painted or judged in it, and no questions answered."""
    return not (folder / "run.json").exists() and any((folder / n).is_file() for n in ("edits.json", "scores.jsonl"))


def read_edits(folder: Path) -> tuple[Run, JudgedEdits, dict]:
    """The folder's pictures as a run, their benchmark, and the summary, which has `missing` and `painting` besides.

    Raises:
        RunError: they were not judged, or not by this program.
        BenchmarkError: a benchmark that there is no more.
    """
    painting = painting_of(folder)
    try:
        head = HEAD.validate_json((folder / "judged.json").read_bytes())
    except (OSError, ValidationError):
        name = painting.benchmark if painting else "BENCHMARK"
        raise RunError(
            f"the pictures in {str(folder)!r} were not judged yet, or not to the end; run `python -m evaluation judge "
            f"{name} {folder}`."
        ) from None
    benchmark = edit_benchmark_named(head.benchmark)
    rows = read_rows(folder / "scores.jsonl", ROW)
    settings = Settings(
        benchmark=head.benchmark, version=head.version, split=head.split, prompts=painting.tasks if painting else "",
        template=None, model=painting.editor if painting else folder.resolve().name,
        weights=painting.weights if painting else None, rounds=(), plan={}, sampling={}, samples=1,
        seed=painting.seed if painting else 0, limit=None, pictures=True,
    )  # fmt: skip
    asked = tuple(_asked(place, row, folder) for place, row in enumerate(rows))
    answers = tuple(_painted(row, folder, benchmark) for row in rows)
    run = Run(settings, (), asked, answers, f"judged by {head.judge}" if head.judge else "judged by rules")
    judged = JudgedEdits(benchmark, head.figures)
    extra = {"missing": head.missing, "painting": asdict(painting) if painting else None}
    # The figures are there also where nothing could be judged.
    return run, judged, summarize(run, judged) | {"official": head.figures} | extra


def _asked(place: int, row: _Row, folder: Path) -> Asked:
    name = PurePosixPath(row.name)
    if name.is_absolute() or ".." in name.parts:  # the folder may be anybody's
        raise RunError(f"{str(folder / 'scores.jsonl')!r} names {row.name[:80]!r}, which is outside of the folder.")
    source = source_beside(folder / f"{row.name}.png")
    before = [{"type": "image", "image": str(source)}] if source.is_file() else []
    content = [*before, {"type": "text", "text": row.instruction}]
    return Asked(place, row.name, row.groups, {}, [{"role": "user", "content": content}])


def _painted(row: _Row, folder: Path, benchmark: EditBenchmark) -> Painted:
    path = str(folder / f"{row.name}.png")
    if row.scores is None or benchmark.overall not in row.scores:
        return Painted(row.name, 0, 0.0, error=row.error or "it has no score", picture=path)
    said = ", ".join(f"{name} {value:.3g}" for name, value in row.scores.items() if name in benchmark.shown)
    return Painted(row.name, 0, 0.0, score=row.scores[benchmark.overall] / benchmark.highest, parsed=said,
                   finish="stop", picture=path, scores=row.scores, words=row.words)  # fmt: skip
