"""MathVision: its data in both published layouts, its prompt, its figures; the published outputs to the digit."""

import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from datasets import List as ListFeature
from PIL import Image

from evaluation import __main__ as command
from evaluation.benchmark import BenchmarkError
from evaluation.benchmarks import benchmark_named
from evaluation.benchmarks.mathvision import BENCHMARK
from evaluation.scoring import mathvision_files
from evaluation.scoring.mathvision_files import Truth, accuracy_table, score_mathvision
from evaluation.scoring_files import SCORERS, score_files
from vlm.pictures import open_picture

ROOT = Path(__file__).parent.parent
PUBLISHED = ("Gemini-Pro-CoT", "LLaVA-v1.5-13B", "Qwen-VL-Max")
EXTRA = {"samples", "notes"}

ROWS = [
    {"id": "1", "question": "How many dots?\n<image1>", "options": [], "answer": "12", "level": 1,
     "subject": "counting"},
    {"id": "2", "question": "Which one?\n<image1>\n<image2>", "options": list("ABCDE"), "answer": "C", "level": 2,
     "subject": "topology"},
    {"id": "3", "question": "What part <image1> is dark?", "options": ["$\\frac{1}{2}$", "$0.3$", "1", "2", "3"],
     "answer": "A", "level": 1, "subject": "counting"},
    {"id": "4", "question": "No name.", "options": [], "answer": "(3,-4)", "level": 5, "subject": "analytic geometry"},
]  # fmt: skip


def picture(number) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """The repository's layout; the other split and a model's outputs are no questions of this one."""
    (tmp_path / "images").mkdir()
    for number in range(1, 5):
        (tmp_path / f"images/{number}.png").write_bytes(picture(number))
    rows = [row | {"image": f"images/{row['id']}.png", "solution": None} for row in ROWS]
    write_lines(tmp_path / "testmini.jsonl", rows)
    write_lines(tmp_path / "test.jsonl", rows[:1])
    (tmp_path / "published").mkdir()
    write_lines(tmp_path / "published/model.jsonl", [{"id": "9", "response": "testmini"}])
    return tmp_path


@pytest.fixture
def parquet(tmp_path) -> Path:
    """The hub's layout."""
    features = Features({
        "id": Value("string"), "question": Value("string"), "options": ListFeature(Value("string")),
        "image": Value("string"), "decoded_image": ImageFeature(), "answer": Value("string"),
        "solution": Value("string"), "level": Value("int64"), "subject": Value("string"),
    })  # fmt: skip
    rows = [row | {"image": f"images/{row['id']}.jpg", "solution": None,
                   "decoded_image": {"bytes": picture(int(row["id"])), "path": None}} for row in ROWS]  # fmt: skip
    (tmp_path / "data").mkdir()
    for split, own in (("testmini", rows), ("test", rows[:1])):
        Dataset.from_list(own, features).to_parquet(tmp_path / f"data/{split}-00000-of-00001-abc.parquet")
    return tmp_path


def shape(question):
    return [part["type"] if part["type"] == "image" else part["text"] for part in question.conversation[0]["content"]]


def test_questions_in_both_layouts(folder, tmp_path_factory, request):
    first = BENCHMARK.load(folder, "testmini")
    assert [q.id for q in first] == ["1", "2", "3", "4"] and len(BENCHMARK.load(folder, "test")) == 1
    assert first[0].groups == {"subject": "counting", "level": "1"}
    assert first[2].truth == {"answer": "A", "options": ROWS[2]["options"], "subject": "counting", "level": "1"}
    assert open_picture(first[1].conversation[0]["content"][0]["image"]).getpixel((0, 0)) == (80, 0, 0)
    json.dumps([q.truth for q in first])


def test_the_hubs_layout_gives_the_same(parquet, folder):
    for name in ("testmini.jsonl", "test.jsonl"):
        (folder / name).rename(folder / f"away-{name}")
    from_parquet = BENCHMARK.load(parquet, "testmini")
    assert [q.id for q in from_parquet] == ["1", "2", "3", "4"] and len(BENCHMARK.load(parquet, "test")) == 1
    for number, question in enumerate(from_parquet, 1):
        [image] = [part["image"] for part in question.conversation[0]["content"] if part["type"] == "image"]
        assert open_picture(image).getpixel((0, 0)) == (40 * number, 0, 0)
    assert from_parquet[2].truth["options"] == ROWS[2]["options"]


