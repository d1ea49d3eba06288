"""The verifiers against paraphrase, spacing, units, hedges and hostile strings."""

import json
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from training.verifiers import Verifier, canonical, conclusion, final_answer, iou, objects_f1, verify

# No deadline: the machine may be busy. `test_a_megabyte_is_scored_in_a_moment` watches the time.
unhurried = settings(deadline=None)

WORDS = ["red", "blue", "circle", "star", "left of", "above", "grey", "square", "big-dot"]
COLOURS, SHAPES = ["red", "blue", "green"], ["circle", "star", "square", "box", "cross", "ellipse"]
EXAMPLES = [
    Verifier(kind="exact", truth="red"),
    Verifier(kind="exact", truth=["grey", "gray"]),
    Verifier(kind="exact", truth="yes"),
    Verifier(kind="exact", truth="A"),
    Verifier(kind="numeric", truth=7),
    Verifier(kind="numeric", truth=-2.5, tolerance=0.25),
    Verifier(kind="numeric", truth="12.5%"),
    Verifier(kind="time", truth="3:05"),
    Verifier(kind="choice", truth="B"),
    Verifier(kind="choice", truth="B", options=["3", "4", "5", "6"]),
    Verifier(kind="box", truth=[10, 20, 30.5, 40]),
    Verifier(kind="objects", truth=["red circle", "small blue star", "red circle"]),
    Verifier(kind="objects", truth=[]),
]
by_kind = pytest.mark.parametrize("verifier", EXAMPLES, ids=lambda v: f"{v.kind}-{v.truth}")

coordinates = st.floats(-1e6, 1e6)
boxes = st.tuples(coordinates, coordinates, coordinates, coordinates)
things = st.builds(lambda colour, shape: f"{colour} {shape}", st.sampled_from(COLOURS), st.sampled_from(SHAPES))


def score(verifier: Verifier, *answers: str) -> list[float]:
    return [verify(f"Answer: {answer}", verifier) for answer in answers]


def right(verifier: Verifier, *answers: str) -> None:
    assert dict(zip(answers, score(verifier, *answers), strict=True)) == dict.fromkeys(answers, 1.0)


def wrong(verifier: Verifier, *answers: str) -> None:
    assert dict(zip(answers, score(verifier, *answers), strict=True)) == dict.fromkeys(answers, 0.0)


# Conclusions and final answers.


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("no thought", "no thought"),
        ("<think>a</think>b", "b"),
        ("<think>a</think>b</think>c", "c"),
        ("prefilled</think>b", "b"),
        ("<think>cut off", ""),
        ("<think>a</think>b<think>cut off", ""),
        ("", ""),
    ],
)
def test_conclusion(response, expected):
    assert conclusion(response) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think>Answer: 3</think>I see four.\nAnswer: 4.", "4"),
        ("Answer: 3\nNo wait.\nanswer: 4\nDone.", "4"),
        ("**Answer:** 4", "4"),
        ("**Answer**: **4**", "4"),
        ("Final ANSWER : 'red'.", "red"),
        ("So the answer is red.", "red"),
        ("The answer is: red", "red"),
        ("Answer:\n\n red circle\nbye", "red circle"),
        (r"Hence \boxed{7}.", "7"),
        (r"Answer: $\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (r"\boxed{7", "7"),
        ("  just red. ", "just red"),
        ("Answer:", ""),
        ("x" * 5000, ""),
        ("x" * 5000 + "\nAnswer: 4", "4"),
    ],
)
def test_final_answer(response, expected):
    assert final_answer(response) == expected


def test_only_the_last_answer_counts():
    verifier = Verifier(kind="numeric", truth=7)
    assert verify("Answer: 7\nAnswer: 8", verifier) == 0.0
    assert verify("<think>Answer: 7</think>", verifier) == 0.0
    assert verify("<think>Answer: 7", verifier) == 0.0
    assert verify("3 or 4 or" + " " * 5000 + "7", verifier) == 0.0  # a hedge pushed out of the window


# Descriptions.


