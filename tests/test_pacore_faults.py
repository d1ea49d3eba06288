"""Every fault, in a batch and through the endpoint: each trajectory is accounted for, and none is paid for twice.

Single calls of the backend meet the same faults in `test_pacore_openai_faults.py`, a killed batch in
`test_pacore_command.py`.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import openai
import pytest
from endpoint import QUESTION, app_of, ask, events, joined, refusal
from fault_server import FaultServer, hang, raw, reset, say, status, trickle, truncated
from killable_server import KillableServer, free_port

import pacore.openai_backend
from pacore import __main__ as command
from pacore.backends import BackendError, Sampling
from pacore.journal import Journal
from pacore.openai_backend import OpenAIBackend
from vlm.sampling import derive_seed

ROOT = Path(__file__).resolve().parents[1]

FAULTS = {
    "500": status(500),
    "429 with Retry-After": status(429, headers={"Retry-After": "0.2"}),
    "hang": hang(),
    "reset in mid-body": reset(),
    "truncated JSON": truncated(),
    "wrong schema": raw({"choices": [{"message": {"content": 4}, "finish_reason": "stop"}]}),
    "slow trickle": trickle(0.1),
}
every_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)

WIDTH, QUESTIONS = 3, 6


pytestmark = pytest.mark.usefixtures("one_ssl_context")


@pytest.fixture
def short_pauses(monkeypatch):
    monkeypatch.setattr(pacore.openai_backend, "BACKOFF", 0.01)


class Batch:
    """`python -m pacore batch` over questions of the test, in this process."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self._monkeypatch = folder, monkeypatch
        rows = [{"id": f"q{n}", "question": f"What is {n} + 1?"} for n in range(QUESTIONS)]
        (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self, url: str, *options: object) -> int:
        """The exit code; a second run goes on with the first one's output."""
        files = [self.folder / name for name in ("in.jsonl", "out.jsonl", "all.jsonl")]
        arguments = ["batch", *files[:2], "--export", files[2], "--resume", "--base-url", url, "--rounds", WIDTH]
        self._monkeypatch.setattr(sys, "argv", ["pacore", *map(str, [*arguments, *options])])
        return command.main()

    def rows(self) -> dict[str, dict]:
        """By id, the lines of the output."""
        rows = [json.loads(line) for line in (self.folder / "out.jsonl").read_text().splitlines()]
        assert sorted(row["id"] for row in rows) == [f"q{n}" for n in range(QUESTIONS)]
        return {row["id"]: row for row in rows}

    def trajectories(self) -> list[dict]:
        """The journal's lines, each with its seed and how many tries it took in all."""
        lines = [json.loads(line) for line in (self.folder / "all.jsonl").read_text().splitlines()]
        for line in lines:
            line["seed"] = seed_of(line["problem"], line["round"], line["index"])
            line["tries"] = line.get("attempts", 0) + sum(loss["attempts"] for loss in line["losses"])
        return lines


@pytest.fixture
def batch(tmp_path, monkeypatch):
    return Batch(tmp_path, monkeypatch)


def seed_of(problem: str, round: int, index: int) -> int:
    return derive_seed(0, problem, round, index) % 2**31


ALL = [(f"q{n}", round, index) for n in range(QUESTIONS) for round in (0, 1) for index in range((WIDTH, 1)[round])]


# Faults of single calls


def timeout_for(fault) -> float:
    """Seconds: short for the faults that take one, and long for a busy machine."""
    return 1.0 if fault in (FAULTS["hang"], FAULTS["slow trickle"]) else 20.0


@every_fault
def test_in_a_batch_every_call_is_accounted_for_and_a_resumed_run_pays_for_the_failures_alone(
    batch, short_pauses, fault
):
    # By seed: some calls fail until the server is mended, some once, and the rest never.
    doomed = {seed_of(*place) for place in [("q1", 0, 0), ("q2", 1, 0), *(("q3", 0, index) for index in range(WIDTH))]}
    shaky = {seed_of(*place) for place in [("q0", 0, 1), ("q1", 1, 0), ("q4", 0, 2)]}
    mended, seen, timeout = False, Counter(), timeout_for(fault)

    def script(call):
        seed = call.body["seed"]
        seen[seed] += 1
        fails = (seed in doomed and not mended) or (seed in shaky and seen[seed] == 1)
        return fault if fails else say("Answer: 4")

    with FaultServer(script) as server:
        assert batch.run(server.url, "--retries", "1", "--timeout", timeout) == 1
        rows, trajectories, paid = batch.rows(), batch.trajectories(), seen.copy()
        mended = True
        assert batch.run(server.url, "--retries", "1", "--timeout", timeout) == 0
        calls = server.calls
    assert {id_ for id_, row in rows.items() if row["error"]} == {"q2", "q3"}
    assert rows["q1"]["usage"]["failures"] == 1 and "1 of 3 failed" in rows["q1"]["notes"][0]
    assert [bool(entry["error"]) for entry in rows["q1"]["rounds"][0]] == [True, False, False]
    # Nothing is lost: all that was begun has ended, in the way that its server's answers say.
    begun = [place for place in ALL if place != ("q3", 1, 0)]  # a synthesis of nothing is never asked for
    assert sorted((line["problem"], line["round"], line["index"]) for line in trajectories) == begun
    for line in trajectories:
        assert line["status"] == ("failed" if line["seed"] in doomed else "finished")
        assert line["tries"] == paid[line["seed"]] == 1 + (line["seed"] in doomed | shaky)
        assert line.get("text") == (None if line["seed"] in doomed else "Answer: 4")
    # Nothing is paid twice: the second run called for what q2 and q3 lack, and for nothing else.
    lacking = {seed_of("q2", 1, 0): 1, seed_of("q3", 1, 0): 1} | {seed_of("q3", 0, n): 1 for n in range(WIDTH)}
    assert seen - paid == Counter(lacking) and len(calls) == seen.total()
    assert not any(row["error"] for row in batch.rows().values())
    assert sum(line["tries"] for line in batch.trajectories()) == seen.total()
    if fault is FAULTS["429 with Retry-After"]:
        for seed in shaky:
            first, second = (call.at for call in calls if call.body["seed"] == seed)
            assert second - first >= 0.2


