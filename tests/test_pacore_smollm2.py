"""A real model behind a real server: llama.cpp's with SmolLM2-135M, under the batch and under our own endpoint.

What it answers is a 135M model's affair; that every call is had, counted and paid once is ours.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from killable_server import free_port

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "pacore" / "smollm2-server.sh"
INSTALLED = ROOT / ".venv-llama" / ".installed"
MODEL = "SmolLM2-135M-Instruct"

QUESTIONS, WIDTH, MAX_TOKENS = 20, 4, 16


@contextmanager
def running(command: list, log: Path, answers: str):
    """A server in a process of its own, once `answers` can be had from it."""
    with log.open("w") as file, subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=file, stderr=file) as process:
        try:
            end = time.monotonic() + 120
            while True:
                try:
                    httpx.get(answers)
                    break
                except httpx.TransportError:
                    assert process.poll() is None and time.monotonic() < end, log.read_text()
                    time.sleep(0.1)
            yield
        finally:
            process.terminate()


class Llama:
    """Attributes: url, of the protocol."""

    def __init__(self, url: str, log: Path):
        self.url, self._log = url, log

    def calls(self) -> int:
        """Completions that it was asked for and gave, by its own log."""
        return self._log.read_text().count('"POST /v1/chat/completions HTTP/1.1" 200 OK')


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    made_from = INSTALLED.read_text().split() if INSTALLED.exists() else None
    if made_from is None or not all(package in SCRIPT.read_text() for package in made_from):
        pytest.skip("llama.cpp's server is not installed, or another version; `make smollm2` installs it")
    log, url = tmp_path_factory.mktemp("llama") / "log", f"http://127.0.0.1:{(port := free_port())}/v1"
    with running(["sh", SCRIPT, port], log, f"{url}/models"):
        yield Llama(url, log)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_batch_of_sums(llama, tmp_path):
    rows = [{"id": f"sum-{n}", "question": f"What is {n} + {37 - n}?"} for n in range(QUESTIONS)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "pacore", "batch", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--resume",
               "--base-url", llama.url, "--rounds", WIDTH, "--max-tokens", MAX_TOKENS, "--export",
               tmp_path / "all.jsonl"]  # fmt: skip

    def batch():
        done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr
        return lines(tmp_path / "out.jsonl"), lines(tmp_path / "all.jsonl")

    before = llama.calls()
    rows, trajectories = batch()
    assert sorted(row["id"] for row in rows) == sorted(f"sum-{n}" for n in range(QUESTIONS))
    for row in rows:
        assert not row["error"] and not row["notes"] and row["usage"]["failures"] == 0
        assert [len(trajectories) for trajectories in row["rounds"]] == [WIDTH, 1]
        own = [t for t in trajectories if t["problem"] == row["id"]]
        for kind in ("prompt_tokens", "completion_tokens"):
            assert row["usage"][kind] == sum(trajectory[kind] for trajectory in own)
        # The server's own count, which is the same for all that read the same.
        assert len({t["prompt_tokens"] for t in own if t["round"] == 0}) == 1
        assert max(t["prompt_tokens"] for t in own) == next(t["prompt_tokens"] for t in own if t["round"] == 1)
    assert len(trajectories) == llama.calls() - before == QUESTIONS * (WIDTH + 1)
    for trajectory in trajectories:
        assert trajectory["status"] == "finished" and 1 <= trajectory["completion_tokens"] <= MAX_TOKENS
        cut = trajectory["completion_tokens"] == MAX_TOKENS
        assert trajectory["finish"] == "stop" or cut
    # Seeds are understood: the trajectories of a round are samples, not copies.
    firsts = [[entry["message"] for entry in row["rounds"][0]] for row in rows]
    assert sum(len(set(messages)) > 1 for messages in firsts) > QUESTIONS / 2
    assert batch() == (rows, trajectories) and llama.calls() - before == len(trajectories)  # again: paid for already


def test_the_official_client_of_our_server(llama, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "pacore", "serve", "--base-url", llama.url, "--port", port, "--rounds", "2"]
    command += ["--max-tokens", MAX_TOKENS, "--journal", tmp_path / "journal"]
    address = f"http://127.0.0.1:{port}"
    with (
        running(command, tmp_path / "log", f"{address}/health"),
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        assert [model.id for model in client.models.list()][:2] == [MODEL, f"{MODEL}:single"]
        before = llama.calls()
        ask = {"model": f"{MODEL}:3", "messages": [{"role": "user", "content": "What is 3 + 4?"}]}
        whole = client.chat.completions.create(**ask, seed=1)
        assert whole.choices[0].message.content.strip() and whole.choices[0].finish_reason in ("stop", "length")
        assert whole.usage.pacore["rounds"] == [3, 1] and whole.usage.pacore["failures"] == 0
        assert whole.usage.completion_tokens <= 4 * MAX_TOKENS and llama.calls() - before == 4

        chunks = list(
            client.chat.completions.create(**ask, seed=2, stream=True, stream_options={"include_usage": True})
        )
        *chunks, usage = chunks
        deltas = [chunk.choices[0].delta for chunk in chunks]
        reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        assert reasoning.startswith("Round 1 of 2: 3 trajectories\n1 of 3 in, number ") and "Round 2 of 2" in reasoning
        pieces = [delta.content for delta in deltas if delta.content]
        assert len(pieces) > 1 and chunks[-1].choices[0].finish_reason in ("stop", "length")
        assert 0 < usage.usage.completion_tokens <= 4 * MAX_TOKENS and llama.calls() - before == 8

        # From the journal: the same text, and nothing is paid for.
        again = client.chat.completions.create(**ask, seed=2)
        assert again.choices[0].message.content == "".join(pieces) and llama.calls() - before == 8
        counters = httpx.get(f"{address}/metrics").text
        assert 'pacore_trajectories_total{outcome="failed"} 0\n' in counters


# The script's own words, where there is nothing to install with


def script_says(folder: Path, port: str = "8080", **variables: str) -> str:
    """Its one line, from a copy of the repository that has no environment yet."""
    copy = folder / "pacore" / SCRIPT.name
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(SCRIPT.read_bytes())
    done = subprocess.run(["sh", copy, port], env=os.environ | variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
    assert not (folder / ".venv-llama").exists()
    return done.stderr


@pytest.mark.parametrize("port", ["http", "", "0", "65536", "-1", "123456789012345678901"])
def test_a_port_that_makes_no_sense_is_named(tmp_path, port):
    assert port in (said := script_says(tmp_path, port, PYTHON="no-such-python")) and "from 1 to 65535" in said


def test_what_is_missing_is_one_line_with_its_remedy(tmp_path):
    (tmp_path / "no-pip").write_text('#!/bin/sh\n[ "$1" = -c ]\n')
    (tmp_path / "no-pip").chmod(0o755)
    python = {"PYTHON": sys.executable}
    assert "'no-such-python' was not found; name a Python 3.11" in script_says(tmp_path, PYTHON="no-such-python")
    assert "'false' is older than 3.11" in script_says(tmp_path, PYTHON="false")
    assert "has no pip; install it" in script_says(tmp_path, PYTHON=str(tmp_path / "no-pip"))
    assert "no C++ compiler 'no-such-c++'" in script_says(tmp_path, **python, CXX="no-such-c++")
