"""The file that a benchmark's own server takes, of the answers of a finished run."""

import json
from pathlib import Path

from evaluation.benchmark import Benchmark, JudgedElsewhere
from evaluation.runs import Run, RunError
from evaluation.summary import answered


def write_submission(run: Run, benchmark: Benchmark, out: Path) -> tuple[int, list[str]]:
    """Writes every answered question's first answer in the benchmark's form.

    Returns:
        How many answers are in the file, and the ids of the run's questions that are not: failed and withheld ones.

    Raises:
        RunError: the benchmark offers none, the run is not finished or not whole, or the file cannot be written.
    """
    if not isinstance(benchmark, JudgedElsewhere):
        raise RunError(f"{benchmark.title} takes no submissions; `report` shows the scores of its runs.")
    settings, answers = run.settings, run.by_question()
    if len(settings.shards) < settings.shard_count:
        raise RunError(f"these are {len(settings.shards)} of {settings.shard_count} shards; `merge` them first.")
    if waiting := sum(len(rows) < settings.samples for rows in answers.values()):
        raise RunError(f"the run is not finished, {waiting} questions are to come; go on with `run --resume`.")
    had = answered(run)
    questions = {asked.id: asked.question for asked in run.questions}
    file = benchmark.submission([(questions[id], rows[0].response) for id, rows in had.items()])
    try:
        with out.open("x", encoding="utf-8") as there:
            json.dump(file, there, indent=1, ensure_ascii=False)
            there.write("\n")
    except FileExistsError:
        raise RunError(f"{str(out)!r} is there already; write to another file.") from None
    except OSError as error:
        raise RunError(f"{str(out)!r} cannot be written ({error}); write to another place.") from None
    return len(had), [id for id in questions if id not in had]
