"""MMBench, MMStar and OCRBench: published layouts in, official readings and figures out."""

import base64
import csv
import io
import json

import pytest
from datasets import Dataset, Features, Image, List, Value
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from evaluation.benchmark import BenchmarkError, Verdict
from evaluation.benchmarks.mmbench import BENCHMARK as MMBENCH
from evaluation.benchmarks.mmbench import ROTATION
from evaluation.benchmarks.mmstar import BENCHMARK as MMSTAR
from evaluation.benchmarks.ocrbench import BENCHMARK as OCRBENCH
from evaluation.scoring.option_letters import infer_option
from vlm.pictures import open_picture

OPTIONS = {"A": "a red cat", "B": "a dog", "C": "ten"}


def png(colour="red", size=(9, 7), kind="PNG"):
    buffer = io.BytesIO()
    Pillow.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def encoded(colour="red"):
    return base64.b64encode(png(colour)).decode()


def write_tsv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path, rows, **types):
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {name: types.get(name, Value("string")) for name in rows[0]}
    Dataset.from_list(rows, Features(kinds)).to_parquet(path)


def asked(question):
    picture, text = question.conversation[0]["content"]
    return open_picture(picture["image"]), text["text"]


# Exact matching


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"), ("(B)", "B"), ("B.", "B"), ("**B**", "B"), ("{B}", "B"), ("The answer is B", "B"), ("b", ""),
        ("Answer: A. a red cat", "A"),  # four words: the letter is the first of the last four
        ("B is what I see in this picture", ""),  # too early
        ("B, and I say it again at the end: B", ""),  # its first place counts
        ("A or B", ""), ("A dog", "A"),  # an article is a letter
        ("It is a dog.", "B"), ("TEN", "C"), ("often", "C"), ("a red cat and a dog", ""),
        ("a dog " * 20, ""),  # longer than twice the texts
        ("Z", "Z"), ("Cannot determine the answer, B", "Z"), ("", ""), ("D", ""),
        ("```B```", ""), ("\\boxed{B}", "B"),
    ],
)  # fmt: skip
def test_exact_matching_and_its_quirks(response, letter):
    assert infer_option(response, OPTIONS) == letter


@given(st.text(alphabet="ABCZ a.(){}\n", max_size=60) | st.text(max_size=60))
def test_exact_matching_reads_anything(response):
    assert infer_option(response, OPTIONS) in ("", "A", "B", "C", "Z")
    assert infer_option(response, dict.fromkeys("AB", "")) in ("", "A", "B", "Z")


# MMBench

CAT = {"index": "7", "question": "What is it?", "hint": "It purrs.", "A": "cat", "B": "dog", "C": "nan", "D": "nan",
       "answer": "A", "category": "object_localization", "l2-category": "finegrained_perception (instance-level)",
       "split": "dev"}  # fmt: skip
SUM = {"index": "9", "question": "1 + 1?", "hint": "", "A": "one", "B": "two", "C": "three", "D": "",
       "answer": "B", "category": "math", "l2-category": "logic_reasoning", "split": "dev"}  # fmt: skip


def rotated(row, k, letters, image):
    """Rotation k as the published table has it: the options k places later."""
    moved = {letter: letters[(i + k) % len(letters)] for i, letter in enumerate(letters)}
    texts = {moved[letter]: row[letter] for letter in letters}
    return row | texts | {"index": str(int(row["index"]) + k * ROTATION), "answer": moved[row["answer"]],
                          "image": image}  # fmt: skip


@pytest.fixture
def published(tmp_path):
    rows = [CAT | {"image": encoded("red")}, SUM | {"image": encoded("blue")}]
    rows += [rotated(CAT, 1, "AB", "7"), rotated(SUM, 1, "ABC", "9"), rotated(SUM, 2, "ABC", "9")]
    write_tsv(tmp_path / "tsv" / "MMBench_DEV_EN.tsv", rows)
    return tmp_path / "tsv"