@by_kind
def test_round_trip_and_canonical(verifier):
    stored = json.loads(json.dumps(verifier.to_dict()))
    assert Verifier.from_dict(stored) == verifier
    assert Verifier.from_dict(stored).to_dict() == stored
    assert canonical(verifier).startswith("Answer: ")
    assert verify(canonical(verifier), verifier) == 1.0
    assert verify(f"<think>hm</think>It is so.\n**{canonical(verifier)}**.\n", verifier) == 1.0
    with pytest.raises(ValueError, match="frozen"):
        verifier.truth = "other"
    hash(verifier)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "colour", "truth": "red"},
        {"kind": "exact", "truth": []},
        {"kind": "exact", "truth": "..."},
        {"kind": "exact", "truth": 7},
        {"kind": "exact", "truth": "a\nb"},
        {"kind": "exact", "truth": "red", "options": ["red"]},
        {"kind": "numeric", "truth": "many"},
        {"kind": "numeric", "truth": float("inf")},
        {"kind": "numeric", "truth": True},
        {"kind": "numeric", "truth": 7, "tolerance": -1},
        {"kind": "time", "truth": "25:00"},
        {"kind": "choice", "truth": "G"},
        {"kind": "choice", "truth": "AB"},
        {"kind": "choice", "truth": ""},
        {"kind": "choice", "truth": "C", "options": ["1", "2"]},
        {"kind": "box", "truth": [0, 0, 1]},
        {"kind": "box", "truth": [0, 0, 0, 9]},
        {"kind": "box", "truth": [0, 0, float("nan"), 9]},
        {"kind": "box", "truth": [0, 0, 9, 9], "threshold": 0},
        {"kind": "objects", "truth": "red circle"},
        {"kind": "objects", "truth": ["red circle", "none"]},
        {"kind": "numeric", "truth": 7, "tolerence": 1},
    ],
    ids=str,
)
def test_unanswerable_descriptions_are_refused(fields):
    with pytest.raises(ValueError):
        Verifier(**fields)


# Each kind.


def test_exact():
    right(Verifier(kind="exact", truth="left of"), "Left-of", "LEFT  of.", "the left of", '"left of"!')
    right(Verifier(kind="exact", truth=["grey", "gray"]), "gray", "a grey", "*Grey*")
    wrong(Verifier(kind="exact", truth=["grey", "gray"]), "green", "grey or gray", "", "not grey")
    wrong(Verifier(kind="exact", truth="red"), "red or blue", "red, blue", "reddish", "not red", "the", ".")
    right(Verifier(kind="exact", truth="A"), "a", "A.", "(A)", "the A")
    wrong(Verifier(kind="exact", truth="A"), "the", "B", "")
    wrong(Verifier(kind="exact", truth="-7"), "7", "+7")


def test_yes_no():
    yes, no = Verifier(kind="exact", truth=["yes", "true"]), Verifier(kind="exact", truth="no")
    right(yes, "Yes", "yes, there is one", "Yes - a red one.", "true", "Yes, one is red or blue")
    right(no, "No.", "no, there is no red circle", "No there isn't", "No, neither red or blue")
    hedges = ["yes or no", "yes/no", "Yes and no", "yes or something", "no, yes", "maybe", "yes, maybe", "no idea"]
    for verifier in (yes, no):
        wrong(verifier, *hedges, "yes" + " or" * 500 + " no", "yesterday", "nothing", "")
    wrong(yes, "no", "yes, it is not")
    wrong(no, "yes")


