"""`python -m pacore`: ask, batch and serve, over a server that answers, fails, or is killed under it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from fault_server import FaultServer, say, status
from PIL import Image

from pacore import __main__ as command
from pacore.options import parse_budget
from pacore.plan import PlanError

ROOT = Path(__file__).parent.parent


def run(monkeypatch, capsys, *arguments):
    """(exit code, standard output, standard error)."""
    monkeypatch.setattr(sys, "argv", ["pacore", *map(str, arguments)])
    code = command.main()
    return code, *capsys.readouterr()


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [{"id": f"q{i}", "question": f"What is {i} + 1?"} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_ask_prints_the_answer_and_tells_of_the_rounds_beside_it(monkeypatch, capsys, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "p.png")
    with FaultServer([say("Answer: 4", reasoning="2 and 2")]) as server:
        code, out, err = run(
            monkeypatch, capsys, "ask", tmp_path / "p.png", "How many?", "--base-url", server.url, "--model", "m",
            "--rounds", "3",
        )  # fmt: skip
    assert code == 0 and out == "Answer: 4\n"
    assert "round 1: 3 trajectories" in err and "synthesis" in err and err.count("Answer: 4") == 4
    assert "4 trajectories, 28 prompt and 12 completion tokens" in err
    asked = server.calls[-1].body["messages"][-1]["content"]
    assert asked[0]["type"] == "image_url" and "Attempt 3" in asked[1]["text"]


def test_ask_with_the_model_that_is_shipped(monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, "ask", "What is 3 + 4?", "--rounds", "2", "--max-tokens", "12")
    assert code == 0 and "3 trajectories" in err and out.endswith("\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ask"], "nothing is asked"),
        (["ask", "q", "--rounds", "0"], "a round has 0 trajectories"),
        (["ask", "q", "--budget", "hours=3"], "tokens=N, seconds=N or money=N"),
        (["ask", "q", "--top-p", "7"], "top_p is 7"),
        (["ask", "q", "--compaction", "x"], "compaction is 'x'"),
        (["ask", "q", "--template", "/none"], "cannot be read"),
        (["ask", "q", "--quorum", "2"], "quorum is 2"),
        (["ask", "/none.png", "q"], "there is no file"),
        (["ask", "q", "--model", "/none!"], "there is no folder"),
        (["ask", "q", "--base-url", "http://127.0.0.1:1/v1", "--retries", "0"], "127.0.0.1:1"),
        (["ask", "q", "--base-url", "http://x/v1", "--header", "oops"], "NAME:VALUE"),
        (["batch", "/none.jsonl", "out.jsonl"], "cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_clear_line(monkeypatch, capsys, tmp_path, arguments, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert code == 2 and not out and err.startswith("error: ") and says in err and err.count("\n") == 1


def test_batch_answers_every_question_and_adds_up(monkeypatch, capsys, questions, tmp_path):
    out = tmp_path / "out.jsonl"
    with FaultServer([say("Answer: 4")]) as server:
        arguments = ["batch", questions, out, "--base-url", server.url, "--model", "m", "--rounds", "2"]
        code, _, err = run(monkeypatch, capsys, *arguments, "--export", tmp_path / "all.jsonl")
        assert code == 0 and len(server.calls) == 18
        assert {row["id"] for row in lines(out)} == {f"q{i}" for i in range(6)}
        row = lines(out)[0]
        assert row["answer"] == "Answer: 4" and row["usage"]["completion_tokens"] == 9 and not row["error"]
        assert [len(r) for r in row["rounds"]] == [2, 1]
        assert "round 1: 12 trajectories" in err and "round 2: 6 trajectories" in err
        assert len(lines(tmp_path / "all.jsonl")) == 18
        # Again: refused without --resume, free with it.
        assert run(monkeypatch, capsys, *arguments)[0] == 2
        assert run(monkeypatch, capsys, *arguments, "--resume")[0] == 0
        assert len(server.calls) == 18 and len(lines(out)) == 6


def test_batch_says_what_failed_and_resume_asks_only_that_again(monkeypatch, capsys, questions, tmp_path):
    out = tmp_path / "out.jsonl"
    broken = [True]

    def script(call):
        asked = json.dumps(call.body["messages"])
        return status(400, "no thanks") if broken[0] and "What is 3" in asked else say("Answer: 4")

    with FaultServer(script) as server:
        arguments = ["batch", questions, out, "--base-url", server.url, "--model", "m", "--rounds", "2"]
        code, _, err = run(monkeypatch, capsys, *arguments)
        assert code == 1 and "q3" in err and "no thanks" in err
        assert [row["id"] for row in lines(out) if row["error"]] == ["q3"]
        paid = len(server.calls)
        broken[0] = False
        code, _, _ = run(monkeypatch, capsys, *arguments, "--resume")
        assert code == 0 and len(server.calls) == paid + 3
        assert sorted(row["id"] for row in lines(out)) == [f"q{i}" for i in range(6)]
        assert not any(row["error"] for row in lines(out))


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "holds no questions"), ("{", "line 1: not JSON"), ("[]", "not a JSON object"), ("{}", "neither a `question`"),
     ('{"question": " "}', "neither"), ('{"question": "a", "images": "p.png"}', "list of paths"),
     ('{"messages": [{"role": "user"}]}', "`content` must be"), ('{"messages": [{"content": "a"}]}', "`role`"),
     ('{"id": 1, "question": "a"}\n{"id": 1, "question": "b"}', "there twice"),
     ('{"messages": [{"role": "user", "content": [{"type": "audio"}]}]}', "a part must be")],
)  # fmt: skip
def test_a_bad_input_file_is_refused_before_anything_is_paid_for(monkeypatch, capsys, tmp_path, text, says):
    path = tmp_path / "in.jsonl"
    path.write_text(text)
    code, _, err = run(monkeypatch, capsys, "batch", path, tmp_path / "out.jsonl")
    assert code == 2 and says in err and not (tmp_path / "out.jsonl").exists()


def test_an_output_of_something_else_is_not_touched(monkeypatch, capsys, questions, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("my notes\n")
    code, _, err = run(monkeypatch, capsys, "batch", questions, out, "--resume")
    assert code == 2 and "no output of this command" in err and out.read_text() == "my notes\n"


@pytest.mark.parametrize("text", ["tokens", "tokens=x", "money=3", "=3", "tokens=0"])
def test_budgets_that_make_no_sense(text):
    with pytest.raises(PlanError):
        parse_budget(text)


def test_a_killed_batch_goes_on_and_pays_for_nothing_twice(questions, tmp_path):
    """kill -9 in the middle of the client; counted at the server."""
    out = tmp_path / "out.jsonl"
    slow = threading.Event()

    def script(call):
        return say("Answer: 4", delay=0.0 if slow.is_set() else 0.05)

    with FaultServer(script) as server:
        arguments = [
            sys.executable, "-m", "pacore", "batch", str(questions), str(out), "--base-url", server.url, "--model", "m",
            "--rounds", "4", "--at-once", "1", "--calls", "2", "--resume",
        ]  # fmt: skip
        process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE)
        while len(server.calls) < 12 and process.poll() is None:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        before = len(server.calls)
        slow.set()
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert sorted(row["id"] for row in lines(out)) == [f"q{i}" for i in range(6)]
        # Two calls were in flight at the kill; every other one was on disk.
        assert before >= 12 and len(server.calls) <= 6 * 5 + 2


def test_serve_in_front_of_another_server():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with FaultServer([say("Answer: 4")]) as upstream:
        arguments = ["serve", "--base-url", upstream.url, "--model", "m", "--port", str(port), "--rounds", "2"]
        process = subprocess.Popen(
            [sys.executable, "-m", "pacore", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        try:
            assert f"m at http://127.0.0.1:{port}/v1, open to all" in process.stdout.readline()
            body = {"model": "m:3", "messages": [{"role": "user", "content": "2 + 2?"}]}
            answer = None
            for _ in range(100):
                try:
                    request = urllib.request.Request(
                        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(),
                        {"Content-Type": "application/json"},
                    )  # fmt: skip
                    answer = json.load(urllib.request.urlopen(request, timeout=20))
                    break
                except OSError:
                    time.sleep(0.1)
            assert answer["choices"][0]["message"]["content"] == "Answer: 4"
            assert len(upstream.calls) == 4 and answer["usage"]["completion_tokens"] == 12
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) is not None
