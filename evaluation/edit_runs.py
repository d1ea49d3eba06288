"""A folder of pictures that an editor painted for a benchmark: made, gone on with, and judged.

    edits.json                what painted them and how: `Painting`; not there where others did
    fullset/…/KEY.png         a result, under its task's name
    fullset/…/KEY_SRCIMG.png  what it is compared with, as the official layout of GEdit-Bench has it
    scores.jsonl              a row a task, from the last judging: {name, groups, instruction, scores, words | error}
    judged.json               what that judging came to, written last: its figures, the judge, what was missing
    judge                     every word of the judge (SQLite, see `pacore.journal`)
    lock                      held by the process that works here

A picture is there whole or not at all; what is there is not painted again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from evaluation.benchmark import BenchmarkError
from evaluation.edit_benchmark import EditScores, EditTask
from evaluation.runner import weights_digest
from evaluation.runs import RunError
from vlm.pictures import PictureError

T = TypeVar("T")

FORM = 1


@dataclass(frozen=True)
class Painting:
    """Everything that decides what is painted, so that a folder holds one editor's work alone.

    Attributes:
        benchmark, version, split, data: as they were asked for; `data` is None for the benchmark's own source.
        tasks: SHA-256 of all names and instructions.
        editor, weights: its folder's name, and SHA-256 as `weights_digest` over its parts.
        steps, guidance: of sampling; None for the editor's own.
        seed: of the run; every picture's follows from it and the task's name.
        size: in pixels, of pictures that are drawn.
    """

    benchmark: str
    version: str
    split: str
    data: str | None
    tasks: str
    editor: str
    weights: str
    steps: int | None
    guidance: float | None
    seed: int
    size: int


PAINTING = TypeAdapter(Painting)


def painting_of(folder: Path) -> Painting | None:
    """What the folder says of itself; None where it says nothing. Raises RunError."""
    try:
        head = json.loads((folder / "edits.json").read_text(encoding="utf-8"))
        if head.pop("form") != FORM:
            raise ValueError("it is of another form")
        return PAINTING.validate_python(head)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, AttributeError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{str(folder / 'edits.json')!r} cannot be read ({reason}); give another folder.") from None


def check_folder(folder: Path, painting: Painting, resume: bool) -> None:
    """Raises RunError where something is there that may not be painted into, another editor's pictures for instance."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    made = painting_of(folder)
    if made is None:
        raise RunError(f"{str(folder)!r} is there and not of this command; write to another --out.")
    if not resume:
        raise RunError(f"{str(folder)!r} is there already; add --resume to go on with it, or write to another --out.")
    now = asdict(painting)
    for name, before in asdict(made).items():
        if now[name] != before:
            raise RunError(
                f"the pictures in {str(folder)!r} are others: {name} is {before!r} there and {now[name]!r} here; write "
                f"to another --out."
            )


def make_folder(folder: Path, painting: Painting) -> None:
    """Makes the folder where it is not there yet. Raises RunError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "edits.json").write_text(json.dumps({"form": FORM} | asdict(painting), indent=2) + "\n", "utf-8")
    except OSError as error:
        raise RunError(f"{str(folder)!r} cannot be written ({error}); write to another --out.") from None


@contextmanager
def held(folder: Path):
    """The folder, for this process alone. Raises RunError."""
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"another process works in {str(folder)!r}; wait for it.") from None
    except OSError as error:
        raise RunError(f"{str(folder)!r} cannot be written ({error}).") from None
    try:
        yield
    finally:
        lock.release()


def digest_of(tasks: Sequence[EditTask]) -> str:
    return hashlib.sha256(json.dumps([[task.name, task.instruction] for task in tasks]).encode()).hexdigest()


def editor_digest(editor: Path) -> str:
    """Of a saved pipeline, whose parts are folders."""
    parts = sorted({path.parent for path in editor.rglob("*.safetensors")})
    return hashlib.sha256("".join(weights_digest(part) for part in parts).encode()).hexdigest()


def result_of(folder: Path, task: EditTask) -> Path:
    return folder / f"{task.name}.png"


def source_beside(result: Path) -> Path:
    """What a result is compared with."""
    return result.with_name(f"{result.stem}_SRCIMG.png")


# Judging


def judged(
    tasks: Sequence[EditTask], judge_one: Callable[[EditTask], T], at_once: int,
    on_done: Callable[[EditTask, str], None] = lambda task, error: None,
) -> tuple[dict[str, T], dict[str, str]]:  # fmt: skip
    """Task's name to what `judge_one` found, and to why there is nothing; in the order of the tasks."""
    found, failed = {}, {}
    pool = ThreadPoolExecutor(at_once)
    try:
        running = {pool.submit(judge_one, task): task for task in tasks}
        for future in as_completed(running):
            task, error = running[future], ""
            try:
                found[task.name] = future.result()
            except (BenchmarkError, PictureError) as problem:
                failed[task.name] = error = str(problem)
            on_done(task, error)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    order = [task.name for task in tasks]
    return {n: found[n] for n in order if n in found}, {n: failed[n] for n in order if n in failed}


def write_scores(
    folder: Path, tasks: Sequence[EditTask], found: dict[str, EditScores], failed: dict[str, str], head: dict
) -> None:
    """Writes scores.jsonl, and `head` as judged.json."""
    rows = [
        {"name": task.name, "groups": task.groups, "instruction": task.instruction}
        | (asdict(found[task.name]) if task.name in found else {"error": failed[task.name]})
        for task in tasks if task.name in found or task.name in failed
    ]  # fmt: skip
    (folder / "judged.json").unlink(missing_ok=True)  # it belongs to the rows that are there
    _write_whole(folder / "scores.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    _write_whole(folder / "judged.json", json.dumps(head, indent=2, ensure_ascii=False) + "\n")


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    # A judge's words may hold half of a surrogate pair, which UTF-8 has no room for.
    partial.write_bytes(text.encode("utf-8", "replace"))
    os.replace(partial, path)
