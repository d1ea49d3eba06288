"""A run on disk: what was asked, what came back and how it was judged; the form that every report is made from.

A run is one folder:

    run.json          {"form": 1, "settings": Settings, "sessions": [Session, …]}
    questions.jsonl   a row a question of this shard, in the benchmark's order: Asked
    answers.jsonl     a row a question and sample, in the order in which they came in: Answer
    pictures/         what the questions show, each picture once, named by the SHA-256 of its bytes
    journal           every trajectory, finished or lost (SQLite, see `pacore.journal`); not in a merged folder
    lock              held by the process that works here

Rows are JSON objects with the fields of the dataclasses below; readers ignore fields that they do not know. A killed
run leaves at most half a row at the end of answers.jsonl, which is cut off when it goes on. `run.json` is written last
when a folder is made, so a folder without it holds nothing that counts.

Scores and shares are fractions, tokens are counted by the backend, seconds are on the clock.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from evaluation.benchmark import Question, Verdict
from evaluation.kept_pictures import keep_picture, with_pictures

FORM = 1


class RunError(ValueError):
    """A folder that is no run, or not the one that is meant; one line with the remedy."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is asked and how: the same settings give the same run.

    Attributes:
        benchmark, version, split: of `Benchmark`.
        prompts: SHA-256 of the ids and texts of all questions, before they are shared out among shards.
        template: the prompt that replaced the benchmark's own, else None.
        model: as the backend calls it.
        weights: SHA-256 over the local weights' names, sizes and last MiB; None for a model behind a server.
        rounds: trajectories of each round before the last, which has one; () is a single answer.
        plan: `compaction`, `template` (SHA-256 of a synthesis template, else None), `quorum`, `adaptive`, `views`,
            `budget`: as in `pacore.Plan`.
        sampling: `temperature`, `top_p`, `top_k`, `max_tokens` (None: the model's own).
        samples: independent answers a question.
        seed: of the run; every trajectory's follows from it, the question and the sample.
        limit: the first so many questions alone.
        pictures: whether questions with pictures were given to the model; if not, they are withheld.
        blind: whether they were given without their pictures, by their text alone.
        shards, shard_count: which of how many parts of the questions this is, from 1; a merged run holds several.
    """

    benchmark: str
    version: str
    split: str
    prompts: str
    template: str | None
    model: str
    weights: str | None
    rounds: tuple[int, ...]
    plan: dict[str, Any]
    sampling: dict[str, Any]
    samples: int
    seed: int
    limit: int | None
    pictures: bool
    blind: bool = False
    shards: tuple[int, ...] = (1,)
    shard_count: int = 1


@dataclass(frozen=True)
class Session:
    """One process's work on the run; a run that was interrupted has several.

    Attributes:
        started, finished: seconds since 1970. `finished` is None while it is at work, or was killed; a run that goes
            on sets it to the killed session's last answer.
        versions: of `python`, `torch`, `transformers`, `triptych`.
        commit: of this repository, with `+` where files were changed; None outside of it.
        server: the backend's address, None for a model in the process.
    """

    started: float
    finished: float | None
    versions: dict[str, str]
    commit: str | None = None
    server: str | None = None


@dataclass(frozen=True)
class Asked:
    """A question of the run.

    Attributes:
        place: in the benchmark's order, before sharding.
        conversation: as it was asked; pictures are paths, on disk relative to the folder, in memory absolute.
        given: False where it was withheld, for it has pictures and the model was to have none.
    """

    place: int
    id: str
    groups: dict[str, str]
    truth: dict[str, Any]
    conversation: list[dict[str, Any]]
    given: bool = True

    @property
    def question(self) -> Question:
        return Question(self.id, self.conversation, self.truth, self.groups)


@dataclass(frozen=True)
class Member:
    """A trajectory of a round, as `pacore.Trajectory`: its `message`, or the `error` it failed with, or `cancelled`.

    Attributes:
        score, parsed: of its message, as of an answer; None where it was not judged.
    """

    message: str = ""
    error: str = ""
    cancelled: bool = False
    finish: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    score: float | None = None
    parsed: str = ""

    @property
    def finished(self) -> bool:
        return not self.error and not self.cancelled


@dataclass(frozen=True)
class Answer:
    """What came back for one sample of a question.

    Attributes:
        sample: from 0.
        at: when it was recorded, in seconds since 1970.
        error: why there is no answer; then nothing else below counts.
        finish: `stop`, or `length` where it was cut off.
        score, parsed, guessed, modern, note: the `Verdict`; its score is None where the answer is not published.
        prompt_tokens, completion_tokens: of all its trajectories.
        seconds: what it was waited for: those of each round's slowest trajectory, added up; answers overlap in time.
        notes: what the coordination trimmed, cancelled or lost, each in a line.
        rounds: of a coordinated answer, every trajectory, the final round last; () for a single one.
    """

    id: str
    sample: int
    at: float
    error: str = ""
    response: str = ""
    reasoning: str = ""
    finish: str = ""
    score: float | None = None
    parsed: str = ""
    guessed: bool = False
    modern: float | None = None
    note: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    rounds: tuple[tuple[Member, ...], ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Raises ValueError for a failed answer, which was not judged."""
        if self.error:
            raise ValueError(f"{self.id}, sample {self.sample}, has failed: {self.error}")
        return Verdict(self.score, self.parsed, self.guessed, self.modern, self.note)


@dataclass(frozen=True)
class Run:
    """A run in memory: one folder's, or that of several shards.

    Attributes:
        questions: in the benchmark's order, withheld ones too.
        answers: by question and sample.
        how: the answers were had, in words, where the settings do not say it, as of pictures that were painted.
    """

    settings: Settings
    sessions: tuple[Session, ...]
    questions: tuple[Asked, ...]
    answers: tuple[Answer, ...]
    how: str = ""

    def by_question(self) -> dict[str, list[Answer]]:
        """The answers of every question that was given, in the order of their samples; failed ones too."""
        answers: dict[str, list[Answer]] = {asked.id: [] for asked in self.questions if asked.given}
        for answer in self.answers:
            answers[answer.id].append(answer)
        return answers


SETTINGS, SESSIONS = TypeAdapter(Settings), TypeAdapter(tuple[Session, ...])
ASKED, ANSWER = TypeAdapter(Asked), TypeAdapter(Answer)


def read_run(folder: Path) -> Run:
    """A run's folder; it may still be at work. Raises RunError."""
    settings, sessions = read_head(folder)
    questions = [_absolute(asked, folder) for asked in read_rows(folder / "questions.jsonl", ASKED)]
    places = {asked.id: asked.place for asked in questions}
    answers = [answer for answer in read_rows(folder / "answers.jsonl", ANSWER) if answer.id in places]
    answers.sort(key=lambda answer: (places[answer.id], answer.sample))
    return Run(settings, sessions, tuple(questions), tuple(answers))


def read_runs(folders: Sequence[Path]) -> Run:
    """One folder, or the shards of one run together.

    Raises:
        RunError: they are not of one run, or a shard is there twice.
    """
    runs = [read_run(folder) for folder in folders]
    first, questions, answers, sessions, shards = runs[0].settings, [], [], [], []
    for folder, run in zip(folders, runs, strict=True):
        if change := difference(replace(first, shards=()), replace(run.settings, shards=())):
            raise RunError(f"{str(folders[0])!r} and {str(folder)!r} are not shards of one run: {change}.")
        if again := set(shards) & set(run.settings.shards):
            raise RunError(
                f"shard {min(again)} of {first.shard_count} is there twice, in {str(folder)!r} too; give it once."
            )
        shards += run.settings.shards
        sessions += run.sessions
        questions += run.questions
        answers += run.answers
    questions.sort(key=lambda asked: asked.place)
    places = {asked.id: asked.place for asked in questions}
    answers.sort(key=lambda answer: (places[answer.id], answer.sample))
    sessions.sort(key=lambda session: session.started)
    settings = replace(first, shards=tuple(sorted(shards)))
    return Run(settings, tuple(sessions), tuple(questions), tuple(answers))


def write_run(run: Run, folder: Path) -> None:
    """Writes a run, its pictures too, to a folder that is not there. Raises RunError."""
    try:
        folder.mkdir()
        write_questions(run.questions, folder)
        write_rows(folder / "answers.jsonl", run.answers)
        write_head(folder, run.settings, run.sessions)
    except OSError as error:
        raise RunError(f"{str(folder)!r} cannot be made ({error}); write to a new folder.") from None


def texts_of(conversation: list[dict]) -> list:
    """Its words: [role, text or texts] of every turn."""
    return [
        [turn["role"], turn["content"] if isinstance(turn["content"], str)
         else [part["text"] for part in turn["content"] if part["type"] == "text"]]
        for turn in conversation
    ]  # fmt: skip


def difference(made: Settings, asked: Settings) -> str:
    """The first setting in which two runs differ, in words; "" where they do not."""
    for one in fields(Settings):
        before, after = getattr(made, one.name), getattr(asked, one.name)
        if isinstance(before, dict):
            name = next((key for key in {**before, **after} if before.get(key) != after.get(key)), None)
            if name is not None:
                return f"{name} is {before.get(name)!r} there and {after.get(name)!r} here"
        elif before != after:
            if one.name in ("prompts", "weights"):
                return f"the {one.name} have changed"
            return f"{one.name} is {before!r} there and {after!r} here"
    return ""


# Reading and writing


def read_head(folder: Path) -> tuple[Settings, tuple[Session, ...]]:
    path = folder / "run.json"
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
        if head["form"] != FORM:
            raise RunError(f"{str(path)!r} is of form {head['form']!r}, this program reads form {FORM}; run it again.")
        return SETTINGS.validate_python(head["settings"]), SESSIONS.validate_python(head["sessions"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{str(folder)!r} is no run ({_brief(error)}); give a folder that `run` wrote.") from None


def write_head(folder: Path, settings: Settings, sessions: Sequence[Session]) -> None:
    head = {"form": FORM, "settings": asdict(settings), "sessions": [asdict(session) for session in sessions]}
    _write_whole(folder / "run.json", json.dumps(head, indent=2, ensure_ascii=False) + "\n")


def read_rows(path: Path, adapter: TypeAdapter) -> list:
    """The whole rows. Raises RunError."""
    try:
        whole = path.read_bytes() if path.exists() else b""
        # What follows the last line's end is half a row.
        return [adapter.validate_json(line) for line in whole.split(b"\n")[:-1]]
    except (OSError, ValidationError) as error:
        raise RunError(f"{str(path)!r} cannot be read ({_brief(error)}); give a folder that `run` wrote.") from None


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    _write_whole(path, "".join(map(as_row, rows)))


def as_row(row: Any) -> str:
    # A model's words may hold half of a surrogate pair, which UTF-8 has no room for.
    line = json.dumps(asdict(row), ensure_ascii=False) + "\n"
    return line.encode("utf-8", "replace").decode()


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def write_questions(questions: Iterable[Asked], folder: Path) -> None:
    """Writes the questions and their pictures. Raises RunError."""
    (folder / "pictures").mkdir(exist_ok=True)
    rows = []
    for asked in questions:
        try:
            kept = with_pictures(asked.conversation, lambda picture: keep_picture(picture, folder))
        except (OSError, ValueError) as error:
            raise RunError(f"question {asked.id!r}: its picture cannot be read ({_brief(error)}).") from None
        rows.append(replace(asked, conversation=kept))
    write_rows(folder / "questions.jsonl", rows)


def _absolute(asked: Asked, folder: Path) -> Asked:
    where = folder.resolve()
    return replace(asked, conversation=with_pictures(asked.conversation, lambda name: str(where / name)))
