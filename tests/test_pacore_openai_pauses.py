"""When the OpenAI backend calls again, how many calls are in flight at once, and that no answer is paid for twice."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_server import FaultServer, hang, say, status
from openai_calls import QUESTION, NoJitter, Pauses, complete

from pacore.backends import Sampling
from pacore.journal import Journal, trajectory_key
from pacore.openai_backend import BACKOFF, MAX_BACKOFF, MAX_RETRY_AFTER, OpenAIBackend

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.usefixtures("one_ssl_context")

# Pauses


@pytest.mark.parametrize(
    "headers, pause",
    [
        ({"Retry-After": "3"}, 3.0),
        ({"Retry-After": "0.25"}, 0.25),
        ({"Retry-After": "86400"}, MAX_RETRY_AFTER),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:09 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 9.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}, MAX_RETRY_AFTER),
        ({"Retry-After": "-5"}, 0.0),
        ({"Retry-After": "nan"}, 0.0),
        ({"Retry-After": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_retry_after_is_honoured_up_to_a_limit(headers, pause):
    pauses = Pauses()
    with FaultServer([status(429, headers=headers), status(503, headers=headers), say()]) as server:
        assert complete(server, sleep=pauses, rng=NoJitter()).attempts == 3
    assert pauses == [pause + BACKOFF, pause + 2 * BACKOFF]


def test_pauses_are_drawn_from_a_growing_range_and_the_generator_decides_them():
    drawn = []
    with FaultServer([status(500)]) as server:
        for seed in (1, 1, 2):
            pauses = Pauses()
            complete(server, sleep=pauses, rng=random.Random(seed), retries=8)
            for n, pause in enumerate(pauses, 1):
                longest = min(MAX_BACKOFF, BACKOFF * 2**n)
                assert longest / 2 <= pause <= longest
            drawn.append(pauses)
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 8


def test_no_more_calls_are_in_flight_than_allowed_and_a_pausing_one_keeps_its_place():
    async def main(server):
        backend = OpenAIBackend(server.url, "stub", concurrency=3, sleep=pause)
        done = await asyncio.gather(*(backend.complete(QUESTION, Sampling(seed=seed)) for seed in range(24)))
        await backend.close()
        return done

    async def pause(seconds):
        pausing.append(len(pausing))
        await asyncio.sleep(0.05)
        others.append(len(server.calls))

    pausing, others = [], []
    with FaultServer(lambda call: status(429) if call.number < 3 else say(delay=0.01)) as server:
        done = asyncio.run(main(server))
    assert server.peak == 3 and len(server.calls) == 27
    assert sorted(entry.attempts for entry in done) == [1] * 21 + [2] * 3
    assert others[0] == 3  # all three places were taken by pausing calls, and nobody else called


# Nothing is paid twice


def test_cancelling_stops_the_work_at_the_server():
    async def main(server):
        backend = OpenAIBackend(server.url, "stub")
        calls = [asyncio.ensure_future(backend.complete(QUESTION, Sampling(seed=seed))) for seed in range(4)]
        while len(server.calls) < 4:
            await asyncio.sleep(0.005)
        for call in calls[1:]:
            call.cancel()
        done = await asyncio.gather(*calls, return_exceptions=True)
        await backend.complete(QUESTION, Sampling(seed=0))
        await backend.close()
        return done

    # By seed: which of the four comes first at the server is not ours to say.
    with FaultServer(lambda call: say(delay=0.2) if call.body["seed"] == 0 else hang()) as server:
        done = asyncio.run(main(server))
    assert done[0].text == "4" and all(isinstance(other, asyncio.CancelledError) for other in done[1:])
    assert server.gone == 3 and len(server.calls) == 5


RUN = """
import asyncio, sys
sys.path.insert(0, sys.argv[3])
from pacore.backends import Sampling
from pacore.journal import Journal, trajectory_key
from pacore.openai_backend import OpenAIBackend

async def main(url, path):
    backend, journal = OpenAIBackend(url, "stub"), Journal(path)
    conversation = [{"role": "user", "content": "What is 2 + 2?"}]

    async def one(seed):
        sampling = Sampling(seed=seed)
        key = trajectory_key(conversation, sampling, backend="stub", problem="p", round=0, index=seed)
        work = lambda: backend.complete(conversation, sampling)
        await journal.once(key, problem="p", round=0, index=seed, work=work)
        print(seed, flush=True)

    await asyncio.gather(*(one(seed) for seed in range(12)))

asyncio.run(main(*sys.argv[1:3]))
"""


def test_a_run_killed_in_the_middle_pays_only_for_what_is_missing(tmp_path):
    """kill -9 of the client: calls are counted at the server."""
    answering = [True]

    def script(call):
        return say(str(call.body["seed"])) if call.body["seed"] < 8 or not answering[0] else hang()

    async def resume(server):
        backend, journal = OpenAIBackend(server.url, "stub"), Journal(tmp_path / "j", lease=0.3)

        async def one(seed):
            sampling = Sampling(seed=seed)
            key = trajectory_key(QUESTION, sampling, backend="stub", problem="p", round=0, index=seed)
            work = lambda: backend.complete(QUESTION, sampling)  # noqa: E731
            return await journal.once(key, problem="p", round=0, index=seed, work=work)

        done = await asyncio.gather(*(one(seed) for seed in range(12)))
        await backend.close()
        totals = journal.totals()
        journal.close()
        return done, totals

    with FaultServer(script) as server:
        command = [sys.executable, "-c", RUN, server.url, str(tmp_path / "j"), str(ROOT)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
            said = {int(run.stdout.readline()) for _ in range(8)}
            while len(server.calls) < 12:
                time.sleep(0.01)
            os.kill(run.pid, signal.SIGKILL)
        assert said == set(range(8)) and len(server.calls) == 12
        answering[0] = False
        done, totals = asyncio.run(resume(server))
    assert [entry.text for entry in done] == [str(seed) for seed in range(12)]
    assert sorted(call.body["seed"] for call in server.calls[12:]) == [8, 9, 10, 11]
    assert [(total.finished, total.completion_tokens) for total in totals] == [(12, 36)]
