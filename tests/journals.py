"""A journal of the test, work that counts how often it is paid for, and what the journal then holds."""

import asyncio
import json

from pacore.backends import Completion

SAID = Completion("4", "two and two", 7, 3, "stop", (-0.5, -0.1), 0.25, 2)


class Work:
    """Counts how often it is paid for."""

    def __init__(self, said=SAID, seconds=0.0):
        self.said, self.seconds, self.calls = said, seconds, 0

    async def __call__(self):
        self.calls += 1
        await asyncio.sleep(self.seconds)
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


def once(journal, work, key="k", problem="p", round=0, index=0):
    return journal.once(key, problem=problem, round=round, index=index, work=work)


def exported(journal, tmp_path) -> list[dict]:
    count = journal.export(tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == count
    return lines