def test_numeric():
    seven = Verifier(kind="numeric", truth=7)
    right(
        seven,
        "7",
        "7.0",
        "+7",
        "seven",
        "7 objects",
        "7cm",
        "there are 7.",
        "7 (seven)",
        "７",
        "٧",
        "14/2",
        "7th",
        "$7$",
    )
    right(seven, r"\boxed{7}", "7 m²", "7 m^2", "7%", "7 paths", "7\u200b", "**7** circles")
    wrong(
        seven,
        "8",
        "-7",
        "−7",
        "7 or 8",
        "7, 8",
        "3 + 4 = 7",
        "7+7",
        "7-7",
        "7:07",
        "77",
        "0x7",
        "7.7.7",
        "7,7",
        "7²",
        "",
    )
    wrong(
        seven,
        "not 7",
        "more than 7",
        "at least 7",
        "> 7",
        "7 hundred",
        "seven  \t  hundred",
        "7k",
        "7 and a half",
        "7 7",
    )
    wrong(
        seven,
        "seventy",
        "seventy-seven",
        "seventeen",
        "seventh",
        "7e1",
        "7e99999999999",
        "7" * 4000,
        "7/0",
        "b7",
        "7 1/2",
    )
    right(
        Verifier(kind="numeric", truth=12345.5), "12,345.5", "12\u202f345.5", "12'345.5", "1.23455e4", r"12{,}345.5 cm"
    )
    wrong(Verifier(kind="numeric", truth=1234), "1,23,4", "12,34", "1 234")
    right(Verifier(kind="numeric", truth=-3), "-3", "−3", "– 3", "minus three", "negative 3 °C")
    wrong(Verifier(kind="numeric", truth=-3), "3", "5-3", "5 - 3")
    right(
        Verifier(kind="numeric", truth=0.5),
        "1/2",
        "½",
        r"\frac{1}{2}",
        r"\boxed{\dfrac{1}{2}}",
        "50%",
        "50 percent",
        ".5",
    )
    right(Verifier(kind="numeric", truth="50%"), "50%", "50", "0.5", r"50\%", "50 per cent")
    wrong(Verifier(kind="numeric", truth="50%"), "0.5%", "5%", "500")
    right(Verifier(kind="numeric", truth="3 1/2"), "3.5", "3½", "7/2")
    right(Verifier(kind="numeric", truth=0), "0", "none", "zero circles", "-0")
    right(Verifier(kind="numeric", truth=42), "forty-two", "Forty two cells")
    right(Verifier(kind="numeric", truth=10, tolerance=0.1), "9.9", "10.1", "10")
    wrong(Verifier(kind="numeric", truth=10, tolerance=0.1), "9.89", "10.11")


def test_time():
    right(Verifier(kind="time", truth="3:05"), "3:05", "03:05", "3.05", "15:05", "3:05 pm", "3:05 a.m.", "5 past 3")
    right(Verifier(kind="time", truth="3:05"), "five past three", "five minutes after 3", "It is 3:05 (5 past 3).")
    right(Verifier(kind="time", truth="3:30"), "half past 3", "Half past three o'clock", "thirty past 3")
    right(Verifier(kind="time", truth="3:45"), "quarter to 4", "a quarter to four", "15 to 4", "3:45pm")
    right(Verifier(kind="time", truth="12:15"), "0:15", "quarter past twelve", "12.15 am", "quarter after 12")
    right(Verifier(kind="time", truth="3:00"), "3 o'clock", "three o’clock", "3 oclock", "3 pm", "3:00.")
    right(Verifier(kind="time", truth="2:35"), "twenty-five to three", "25 minutes before 3")
    wrong(Verifier(kind="time", truth="3:05"), "3:50", "5:03", "3:5", "3:05 or 4:05", "3:05, 4", "not 3:05", "3", "305")
    wrong(Verifier(kind="time", truth="3:05"), "3:05:30", "5 to 3", "3:65", "27:05", "", "13:05:00", "3:05-4:05")


def test_choice():
    verifier = Verifier(kind="choice", truth="B", options=["3", "4", "5", "6"])
    right(
        verifier,
        "B",
        "b",
        "(B)",
        "B)",
        "B.",
        "[B]",
        "B) 4",
        "(B) 4",
        "B: 4",
        "B - 4",
        "B. four",
        "Option B",
        "4",
        "four",
    )
    right(verifier, "4 objects", "**B**", "**B**: 4", "(b).", "B) because it fits", r"\boxed{\text{B}}")
    wrong(
        verifier,
        "A",
        "(C)",
        "B or C",
        "B, C",
        "B) or C)",
        "B) 5",
        "5",
        "4 or 5",
        "3, 4, 5, 6",
        "A) 3 B) 4",
        "E",
        "7",
        "",
    )
    wrong(verifier, "not B", "B and A", "B) C", "BB", "B/C", "A, B, C, D")
    shapes = Verifier(kind="choice", truth="A", options=["red circle", "blue star", "Yes"])
    right(shapes, "A", "a red circle", "The red circle.", "A) A red circle", "A: red-circle")
    wrong(shapes, "a blue star", "A) blue star", "a circle", "red circle or blue star", "B) a red circle")
    twins = Verifier(kind="choice", truth="A", options=["4", "four", "4.0"])
    right(twins, "A")
    wrong(twins, "4.00")
    bare = Verifier(kind="choice", truth="F")
    right(bare, "F", "F) none of these")
    wrong(bare, "G", "A red star", "E")


