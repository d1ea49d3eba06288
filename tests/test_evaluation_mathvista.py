"""MathVista: published layouts, the official short path and comparison, our rules, and what a judge takes out."""

import io
import json

import pytest
from datasets import Dataset, Features, Image, List, Value
from fault_server import FaultServer, say
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from evaluation.benchmark import BenchmarkError, Question
from evaluation.benchmarks.mathvista import BENCHMARK, edit_distance
from evaluation.judging import Judge
from vlm.pictures import open_picture

METADATA = {"split": "testmini", "task": "geometry problem solving", "context": "table", "grade": "college",
            "skills": ["geometry reasoning", "algebraic reasoning"]}  # fmt: skip


def row(pid, question_type="free_form", answer_type="integer", answer="3", choices=None, precision=None, **more):
    return {"pid": pid, "question": f"Question {pid}?", "image": "images/1.png", "choices": choices, "unit": None,
            "precision": precision, "answer": answer, "question_type": question_type, "answer_type": answer_type,
            "metadata": METADATA} | more  # fmt: skip


ANGLES = row("3", "multi_choice", "text", "145°", ["135°", "140°", "145°", "150°"])
ROWS = [row("1", answer_type="float", answer="1.2", precision=1.0, unit="m"), row("2"), ANGLES,
        row("4", answer_type="list", answer="[2007, 2008]")]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    Pillow.new("RGB", (9, 7), "blue").save(tmp_path / "images" / "1.png")
    (tmp_path / "testmini.json").write_text(json.dumps({row["pid"]: row for row in ROWS}))
    return tmp_path


def asked(question):
    picture, text = question.conversation[0]["content"]
    return open_picture(picture["image"]), text["text"]


def question(**fields):
    truth = {"answer": "3", "choices": [], "precision": 0, "query": "?", "parts": {"answer_type": "integer"}} | fields
    return Question("q", [], truth)


def choice(*choices, answer):
    return question(
        choices=list(choices), answer=answer, parts={"question_type": "multi_choice", "answer_type": "text"}
    )


def score(asked, response):
    verdict = BENCHMARK.score(asked, response)
    return verdict.score, verdict.parsed, verdict.guessed


def test_the_prompts_are_the_benchmarks_own(folder):
    questions = BENCHMARK.load(folder, "testmini")
    assert [q.id for q in questions] == ["1", "2", "3", "4"]
    picture, text = asked(questions[0])
    assert picture.getpixel((0, 0)) == (0, 0, 255)
    assert text == (
        "Hint: Please answer the question requiring a floating-point number with one decimal place and provide the "
        "final value, e.g., 1.2, 1.3, 1.4, at the end.\nQuestion: Question 1? (Unit: m)"
    )
    assert asked(questions[2])[1].endswith("\nChoices:\n(A) 135°\n(B) 140°\n(C) 145°\n(D) 150°")
    assert questions[2].groups == {"task": "geometry problem solving", "context": "table", "grade": "college"}
    other = BENCHMARK.load(folder, "testmini", "{{ question }} {{ unit }} {{ choices | join('/') }}")
    assert [asked(q)[1] for q in other[:3]][::2] == ["Question 1? m", "Question 3?  135°/140°/145°/150°"]


def test_the_hubs_table_gives_the_same_and_its_own_query(folder, tmp_path):
    buffer = io.BytesIO()
    Pillow.new("RGB", (9, 7), "blue").save(buffer, "JPEG")
    rows = [row | {"decoded_image": {"bytes": buffer.getvalue(), "path": None}, "query": f"Ask {row['pid']}"}
            for row in ROWS]  # fmt: skip
    texts = dict.fromkeys(("split", "task", "context", "grade"), Value("string"))
    kinds = dict.fromkeys(rows[0], Value("string")) | {
        "choices": List(Value("string")), "precision": Value("float64"), "decoded_image": Image(),
        "metadata": texts | {"skills": List(Value("string"))},
    }  # fmt: skip
    hub = tmp_path / "hub" / "data"
    hub.mkdir(parents=True)
    Dataset.from_list(rows, Features(kinds)).to_parquet(hub / "testmini-00000-of-00001.parquet")
    Dataset.from_list(rows[:1], Features(kinds)).to_parquet(hub / "test-00000-of-00002.parquet")
    ours, theirs = BENCHMARK.load(tmp_path / "hub", "testmini"), BENCHMARK.load(folder, "testmini")
    assert [asked(q)[1] for q in ours] == ["Ask 1", "Ask 2", "Ask 3", "Ask 4"]
    assert [q.truth | {"query": ""} for q in ours] == [q.truth | {"query": ""} for q in theirs]


