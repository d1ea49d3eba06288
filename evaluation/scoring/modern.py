"""What a modern verifier says of a response: math-verify, at work in a process of its own, under a hard time limit.

Its verdicts stand beside the official ones and never replace them: it reads more notations, tolerates no rounding, and
takes what follows "the answer is" in ways of its own.
"""

import atexit
import json
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

SECONDS = 1.0  # an answer, within the process
GRACE_SECONDS = 0.5  # more, then the process itself is ended, and another one begins
START_SECONDS = 120.0  # until the first answer can be asked for; seconds on a machine with nothing else to do
MAX_CHARACTERS = 4_000  # of a response, from its end
RESPAWNS = 3  # failed starts in a row, after which it is not tried again

# math-verify knows the letter of an option only where it stands alone.
_DRESSED = re.compile(r"\\text ?\{ ?\(?([A-E])\)? ?\}|\(([A-E])\)")

_ROOT = Path(__file__).resolve().parents[2]


class Verifier:
    """One process, begun when it is first asked, and one answer at a time; safe to share between threads."""

    def __init__(self, seconds: float = SECONDS):
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._answers: queue.Queue[str] = queue.Queue()
        self._failed_starts = 0

    def verify(self, response: str, values: Sequence[str] = (), letters: Sequence[str] = ()) -> float | None:
        """1.0 where math-verify finds one of the true values or letters in the response, else 0.0; never raises.

        Also 0.0 where it comes to no end in time, or its process dies of the text. None where it cannot be started.

        Args:
            values: LaTeX, without dollar signs.
            letters: "A" to "E".
        """
        response = response[-MAX_CHARACTERS:]
        if letters:
            response = _DRESSED.sub(lambda found: found[1] or found[2], response)
        asked = {"response": response, "values": list(values), "letters": list(letters),
                 "seconds": self._seconds}  # fmt: skip
        with self._lock:
            if not self._ready():
                return None
            try:
                # ASCII escapes: half a surrogate pair is no UTF-8.
                self._process.stdin.write(json.dumps(asked) + "\n")
                self._process.stdin.flush()
                return float(json.loads(self._answers.get(timeout=self._seconds + GRACE_SECONDS))["right"])
            except (OSError, ValueError, queue.Empty):
                self._end()
                return 0.0

    def close(self) -> None:
        """Ends the process; asked again, another one begins."""
        with self._lock:
            self._end()

    def _ready(self) -> bool:
        if self._process is not None and self._process.poll() is None:
            return True
        self._end()
        if self._failed_starts >= RESPAWNS:
            return False
        try:
            self._start()
        except (OSError, ValueError, queue.Empty):
            self._failed_starts += 1
            self._end()
            return False
        self._failed_starts = 0
        return True

    def _start(self) -> None:
        self._answers = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "evaluation.scoring.verifier_process"], cwd=_ROOT, text=True, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        threading.Thread(target=_pass_on, args=(self._process, self._answers), daemon=True).start()
        json.loads(self._answers.get(timeout=START_SECONDS))

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                try:
                    pipe.close()
                except OSError:  # what was still to be written has no reader
                    continue


def _pass_on(process: subprocess.Popen, answers: queue.Queue[str]) -> None:
    """Lines as they come; at the end an empty one, which is no JSON."""
    try:
        for line in process.stdout:
            answers.put(line)
    except ValueError:  # closed by `_end`
        pass
    answers.put("")


_SHARED = Verifier()
atexit.register(_SHARED.close)


def verify(response: str, values: Sequence[str] = (), letters: Sequence[str] = ()) -> float | None:
    """See `Verifier.verify`; by the one process that this one has."""
    return _SHARED.verify(response, values, letters)