@every_fault
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_through_the_endpoint_a_fault_is_tried_again_counted_or_told(short_pauses, fault, stream):
    """One request each: a fault that passes, one of a trajectory that stays, and one of all that stays."""

    def endpoint(server, **fields):
        async def connect():
            return await OpenAIBackend.connect(server.url, retries=1, timeout=timeout_for(fault))

        return ask(app_of(asyncio.run(connect())), model="stub", stream=stream, **fields)

    with FaultServer([fault, say("Answer: 4")]) as server:
        response = endpoint(server)
    assert "Answer: 4" in response.text and len(server.calls) == 4
    lost = []

    def script(call):  # whichever call is first stays lost
        lost.append(call.body["seed"]) if not lost else None
        return fault if call.body["seed"] == lost[0] else say("Answer: 4")

    with FaultServer(script) as server:
        response = endpoint(server)
    assert len(server.calls) == 4
    if stream:
        *chunks, done = events(response)
        assert done == "[DONE]" and joined(chunks, "content") == "Answer: 4"
        assert "failed: http://127.0.0.1" in joined(chunks, "reasoning_content")
    else:
        usage = response.json()["usage"]
        assert usage["pacore"]["failures"] == 1 and usage["completion_tokens"] == 6
    with FaultServer([fault]) as server:
        response = endpoint(server)
    assert len(server.calls) == 4
    if stream:
        *_, last = events(response)
        assert last["error"]["code"] == "backend_failed" and "2 of 2 failed" in last["error"]["message"]
    else:
        assert "2 of 2 failed" in refusal(response, 502)["message"]


# kill -9 of the backend


def test_a_backend_that_is_killed_and_comes_back_is_waited_for(batch, tmp_path):
    with KillableServer(tmp_path, answers=4) as server:

        def strike():
            server.kill_once(asked=8, answered=4)  # in the first round of several questions
            server.start()

        striking = threading.Thread(target=strike)
        striking.start()
        code = batch.run(server.url, "--calls", "4")
        striking.join()
    assert code == 0 and {row["answer"] for row in batch.rows().values()} == {"Answer: 4"}
    trajectories = batch.trajectories()
    assert [line["status"] for line in trajectories] == ["finished"] * len(ALL)
    assert not any(line["losses"] for line in trajectories)
    seeds = {seed_of(*place) for place in ALL}
    assert server.answered() == Counter(seeds)  # each once
    assert server.asked().total() == len(ALL) + 4 and set(server.asked()) == seeds
    # Refused connections are tries too, and no call that reaches the server.
    assert all(line["tries"] >= server.asked()[line["seed"]] for line in trajectories)


def test_a_backend_that_is_killed_for_good_fails_what_it_held_and_a_resumed_run_finishes(batch, tmp_path, short_pauses):
    with KillableServer(tmp_path, answers=7) as server:
        striking = threading.Thread(target=server.kill_once, args=(11, 7))
        striking.start()
        code = batch.run(server.url, "--calls", "4", "--retries", "2")
        striking.join()
        rows, trajectories = batch.rows(), batch.trajectories()
        had = server.answered()
        assert code == 1 and any(row["error"] for row in rows.values())
        finished = [line for line in trajectories if line["status"] == "finished"]
        assert {line["seed"] for line in finished} == set(had) and had.total() == 7
        for line in trajectories:
            if line["status"] != "finished":
                assert line["status"] == "failed" and "text" not in line and line["tries"] == 3
        for row in rows.values():
            assert row["error"] or row["answer"]
            assert not row["error"] or "127.0.0.1" in row["error"]
        server.start()
        assert batch.run(server.url) == 0
        assert not any(row["error"] for row in batch.rows().values())
        assert set(server.answered().values()) == {1} and had <= server.answered()
        # A synthesis that failed had fewer messages to read: it is another one, which nobody asks for again.
        done = {(line["problem"], line["round"], line["index"]) for line in batch.trajectories() if "text" in line}
        assert done == set(ALL)


