"""MMMU and MMMU-Pro: the official reading of every published response and its table; questions as they are asked."""

import io
import json
import sys
from random import Random

import pytest
from datasets import Dataset, Features, Image, Value
from fault_server import FaultServer, say
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from evaluation import __main__ as command
from evaluation.benchmark import BenchmarkError, Question, Verdict
from evaluation.benchmarks.mmmu import BENCHMARK as MMMU
from evaluation.benchmarks.mmmu_pro import BENCHMARK as PRO
from evaluation.interleaved import interleaved, options_of
from evaluation.scoring.choices import Choice, mmmu_choice, mmmu_pro_choice
from evaluation.scoring.mmmu_files import score_mmmu
from evaluation.scoring.mmmu_subjects import DOMAIN_OF, accuracy_table, subject_of
from evaluation.scoring.open_answers import is_right, predictions
from vlm.pictures import open_picture

OPTIONS = {"A": "a red cat", "B": "<image 2>", "C": "ten"}


# Choices


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"), ("(B)", "B"), ("B.", "B"), ("The answer is B!", "B"), ("(A) or rather (B)", "B"),
        ("(B), not (A)", "A"),  # the last one, whatever is said of it
        ("B and then A it is", "A"), ("(C) but B is bare", "C"),  # brackets go first
        ("It is not ten, but rather a RED CAT", "A"),  # of the options' texts the last one, whatever its case
        ("**B**", None), ("b", None), ("B) the second", None), ("", None), ("It is often ten", None),
        ("We often see that it is so", "C"),  # "ten" in "often", in more than five words
        ("The A is a letter here too", "A"), ("'B'.", "B"),
    ],
)  # fmt: skip
def test_mmmu_reads_choices_as_the_official_parser(response, letter):
    choice = mmmu_choice(response, OPTIONS, Random(1))
    assert choice == Choice(letter) if letter else choice.guessed and choice.letter in OPTIONS


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("Answer: B", "B"), ("Answer: A\nAnswer: (C)", "C"), ("(A) it is.\n\nAnswer: Both", "B"),
        ("I'm sorry, I can't help with that. Is NASA here?", "A"),  # "A " ends a word
        ("C.", "C"), ("Surely C. Yes", "C"),
        ("Answer: A or B, that is (B)", "B"),  # two after the mark: read as a whole
        ("XB and XA ", "A"),  # neither stands alone, so the first of the options counts
        ("Answer: ten is the right one of them", "C"), ("nothing", None), ("Answer: none", None),
    ],
)  # fmt: skip
def test_mmmu_pro_reads_choices_as_its_own_parser(response, letter):
    choice = mmmu_pro_choice(response, OPTIONS, Random(1))
    assert choice == Choice(letter) if letter else choice.guessed


def test_a_guess_depends_on_the_draw_alone_and_is_counted_0_by_the_strict_figure():
    letters = [mmmu_choice("?", dict.fromkeys("ABCD", "x"), Random(f"q{i}")).letter for i in range(50)]
    assert letters == [mmmu_choice("??", dict.fromkeys("ABCD", "y"), Random(f"q{i}")).letter for i in range(50)]
    assert set(letters) == set("ABCD")
    assert Verdict(1.0, "A", guessed=True).strict == 0.0 and Verdict(None, "A", guessed=True).strict is None
    assert mmmu_choice("?", {}, Random(0)) == Choice("", guessed=True)


# Open answers


@pytest.mark.parametrize(
    ("response", "read"),
    [
        ("5", {5.0}), ("x = 3.14159", {3.14}), ("It could be 7\nso the answer is 8.", {7.0, 8.0}),
        ("1,234.5 m", {"1,234.5 m", 1234.0, 234.5}), ("$1,200,000", {"$1,200,000", 1200000.0, 0.0}),
        ("-1e3 volts", {"-1e3 volts", -1000.0, 3.0}), ("It is 12e5x", {"12e5x", 1200000.0}),
        ("3-12e5", {"3-12e5", 3.0, -1200000.0, 5.0}), ("1/64", {"1/64", 1.0, 64.0}), ("1_000", {1000.0, 0.0}),
        ("B", {" b", "b "}), ("The answer is B", {" b", "b "}), ("inf", {float("inf")}), ("", {""}),
        ("a = b\nno", {"a = b\nno"}),  # "=" counts in the last line alone
        ("The result is :", {"the result is :"}),
    ],
)  # fmt: skip
def test_open_answers_are_read_as_the_official_parser(response, read):
    assert set(predictions(response)) == read