def test_the_prompt_and_where_the_picture_goes(folder):
    one, several, inside, unnamed = map(shape, BENCHMARK.load(folder, "testmini"))
    official = (
        'Please solve the problem step by step and put your answer in one "\\boxed{}". If it is a multiple choice '
        'question, only one letter is allowed in the "\\boxed{}".\n'
    )
    assert one == [official + "How many dots?\n", "image"]
    # The published picture of several shows them under their names; options that are letters alone are not listed.
    assert several == ["image", official + "Which one?\n<image1>\n<image2>"]
    assert inside == [
        official + "What part ", "image",
        " is dark?\n(A) $\\frac{1}{2}$\n(B) $0.3$\n(C) 1\n(D) 2\n(E) 3",
    ]  # fmt: skip
    assert unnamed == ["image", official + "No name."]


def test_a_prompt_of_the_users(folder):
    questions = BENCHMARK.load(folder, "testmini", "Q: {{ question }}{% if options %} [{{ options }}]{% endif %}")
    assert shape(questions[0]) == ["Q: How many dots?\n", "image"] and shape(questions[1])[1].startswith("Q: Which")
    with pytest.raises(BenchmarkError, match="hint"):
        BENCHMARK.load(folder, "testmini", "{{ question }} {{ hint }}")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"answer": "F"}, "'F', with 5 options"), ({"answer": None}, "`answer`"), ({"options": "ABC"}, "`options`"),
        ({"level": None}, "`level`"), ({"question": " "}, "`question`"), ({"image": "images/7.png"}, "not there"),
        ({"image": None}, "not there"),
    ],
)  # fmt: skip
def test_rows_that_are_none(folder, row, says):
    write_lines(folder / "testmini.jsonl", [ROWS[1] | {"image": "images/2.png"} | row])
    with pytest.raises(BenchmarkError, match=re.escape(says)) as refused:
        BENCHMARK.load(folder, "testmini")
    assert "\n" not in str(refused.value) and "'2'" in str(refused.value)


def test_what_is_not_there(folder, tmp_path_factory):
    with pytest.raises(BenchmarkError, match="no split 'val'"):
        BENCHMARK.load(folder, "val")
    with pytest.raises(BenchmarkError, match=r"test\.jsonl"):
        BENCHMARK.load(tmp_path_factory.mktemp("empty"), "test")


def test_verdicts_and_the_official_keys(folder, monkeypatch):
    monkeypatch.setattr(mathvision_files, "verify", lambda response, values, letters: float("yes" in response))
    questions = BENCHMARK.load(folder, "testmini")
    responses = ["\\boxed{12.004} yes", "(C)", "The answer is 0.5", "no idea " * 100]
    verdicts = [BENCHMARK.score(q, response) for q, response in zip(questions, responses, strict=True)]
    assert [v.score for v in verdicts] == [1.0, 1.0, 1.0, 0.0] and [v.modern for v in verdicts] == [1.0, 0.0, 0.0, 0.0]
    assert [v.parsed for v in verdicts[:3]] == ["12.004", "c", "\\frac{1}{2}"] and len(verdicts[3].parsed) == 300
    assert not any(v.guessed for v in verdicts)
    figures = BENCHMARK.summarize(list(zip(questions, verdicts, strict=True)))
    assert list(figures) == sorted(figures) and figures == {
        "-all": "3/4=75.0%", "-level1": "2/2=100.0%", "-level1_counting": "2/2=100.0%", "-level2": "1/1=100.0%",
        "-level2_topology": "1/1=100.0%", "-level5": "0/1=0.0%", "-level5_analytic geometry": "0/1=0.0%",
        "analytic geometry": "0/1=0.0%", "analytic geometry_level5": "0/1=0.0%", "counting": "2/2=100.0%",
        "counting_level1": "2/2=100.0%", "topology": "1/1=100.0%", "topology_level2": "1/1=100.0%",
    }  # fmt: skip


def test_percentages_are_rounded_as_python_does():
    truth = Truth("1", [], "logic", "3")
    assert accuracy_table([(truth, n < 1) for n in range(3)])["-all"] == "1/3=33.33%"
    assert accuracy_table([(truth, n < 29) for n in range(80)])["logic"] == "29/80=36.25%"
    assert accuracy_table([(truth, n < 1) for n in range(7)])["logic_level3"] == "1/7=14.29%"


def test_what_math_verify_is_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(mathvision_files, "verify", lambda response, values, letters: asked.append((values, letters)))
    Truth("$\\frac{1}{3}$", [], "logic", "1").verified("")
    Truth("B", ["Sunday", "$12 \\mathrm{~cm}$", "C", "D", "E"], "logic", "1").verified("")
    Truth("A", ["Sunday", "2", "C", "D", "E"], "logic", "1").verified("")
    assert asked == [(["\\frac{1}{3}"], []), (["12 \\mathrm{~cm}"], ["B"]), ([], ["A"])]


def test_math_verify_for_real(folder):
    question = BENCHMARK.load(folder, "testmini")[2]
    assert [BENCHMARK.score(question, f"So \\boxed{{{said}}}.").modern for said in ("A", "\\frac12", "B")] == [1, 1, 0]