@pytest.mark.parametrize(
    ("asked", "response", "parsed"),
    [
        # the official short path
        (question(), "3", "3"), (question(), " 3\n", "3"), (question(), 'So: The answer is "3".', "3"),
        (question(), 'The answer is "3.7".', "3"), (question(), "", ""),
        (question(answer="1.25", precision=2, parts={"answer_type": "float"}), "1.249", "1.25"),
        (question(answer="[1, 2]", parts={"answer_type": "list"}), 'The answer is "[1, 2]".', "[1, 2]"),
        (choice("yes", "no", answer="yes"), "yes", "yes"),
        (choice("yes", "no", answer="yes"), 'The answer is "(b) no".', "no"),
        # our rules
        (question(), "I count 5, then remove 2.\nThe answer is 3.", "3"), (question(), "\\boxed{1,234}", "1234"),
        (question(), "There are -3 of them", "-3"), (question(), "No idea.", ""), (question(), "9" * 5000, ""),
        (question(answer="0.5", precision=1, parts={"answer_type": "float"}), "It is .5 m", "0.5"),
        (question(answer="[1, 2]", parts={"answer_type": "list"}), "Between [1,2], I think", "[1, 2]"),
        (choice("yes", "no", answer="yes"), "The answer is (B)", "no"), (choice("yes", "no", answer="yes"), "B", "no"),
        (choice("135°", "145°", answer="145°"), "It is 145° as the sum says", "145°"),
    ],
)  # fmt: skip
def test_answers_are_taken_out_and_brought_into_their_type(asked, response, parsed):
    assert score(asked, response) == (float(parsed == asked.truth["answer"]), parsed, False)


def test_what_is_no_option_becomes_the_nearest_and_counts_as_guessed():
    animals = choice("tadpole", "water flea", answer="water flea")
    assert score(animals, "waterflea") == (1.0, "water flea", True)
    assert score(animals, "") == (0.0, "tadpole", True)  # the shortest is the nearest to nothing
    assert score(animals, "x" * 1_000_000)[2]
    assert "the nearest option" in BENCHMARK.score(animals, "waterflea").note


def test_quotes_repeated_forever_take_no_time():
    assert score(question(), 'The answer is "' * 60_000)[0] == 0.0
    assert score(question(), "1," * 500_000)[0] == 0.0
    assert score(question(parts={"answer_type": "list"}, answer="[1]"), "[" * 500_000)[0] == 0.0


@given(st.text(max_size=80) | st.text(alphabet='[](){}.,0123456789-eE"naif The answer is', max_size=80))
def test_any_response_is_judged(response):
    for asked in (question(), question(parts={"answer_type": "float"}, precision=1), choice("a", "b", answer="a"),
                  question(parts={"answer_type": "list"})):  # fmt: skip
        assert BENCHMARK.score(asked, response).score in (0.0, 1.0)


@given(st.text(alphabet="abc", max_size=4), st.text(alphabet="abc", max_size=4))
def test_edit_distance_is_levenshteins(a, b):
    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    assert edit_distance(a, b) == slow(a, b)


def test_the_official_figures(folder):
    questions = BENCHMARK.load(folder, "testmini")
    said = ["1.24", "It is 4", "C", "[2007, 2008]"]
    scored = [(q, BENCHMARK.score(q, response)) for q, response in zip(questions, said, strict=True)]
    figures = BENCHMARK.summarize(scored)
    assert figures["accuracy"] == 75.0 and figures["average"] == {"accuracy": 0.75, "correct": 3, "total": 4}
    assert figures["answer_type"]["integer"] == {"accuracy": 0.0, "correct": 0, "total": 1}
    assert figures["skills"]["geometry reasoning"]["total"] == figures["skills"]["algebraic reasoning"]["total"] == 4
    assert figures["extraction"] == "1 by the official short path, 3 by our rules"


def test_a_judge_takes_out_what_the_short_path_leaves():
    with FaultServer(lambda call: say("\n\nB\nfor it says so")) as server:
        judge = Judge.connect(server.url, retries=0)
        benchmark, asked = BENCHMARK.judged_by(judge), choice("yes", "no", answer="no")
        verdict = benchmark.score(asked, "I am of the second opinion.")
        assert (verdict.score, verdict.parsed, verdict.note) == (1.0, "no", "taken out by the judge stub")
        assert benchmark.score(asked, "no").note == "taken out by the official short path" and len(server.calls) == 1
        sent = server.calls[0].body["messages"][0]["content"]
        assert "I am of the second opinion." in sent and sent.endswith("Answer:")
        judge.close()


@pytest.mark.parametrize(
    ("change", "says"),
    [({"answer": "146°"}, "its answer '146°' is none of its choices"), ({"question_type": "essay"}, "`question_type`"),
     ({"answer": None}, "no `answer`"), ({"question_type": "free_form"}, "its `answer_type` is 'text'"),
     ({"image": "images/2.png"}, "neither a file that is there nor base64"), ({"image": None}, "there is no picture")],
    ids=str,
)  # fmt: skip
def test_a_row_that_makes_no_sense(folder, change, says):
    (folder / "testmini.json").write_text(json.dumps({"3": ANGLES | change}))
    with pytest.raises(BenchmarkError) as error:
        BENCHMARK.load(folder, "testmini")
    assert says in str(error.value) and "row 1" in str(error.value) and "\n" not in str(error.value)


def test_only_the_split_with_answers(folder):
    with pytest.raises(BenchmarkError, match="no split 'test' with answers"):
        BENCHMARK.load(folder, "test")