def test_open_answers_are_right_by_text_or_number():
    assert is_right(predictions("I think the city of Tampa, Florida"), ["Tampa", "Orlando"])
    assert is_right(predictions("It is 3.4289"), ["24/7", "3.429"]) and not is_right(predictions("3.42"), ["3.429"])
    assert is_right(predictions("step B"), ["B"]) and not is_right(predictions("bee"), ["B"])
    assert is_right(["12"], ["2"]) is False and is_right(predictions("not 5 but 6"), ["5"])


@given(st.text(max_size=80) | st.text(alphabet="0123456789.,eE-+ =\nis", max_size=80), st.text(max_size=5))
def test_any_text_is_read(response, truth):
    assert predictions(response) == predictions(response)
    assert is_right(predictions(response), [truth]) in (True, False)
    for choose in (mmmu_choice, mmmu_pro_choice):
        assert choose(response, {"A": truth, "B": "b"}, Random(0)).letter in ("A", "B")


@given(st.text(alphabet="0123456789.,eE-+x ٣", max_size=40))
def test_numbers_are_found_as_by_the_official_expressions(text):
    """The expressions that are linear find what the plain ones find, which are quadratic."""
    import re

    from evaluation.scoring import open_answers

    plain = r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"
    assert open_answers._PLAIN.findall(text) == re.findall(plain, text)
    assert open_answers._SCIENTIFIC.findall(text) == re.findall(r"-?\d+(?:\.\d+)?[eE][+-]?\d+", text)


@pytest.mark.parametrize(
    "hostile",
    ["1" * 10**6, "1" * 10**6 + "x", "1," * 300_000, "1.1" * 300_000, "e" * 10**6, "-" * 10**6, "is " * 300_000,
     "1e" * 500_000, "(A)" * 300_000, "Answer:" * 150_000, "9" * 10**5 + "e" + "9" * 10**5, "so\n" * 300_000,
     "," * 10**6 + "." * 10**6],
    ids=lambda text: text[:8],
)  # fmt: skip
def test_no_response_takes_long(hostile):
    import time

    start = time.process_time()
    assert is_right(predictions(hostile), ["-7.25", "no such words"]) is False
    for choose in (mmmu_choice, mmmu_pro_choice):
        choose(hostile, {"A": "a b c", "B": "1" * 50}, Random(0))
    assert time.process_time() - start < 2.0


# Published outputs


@pytest.fixture(scope="module")
def published(shared):
    return shared / "benchmarks" / "mmmu"


def test_every_published_response_is_judged_as_officially_and_the_table_is_the_same(published):
    official = json.loads((published / "llava1.5_13b_official_judgement.json").read_text())
    found = score_mmmu(published / "published" / "llava1.5_13b", published / "answer_dict_val.json")
    assert found["samples"].keys() == official["samples"].keys() and found["missing"] == 0
    for id, sample in official["samples"].items():
        own = found["samples"][id]
        assert own["correct"] == sample["correct"], id
        assert set(own["parsed"]) == set(sample["parsed"]), id
    assert (found["overall_correct"], found["n"]) == (330, 900) and found["Overall"] == {"num": 900, "acc": 0.367}
    table = accuracy_table((subject_of(id), float(s["correct"])) for id, s in official["samples"].items())
    assert {name: found[name] for name in table} == table and len(table) == 37
    assert found["guessed"] == 2 and found["strict"]["overall_correct"] == 329
    assert found["strict"]["Design"]["acc"] == 0.567 and found["Design"]["acc"] == 0.6


KEY = {
    "validation_Art_1": {"question_type": "multiple-choice", "ground_truth": "B"},
    "validation_Art_2": {"question_type": "multiple-choice", "ground_truth": "A"},
    "validation_Math_1": {"question_type": "short-answer", "ground_truth": ["24/7", "3.429"]},
    "validation_Math_2": {"question_type": "short-answer", "ground_truth": "9"},
}