def test_box():
    verifier = Verifier(kind="box", truth=[10, 20, 30, 40])
    right(
        verifier, "[10, 20, 30, 40]", "10 20 30 40", "(10,20),(30,40)", "x1=10, y1=20, x2=30, y2=40", "[30, 40, 10, 20]"
    )
    right(verifier, "<box>10.0 20.0 30 40.5</box>", "[11, 21, 30, 40]")
    wrong(verifier, "[10, 20, 30]", "[10, 20, 30, 40, 50]", "[20, 10, 40, 30]", "[0, 0, 1000, 1000]", "10 10 10 10", "")
    wrong(verifier, "[10, 20, 30, 40] or [0, 0, 1, 1]", "not [10, 20, 30, 40]", "1e1 20 30 40", f"{'9' * 50} 20 30 40")
    assert verify("[10, 20, 30, 30]", verifier) == 1.0  # exactly half
    assert verify("[10, 20, 30, 30]", verifier.model_copy(update={"threshold": 0.51})) == 0.0


def test_objects():
    verifier = Verifier(kind="objects", truth=["red circle", "small blue star", "red circle"])
    right(verifier, "red circle, small blue star, red circle", "two red circles and a small blue star")
    right(verifier, "2 red circles; 1 blue small star.", "a red circle, a small-blue star, and a red circle")
    right(
        verifier, "There are two red circles and a small blue star", "\n- red circle\n- red circle\n* small blue star"
    )
    right(
        verifier,
        "\n1. red circle\n2. red circle\n3. small blue star\n\nThat is all.",
        "0 boxes, 2 red circles, small blue star",
    )
    wrong(
        verifier, "red circle, small blue star", "3 red circles, small blue star", "red circle or blue star", "none", ""
    )
    wrong(verifier, "two red circles, small blue star, green box", "9999 red circles", "2", "two")
    right(Verifier(kind="objects", truth=[]), "none", "Nothing.", "no objects", "empty")
    wrong(Verifier(kind="objects", truth=[]), "", "red circle", "none, red circle", "no")
    right(
        Verifier(kind="objects", truth=["red box", "red box", "cross"]),
        "2 red boxes and one cross",
        "two red boxes, 1 cross",
    )


def test_objects_f1():
    truth = ["red circle", "blue star"]
    assert objects_f1("Answer: blue star, red circle", truth) == 1.0
    assert objects_f1("Answer: red circle", truth) == pytest.approx(2 / 3)
    assert objects_f1("Answer: red circle, green box", truth) == 0.5
    assert objects_f1("Answer: 98 red circles", truth) == pytest.approx(0.02)  # flooding does not pay
    assert objects_f1("Answer: none", truth) == 0.0
    assert objects_f1("", truth) == 0.0
    assert objects_f1("Answer: none", []) == 1.0
    assert objects_f1("", []) == 0.0


# Properties.

spaces = st.sampled_from(["", " ", "   ", "\t", "\u00a0"])
cases = st.sampled_from([str, str.lower, str.upper, str.title])


@unhurried
@given(
    word=st.sampled_from(WORDS),
    other=st.sampled_from(WORDS),
    case=cases,
    pad=spaces,
    end=st.sampled_from(["", ".", "!"]),
)
def test_exact_ignores_case_spacing_articles_and_punctuation(word, other, case, pad, end):
    verifier = Verifier(kind="exact", truth=word)
    written = case(word).replace(" ", " " + pad)
    for answer in (written, f"the {written}", written.replace(" ", "-")):
        right(verifier, f"{pad}{answer}{pad}{end}")
    if other != word:
        wrong(verifier, other, f"{word} or {other}", f"{other}, {word}")


