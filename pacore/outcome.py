"""What a run of rounds tells while it goes on, and what it leaves."""

from dataclasses import dataclass

from pacore.backends import Completion


class PacoreError(RuntimeError):
    """No answer could be had: a round under its quorum. One line."""


@dataclass(frozen=True)
class Trajectory:
    """One of a round.

    Attributes:
        round, index: from 0; the final round is the last.
        completion: None where it failed or was cancelled.
        message: what it passes on.
        error: why it failed, "" where it did not.
        fatal: every other call would fail in the same way.
        compaction: the call that wrote a `summary`, else None.
    """

    round: int
    index: int
    seed: int
    completion: Completion | None
    message: str = ""
    error: str = ""
    fatal: bool = False
    cancelled: bool = False
    compaction: Completion | None = None


@dataclass(frozen=True)
class Outcome:
    """The answer and what it took.

    Attributes:
        rounds: every trajectory, failed and cancelled ones too; the final round last, if the budget allowed it.
        prompt_tokens, completion_tokens: over all trajectories: the test-time compute.
        seconds: on the clock.
        notes: what was trimmed, cancelled, lost or cut short, each in a line.
    """

    answer: Completion
    rounds: tuple[tuple[Trajectory, ...], ...]
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    failures: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Event:
    """Something happened.

    Attributes:
        kind: `round` (one of `width` begins), `start` (of a trajectory), `trajectory` (one ended), `text` (a piece of
            the final round's, in its `channel`, reasoning or text) or `outcome`.
    """

    kind: str
    round: int = 0
    index: int = 0
    width: int = 0
    piece: str = ""
    channel: str = ""
    trajectory: Trajectory | None = None
    outcome: Outcome | None = None
