"""A judge over real HTTP, scripted: malformed verdicts, faults, death, both orders, and what a resumed run pays."""

import json
import sys
import threading
from collections import Counter

import pytest
from fault_server import FaultServer, hang, reset, say, status
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evaluation import __main__ as command
from evaluation.benchmark import BenchmarkError
from evaluation.judging import Judge, Preference, prefer, read_better, read_scores
from pacore.backends import BackendError

RED = Image.new("RGB", (8, 8), "red")


def about(text):
    return [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": text}]}]


def connect(server, **options):
    return Judge.connect(server.url, retries=options.pop("retries", 1), **options)


def text_of(call):
    content = call.body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


# Reading verdicts


@pytest.mark.parametrize(
    ("words", "scores"),
    [
        ('{"score": [8, 9.5], "reasoning": "fine"}', (8, 9.5)), ("score: [0,10]", (0, 10)), ("[3, 4]", (3, 4)),
        (' ```json\n{\n"score" : [ 1 , 2 ]}\n```', (1, 2)), ('"score": [1, 1] no: "score": [2, 3]', (2, 3)),
    ],
)  # fmt: skip
def test_two_scores(words, scores):
    assert read_scores(words) == scores


@pytest.mark.parametrize(
    "words",
    ["", "8 out of 10", '{"score": [8]}', '{"score": 8}', '{"score": [8, 9, 10]}', '{"score": [8, 11]}',
     '{"score": [-1, 5]}', '{"score": ["8", "9"]}', "the range [3, 4] of pixels", '{"score": [1e3, 2]}', "[" * 9999],
)  # fmt: skip
def test_what_is_not_two_scores_is_no_verdict(words):
    with pytest.raises(ValueError):
        read_scores(words)


@given(st.text(alphabet='[]{}"score: ,.019better first', max_size=80) | st.text(max_size=80))
def test_readers_read_or_refuse(words):
    for read in (read_scores, read_better):
        try:
            read(words)
        except ValueError as error:
            assert str(error)


# Asking


def test_malformed_verdicts_are_asked_again_at_rising_temperature():
    with FaultServer([say("Lovely!"), say('{"score": [8]}'), say('{"score": [8, 6]}')]) as server:
        judge = connect(server)
        assert judge.ask(about("How is it?"), read_scores, "one") == (8.0, 6.0) and judge.name == "stub"
        judge.close()
        assert [call.body["temperature"] for call in server.calls] == [0.0, 0.5, 1.0]
        assert len({call.body["seed"] for call in server.calls}) == 3
        picture = server.calls[0].body["messages"][0]["content"][0]
        assert picture["image_url"]["url"].startswith("data:image/")


def test_a_judge_that_stays_malformed_is_an_error_and_no_score():
    with FaultServer([say("Lovely!")]) as server:
        judge = connect(server, tries=2)
        with pytest.raises(BenchmarkError) as error:
            judge.ask(about("?"), read_scores, "picture 7")
        judge.close()
        assert len(server.calls) == 2
    assert "picture 7: the judge 'stub' gave no verdict that can be read, last no two scores: 'Lovely!'" in str(
        error.value
    )


def test_faults_in_passing_are_the_clients_to_heal():
    with FaultServer([status(500), reset(), say("[1, 2]")]) as server:
        judge = connect(server, retries=2)
        assert judge.ask(about("?"), read_scores, "one") == (1, 2)
        judge.close()


def test_a_judge_that_was_never_there_is_said_at_once():
    with FaultServer() as server:
        url = server.url
    with pytest.raises(BackendError, match="no connection"):
        Judge.connect(url, retries=0)
    with FaultServer(models=[{"id": "a"}, {"id": "b"}]) as server, pytest.raises(BackendError, match="lists 2 models"):
        connect(server)
    with FaultServer() as server, pytest.raises(BenchmarkError, match="at least 1"):
        connect(server, tries=0)


def test_a_key_that_is_refused_is_not_tried_for_every_question():
    with FaultServer([status(401, "who are you?")]) as server:
        judge = connect(server)
        for number in range(5):
            with pytest.raises(BenchmarkError, match=r"cannot be had: .*who are you"):
                judge.ask(about(f"{number}?"), read_scores, f"question {number}")
        judge.close()
        assert len(server.calls) == 1


def test_a_judge_that_died_is_given_up_after_some_calls(tmp_path):
    with FaultServer([say("[1, 2]")] + [status(500)] * 40) as server:
        judge = connect(server, retries=0)
        judge.keep(tmp_path / "judge")
        assert judge.ask(about("first?"), read_scores, "first") == (1, 2)
        for number in range(12):
            with pytest.raises(BenchmarkError, match="cannot be had"):
                judge.ask(about(f"{number}?"), read_scores, f"question {number}")
        assert judge.ask(about("first?"), read_scores, "first") == (1, 2)  # what it said before still counts
        judge.close()
        assert len(server.calls) == 1 + 8


def test_many_threads_one_judge_and_no_more_calls_than_allowed():
    with FaultServer(lambda call: say(f"[{text_of(call)}, 1]", delay=0.2)) as server:
        judge, got = connect(server, concurrency=3), {}
        threads = [
            threading.Thread(target=lambda i=i: got.update({i: judge.ask(about(str(i)), read_scores, str(i))}))
            for i in range(9)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        judge.close()
        assert got == {i: (float(i), 1.0) for i in range(9)} and 2 <= server.peak <= 3


def test_closing_ends_what_is_in_flight():
    with FaultServer([hang()]) as server:
        judge, errors = connect(server), []

        def ask():
            try:
                judge.ask(about("?"), read_scores, "one")
            except BenchmarkError as error:
                errors.append(str(error))

        thread = threading.Thread(target=ask)
        thread.start()
        while not server.calls:
            thread.join(0.01)
        judge.close()
        thread.join(10)
    assert not thread.is_alive() and "the judge was closed" in errors[0]


# Paying


def test_verdicts_are_paid_once_and_malformed_ones_too(tmp_path):
    script = {"good": ["[1, 2]"], "slow": ["hm", "[3, 4]"], "bad": ["hm", "hm", "hm", "[5, 6]"]}
    asked = Counter()

    def reply(call):
        name = text_of(call)
        asked[name] += 1
        return say(script[name][asked[name] - 1])

    with FaultServer(reply) as server:
        for session in range(3):
            judge = connect(server, tries=2)
            judge.keep(tmp_path / "judge")
            assert judge.ask(about("good"), read_scores, "good") == (1, 2)
            assert judge.ask(about("slow"), read_scores, "slow") == (3, 4)
            if session == 0:
                with pytest.raises(BenchmarkError, match="no verdict"):
                    judge.ask(about("bad"), read_scores, "bad")
            else:  # two new tries, of which the second can be read
                assert judge.ask(about("bad"), read_scores, "bad") == (5, 6)
            judge.close()
    assert asked == {"good": 1, "slow": 2, "bad": 4}


# Two answers


def preference(answers):
    """`answers(first, second)` is the judge's word for the better one."""

    def reply(call):
        first, second = text_of(call).split(" or ")
        return say(json.dumps({"better": answers(first, second)}))

    with FaultServer(reply) as server:
        judge = connect(server)
        found = prefer(judge, lambda a, b: about(f"{a} or {b}"), "ours", "theirs", "one")
        judge.close()
        assert [text_of(call) for call in server.calls] == ["ours or theirs", "theirs or ours"]
    return found


def test_two_answers_are_shown_in_both_orders():
    assert preference(lambda a, b: "first" if a == "ours" else "second") == Preference(1.0, True)
    assert preference(lambda a, b: "first" if a == "theirs" else "second") == Preference(0.0, True)
    assert preference(lambda a, b: "same") == Preference(0.5, True)


@pytest.mark.parametrize("place", ["first", "second"])
def test_a_judge_that_likes_a_place_prefers_nobody(place):
    assert preference(lambda a, b: place) == Preference(0.5, False)


def test_a_judge_of_two_who_does_not_decide_is_an_error():
    with FaultServer([say('{"better": "first"}'), say("Both are lovely.")]) as server:
        judge = connect(server, tries=1)
        with pytest.raises(BenchmarkError, match="ours second: the judge 'stub' gave no verdict"):
            prefer(judge, lambda a, b: about(a), "ours", "theirs", "one")
        judge.close()


# A run with a judge

PROBLEMS = {
    str(i): {"pid": str(i), "question": f"How many dots, case {i}?", "image": "images/1.png", "choices": None,
             "unit": None, "precision": None, "answer": str(i), "question_type": "free_form", "answer_type": "integer",
             "metadata": {"task": "figure question answering", "skills": ["arithmetic reasoning"]}}
    for i in range(1, 7)
}  # fmt: skip


@pytest.fixture
def problems(tmp_path):
    (tmp_path / "data" / "images").mkdir(parents=True)
    RED.save(tmp_path / "data" / "images" / "1.png")
    (tmp_path / "data" / "testmini.json").write_text(json.dumps(PROBLEMS))
    return tmp_path / "data"


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments)])
    code = command.main()
    return code, *capsys.readouterr()