def test_mmbench_asks_every_rotation_of_a_question_one_after_the_other(published):
    questions = MMBENCH.load(published, "dev")
    assert [q.id for q in questions] == ["7", "1000007", "9", "1000009", "2000009"]
    assert [q.truth["answer"] for q in questions] == ["A", "B", "B", "C", "A"]
    picture, text = asked(questions[0])
    assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert text == (
        "Hint: It purrs.\nQuestion: What is it?\nOptions:\nA. cat\nB. dog\n"
        "Please select the correct answer from the options above."
    )
    picture, text = asked(questions[4])
    assert picture.getpixel((0, 0)) == (0, 0, 255) and "Hint" not in text and "A. two\nB. three\nC. one\n" in text
    assert questions[0].groups == {
        "ability": "finegrained_perception (instance-level)", "category": "object_localization"
    }  # fmt: skip


def test_the_hubs_table_gives_the_same_questions(published, tmp_path):
    rows = [CAT | {"image": {"bytes": png(), "path": None}}, SUM | {"image": {"bytes": png("blue"), "path": None}}]
    rows += [rotated(CAT, 1, "AB", rows[0]["image"]), rotated(SUM, 1, "ABC", rows[1]["image"]),
             rotated(SUM, 2, "ABC", rows[1]["image"])]  # fmt: skip
    rows = [{("L2-category" if k == "l2-category" else k): v for k, v in row.items()} for row in rows]
    rows = [row | {"index": int(row["index"])} for row in rows]
    hub = tmp_path / "hub"
    write_parquet(hub / "en" / "dev-00000-of-00001.parquet", rows, index=Value("int64"), image=Image())
    write_parquet(hub / "cn" / "dev-00000-of-00001.parquet", rows[:1], index=Value("int64"), image=Image())
    ours, theirs = MMBENCH.load(hub, "dev"), MMBENCH.load(published, "dev")
    assert [(q.id, q.truth, q.groups, asked(q)[1]) for q in ours] == [
        (q.id, q.truth, q.groups, asked(q)[1]) for q in theirs
    ]


def test_a_table_without_rotations_is_rotated_here(tmp_path):
    write_tsv(tmp_path / "mmbench_dev_20230712.tsv", [CAT | {"image": encoded()}, SUM | {"image": encoded("blue")}])
    questions = MMBENCH.load(tmp_path, "dev")
    assert [q.id for q in questions] == ["7", "1000007", "9", "1000009", "2000009"]
    for question in questions:
        right = {"7": "cat", "9": "two"}[str(question.truth["question"])]
        assert question.truth["options"][question.truth["answer"]] == right
    assert len({tuple(q.truth["options"].items()) for q in questions}) == 5


def test_a_question_counts_only_where_all_its_rotations_are_right(published):
    questions = MMBENCH.load(published, "dev")
    scored = [(q, MMBENCH.score(q, said)) for q, said in zip(questions, "ABBCB", strict=True)]
    assert [verdict.score for _, verdict in scored] == [1, 1, 1, 1, 0]
    figures = MMBENCH.summarize(scored)
    assert next(iter(figures)) == "Overall" and figures == {
        "Overall": 0.5, "FP-S": 1.0, "object_localization": 1.0, "LR": 0.0, "math": 0.0, "vanilla": 1.0,
        "incomplete": 0,
    }  # fmt: skip
    part = MMBENCH.summarize(scored[:3])
    assert part["Overall"] == 1.0 and part["incomplete"] == 1 and part["vanilla"] == 1.0
    assert MMBENCH.summarize([])["vanilla"] is None


def test_the_users_prompt_for_mmbench(published):
    prompt = "{{ question }} {% for k, v in options.items() %}{{ k }}={{ v }} {% endfor %}"
    assert asked(MMBENCH.load(published, "dev", prompt)[0])[1] == "What is it? A=cat B=dog"


# MMStar

STAR = [
    {"index": 0, "question": "Where is it?\nOptions: A: On the book., B: In, or by, the box, C: Away, D: Nowhere",
     "answer": "B", "category": "instance reasoning", "l2_category": "cross-instance relation reasoning"},
    {"index": 1, "question": "Is it the most?\nChoices:\n(A) yes\n(B) no", "answer": "A", "category": "math",
     "l2_category": "geometry"},
    {"index": 2, "question": "What is X?", "answer": "D", "category": "math", "l2_category": "statistical reasoning"},
]  # fmt: skip


@pytest.fixture
def stars(tmp_path):
    rows = [row | {"image": png()} for row in STAR]
    write_parquet(tmp_path / "mmstar.parquet", rows, index=Value("int64"), image=Value("binary"))
    return MMSTAR.load(tmp_path, "val")


