"""A server that will answer nobody, for the key, the model's name or the address is wrong, ends the whole run at once.

One that refuses a single question fails that question alone.
"""

import json
import sys

import pytest
from fault_server import FaultServer, raw, say, status

import pacore.openai_backend
from evaluation import __main__ as evaluation
from evaluation.runs import read_run
from pacore import __main__ as command

# Each with what the line says of the status and of the remedy.
FOR_ALL = {
    "wrong key": (status(401, "no such key"), "HTTP 401: no such key; check the API key."),
    "no credit": (status(402, "pay first"), "HTTP 402: pay first; check the account's credit."),
    "no right": (status(403, "not yours"), "HTTP 403: not yours; check what the API key may use."),
    "no such model": (status(404, "no model m"), "HTTP 404: no model m; check the model's name and the base URL"),
    "wrong address": (status(405, "GET alone"), "HTTP 405: GET alone; check the base URL, which often ends with /v1."),
    "no such model, as a 400": (
        status(400, body={"error": {"message": "no model m", "code": "model_not_found"}}),
        "HTTP 400: no model m; check the model's name and the base URL",
    ),
    "wrong key, in a 200": (raw({"error": {"message": "no key", "code": 401}}), "HTTP 401: no key; check the API key."),
}
for_all = pytest.mark.parametrize(("refusal", "words"), FOR_ALL.values(), ids=FOR_ALL)

WIDTH, QUESTIONS, CALLS = 4, 12, 2


class Batch:
    """`python -m pacore batch` over questions of the test, in this process."""

    def __init__(self, folder, monkeypatch, capsys):
        self.folder, self.out = folder, folder / "out.jsonl"
        self._monkeypatch, self._capsys = monkeypatch, capsys
        rows = [{"id": f"q{n}", "question": f"What is {n} + 1?"} for n in range(QUESTIONS)]
        (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self, url, *options):
        """(exit code, the last line of the standard error)."""
        arguments = ["batch", self.folder / "in.jsonl", self.out, "--base-url", url, "--model", "m", "--calls", CALLS,
                     "--rounds", WIDTH, *options]  # fmt: skip
        self._monkeypatch.setattr(sys, "argv", ["pacore", *map(str, arguments)])
        code = command.main()
        return code, self._capsys.readouterr().err.splitlines()[-1]

    def rows(self):
        return [json.loads(line) for line in self.out.read_text().splitlines()]


@pytest.fixture
def batch(tmp_path, monkeypatch, capsys):
    return Batch(tmp_path, monkeypatch, capsys)


@for_all
def test_a_batch_that_nobody_will_answer_ends_at_once(batch, refusal, words, monkeypatch):
    # A status in the body of a 200 is tried again where it may pass; nothing here does.
    monkeypatch.setattr(pacore.openai_backend, "BACKOFF", 30.0)
    with FaultServer([refusal]) as server:
        code, said = batch.run(server.url)
        # What was in flight or came in the meantime, more on a busy machine; those that waited are not sent.
        assert code == 2 and 1 <= len(server.calls) <= QUESTIONS * WIDTH // 2
    address = server.url.removesuffix("/v1")
    assert said.startswith(f"error: {address} failed: {words}")
    assert said.endswith(f" 0 of {QUESTIONS} questions are answered; --resume goes on with the others.")
    assert batch.rows() == []


def test_what_was_answered_stays_and_a_mended_key_pays_for_the_rest_alone(batch):
    """The account is closed in the middle; the trajectories that were in are not asked for again."""
    answers, had = 23, []  # four questions, and three of four trajectories of the fifth

    def script(call):
        if len(had) == answers and not reopened:
            return status(401, "the key was withdrawn")
        had.append(call.body["seed"])
        return say("Answer: 4")

    reopened = False
    with FaultServer(script) as server:
        code, said = batch.run(server.url, "--at-once", 1)
        assert code == 2 and "HTTP 401: the key was withdrawn; check the API key. 4 of 12 questions are an" in said
        assert [(row["id"], row["error"]) for row in batch.rows()] == [(f"q{n}", "") for n in range(4)]
        assert len(had) == answers and len(server.calls) <= answers + 3 * CALLS
        reopened = True
        assert batch.run(server.url, "--at-once", 1, "--resume")[0] == 0
    assert sorted(row["id"] for row in batch.rows()) == sorted(f"q{n}" for n in range(QUESTIONS))
    assert not any(row["error"] for row in batch.rows())
    assert len(had) == len(set(had)) == QUESTIONS * (WIDTH + 1)  # each trajectory was answered once


@pytest.mark.parametrize("code", [400, 403, 404])
def test_a_question_that_alone_is_refused_fails_alone(batch, code):
    def script(call):
        return status(code, "flagged") if "What is 3 + 1?" in json.dumps(call.body["messages"]) else say("Answer: 4")

    with FaultServer(script) as server:
        assert batch.run(server.url, "--at-once", 1)[0] == 1
        assert len(server.calls) <= (QUESTIONS - 1) * (WIDTH + 1) + WIDTH
    assert [row["id"] for row in batch.rows() if row["error"]] == ["q3"] and len(batch.rows()) == QUESTIONS


def test_a_picture_that_cannot_be_read_is_the_trouble_of_its_question_alone(batch, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = [{"id": "a", "question": "What?", "images": ["broken.png"]}, {"id": "b", "question": "What is 2 + 2?"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, views in enumerate([(), ("--views",)]):
        batch.out = tmp_path / f"out{number}.jsonl"
        with FaultServer([say("Answer: 4")]) as server:
            assert batch.run(server.url, *views)[0] == 1
        errors = {row["id"]: row["error"] for row in batch.rows()}
        assert "broken.png" in errors["a"] and errors["b"] == ""
        assert len(server.calls) == WIDTH + 1


def test_ask_says_it_in_one_line_and_calls_once_a_place(monkeypatch, capsys):
    with FaultServer([status(401, "no such key")]) as server:
        arguments = ["ask", "What is 2 + 2?", "--quiet", "--base-url", server.url, "--model", "m", "--calls", "1"]
        monkeypatch.setattr(sys, "argv", ["pacore", *arguments])
        assert command.main() == 2 and len(server.calls) == 1
    err = capsys.readouterr().err
    assert err == f"error: {server.url.removesuffix('/v1')} failed: HTTP 401: no such key; check the API key.\n"


@pytest.mark.parametrize("pacore_rounds", ["single", "3"])
def test_an_evaluation_that_nobody_will_answer_ends_at_once(tmp_path, monkeypatch, capsys, pacore_rounds):
    refusal, words = FOR_ALL["wrong key"]

    def run(url, *options):
        arguments = ["run", "world", "--data", "1", "--out", str(tmp_path / "run"), "--base-url", url, "--model", "m",
                     "--pacore", pacore_rounds, "--calls", "2", *options]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["evaluation", *arguments])
        code = evaluation.main()
        return code, capsys.readouterr().err.splitlines()[-1]

    answering = False
    with FaultServer(lambda call: say("Answer: 4") if answering else refusal) as server:
        code, said = run(server.url)
        assert code == 2 and 1 <= len(server.calls) <= 6
        assert said.startswith(f"error: {server.url.removesuffix('/v1')} failed: {words}")
        assert said.endswith(f"0 answers are in '{tmp_path / 'run'}'; --resume goes on with the others.")
        assert read_run(tmp_path / "run").answers == ()
        answering = True
        assert run(server.url, "--resume")[0] == 0
    answers = read_run(tmp_path / "run").answers
    assert answers and not any(answer.error for answer in answers)