def output(id, response, **more):
    options = {"all_choices": ["A", "B"], "index2ans": {"A": "one", "B": "two"}} if "Art" in id else {}
    return {"id": id, "question_type": "?", "answer": "?", "response": response} | options | more


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "key.json").write_text(json.dumps(KEY))
    (tmp_path / "out" / "Math").mkdir(parents=True)
    (tmp_path / "out" / "Art.json").write_text(
        json.dumps([output("validation_Art_1", "B"), output("validation_Art_2", "(B)")])
    )
    (tmp_path / "out" / "Math" / "output.json").write_text(json.dumps([output("validation_Math_1", "so 3.43")]))
    (tmp_path / "out" / "result.json").write_text("{}")
    return tmp_path


def test_the_command_shows_the_table_and_ends_with_the_official_keys(monkeypatch, capsys, folder):
    def rejected(name):
        raise AssertionError(f"{name} is no JSON")

    (folder / "out" / "Math" / "output.json").write_text(json.dumps([output("validation_Math_2", "Infinity")]))
    (folder / "out" / "Art.json").write_text(json.dumps([output("validation_Art_1", "hm")]))
    monkeypatch.setattr(sys, "argv", ["evaluation", "score", "mmmu", str(folder / "out"), "--key",
                                      str(folder / "key.json"), "--json"])  # fmt: skip
    assert command.main() == 0
    out = capsys.readouterr().out
    found = json.loads(out.strip().splitlines()[-1], parse_constant=rejected)
    assert found["Overall"]["num"] == 2 and found["Math"] == {"num": 1, "acc": 0.0}
    assert found["samples"]["validation_Math_2"] == {"parsed": ["inf"], "correct": False, "guessed": False}
    assert found["samples"]["validation_Art_1"]["guessed"] and found["strict"]["Art"]["acc"] == 0.0
    assert "1 responses name no option" in out and "2 questions of the key have no output" in out


def test_both_layouts_are_read_and_what_is_missing_is_counted(folder):
    found = score_mmmu(folder / "out", folder / "key.json")
    assert found["Art"] == {"num": 2, "acc": 0.5} and found["Math"] == {"num": 1, "acc": 1.0}
    assert found["Overall"] == {"num": 3, "acc": 0.667} and found["Overall-Business"] == {"num": 0, "acc": 0}
    assert (found["missing"], found["guessed"], found["overall_correct"]) == (1, 0, 2)


def test_one_file_of_answers_is_read_as_the_official_eval_only(folder):
    (folder / "all.json").write_text(json.dumps({"validation_Art_1": "B", "validation_Art_2": "(A)",
                                                 "validation_Math_2": "9.0"}))  # fmt: skip
    found = score_mmmu(folder / "all.json", folder / "key.json")
    assert found["Art"]["acc"] == 0.5 and found["Math"]["acc"] == 1.0 and found["missing"] == 1


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        ("out/Art.json", "{", "cannot be read"), ("out/Art.json", "{}", "no list of outputs"),
        ("out/Art.json", "[1]", "no list of outputs"),
        ("out/Art.json", json.dumps([{"id": "validation_Art_9", "response": "A"}]), "the key does not have"),
        ("out/Art.json", json.dumps([{"id": ["x"], "response": "A"}]), "the key does not have"),
        ("out/Art.json", json.dumps([output("validation_Art_1", None)]), "is 'None', no text"),
        ("out/Art.json", json.dumps([{"id": "validation_Art_1", "response": "A"}]), "has no options"),
        ("out/Art.json", json.dumps([output("validation_Art_1", "A", all_choices=["D"])]), "has no options"),
        ("out/Art.json", json.dumps([output("validation_Art_1", "A")] * 2), "twice"),
        ("key.json", "[]", "is no key"), ("key.json", json.dumps({"validation_Magic_1": KEY["validation_Art_1"]}),
                                          "no subject of MMMU"),
        ("key.json", json.dumps({"validation_Art_1": {}}), "no `ground_truth`"), ("key.json", "[" * 100_000, "cannot"),
    ],
)  # fmt: skip
def test_files_that_are_not_in_their_layout_are_refused_in_a_line(folder, path, content, says):
    (folder / path).write_text(content)
    with pytest.raises(BenchmarkError, match=says.replace("(", r"\(")) as refusal:
        score_mmmu(folder / "out", folder / "key.json")
    assert "\n" not in str(refusal.value)


def test_an_empty_folder_and_no_folder_are_refused(folder):
    for nothing in (folder / "none", folder / "out" / "Math"):
        with pytest.raises(BenchmarkError, match="has no outputs; give a folder with <Subject>"):
            score_mmmu(nothing, folder / "key.json")


# Questions