def test_mmstar_finds_the_options_in_the_question(stars):
    assert [q.truth["options"] for q in stars] == [
        {"A": "On the book.", "B": "In, or by, the box", "C": "Away", "D": "Nowhere"},
        {"A": "yes", "B": "no"},
        dict.fromkeys("ABCD", ""),
    ]
    picture, text = asked(stars[0])
    assert picture.size == (9, 7) and text.endswith(
        "D: Nowhere\nPlease select the correct answer from the options above."
    )
    assert stars[0].id == "0" and stars[0].groups["l2_category"] == "cross-instance relation reasoning"


def test_mmstar_by_ability(stars):
    verdicts = [MMSTAR.score(q, said) for q, said in zip(stars, ("in, or by, the box", "(A)", "C"), strict=True)]
    assert [(v.score, v.parsed) for v in verdicts] == [(1.0, "B"), (1.0, "A"), (0.0, "C")]
    assert [v.note for v in verdicts] == ["by the authors' own rule it is wrong", "", ""]
    assert MMSTAR.score(stars[1], "A lot of words, and not one of them says what it is").note.endswith("right")
    assert MMSTAR.summarize(list(zip(stars, verdicts, strict=True))) == {
        "final score": pytest.approx(2 / 3, abs=1e-6), "instance reasoning": 1.0,
        "instance reasoning(cross-instance relation reasoning)": 1.0, "math": 0.5, "math(geometry)": 1.0,
        "math(statistical reasoning)": 0.0,
    }  # fmt: skip


def test_mmstar_with_options_in_columns(tmp_path):
    row = {"index": 5, "question": "What is it?", "A": "cat", "B": "dog", "C": "cow", "D": "None", "answer": "C",
           "category": "math", "l2-category": "geometry", "image": encoded()}  # fmt: skip
    write_tsv(tmp_path / "MMStar.tsv", [row])
    question = MMSTAR.load(tmp_path, "val")[0]
    assert question.truth["options"] == {"A": "cat", "B": "dog", "C": "cow"}  # as pandas reads it
    assert asked(question)[1].startswith("Question: What is it?\nOptions:\nA. cat\n")
    assert question.groups == {"category": "math", "l2_category": "geometry"}


# OCRBench

READ = [
    {"dataset": "IIIT5K", "question": "what is written?", "question_type": "Regular Text Recognition",
     "answer": ["CENTRE", "centre st"]},
    {"dataset": "HME100k", "question": "Write the formula.",
     "question_type": "Handwritten Mathematical Expression Recognition", "answer": ["x ^ { 2 } + Y"]},
    {"dataset": "docVQA", "question": "Which year?", "question_type": "Doc-oriented VQA", "answer": ["19\n68"]},
]  # fmt: skip


def test_ocrbench_in_all_three_layouts(tmp_path):
    rows = [row | {"image": {"bytes": png(kind="JPEG"), "path": None}} for row in READ]
    write_parquet(tmp_path / "hub/data/test-00000-of-00001.parquet", rows, answer=List(Value("string")), image=Image())
    pictures = tmp_path / "git" / "OCRBench_Images"
    pictures.mkdir(parents=True)
    (pictures / "1.jpg").write_bytes(png(kind="JPEG"))
    rows = [{"dataset_name": r["dataset"], "type": r["question_type"], "answers": r["answer"],
             "question": r["question"], "image_path": "OCRBench_Images/1.jpg"} for r in READ]  # fmt: skip
    (tmp_path / "git" / "OCRBench.json").write_text(json.dumps(rows))
    rows = [{"index": i, "category": r["question_type"], "answer": str(r["answer"]), "question": r["question"],
             "image": encoded()} for i, r in enumerate(READ)]  # fmt: skip
    write_tsv(tmp_path / "tsv" / "OCRBench.tsv", rows)
    loaded = [OCRBENCH.load(tmp_path / name, "test") for name in ("hub", "git", "tsv")]
    assert loaded[0][0].groups == {"type": "Regular Text Recognition", "dataset": "IIIT5K"}
    for questions in loaded:
        assert [q.truth for q in questions] == [{"answers": r["answer"], "type": r["question_type"]} for r in READ]
        assert [asked(q)[1] for q in questions] == [r["question"] for r in READ]
        assert all(asked(q)[0].size == (9, 7) for q in questions)


