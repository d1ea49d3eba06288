"""`python -m evaluation`: list, run, report, compare, merge, over servers that answer or fail, killed and resumed."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset
from fault_server import FaultServer, say, status

from evaluation import __main__ as command
from evaluation.benchmarks import BENCHMARKS, EDIT_BENCHMARKS

ROOT = Path(__file__).parent.parent

PROBLEMS = [{"problem": f"What is {i} + {i}?", "answer": 2 * i, "problem_type": ["Algebra"]} for i in range(1, 7)]


def run(monkeypatch, capsys, *arguments):
    """(exit code, standard output, standard error)."""
    monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments)])
    code = command.main()
    return code, *capsys.readouterr()


@pytest.fixture
def problems(tmp_path) -> Path:
    """AIME in a folder."""
    folder = tmp_path / "aime"
    folder.mkdir()
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    return folder


def boxed(call):
    """The right sum, but for 3 + 3."""
    asked = call.body["messages"][-1]["content"]
    number = int(re.search(r"What is (\d+)", json.dumps(asked))[1])
    return say(f"I add.\n\\boxed{{{2 * number if number != 3 else 7}}}")


def last_line(out):
    return json.loads(out.strip().splitlines()[-1])


def test_list_names_every_benchmark(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "list", "--json")
    assert code == 0 and {row["name"] for row in last_line(out)} == {*BENCHMARKS, *EDIT_BENCHMARKS}
    assert all(row["splits"] and row["layout"] for row in last_line(out))


def test_a_run_from_question_to_report(monkeypatch, capsys, problems, tmp_path):
    monkeypatch.chdir(tmp_path)
    with FaultServer(boxed) as server:
        arguments = ["run", "aime2025", "--data", problems, "--base-url", server.url, "--json"]
        code, out, _ = run(monkeypatch, capsys, *arguments)
        assert code == 0 and len(server.calls) == 6
        body = server.calls[0].body
        assert body["temperature"] == 0.0 and body["messages"][0]["content"].startswith("What is 1 + 1?\n\nPlease")
        summary = last_line(out)
        assert summary["score"]["value"] == pytest.approx(5 / 6, abs=1e-6) and summary["official"] == {
            "accuracy": 83.33
        }
        assert summary["groups"] == {"topic": {"Algebra": summary["score"]}}
        assert summary["model"] == "stub" and summary["tokens"] == {"prompt": 42, "completion": 18, "a_question": 10.0}
        assert "83.3% [43.6%, 97.0%]" in out and "6 answers; 42 prompt and 18 completion tokens" in out
        folder = "runs/evaluation/aime2025-test-stub-single"
        code, out, _ = run(monkeypatch, capsys, "report", folder, "--json")
        assert code == 0 and last_line(out) == summary
        code, out, _ = run(monkeypatch, capsys, "report", folder, "--markdown")
        assert code == 0 and "| score | 83.3% [43.6%, 97.0%] | 6 |" in out
        # Again: refused without --resume, free with it.
        assert run(monkeypatch, capsys, *arguments)[0] == 2
        assert run(monkeypatch, capsys, *arguments, "--resume")[0] == 0
        assert len(server.calls) == 6


def test_what_the_hub_publishes_is_read_too_and_no_password_is_written_down(monkeypatch, capsys, tmp_path):
    (tmp_path / "data").mkdir()
    Dataset.from_list(PROBLEMS).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    with FaultServer(boxed) as server:
        address = server.url.replace("//", "//me:secret@")
        code, out, _ = run(monkeypatch, capsys, "run", "aime2025", "--data", tmp_path, "--base-url", address,
                           "--limit", 2, "--out", tmp_path / "run", "--json")  # fmt: skip
    summary = last_line(out)
    assert code == 0 and summary["groups"]["topic"]["Algebra"]["n"] == 2
    assert summary["sessions"][0]["server"] == server.url and "secret" not in (tmp_path / "run/run.json").read_text()


def test_samples_rounds_and_what_they_are_worth(monkeypatch, capsys, problems, tmp_path):
    monkeypatch.chdir(tmp_path)
    texts = {0: "\\boxed{1}", 1: "\\boxed{2}"}

    def script(call):
        asked = json.dumps(call.body["messages"][-1]["content"])
        return say("\\boxed{2}") if "Attempt" in asked else say(texts[call.body["seed"] % 2])

    with FaultServer(script) as server:
        common = ["aime2025", "--data", problems, "--base-url", server.url, "--limit", 1, "--json"]
        code, out, _ = run(monkeypatch, capsys, "run", *common, "--samples", 8)
        assert code == 0 and len(server.calls) == 8 and server.calls[0].body["temperature"] == 1.0
        right = sum(call.body["seed"] % 2 for call in server.calls)
        summary = last_line(out)
        assert summary["score"]["value"] == right / 8 and summary["pass_at"]["1"] == summary["score"]
        assert summary["pass_at"]["8"]["value"] == 1.0 and list(summary["majority_at"]) == ["1", "2", "4", "8"]
        assert summary["majority_at"]["8"]["value"] == (1.0 if right > 4 else 0.5 if right == 4 else 0.0)
        code, out, _ = run(monkeypatch, capsys, "run", *common, "--pacore", "4", "--quorum", "3/4", "--max-tokens", 99)
        assert code == 0 and len(server.calls) == 8 + 5 and server.calls[-1].body["max_tokens"] == 99
        assert last_line(out)["settings"]["plan"]["quorum"] == 0.75 and last_line(out)["score"]["value"] == 1.0
        names = ["runs/evaluation/aime2025-test-stub-8-samples", "runs/evaluation/aime2025-test-stub-pacore-4"]
        code, out, _ = run(monkeypatch, capsys, "compare", *names, "--json")
        assert code == 0 and [p["figures"] for p in last_line(out)["pairs"]] == [["score"] * 2, ["majority", "score"]]
        assert "PaCoRe 4, temperature 1" in " ".join(out.split())


def test_shards_are_reported_together_and_merged(monkeypatch, capsys, problems, tmp_path):
    with FaultServer(boxed) as server:
        common = ["run", "aime2025", "--data", problems, "--base-url", server.url]
        for shard in ("1/2", "2/2"):
            code, out, _ = run(monkeypatch, capsys, *common, "--shard", shard, "--out", tmp_path / shard[0])
            assert code == 0 and "Not the whole: 1 of 2 shards" in out
        assert run(monkeypatch, capsys, *common, "--out", tmp_path / "whole")[0] == 0
    _, out, _ = run(monkeypatch, capsys, "report", tmp_path / "1", tmp_path / "2", "--json")
    _, whole, _ = run(monkeypatch, capsys, "report", tmp_path / "whole", "--json")
    assert {k: v for k, v in last_line(out).items() if k not in ("settings", "sessions", "seconds")} == {
        k: v for k, v in last_line(whole).items() if k not in ("settings", "sessions", "seconds")
    }
    code, out, _ = run(monkeypatch, capsys, "merge", tmp_path / "all", tmp_path / "1", tmp_path / "2")
    assert code == 0 and "6 questions and 6 answers" in out
    code, out, _ = run(monkeypatch, capsys, "compare", tmp_path / "all", tmp_path / "whole", "--json")
    assert last_line(out)["pairs"][0]["p"] == 1.0 and last_line(out)["pairs"][0]["n"] == 6


def test_failures_are_shown_and_the_exit_code_says_so(monkeypatch, capsys, problems, tmp_path):
    def script(call):
        return status(400, "no thanks") if "What is 2" in json.dumps(call.body) else boxed(call)

    with FaultServer(script) as server:
        code, out, err = run(monkeypatch, capsys, "run", "aime2025", "--data", problems, "--base-url", server.url,
                             "--out", tmp_path / "run", "--json")  # fmt: skip
    assert code == 1 and "no thanks" in err and "Failed: 1 answers, of aime2025-2." in out
    summary = last_line(out)
    assert summary["score"]["value"] == 0.8 and summary["score_failed_as_0"]["value"] == pytest.approx(4 / 6, abs=1e-6)


def test_a_blind_model_in_the_world_is_given_nothing_and_that_is_no_error(monkeypatch, capsys, tmp_path):
    with FaultServer() as server:
        code, out, _ = run(monkeypatch, capsys, "run", "world", "--data", 1, "--no-pictures", "--base-url", server.url,
                           "--out", tmp_path / "run", "--json")  # fmt: skip
        assert code == 0 and not server.calls
    assert last_line(out)["withheld"]["count"] == 15 and last_line(out)["score"] is None
    said = " ".join(out.split())
    assert "15 of 15 questions, caption-0, " in said and "So nothing was asked; --blind asks" in said


def test_a_blind_model_may_be_asked_by_the_text_alone_and_the_report_says_so(monkeypatch, capsys, tmp_path):
    arguments = ["run", "world", "--data", 1, "--blind", "--out", tmp_path / "run", "--json"]
    with FaultServer(lambda call: say("7")) as server:
        arguments += ["--base-url", server.url]
        code, out, _ = run(monkeypatch, capsys, *arguments)
        assert code == 0 and len(server.calls) == 15
        asked = [call.body["messages"][-1]["content"] for call in server.calls]
        assert all(isinstance(content, str) and content.strip() for content in asked)  # as servers without eyes take it
        code, _, err = run(monkeypatch, capsys, *arguments, "--resume", "--no-pictures")
        assert code == 2 and "--blind asks them by their text alone; use one." in err
        arguments.remove("--blind")
        code, _, err = run(monkeypatch, capsys, *arguments, "--resume")
        assert code == 2 and "blind is True there and False here" in err and len(server.calls) == 15
    summary = last_line(out)
    assert summary["blind"]["count"] == summary["answers"] == 15 and summary["withheld"]["count"] == 0
    assert summary["how"] == "single answer, greedy, without pictures"
    assert "by the text alone: 15 of 15 questions, caption-0, " in " ".join(out.split())


def test_a_server_that_refuses_pictures_is_told_of(monkeypatch, capsys, tmp_path):
    def script(call):
        return status(400, "image input is not supported") if "image_url" in json.dumps(call.body) else say("7")

    with FaultServer(script) as server:
        code, out, _ = run(monkeypatch, capsys, "run", "world", "--data", 1, "--base-url", server.url,
                           "--out", tmp_path / "run", "--json")  # fmt: skip
    assert code == 1 and last_line(out)["failed"]["at_pictures"]
    assert "No question with a picture was answered." in out and "--blind" in out


def test_the_users_prompt_replaces_ours(monkeypatch, capsys, problems, tmp_path):
    (tmp_path / "mine.txt").write_text("Box it, \\boxed{}: {{ problem }}")
    with FaultServer(boxed) as server:
        code, out, _ = run(monkeypatch, capsys, "run", "aime2025", "--data", problems, "--base-url", server.url,
                           "--prompt-file", tmp_path / "mine.txt", "--out", tmp_path / "run", "--json")  # fmt: skip
        assert code == 0 and server.calls[0].body["messages"][0]["content"] == "Box it, \\boxed{}: What is 1 + 1?"
    assert last_line(out)["settings"]["template"] == "Box it, \\boxed{}: {{ problem }}"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nothing"], "there is no benchmark 'nothing'; there are "),
        (["run", "world", "--split", "train"], "no split 'train'"),
        (["run", "world", "--data", "pictures/"], "is drawn, not read from 'pictures/'"),
        (["run", "world", "--data", "1", "--samples", "0"], "0 samples"),
        (["run", "world", "--data", "1", "--limit", "0"], "the limit is 0"),
        (["run", "world", "--data", "1", "--shard", "2"], "use i/n, such as 1/4"),
        (["run", "world", "--data", "1", "--shard", "3/2"], "use 1/2 to 2/2"),
        (["run", "world", "--data", "1", "--shard", "16/16"], "15 questions cannot be shared among 16"),
        (["run", "world", "--data", "1", "--at-once", "0"], "--at-once is 0"),
        (["run", "world", "--data", "1", "--pacore", "lots"], "rounds are 'lots'"),
        (["run", "world", "--data", "1", "--pacore", "4", "--quorum", "most"], "quorum 'most'"),
        (["run", "world", "--data", "1", "--quorum", "5/4"], "quorum is 1.25"),
        (["run", "world", "--data", "1", "--temperature", "-1"], "temperature is -1"),
        (["run", "world", "--data", "1", "--budget", "hours=2"], "tokens=N, seconds=N or money=N"),
        (["run", "world", "--data", "1", "--prompt-file", "none.txt"], "'none.txt' cannot be read"),
        (["run", "world", "--data", "1", "--prompt-file", "empty.txt"], "does not show the question"),
        (["run", "world", "--data", "1", "--prompt-file", "odd.txt"], "uses 'options', which is not there"),
        (["run", "world", "--data", "1", "--prompt-file", "broken.txt"], "is no template"),
        (["run", "world", "--data", "1", "--model", "/none!"], "there is no folder '/none!'"),
        (["run", "world", "--data", "1", "--base-url", "http://127.0.0.1:1/v1", "--retries", "0"], "127.0.0.1:1"),
        (["run", "world", "--data", "1", "--out", "bad"], "'bad' is there already; add --resume"),
        (["run", "world", "--data", "1", "--out", "bad", "--resume"], "'bad' is there and no run"),
        (["run", "aime2025", "--data", "none"], "there is no folder 'none'"),
        (["run", "aime2025", "--data", "some/where"], "give --data a folder with Parquet or JSONL"),
        (["run", "aime2025", "--data", "."], "has no *.parquet and no *.jsonl"),
        (["run", "aime2025", "--data", "bad"], "row 2: no `problem` or no `answer`"),
        (["run", "aime2025", "--data", "half"], "'half' cannot be read"),
        (["run", "aime2025", "--data", "big"], "its answer is '1000'"),
        (["report"], "no run is named"),
        (["report", "none"], "'none' is no run"),
        (["compare", "none", "none"], "'none' is no run"),
        (["merge", "out", "none"], "'none' is no run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_clear_line(monkeypatch, capsys, tmp_path, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("Answer!")
    (tmp_path / "odd.txt").write_text("{{ question }} {{ options }}")
    (tmp_path / "broken.txt").write_text("{% for %}")
    for name, text in (("bad", '{"problem": "a", "answer": 1}\n{"problem": "b"}\n'), ("half", '{"problem"'),
                       ("big", '{"problem": "a", "answer": 1000}\n')):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text(text)
    if arguments[-1] == ".":
        arguments = [*arguments[:-1], str(tmp_path / "empty")]
        (tmp_path / "empty").mkdir()
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert code == 2 and not out and err.startswith("error: ") and says in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_killed_twice_it_asks_everything_once(tmp_path):
    """kill -9 twice in the middle; counted at the server, which sees every call."""
    quick = threading.Event()

    def script(call):
        return say("Answer: 7", delay=0.0 if quick.is_set() else 0.08)

    with FaultServer(script) as server:
        arguments = [
            sys.executable, "-m", "evaluation", "run", "world", "--data", "1", "--limit", "9", "--samples", "4",
            "--base-url", server.url, "--calls", "2", "--out", str(tmp_path / "run"), "--resume", "--json",
        ]  # fmt: skip
        for stop in (12, 24):
            process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            while len(server.calls) < stop and process.poll() is None:
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
        quick.set()
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        asked = Counter(json.dumps([call.body["messages"], call.body["seed"]]) for call in server.calls)
    rows = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert sorted(Counter((row["id"], row["sample"]) for row in rows).values()) == [1] * 36
    assert len(asked) == 36
    # At each kill two calls were in flight, and on a busy machine two more answered but not on disk yet.
    assert sum(count - 1 for count in asked.values()) <= 8 and 36 <= sum(asked.values()) <= 44
    summary = last_line(done.stdout)
    assert summary["answers"] == 36 and summary["unanswered"] == 0 and len(summary["sessions"]) == 3
    assert all(session["finished"] >= session["started"] for session in summary["sessions"])
