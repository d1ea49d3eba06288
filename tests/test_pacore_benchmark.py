"""`python -m pacore bench`: the ideal schedule it compares with, the server it calls, and the figures it ends with."""

import asyncio
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacore import __main__ as command
from pacore import openai_backend
from pacore.backends import Sampling
from pacore.benchmark import _question, ideal_seconds, p95_ratio
from pacore.delayed_server import DelayedServer, Delays

ROOT = Path(__file__).parent.parent
DELAYS = st.lists(st.integers(1, 20).map(float), min_size=1, max_size=5)
QUESTIONS = st.lists(st.lists(DELAYS, min_size=1, max_size=3), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("questions", "concurrency", "at_once", "seconds"),
    [
        ([[[1, 2, 3], [4]]], 3, 1, 7),  # the synthesis waits for the slowest
        ([[[1, 2, 3], [4]]], 1, 1, 10),  # one after the other
        ([[[1, 2, 3], [4]]], 2, 1, 8),  # 3 follows 1
        ([[[5], [1]], [[1], [1]]], 2, 1, 8),  # the second question begins when the first is done
        ([[[5], [1]], [[1], [1]]], 2, 2, 6),
        ([[[1], [9]], [[2, 2, 2]]], 1, 2, 16),  # the synthesis joins the queue's end
    ],
)
def test_ideal_schedules(questions, concurrency, at_once, seconds):
    assert ideal_seconds(questions, concurrency, at_once) == seconds


@given(QUESTIONS, st.integers(1, 8), st.integers(1, 6))
def test_an_ideal_schedule_is_no_shorter_than_its_work_and_its_longest_question(questions, concurrency, at_once):
    work = sum(sum(map(sum, rounds)) for rounds in questions)
    longest = max(sum(map(max, rounds)) for rounds in questions)
    found = ideal_seconds(questions, concurrency, at_once)
    assert max(work / concurrency, longest) - 1e-9 <= found <= work + 1e-9
    assert ideal_seconds(questions, 100, 100) == pytest.approx(longest)
    assert ideal_seconds(questions, 1, at_once) == pytest.approx(work)


def test_delays_follow_from_the_seed_and_a_share_is_slow():
    plain, some_slow = Delays(2.0, 0.5), Delays(2.0, 0.5, 0.05, 20.0)
    drawn = np.array([plain.of(seed) for seed in range(4000)])
    slowed = np.array([some_slow.of(seed) for seed in range(4000)])
    assert np.median(drawn) == pytest.approx(2.0, rel=0.05) and np.log(drawn).std() == pytest.approx(0.5, rel=0.05)
    slow = slowed != drawn
    assert 0.04 < slow.mean() < 0.06 and np.allclose(slowed[slow], 20 * drawn[slow])
    assert plain.of(7) == plain.of(7)


def test_the_server_takes_what_it_drew_and_keeps_count():
    with DelayedServer(Delays(0.2, 0.1)) as server:
        body = json.dumps({"model": "m", "messages": [], "seed": 5}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.url}/chat/completions", body, headers)
        answer = json.load(urllib.request.urlopen(request, timeout=20))
        calls, answered = server.log()
    assert answer["choices"][0]["message"]["content"].endswith("Answer: 5")
    assert calls == 1 and [call.seed for call in answered] == [5]
    assert answered[0].delay == Delays(0.2, 0.1).of(5) and answered[0].late > -0.01


def test_the_ratio_of_percentiles_and_its_interval():
    times = np.linspace(1, 2, 100)
    assert p95_ratio(3 * times, times) == (pytest.approx(3), [pytest.approx(3)] * 2)
    ratio, (low, high) = p95_ratio(np.random.default_rng(1).exponential(3, 100), times)
    assert low < ratio < high


def test_pictures_are_encoded_ahead_of_the_calls_but_not_all_at_once(monkeypatch):
    """A place at the server waits for no picture, and no number of waiting calls holds more than a few of them."""
    monkeypatch.setattr(openai_backend, "AHEAD", 2)
    encoded = []
    encode = openai_backend._encode
    monkeypatch.setattr(openai_backend, "_encode", lambda picture: (encoded.append(picture), encode(picture))[1])

    async def go(url):
        backend = openai_backend.OpenAIBackend(url, "m", concurrency=1)
        calls = [asyncio.create_task(backend.complete(_question(number), Sampling(seed=number))) for number in range(8)]
        await calls[0]
        before = len(encoded)
        await asyncio.gather(*calls)
        await backend.close()
        return before

    with DelayedServer(Delays(0.4, 0.01)) as server:
        before = asyncio.run(go(server.url))
    assert 3 <= before <= 4 and len(encoded) == 8


def test_many_calls_at_once_share_several_pools_of_connections(monkeypatch):
    monkeypatch.setattr(openai_backend, "POOL", 2)

    async def go(url):
        backend = openai_backend.OpenAIBackend(url, "m", concurrency=6)
        for _ in range(2):  # the second time in the pools that are there
            await asyncio.gather(*(backend.complete(_question(0), Sampling(seed=seed)) for seed in range(9)))
        pools, left = len(backend._clients), sum(backend._calls)
        await backend.close()
        return pools, left

    with DelayedServer(Delays(0.2, 0.01)) as server:
        assert asyncio.run(go(server.url)) == (3, 0)
        assert server.log()[0] == 18


def test_bench_ends_with_one_json_line():
    """At a scale that shows that it works, not how fast: 96 and three times 51 calls of about 0.1 s."""
    arguments = ["bench", "--json", "--questions", "6", "--slow-questions", "3", "--median", "0.1"]
    done = subprocess.run(
        [sys.executable, "-m", "pacore", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(done.stdout.splitlines()) == 1 and "overhead" in done.stderr
    assert found["trajectories"] == found["server_calls"] == 96
    assert found["seconds"] > found["ideal_seconds"] > 96 * 0.1 / 64
    assert found["overhead"] == pytest.approx(found["seconds"] / found["ideal_seconds"] - 1)
    assert len(found["rss_mib"]) == 4 and min(found["rss_mib"]) > 20 and abs(found["memory_growth"]) < 0.2
    for figure in ("straggler_p95_speedup", "straggler_p95_speedup_hedged"):
        low, high = found[f"{figure}_interval"]
        assert 0 < low <= high and found[figure] > 0
    stories = found["stragglers"]
    assert stories["waiting"]["server_calls"] == 51 and not stories["waiting"]["cancelled"]
    assert stories["quorum"]["cancelled"] and not any(story["failures"] for story in stories.values())
    ratio = stories["waiting"]["p95"] / stories["quorum"]["p95"]
    assert found["straggler_p95_speedup"] == pytest.approx(ratio)


@pytest.mark.parametrize("arguments", [["--questions", "0"], ["--slow-questions", "0"], ["--median", "0"]], ids=str)
def test_a_scale_that_makes_no_sense_is_one_clear_line(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["pacore", "bench", *arguments])
    assert command.main() == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {arguments[0]} is 0") and err.count("\n") == 1
