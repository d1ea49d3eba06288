"""What coordination costs beside the calls themselves, and what a quorum saves where some of the calls are slow.

Everything is real but the model: `solve`, the OpenAI backend, a journal on disk (in the folder for temporary files,
TMPDIR), and HTTP to another process, whose answers take as long as their seeds say (`pacore.delayed_server`).
"""

import asyncio
import heapq
import json
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import openai
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

from pacore.coordination import Event, Outcome, Plan, solve
from pacore.delayed_server import DelayedServer, Delays
from pacore.journal import Journal
from pacore.openai_backend import MAX_CONCURRENCY, OpenAIBackend

SPREAD = 0.5  # of the delays' logarithm: a tenth of the calls take at least twice the median

# For the overhead: 125 questions of 15 trajectories and a synthesis are 2,000.
WIDTH, CONCURRENCY, AT_ONCE = 15, 64, 16

# For the stragglers.
SLOW_SHARE, SLOW_FACTOR = 0.05, 20.0
WAITING = Plan(rounds=(16,))
QUORUM = replace(WAITING, quorum=13 / 16)
HEDGED = replace(QUORUM, hedge=3.0)
GAP = 0.3  # between the beginnings of two questions, in medians of a call


def bench(as_json: bool, questions: int, slow_questions: int, median: float) -> None:
    """Prints a table; as the last line one JSON object with these figures, those of `overhead` and of `stragglers`.

    `straggler_p95_speedup` is the 95th percentile of a question's time without a quorum over the one with, and
    `straggler_p95_speedup_hedged` over the one with a quorum and a hedge: a quorum cannot spare the one call of the
    synthesis, of which a twentieth is slow too, so that without a hedge the 95th percentile lies on the very border of
    the slow ones and is as good as drawn by lot. Each has its bootstrap interval (95 %, over questions).

    Args:
        questions: for the overhead, of 16 trajectories each.
        slow_questions: for the stragglers, of 17.
        median: of the calls' delays, in seconds.
    """
    load = os.getloadavg()[0]
    status = Console(stderr=True).status("")
    with tempfile.TemporaryDirectory() as folder, status:
        status.update("overhead")
        found = asyncio.run(overhead(questions, median, Path(folder)))
        times, stories = {}, {}
        for name, plan in (("waiting", WAITING), ("quorum", QUORUM), ("hedged", HEDGED)):
            status.update(f"stragglers, {name}")
            times[name], stories[name] = asyncio.run(stragglers(plan, slow_questions, median, Path(folder)))
    for name, figure in (("quorum", "straggler_p95_speedup"), ("hedged", "straggler_p95_speedup_hedged")):
        found[figure], found[f"{figure}_interval"] = p95_ratio(times["waiting"], times[name])
    console = Console(stderr=as_json)
    console.print(_figures(found), _stories(stories))
    if as_json:
        setting = {"slow_questions": slow_questions, "load_average_before": load, "cores": os.cpu_count()}
        print(json.dumps(found | {"stragglers": stories} | setting | {"openai": openai.__version__}))


def _figures(found: dict) -> Table:
    table = Table("figure", "value")
    for name, value in found.items():
        values = value if isinstance(value, list) else [value]
        table.add_row(name, ", ".join(_short(value) for value in values))
    return table


def _stories(stories: dict[str, dict]) -> Table:
    table = Table("seconds a question", *next(iter(stories.values())))
    for name, story in stories.items():
        table.add_row(name, *map(_short, story.values()))
    return table


def _short(value: float | int) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


async def overhead(questions: int, median: float, folder: Path) -> dict:
    """What 15 trajectories and a synthesis a question take, 64 calls and 16 questions at once.

    Returns:
        overhead: time on the clock over `ideal_seconds` of the delays that the server drew, minus 1.
        server_calls: that arrived; more than `trajectories` if anything had to be tried again.
        server_late_ms: median time by which an answer left the server later than drawn; it counts as overhead.
        client_cpu_ms: processor time of this process a trajectory.
        rss_mib: its resident memory after each quarter of the trajectories.
        memory_growth: the last of these over the first, minus 1.
    """
    total = questions * (WIDTH + 1)
    seen, rss_mib = 0, []

    def on_event(event: Event) -> None:
        nonlocal seen
        if event.kind == "trajectory":
            seen += 1
            if seen * 4 // total > len(rss_mib):
                rss_mib.append(round(psutil.Process().memory_info().rss / 2**20, 1))

    seeds: dict[int, list[list[int]]] = {}
    numbers = iter(range(questions))
    with DelayedServer(Delays(median, SPREAD)) as server:
        backend = await OpenAIBackend.connect(server.url, concurrency=CONCURRENCY)
        journal = Journal(folder / "overhead")

        async def work() -> None:
            for number in numbers:
                outcome = await solve(
                    backend, _question(number), Plan(rounds=(WIDTH,)), problem=str(number), journal=journal,
                    on_event=on_event,
                )  # fmt: skip
                seeds[number] = [[t.seed for t in trajectories] for trajectories in outcome.rounds]

        started, cpu = time.monotonic(), time.process_time()
        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
        await backend.close()
        journal.close()
        calls, answered = server.log()
    drawn = {call.seed: call.delay for call in answered}
    delays = [[[drawn[seed] for seed in trajectories] for trajectories in seeds[i]] for i in range(questions)]
    ideal = ideal_seconds(delays, CONCURRENCY, AT_ONCE)
    return {
        "overhead": seconds / ideal - 1,
        "seconds": seconds,
        "ideal_seconds": ideal,
        "trajectories": seen,
        "concurrency": CONCURRENCY,
        "median_delay": median,
        "server_calls": calls,
        "server_late_ms": 1e3 * statistics.median(call.late for call in answered),
        "client_cpu_ms": 1e3 * cpu / seen,
        "rss_mib": rss_mib,
        "memory_growth": rss_mib[-1] / rss_mib[0] - 1,
    }