# Files of others


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_outputs_to_the_digit(shared, model):
    data = shared / "benchmarks/mathvision"
    begun = time.process_time()
    scores = score_mathvision(data / f"published/{model}.jsonl", data / "test.jsonl")
    assert time.process_time() - begun < 20
    expected = json.loads((data / f"published/{model}_result.json").read_text())
    official = {key: value for key, value in scores.items() if key not in EXTRA}
    assert official == expected and list(official) == list(expected) and scores["notes"] == []
    rows = [json.loads(line) for line in (data / f"published/{model}.jsonl").read_text().splitlines()]
    assert len(rows) == 3040
    for row in rows:
        assert scores["samples"][row["id"]] == {"parsed": row["model_answer"], "correct": row["correct"]}, row["id"]


def test_the_published_questions_are_read(shared):
    questions = benchmark_named("mathvision").load(shared / "benchmarks/mathvision", "testmini")
    assert len(questions) == 304 and len({q.id for q in questions}) == 304 and all(q.has_pictures for q in questions)
    assert len({q.groups["subject"] for q in questions}) == 16 and {q.groups["level"] for q in questions} == set(
        "12345"
    )


@pytest.fixture
def files(tmp_path):
    key = write_lines(tmp_path / "test.jsonl", ROWS)
    responses = {1: "12", 2: "The answer is B", 3: "\\boxed{a}", 4: "(3, -4)"}
    rows = [{"id": str(id), "response": said, "correct": False} for id, said in responses.items()]
    return write_lines(tmp_path / "outputs.jsonl", rows), key


def test_what_is_said_about_outputs(files):
    outputs, key = files
    scores = score_mathvision(outputs, key)
    assert scores["-all"] == "3/4=75.0%" and scores["notes"] == []
    assert scores["samples"]["4"] == {"parsed": "(3,-4)", "correct": True}
    write_lines(outputs, [{"id": 1, "response": "12"}, {"id": "1", "response": "13"}, {"id": "2", "response": None}])
    scores = score_mathvision(outputs, key)
    assert scores["-all"] == "1/3=33.33%" and set(scores["samples"]) == {"1", "2"}
    one_empty, twice, missing = scores["notes"]
    assert one_empty.startswith("1 responses are empty") and twice.startswith("1 outputs") and "2 of the key" in missing


def test_math_verify_beside_the_official_rule(files, monkeypatch):
    monkeypatch.setattr(mathvision_files, "verify", lambda response, values, letters: float("12" in response))
    scores = score_files("mathvision", *files, modern=True)
    assert scores["modern"] == "1/4=25.0%" and scores["-all"] == "3/4=75.0%"
    assert scores["samples"]["1"]["modern"] == 1.0
    with pytest.raises(BenchmarkError, match="--modern"):
        score_files("mmmu", *files, modern=True)


@pytest.mark.parametrize(
    ("outputs", "key", "says"),
    [
        (None, ROWS, "cannot be read"), ("", ROWS, "has no outputs"), ("{", ROWS, "line 1: it is no JSON object"),
        ("[1]", ROWS, "line 1: it is no JSON object"), ("[" * 100_000, ROWS, "line 1: it is no JSON object"),
        ('{"id": "1"}', ROWS, "`response`"), ('{"id": "1", "response": 12}', ROWS, "`response`"),
        ('{"id": "77", "response": "12"}', ROWS, "'77'"), ('{"response": "12"}', ROWS, "'None'"),
        ('{"id": "1", "response": "12"}', [{"id": "1"}], "`answer`"),
        ('{"id": "1", "response": "12"}', [], "questions"),
    ],
)  # fmt: skip
def test_wrong_files_give_one_line(monkeypatch, capsys, tmp_path, outputs, key, says):
    if outputs is not None:
        (tmp_path / "outputs.jsonl").write_text(outputs)
    write_lines(tmp_path / "key.jsonl", key)
    arguments = ["score", "mathvision", tmp_path / "outputs.jsonl", "--key", tmp_path / "key.jsonl"]
    monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments)])
    assert command.main() == 2
    line = capsys.readouterr().err.strip()
    assert says in line and "\n" not in line and "Traceback" not in line


def test_the_command(files):
    outputs, key = files
    run = [sys.executable, "-m", "evaluation", "score", "mathvision", str(outputs), "--key", str(key), "--json"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert json.loads(done.stdout.splitlines()[-1]) == score_mathvision(outputs, key)
    assert "3/4=75.0%" in done.stdout and "more figures" in done.stdout
    wrong = subprocess.run([*run[:4], "chess", *run[5:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and all(name in wrong.stderr for name in SCORERS)