def test_a_server_that_has_answered_may_come_back_and_is_not_given_up_for_all(tmp_path, short_pauses):
    async def main(server):
        backend = OpenAIBackend(server.url, "stub", retries=1)
        await backend.complete(QUESTION, Sampling(seed=1))
        await asyncio.to_thread(server.kill)
        with pytest.raises(BackendError) as caught:
            await backend.complete(QUESTION, Sampling(seed=2))
        server.start()
        again = await backend.complete(QUESTION, Sampling(seed=2))
        await backend.close()
        return caught.value, again

    with KillableServer(tmp_path, answers=1) as server:
        error, again = asyncio.run(main(server))
    assert not error.fatal and error.attempts == 2 and "check the base URL and that the server runs" in str(error)
    assert again.text == "Answer: 4" and server.asked() == Counter((1, 2))


# The end of our server, by kill -9 and by a stop


@contextlib.contextmanager
def serving(backend_url: str, journal: Path):
    """(the process, its address) of `python -m pacore serve`, once it answers."""
    port = free_port()
    arguments = ["serve", "--base-url", backend_url, "--port", port, "--rounds", WIDTH, "--journal", journal]
    with subprocess.Popen([sys.executable, "-m", "pacore", *map(str, arguments)], cwd=ROOT) as process:
        try:
            address, end = f"http://127.0.0.1:{port}", time.monotonic() + 60
            while True:
                with contextlib.suppress(httpx.TransportError):
                    httpx.get(f"{address}/health")
                    break
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.05)
            yield process, address
        finally:
            process.kill()


ASKED = {False: "What is 1 + 1?", True: "What is 2 + 2?"}


def ask_both(address: str) -> dict[bool, str | Exception]:
    """By whether the client streams, the text it was answered or the error it met; both ask at the same time."""
    results = {}

    def client(stream):
        messages = [{"role": "user", "content": ASKED[stream]}]
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as official:
            try:
                answer = official.chat.completions.create(model="stub", messages=messages, stream=stream)
                pieces = [chunk.choices[0].delta.content or "" for chunk in answer] if stream else None
                results[stream] = "".join(pieces) if stream else answer.choices[0].message.content
            except (openai.APIError, httpx.TransportError) as error:
                results[stream] = error

    threads = [threading.Thread(target=client, args=(stream,), daemon=True) for stream in ASKED]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_our_server_killed_in_the_middle_tells_its_clients_and_goes_on_from_its_journal(tmp_path):
    restarted = threading.Event()
    held = {}  # of each question the seed of the call that is in work when the server is killed

    def script(call):
        question = next(question for question in ASKED.values() if question in json.dumps(call.body))
        holding = held.setdefault(question, call.body["seed"]) == call.body["seed"] and not restarted.is_set()
        return hang() if holding else say("Answer: 4")

    def strike(process):
        with contextlib.closing(Journal(tmp_path / "journal")) as journal:
            while sum(total.finished for total in journal.totals()) < 2 * (WIDTH - 1) or len(held) < 2:
                time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        killed.append(time.monotonic())

    killed = []
    with FaultServer(script) as server:
        with serving(server.url, tmp_path / "journal") as (process, address):
            striking = threading.Thread(target=strike, args=(process,), daemon=True)
            striking.start()
            results = ask_both(address)
            assert time.monotonic() - killed[0] < 10
        assert set(results) == {False, True} and all(isinstance(result, Exception) for result in results.values())
        before = Counter(call.body["seed"] for call in server.calls)
        assert before.total() == len(before) == 2 * WIDTH
        restarted.set()
        with serving(server.url, tmp_path / "journal") as (_, address):
            results = ask_both(address)
    assert results == {False: "Answer: 4", True: "Answer: 4"}
    # What was in work is asked for again, and each synthesis for the first time.
    after = Counter(call.body["seed"] for call in server.calls) - before
    assert after.total() == 4 and set(after) & set(before) == set(held.values())


def test_our_server_that_is_stopped_says_so_and_stops_its_work(tmp_path):
    stopped = []

    def strike(process, server):
        while len(server.calls) < 2 * WIDTH:
            time.sleep(0.02)
        time.sleep(0.2)  # the calls are in work
        process.send_signal(signal.SIGTERM)
        stopped.append(time.monotonic())

    with FaultServer([hang()]) as server, serving(server.url, tmp_path / "journal") as (process, address):
        striking = threading.Thread(target=strike, args=(process, server), daemon=True)
        striking.start()
        results = ask_both(address)
        assert process.wait(30) == 130 and time.monotonic() - stopped[0] < 30
        assert results[False].status_code == 503 and results[False].code == "stopping"
        assert "the server is being stopped" in str(results[True])
    assert server.gone == len(server.calls) == 2 * WIDTH
    with contextlib.closing(Journal(tmp_path / "journal")) as journal:  # nothing waits for a lease to end
        journal.export(tmp_path / "all.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["cancelled"] * 2 * WIDTH