def ideal_seconds(questions: Sequence[Sequence[Sequence[float]]], concurrency: int, at_once: int) -> float:
    """When the last answer comes if nothing but the calls takes time.

    The rules are the client's own: `at_once` questions are in work, the next begins when one of them is done; a round's
    calls, in their order, join one queue when the round before is in; `concurrency` calls run, and a place that falls
    free goes to the first of the queue. It is not the shortest schedule there is: nobody knows the delays beforehand.

    Args:
        questions: in their order; of each the rounds, of each the calls' delays in seconds.
    """
    queue: deque[tuple[float, int, int]] = deque()  # (delay, question, round)
    running: list[tuple[float, int, int]] = []  # (end, question, round), a heap
    left = [[len(delays) for delays in rounds] for rounds in questions]
    others = iter(range(len(questions)))
    now = 0.0

    def begin(question: int | None, round: int = 0) -> None:
        if question is not None:
            queue.extend((delay, question, round) for delay in questions[question][round])

    for _ in range(at_once):
        begin(next(others, None))
    while queue or running:
        while queue and len(running) < concurrency:
            delay, question, round = queue.popleft()
            heapq.heappush(running, (now + delay, question, round))
        now, question, round = heapq.heappop(running)
        left[question][round] -= 1
        if not left[question][round]:
            last = round == len(left[question]) - 1
            begin(*((next(others, None),) if last else (question, round + 1)))
    return now


async def stragglers(plan: Plan, questions: int, median: float, folder: Path) -> tuple[np.ndarray, dict]:
    """Seconds that each question takes under `plan`, and what came of the calls, of which 5 % take 20 times as long.

    Seeds and delays are the same for every plan. Questions begin at fixed times, however long those before them take,
    and there is a place for every call: none waits for another's.
    """
    with DelayedServer(Delays(median, SPREAD, SLOW_SHARE, SLOW_FACTOR)) as server:
        backend = await OpenAIBackend.connect(server.url, concurrency=MAX_CONCURRENCY)
        journal = Journal(folder / f"stragglers {plan.quorum} {plan.hedge}")
        started = time.monotonic()

        async def timed(number: int) -> tuple[float, Outcome]:
            due = started + number * GAP * median
            await asyncio.sleep(due - time.monotonic())
            outcome = await solve(backend, _question(number), plan, problem=str(number), journal=journal)
            return time.monotonic() - due, outcome

        took, outcomes = zip(*await asyncio.gather(*map(timed, range(questions))), strict=True)
        cancelled = sum(total.cancelled for total in journal.totals())
        await backend.close()
        journal.close()
        calls, _ = server.log()
    story = {f"p{p}": float(np.percentile(took, p)) for p in (50, 90, 95, 99)}
    failures = sum(outcome.failures for outcome in outcomes)
    return np.array(took), story | {"server_calls": calls, "cancelled": cancelled, "failures": failures}


def p95_ratio(without: np.ndarray, having: np.ndarray) -> tuple[float, list[float]]:
    """(ratio of the 95th percentiles, its interval); the two are of the same questions."""
    drawn = np.random.default_rng(0).integers(len(without), size=(2000, len(without)))
    ratios = np.percentile(without[drawn], 95, axis=1) / np.percentile(having[drawn], 95, axis=1)
    ratio = float(np.percentile(without, 95) / np.percentile(having, 95))
    return ratio, [float(border) for border in np.percentile(ratios, (2.5, 97.5))]


def _question(number: int) -> list[dict]:
    """A conversation about a picture of its own; what it shows does not matter."""
    picture = Image.linear_gradient("L").resize((320, 240)).convert("RGB")
    picture.paste((37 * number % 256, 90, 160), (20, 20, 40 + number % 200, 120))
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": f"What do the bars add up to? ({number})"}]
    return [{"role": "user", "content": parts}]