def png(colour):
    buffer = io.BytesIO()
    Pillow.new("RGB", (6, 5), colour).save(buffer, "PNG")
    return buffer.getvalue()


def row(id, **more):
    pictures = {f"image_{i}": None for i in range(1, 8)} | {"image_1": {"bytes": png("red"), "path": "1.png"}}
    return {"id": id, "question": "What is <image 1>?", "options": "['one', \"it's two\"]", "explanation": "",
            "img_type": "['Plots']", "answer": "B", "topic_difficulty": "Easy", "question_type": "multiple-choice",
            "subfield": "x"} | pictures | more  # fmt: skip


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {name: Image() if name.startswith("image") else Value("string") for name in rows[0]}
    Dataset.from_list(rows, Features(kinds)).to_parquet(path)


@pytest.fixture
def mmmu(tmp_path):
    """Two subjects as the hub has them, in val and test."""
    open_ = row(
        "validation_Math_1", question_type="open", options="[]", answer="['24/7', '3.429']", question="<image 1>"
    )
    pictured = row("validation_Art_Theory_2", options="['<image 2>', 'none']", answer="A",
                   image_2={"bytes": png("blue"), "path": None}, topic_difficulty="Hard")  # fmt: skip
    for subject, own in (("Math", [open_]), ("Art_Theory", [row("validation_Art_Theory_1"), pictured])):
        write(tmp_path / "mmmu" / subject / "validation-00000-of-00001.parquet", own)
        tests = [one | {"id": one["id"].replace("validation", "test"), "answer": "?"} for one in own]
        write(tmp_path / "mmmu" / subject / "test-00000-of-00001.parquet", tests)
    return tmp_path / "mmmu"


def shown(question):
    """The parts of the turn: texts, and the colours of the pictures."""
    colours = {(255, 0, 0): "red", (0, 0, 255): "blue"}
    return [part["text"] if part["type"] == "text" else colours[open_picture(part["image"]).getpixel((0, 0))]
            for part in question.conversation[0]["content"]]  # fmt: skip


def test_questions_are_asked_in_the_official_words_with_pictures_in_their_places(mmmu):
    first, second, third = MMMU.load(mmmu, "val")
    assert [q.id for q in (first, second, third)] == ["validation_Art_Theory_1", "validation_Art_Theory_2",
                                                      "validation_Math_1"]  # fmt: skip
    assert shown(first) == [
        "What is ", "red",
        "?\n(A) one\n(B) it's two\n\nAnswer with the option's letter from the given choices directly.",
    ]  # fmt: skip
    assert shown(second) == [
        "What is ", "red", "?\n(A) ", "blue",
        "\n(B) none\n\nAnswer with the option's letter from the given choices directly.",
    ]  # fmt: skip
    assert shown(third) == ["red", "\nAnswer the question using a single word or phrase."]
    assert second.groups == {"subject": "Art_Theory", "domain": "Art and Design", "difficulty": "Hard",
                             "question type": "multiple-choice"}  # fmt: skip
    json.dumps([q.truth for q in (first, second, third)])


def test_flat_files_and_the_users_prompt(mmmu):
    (mmmu.parent / "flat").mkdir()
    (mmmu / "Math" / "validation-00000-of-00001.parquet").rename(mmmu.parent / "flat" / "Math_validation.parquet")
    (question,) = MMMU.load(
        mmmu.parent / "flat", "val", "Look: {{ question }}{% if options %}\n{{ options }}{% endif %}"
    )
    assert shown(question) == ["Look: ", "red"]


def test_answers_are_scored_and_summed_up_officially(mmmu):
    questions = MMMU.load(mmmu, "val")
    verdicts = [MMMU.score(q, said) for q, said in zip(questions, ("(B)", "dunno", "about 3.43"), strict=True)]
    assert [v.score for v in verdicts[::2]] == [1.0, 1.0] and verdicts[0].parsed == "B"
    assert verdicts[1].guessed and verdicts[1].strict == 0.0 and "drawn at random" in verdicts[1].note
    assert verdicts[2].parsed == "about 3.43; 3.43" and MMMU.score(questions[1], "hm") == verdicts[1]
    right = [(questions[0], Verdict(1.0)), (questions[1], Verdict(0.0)), (questions[2], Verdict(1.0))]
    assert MMMU.summarize(right) == {"Overall": 0.667, "Overall-Art and Design": 0.5, "Overall-Science": 1.0,
                                     "Art_Theory": 0.5, "Math": 1.0}  # fmt: skip