@pytest.mark.parametrize(
    ("row", "response", "right"),
    [
        (0, "It says Centre St.", True), (0, "cent re", False), (0, "CEN\nTRE", False), (0, "", False),
        (1, "It is x^{2}+Y", True), (1, "x^{2} + y", False),  # formulas have their case
        (2, "in 19 68", True), (2, "19\n68", True), (2, "1968", False),
    ],
)  # fmt: skip
def test_ocrbench_is_containment_by_type(tmp_path, row, response, right):
    rows = [READ[row] | {"image": {"bytes": png(), "path": None}}]
    write_parquet(tmp_path / "test.parquet", rows, answer=List(Value("string")), image=Image())
    question = OCRBENCH.load(tmp_path, "test")[0]
    assert OCRBENCH.score(question, response).score == float(right)


def test_ocrbench_counts_points(tmp_path):
    rows = [row | {"image": {"bytes": png(), "path": None}} for row in READ]
    write_parquet(tmp_path / "test.parquet", rows, answer=List(Value("string")), image=Image())
    questions = OCRBENCH.load(tmp_path, "test")
    figures = OCRBENCH.summarize([(q, Verdict(float(i != 1))) for i, q in enumerate(questions)])
    assert figures["Final Score"] == 2 and figures["Final Score Norm"] == 0.2 and figures["Text Recognition"] == 1
    assert figures["Doc-oriented VQA"] == 1 and figures["Key Information Extraction"] == 0


# Bad input


@pytest.mark.parametrize(
    ("benchmark", "split", "says"),
    [(MMBENCH, "test", "no split 'test' with answers"), (MMSTAR, "test", "no split"), (OCRBENCH, "val", "no split")],
    ids=lambda value: getattr(value, "name", value),
)
def test_no_such_split(benchmark, split, says, tmp_path):
    with pytest.raises(BenchmarkError, match=says):
        benchmark.load(tmp_path, split)


@pytest.mark.parametrize("benchmark", [MMBENCH, MMSTAR, OCRBENCH], ids=lambda benchmark: benchmark.name)
def test_an_empty_folder_says_what_belongs_there(benchmark, tmp_path):
    with pytest.raises(BenchmarkError) as error:
        benchmark.load(tmp_path, benchmark.splits[0])
    assert "it must hold" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"answer": "E"}, "its answer is 'E', which is no option"), ({"index": "one"}, "row 1: no `index`"),
     ({"image": "?"}, "neither a file that is there nor base64"), ({"image": ""}, "there is no picture"),
     ({"image": base64.b64encode(b"text").decode()}, "no format that is known")],
)  # fmt: skip
def test_a_row_of_mmbench_that_makes_no_sense(tmp_path, change, says):
    write_tsv(tmp_path / "MMBench_DEV_EN.tsv", [CAT | {"image": encoded()} | change])
    with pytest.raises(BenchmarkError) as error:
        MMBENCH.load(tmp_path, "dev")
    assert says in str(error.value) and "\n" not in str(error.value)


def test_two_tables_of_mmbench_in_one_folder(tmp_path):
    for name in ("MMBench_DEV_EN", "MMBench_DEV_EN_V11"):
        write_tsv(tmp_path / f"{name}.tsv", [CAT | {"image": encoded()}])
    with pytest.raises(BenchmarkError, match="the index 7 is there twice"):
        MMBENCH.load(tmp_path, "dev")


def test_rows_of_others_that_make_no_sense(tmp_path):
    write_tsv(tmp_path / "star" / "MMStar.tsv", [STAR[0] | {"answer": "yes", "image": encoded()}])
    with pytest.raises(BenchmarkError, match="row 1: no `index`, no `question` or an `answer`"):
        MMSTAR.load(tmp_path / "star", "val")
    write_tsv(tmp_path / "ocr" / "a.tsv", [{"question": "?", "category": "Poetry", "answer": "x", "image": encoded()}])
    with pytest.raises(BenchmarkError, match="the type 'Poetry'"):
        OCRBENCH.load(tmp_path / "ocr", "test")
    (tmp_path / "ocr" / "a.tsv").unlink()
    (tmp_path / "ocr" / "a.json").write_text("[1, 2]")
    with pytest.raises(BenchmarkError, match="no list of objects"):
        OCRBENCH.load(tmp_path / "ocr", "test")