@unhurried
@given(
    value=st.integers(-(10**9), 10**9),
    other=st.integers(-(10**9), 10**9),
    pad=spaces,
    unit=st.sampled_from(["", "objects", "cm", "kg", "points", "°", "red circles"]),
    form=st.sampled_from(["{}", "{:,}", "{:.1f}", "{:+}", "{:,.2f}"]),
)
def test_numeric_ignores_notation_and_units(value, other, pad, unit, form):
    verifier = Verifier(kind="numeric", truth=value)
    written = form.format(value)
    right(verifier, f"{pad}{written} {pad}{unit}", written.replace("-", "−"), f"It shows {written} {unit}.")
    if other != value:
        wrong(verifier, form.format(other), f"{value} or {other}", f"{value}, {other}", f"{value} {other}")


@unhurried
@given(
    value=st.decimals(-1000, 1000, places=2),
    step=st.decimals("0.01", 5, places=2),
    tolerance=st.sampled_from([0, 0.5, 1]),
)
def test_numeric_tolerance_is_absolute_and_exact(value, step, tolerance):
    verifier = Verifier(kind="numeric", truth=str(value), tolerance=tolerance)
    for answer in (value + step, value - step):
        assert score(verifier, str(answer)) == [float(step <= tolerance)]


@unhurried
@given(hour=st.integers(1, 12), minute=st.integers(0, 59), other=st.tuples(st.integers(1, 12), st.integers(0, 59)))
def test_time_forms(hour, minute, other):
    verifier = Verifier(kind="time", truth=f"{hour}:{minute:02}")
    right(
        verifier,
        f"{hour:02}:{minute:02}",
        f"{(hour + 12) % 24}:{minute:02}",
        f"{hour}.{minute:02} PM",
        f"{minute} past {hour}",
    )
    right(verifier, f"{60 - minute if minute else 0} to {hour % 12 + 1 if minute else hour}")
    if other != (hour, minute):
        wrong(verifier, f"{other[0]}:{other[1]:02}", f"{hour}:{minute:02} or {other[0]}:{other[1]:02}")


@unhurried
@given(
    truth=st.sampled_from("ABCDEF"),
    said=st.sampled_from("ABCDEF"),
    form=st.sampled_from(["{}", "({})", "{})", "{}.", " {} ", "{}) {}", "({}) {}", "{}: {}", "Option {}", "[{}]"]),
    case=st.sampled_from([str.upper, str.lower]),
)
def test_choice_forms(truth, said, form, case):
    options = ["red", "blue", "green", "ten", "11", "12"]
    verifier = Verifier(kind="choice", truth=truth, options=options)
    text = options["ABCDEF".index(said)]
    assert score(verifier, form.format(case(said), text), text) == [float(said == truth)] * 2


@unhurried
@given(a=boxes, b=boxes)
def test_iou_is_a_symmetric_share(a, b):
    assert 0.0 <= iou(a, b) <= 1.0
    assert iou(a, b) == iou(b, a)
    assert iou(a, b) == iou((a[2], a[3], a[0], a[1]), b)
    assert iou(a, a) in (0.0, 1.0)


@unhurried
@given(values=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=8, max_size=8))
def test_iou_of_anything_is_in_range(values):
    assert 0.0 <= iou(values[:4], values[4:]) <= 1.0


@unhurried
@given(
    corner=st.tuples(*[st.integers(0, 900)] * 2), size=st.tuples(*[st.integers(1, 99)] * 2), shift=st.integers(0, 200)
)
def test_box_reward_follows_iou(corner, size, shift):
    truth = [*corner, corner[0] + size[0], corner[1] + size[1]]
    said = [truth[0] + shift, truth[1], truth[2] + shift, truth[3]]
    verifier = Verifier(kind="box", truth=truth)
    expected = [float(iou(said, truth) >= 0.5)] * 2
    assert score(verifier, str(said), " ".join(map(str, said))) == expected