def test_the_test_split_has_no_score_and_a_file_for_its_server(monkeypatch, capsys, mmmu, tmp_path):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments)])
        return command.main(), *capsys.readouterr()

    def answer(call):
        asked = json.dumps(call.body["messages"])
        return say("The answer is (B).") if "(B)" in asked else say(" 24/7 \n")

    out = tmp_path / "file.json"
    with FaultServer(answer) as server:
        code, printed, error = run("run", "mmmu", "--split", "test", "--data", mmmu, "--base-url", server.url,
                                   "--out", tmp_path / "run", "--json")  # fmt: skip
        assert code == 0, error
        urls = [
            p["image_url"]["url"] for c in server.calls for p in c.body["messages"][0]["content"] if "image_url" in p
        ]
        assert len(urls) == 4 and all(url.startswith("data:image/png;base64,") for url in urls)
        assert run("run", "mmmu", "--data", mmmu, "--base-url", server.url, "--limit", 2, "--out", tmp_path / "val",
                   "--json")[0] == 0  # fmt: skip
    summary = json.loads(printed.strip().splitlines()[-1])
    assert summary["score"] is summary["strict"] is summary["score_failed_as_0"] is None and not summary["groups"]
    assert (summary["unjudged"], summary["answers"], summary["official"]) == (3, 3, {})
    assert "No score: the answers to 3 questions are not published." in printed and "0.0%" not in printed
    rows = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert {row["score"] for row in rows} == {None}
    code, printed, _ = run("submission", tmp_path / "run", out)
    assert code == 0 and f"3 answers are in {out}" in printed
    assert json.loads(out.read_text()) == {"test_Art_Theory_1": "B", "test_Art_Theory_2": "B", "test_Math_1": "24/7"}
    code, _, error = run("submission", tmp_path / "run", out)
    assert code == 2 and "is there already; write to another file" in error
    code, _, error = run("compare", tmp_path / "run", tmp_path / "run")
    assert code == 2 and "that both have a score of" in error
    # What is left out is named; what is not finished is refused.
    (tmp_path / "run" / "answers.jsonl").write_text(
        "".join(json.dumps(row | ({"error": "lost"} if "Math" in row["id"] else {})) + "\n" for row in rows)
    )
    code, printed, _ = run("submission", tmp_path / "run", tmp_path / "2.json")
    assert code == 1 and "Not in it, for they have no answer: 1 questions, test_Math_1" in printed
    (tmp_path / "run" / "answers.jsonl").write_text(json.dumps(rows[0]) + "\n")
    code, _, error = run("submission", tmp_path / "run", tmp_path / "3.json")
    assert code == 2 and "not finished, 2 questions are to come" in error and not (tmp_path / "3.json").exists()


def test_a_benchmark_without_a_server_takes_no_submission(monkeypatch, capsys, tmp_path):
    with FaultServer() as server:
        asked = ["run", "world", "--data", 1, "--no-pictures", "--base-url", server.url, "--out", tmp_path / "run"]
        for arguments in (asked, ["submission", tmp_path / "run", tmp_path / "x.json"]):
            monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments)])
            code = command.main()
    assert code == 2 and "World takes no submissions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"options": "__import__('os')"}, "are no list"), ({"options": "[" * 5000}, "are no list"),
        ({"options": "['one']"}, "its answer is 'B'"), ({"options": "[]"}, "no question or no options"),
        ({"options": str(["x"] * 27)}, "27 options"), ({"answer": "?"}, "its answer is '\\?'"),
        ({"id": "validation_Magic_1"}, "its subject '' is none"), ({"question": " "}, "no question"),
        ({"question_type": "open", "answer": ""}, "no answer"),
        ({"question_type": "open", "answer": "[]"}, "no answer"),
        ({"image_1": {"bytes": b"text", "path": None}}, "no format"), ({"options": "[['a'], 'b']"}, "no list of texts"),
    ],
)  # fmt: skip
def test_rows_that_are_not_in_the_layout_are_refused_in_a_line(tmp_path, change, says):
    write(tmp_path / "Art" / "validation-0.parquet", [row("validation_Art_1") | change])
    with pytest.raises(BenchmarkError, match=says) as refusal:
        MMMU.load(tmp_path, "val")
    assert "\n" not in str(refusal.value) and str(refusal.value).count("it must hold") == 1


