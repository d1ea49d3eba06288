"""The server of `fault_server.py` in a process of its own, which can be killed like one and started again.

    with KillableServer(folder, answers=5) as server:
        ...  # server.url; server.asked() and server.answered() count over all its lives
        server.kill()
        server.start()

As a script: `python killable_server.py PORT LOG ANSWERS`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from fault_server import Call, FaultServer, Reply, hang, say


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class KillableServer:
    """A context manager.

    Args:
        folder: for its log.
        answers: calls that it answers in its first life; the others are held until it is killed. Later lives answer
            every call.

    Attributes:
        url: of the protocol, the same in every life.
    """

    def __init__(self, folder: Path, answers: int):
        self._log, self._answers, self._port = folder / "calls.jsonl", answers, free_port()
        self.url = f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> "KillableServer":
        self.start(self._answers)
        return self

    def __exit__(self, *_) -> None:
        self.kill()

    def start(self, answers: int = sys.maxsize) -> None:
        command = [sys.executable, __file__, str(self._port), str(self._log), str(answers)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()

    def kill_once(self, asked: int, answered: int) -> None:
        """As soon as so many calls have come in all, and so many of them are answered."""
        end = time.monotonic() + 60
        while (self.asked().total(), self.answered().total()) != (asked, answered):
            assert time.monotonic() < end, (self.asked().total(), self.answered().total())
            time.sleep(0.01)
        self.kill()

    def asked(self) -> Counter:
        """Calls that came, by their seed."""
        return self._count("asked")

    def answered(self) -> Counter:
        """Calls whose whole answer was sent, by their seed."""
        return self._count("answered")

    def _count(self, what: str) -> Counter:
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return Counter(line["seed"] for line in map(json.loads, lines) if line["what"] == what)


def main(port: str, log: str, answers: str) -> None:
    left = int(answers)
    with open(log, "a", buffering=1) as file:

        def note(what: str, call: Call) -> None:
            file.write(json.dumps({"what": what, "seed": call.body.get("seed")}) + "\n")

        def script(call: Call) -> Reply:
            note("asked", call)
            if call.number >= left:
                return hang()

            async def reply(call: Call) -> None:
                await say("Answer: 4")(call)
                note("answered", call)

            return reply

        with FaultServer(script, port=int(port)):
            print("ready", flush=True)
            signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
