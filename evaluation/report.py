"""What one or several runs of a benchmark come to: their figures, and each against the first by a paired test.

`python -m evaluation report` shows it as tables, Markdown or JSON; `evaluation.page` makes a page of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evaluation.benchmark import Benchmark
from evaluation.benchmarks import benchmark_named
from evaluation.comparison import compare
from evaluation.edit_report import JudgedEdits, holds_edits, read_edits
from evaluation.runs import Run, RunError, Settings, read_head, read_runs
from evaluation.summary import summarize
from evaluation.tables import Section, of_comparison, of_edits, of_summary


@dataclass(frozen=True)
class Report:
    """Runs on the same split of a benchmark.

    Attributes:
        names: of each run's folder; of several shards' with "+" between them.
        summaries: of `evaluation.summary.summarize`, a run each.
        edits: whether they are of pictures that an editor painted; then `benchmark` is a `JudgedEdits`.
        comparisons: of `evaluation.comparison.compare`, the first run against each other one; None for a run that
            has no answered question in common with it.
    """

    benchmark: Benchmark | JudgedEdits
    runs: tuple[Run, ...]
    names: tuple[str, ...]
    summaries: tuple[dict, ...]
    comparisons: tuple[dict | None, ...]
    edits: bool = False

    def as_json(self) -> dict:
        """One run's summary; of several, `runs` and `comparisons`."""
        if len(self.runs) == 1:
            return self.summaries[0]
        return {"runs": list(self.summaries), "comparisons": list(self.comparisons)}

    def tables(self) -> tuple[list[Section], list[str]]:
        """The tables of every run and every comparison, and what has to be said about them."""
        sections, notes = [], []
        several = len(self.runs) > 1
        for name, summary in zip(self.names, self.summaries, strict=True):
            own, said = of_edits(summary) if self.edits else of_summary(summary)
            if several:
                own = [replace(section, title=f"{name}: {section.title}") for section in own]
                said = [f"{name}: {note}" for note in said]
            sections += own
            notes += said
        for name, compared in zip(self.names[1:], self.comparisons, strict=True):
            if compared is None:
                notes.append(f"{self.names[0]} and {name} have no question in common that both have a score of.")
                continue
            own, said = of_comparison(compared)
            sections += own
            notes += said
        return sections, notes


def read_report(folders: Sequence[Path]) -> Report:
    """The runs in the folders, also those at work; shards of one run are put together. Or judged folders of edits.

    Raises:
        RunError: a folder that is no run, runs with different questions, or a shard that is there twice.
        BenchmarkError: a benchmark that there is no more.
    """
    if any(map(holds_edits, folders)):
        return _read_edits(folders)
    shards: list[tuple[Settings, list[Path]]] = []
    for folder in folders:
        whole = replace(read_head(folder)[0], shards=())
        own = next((paths for settings, paths in shards if settings == whole), None)
        if own is None:
            shards.append((whole, [folder]))
        else:
            own.append(folder)
    first = shards[0][0]
    for other, paths in shards[1:]:
        _check_alike(folders[0], first, paths[0], other)
    benchmark = benchmark_named(first.benchmark)
    runs = tuple(read_runs(paths) for _, paths in shards)
    names = tuple("+".join(path.resolve().name for path in paths) for _, paths in shards)
    return Report(benchmark, runs, names, tuple(summarize(run, benchmark) for run in runs),
                  tuple(_compared(runs[0], run) for run in runs[1:]))  # fmt: skip


def _read_edits(folders: Sequence[Path]) -> Report:
    if other := next((folder for folder in folders if not holds_edits(folder)), None):
        raise RunError(f"{str(other)!r} holds no judged edits, as others of these folders do; report each for itself.")
    runs, benchmarks, summaries = zip(*map(read_edits, folders), strict=True)
    for folder, run in zip(folders, runs, strict=True):
        _check_alike(folders[0], runs[0].settings, folder, run.settings)
    return Report(benchmarks[0], runs, tuple(folder.resolve().name for folder in folders), summaries,
                  tuple(_compared(runs[0], run) for run in runs[1:]), edits=True)  # fmt: skip


def _check_alike(folder: Path, first: Settings, another: Path, other: Settings) -> None:
    for name in ("benchmark", "split"):
        a, b = getattr(first, name), getattr(other, name)
        if a != b:
            raise RunError(f"{str(folder)!r} and {str(another)!r} have different questions: {name} is {a!r} and {b!r}; "
                           f"report each for itself.")  # fmt: skip


def _compared(first: Run, other: Run) -> dict | None:
    scored = [{answer.id for answer in run.answers if answer.score is not None} for run in (first, other)]
    return compare(first, other) if scored[0] & scored[1] else None