@unhurried
@given(items=st.lists(things, max_size=6), others=st.lists(things, max_size=6), data=st.data())
def test_objects_are_multisets(items, others, data):
    verifier = Verifier(kind="objects", truth=items)
    shuffled = data.draw(st.permutations(items))
    separator = data.draw(st.sampled_from([", ", "; ", " and ", "\n- ", ", and "]))
    plural = {"box": "boxes", "cross": "crosses"}
    counted = [
        f"{items.count(item)} {item.split()[0]} {plural.get(item.split()[1], item.split()[1] + 's')}"
        for item in dict.fromkeys(items)
    ]
    for listing in (shuffled, [f"a {item.upper()}" for item in shuffled], counted):
        text = separator.join(listing) or "none"
        right(verifier, f"\n- {text}" if "\n" in separator else text)
    assert objects_f1(f"Answer: {', '.join(others)}", items) <= 1.0
    assert score(verifier, ", ".join(others) or "none") == [float(sorted(others) == sorted(items))]


@unhurried
@given(kind=st.sampled_from(["exact", "numeric", "objects", "box", "time", "choice"]), data=st.data())
def test_any_accepted_truth_accepts_its_canonical_answer(kind, data):
    truths = {
        "exact": st.text(max_size=20) | st.lists(st.text(max_size=9), max_size=3),
        "numeric": st.integers() | st.floats(),
        "objects": st.lists(things | st.text(max_size=9), max_size=5),
        "box": boxes,
        "time": st.text("0123456789:. ", max_size=6),
        "choice": st.sampled_from("ABCDEF"),
    }
    try:
        verifier = Verifier(kind=kind, truth=data.draw(truths[kind]))
    except ValueError:
        assume(False)
    assert verify(canonical(verifier), verifier) == 1.0
    assert Verifier.from_dict(json.loads(json.dumps(verifier.to_dict()))) == verifier


# Hostile strings.

FRAGMENTS = [
    "Answer:", "the answer is", "\\boxed{", "{", "}", "<think>", "</think>", "7", "½", "²", "٣", "-", "/", ",", ".",
    "e9", "\0", "\ud800", "\u200b", " ", "\n", "[", "(", "past",
    "half", "to", "twenty", "and", "a", "yes", "no", "B", "%",
    "**", "\\frac{", "not", "none", "o'clock",
]  # fmt: skip
fragments = st.sampled_from(FRAGMENTS)
hostile = (
    st.text(max_size=300)
    | st.lists(fragments, max_size=60).map("".join)
    | st.lists(fragments, max_size=60).map(" ".join)
)


@unhurried
@given(response=hostile, marked=st.booleans())
def test_any_string_gets_a_reward_in_range(response, marked):
    for verifier in EXAMPLES:
        assert verify("Answer: " * marked + response, verifier) in (0.0, 1.0)
    assert 0.0 <= objects_f1(response, ["red circle"]) <= 1.0


BOMBS = {
    "spaces": " ", "digits": "9", "words": "answer ", "markers": "Answer: ", "braces": "{", "boxed": "\\boxed{",
    "minus": "-", "pairs": "1 ", "commas": "1,234", "thousands": ",234", "fractions": "1/", "mixed": "1 1/",
    "dots": "1.", "letters": "a", "times": "3:05 ", "past": "5 past 3 ", "hyphens": "a-", "opens": "<think>",
    "closes": "</think>", "stars": "*", "nul": "\0", "lines": "\n", "and": " and", "twenty": "twenty-",
    "frac": "\\frac{1", "half": " a half", "surrogate": "\ud800", "e": "1e9", "ligature": "ﷺ", "vulgar": "½",
    "script": "٣",
    "super": "²", "colon": ":", "option": "option b) ", "quotes": "'\"", "paren": "B)", "articles": "a ", "the": "the ",
    "comma": ",", "none": "none ",
}  # fmt: skip


@pytest.mark.parametrize("unit", BOMBS.values(), ids=BOMBS)
def test_a_megabyte_is_scored_in_a_moment(unit):
    bulk = unit * (1_000_000 // len(unit))
    inside = unit * (3_900 // len(unit))
    for verifier in EXAMPLES:
        for response in (bulk, bulk + "\nAnswer: " + inside, "Answer: " + inside + "!", "Answer: 1" + inside + "\0x"):
            started = time.process_time()  # this process alone: the machine may be busy
            assert verify(response, verifier) in (0.0, 1.0)
            assert time.process_time() - started < 0.2