def test_no_data_and_no_split_are_refused(tmp_path):
    with pytest.raises(BenchmarkError, match="no split 'validation'; it has val, dev, test"):
        MMMU.load(tmp_path, "validation")
    for split, benchmark in (("val", MMMU), ("dev", MMMU), ("standard", PRO), ("vision", PRO)):
        with pytest.raises(BenchmarkError, match="has no such file; it must hold"):
            benchmark.load(tmp_path, split)


# MMMU-Pro


@pytest.fixture
def pro(tmp_path):
    ten = str([f"option {i}" for i in range(10)])
    standard = row("test_Art_Theory_1", options=ten, answer="J", subject="Art_Theory")
    write(tmp_path / "pro" / "standard (10 options)" / "test-00000-of-00002.parquet", [standard])
    write(tmp_path / "pro" / "standard (4 options)" / "test-00000-of-00001.parquet", [row("test_Art_9")])
    seen = {"id": "test_Math_1", "image": {"bytes": png("blue"), "path": None}, "options": ten, "answer": "C",
            "subject": "Math"}  # fmt: skip
    write(tmp_path / "pro" / "vision" / "test-00000-of-00003.parquet", [seen])
    return tmp_path / "pro"


def test_mmmu_pro_asks_with_ten_options_or_by_the_picture_alone(pro):
    (standard,), (vision,) = PRO.load(pro, "standard"), PRO.load(pro, "vision")
    listed = "\n".join(f"{letter}. option {i}" for i, letter in enumerate("ABCDEFGHIJ"))
    assert shown(standard) == [
        "What is ", "red", f"?\n{listed}\nAnswer with the option letter from the given choices directly.",
    ]  # fmt: skip
    picture, words = shown(vision)
    assert picture == "blue" and "option 3" not in words and words.endswith("where LETTER is one of options.")
    assert standard.groups == {"subject": "Art_Theory", "domain": "Art and Design", "difficulty": "Easy"}
    assert PRO.score(standard, "So it is.\nAnswer: J").score == 1.0 and PRO.score(vision, "Answer: D").score == 0.0
    guess = PRO.score(vision, "hm")
    assert guess.guessed and guess.strict == 0.0 and guess == PRO.score(vision, "well")
    assert PRO.summarize([(standard, Verdict(1.0)), (vision, Verdict(0.0))])["accuracy"] == 50.0


def test_mmmu_pro_refuses_what_is_not_in_its_layout(pro):
    with pytest.raises(BenchmarkError, match="no split 'test'; it has standard, vision"):
        PRO.load(pro, "test")
    write(pro / "vision" / "test-00000-of-00003.parquet",
          [{"id": "test_Math_1", "image": None, "options": "['a']", "answer": "A"}])  # fmt: skip
    with pytest.raises(BenchmarkError, match="there is no picture; it must hold"):
        PRO.load(pro, "vision")


# What they share


def test_pictures_that_are_named_twice_or_never_are_shown_and_names_without_one_stay():
    parts = interleaved("a <image 1> b <image 1><image 3>", {1: "one", 2: "two"})
    assert [part.get("image") or part["text"] for part in parts] == ["two", "a ", "one", " b ", "one", "<image 3>"]


@given(st.text(alphabet="<image 12>ab\n", max_size=60))
def test_interleaving_loses_no_word_and_no_picture(text):
    parts = interleaved(text, {1: "one", 2: "two"})
    said = "".join(part["text"] if part["type"] == "text" else "" for part in parts)
    assert "".join(said.split()) == "".join(text.replace("<image 1>", "").replace("<image 2>", "").split())
    assert {"one", "two"} <= {part.get("image") for part in parts}


def test_options_are_literals_and_never_code():
    assert options_of("['a', \"b's\", 3]") == ["a", "b's", "3"] and options_of(["x"]) == ["x"]
    for bad in ("print(1)", "{'a': 1}", "['a'", None, 5, "[" * 10_000):
        with pytest.raises(ValueError, match="no list"):
            options_of(bad)


def test_the_thirty_subjects():
    assert len(DOMAIN_OF) == 30 and subject_of("validation_Basic_Medical_Science_10") == "Basic_Medical_Science"
    assert subject_of("Art_1") is None and subject_of("test_Magic_2") is None
    assert Question("x", [{"role": "user", "content": "?"}], {}).has_pictures is False
