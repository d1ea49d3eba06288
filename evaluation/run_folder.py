"""The folder of a run at work; the form of what is in it is told in `evaluation.runs`."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock, Timeout

from evaluation.benchmark import Question
from evaluation.runs import (
    ANSWER,
    Answer,
    Asked,
    RunError,
    Session,
    Settings,
    as_row,
    difference,
    read_head,
    read_rows,
    write_head,
    write_questions,
    write_rows,
)

# What a run that was killed while its folder was made may have left.
_OURS = {"questions.jsonl", "answers.jsonl", "pictures", "lock"}


@dataclass
class RunFolder:
    """The folder of a run at work, held by this process alone.

    Attributes:
        answered: (question's id, sample) of what needs no answer any more; failed ones are asked again.
    """

    path: Path
    settings: Settings
    sessions: tuple[Session, ...]
    answered: dict[tuple[str, int], Answer]
    _lock: FileLock = field(repr=False)

    @classmethod
    def open(
        cls, path: Path, settings: Settings, questions: Iterable[tuple[int, Question, bool]], session: Session,
        resume: bool = False,
    ) -> "RunFolder":  # fmt: skip
        """Makes the folder, or goes on with it.

        Args:
            questions: (place, question, given).
            resume: a run with the same settings may be there already.

        Raises:
            RunError: something is there and `resume` is not set, or it is another run or none; another process works
                on it; or a picture cannot be read.
        """
        check_free(path, resume)
        made = (path / "run.json").is_file()
        lock = FileLock(path / "lock")
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"another process works in {str(path)!r}; wait for it, or write to another --out.") from None
        except OSError as error:
            raise RunError(f"{str(path)!r} cannot be written ({error}); write to another --out.") from None
        try:
            if made:
                return cls._go_on(path, settings, session, lock)
            (path / "answers.jsonl").unlink(missing_ok=True)
            rows = (Asked(place, q.id, q.groups, q.truth, q.conversation, given) for place, q, given in questions)
            write_questions(rows, path)
            write_head(path, settings, (session,))
            return cls(path, settings, (session,), {}, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _go_on(cls, path: Path, settings: Settings, session: Session, lock: FileLock) -> "RunFolder":
        made, sessions = read_head(path)
        if change := difference(made, settings):
            raise RunError(f"the run in {str(path)!r} is another one: {change}; write to another --out.")
        answers = [answer for answer in read_rows(path / "answers.jsonl", ANSWER) if not answer.error]
        answered = {(answer.id, answer.sample): answer for answer in answers}
        write_rows(path / "answers.jsonl", answered.values())
        if sessions[-1].finished is None:  # it was killed
            last = max((answer.at for answer in answers), default=0.0)
            sessions = (*sessions[:-1], replace(sessions[-1], finished=max(last, sessions[-1].started)))
        write_head(path, made, (*sessions, session))
        return cls(path, made, (*sessions, session), answered, lock)

    def add(self, answer: Answer) -> None:
        """Records it. A killed process loses nothing that was added."""
        # After a power failure rows may be gone, yet their trajectories are in the journal and cost nothing again.
        with (self.path / "answers.jsonl").open("a", encoding="utf-8") as file:
            file.write(as_row(answer))
        if not answer.error:
            self.answered[answer.id, answer.sample] = answer

    def close(self, finished: float | None = None) -> None:
        """Lets go of the folder; `finished` where the session came to its end."""
        last = replace(self.sessions[-1], finished=finished)
        write_head(self.path, self.settings, (*self.sessions[:-1], last))
        self._lock.release()


def check_free(path: Path, resume: bool) -> None:
    """Raises RunError where something is there that a run may not write to."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not resume:
        raise RunError(f"{str(path)!r} is there already; add --resume to go on with it, or write to another --out.")
    if not path.is_dir() or not ((path / "run.json").is_file() or all(map(_ours, path.iterdir()))):
        raise RunError(f"{str(path)!r} is there and no run of this command; write to another --out.")


def _ours(path: Path) -> bool:
    return path.name in _OURS or path.name.endswith(".partial")