def test_a_run_whose_judge_dies_and_comes_back_pays_nothing_twice_and_scores_nothing_0(
    monkeypatch, capsys, problems, tmp_path
):
    def model(call):
        number = text_of(call).partition("case ")[2].partition("?")[0]
        return say(number if number == "1" else f"I see {number} dots in this picture.")

    def judge_says(call):
        number = text_of(call).rpartition("I see ")[2].partition(" ")[0]
        return status(500) if broken and number in "56" else say(f"{number}" if number != "4" or not broken else "")

    broken = True
    with FaultServer(model) as server, FaultServer(judge_says, models=[{"id": "critic"}]) as judge:
        arguments = ["run", "mathvista", "--data", problems, "--base-url", server.url, "--judge-url", judge.url,
                     "--judge-retries", 0, "--out", tmp_path / "run", "--json"]  # fmt: skip
        code, out, err = run(monkeypatch, capsys, *arguments)
        summary = json.loads(out.strip().splitlines()[-1])
        assert code == 1 and summary["failed"]["count"] == 3 and summary["failed"]["ids"] == ["4", "5", "6"]
        assert summary["score"]["value"] == 1.0 and summary["score"]["n"] == 3 and "not judged: mathvista 5" in err
        assert summary["official"]["extraction"] == "1 by the official short path, 2 by the judge critic"
        asked = Counter(text_of(call) for call in judge.calls)
        broken = False
        code, out, _ = run(monkeypatch, capsys, *arguments, "--resume")
        summary = json.loads(out.strip().splitlines()[-1])
        assert code == 0 and summary["failed"]["count"] == 0 and summary["score"]["n"] == 6
        assert summary["official"]["accuracy"] == 100.0 and len(server.calls) == 6
        again = Counter(text_of(call) for call in judge.calls) - asked
        assert sum(again.values()) == 3 and not any(f"I see {i} " in text for text in again for i in (1, 2, 3))


def test_a_judge_that_is_not_there_stops_the_run_before_it_costs_anything(monkeypatch, capsys, problems, tmp_path):
    with FaultServer() as server:
        common = ["--base-url", server.url, "--judge-retries", 0, "--out", tmp_path / "run", "--judge-url"]
        code, _, err = run(
            monkeypatch, capsys, "run", "mathvista", "--data", problems, *common, "http://127.0.0.1:1/v1"
        )
        assert code == 2 and "127.0.0.1:1" in err and not server.calls
        code, _, err = run(monkeypatch, capsys, "run", "world", "--data", 1, *common, server.url)
        assert code == 2 and "world is judged by rules alone; leave out --judge-url" in err
    assert not (tmp_path / "run").exists()
