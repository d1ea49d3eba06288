r"""MathVision's rules piece by piece: the value of LaTeX, reading an answer, equality; hostile text; math-verify.

The values were compared, while this was written, with those of latex2sympy2 1.9.1 on two thousand random texts.
"""

import math
import threading
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evaluation.scoring import modern
from evaluation.scoring.latex_answers import is_right, read_answer, same_answer
from evaluation.scoring.latex_value import NoValue, latex_value

SECONDS = 2.0  # an answer, however hostile


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # Numbers as they are written.
        ("5", 5), ("0012", 12), ("5.0", 5), ("2.50", 2.5), (".5", 0.5), ("1,234", 1234), ("1,234.5", 1234.5),
        ("1,2345", 6170), (",123.4", 123.4), ("50\\%", 0.5), ("200\\%", 2), ("2.5.5", 1.25),
        # Reading stops behind a complete expression, where the grammar has no way on.
        ("5.", 5), ("5.apples", 5), ("5)", 5), ("5}", 5), ("5&x", 5), ("5trees", 5), ("5ones", 5), ("3diagonals", 3),
        ("5_2", 5), ("2+3)4", 5), ("5\\rightarrow x", 5), ("5\\\\x", 5), ("3!^2", 6),
        # Operators.
        ("2+3-4", 1), ("2*3", 6), ("2\\cdot3\\times4", 24), ("6/2", 3.0), ("5:2", 2.5), ("5\\div2", 2.5),
        ("5\\over2", 2.5), ("--5", 5), ("5--3", 8), ("5*-3", -15), ("2 3", 6), ("2(3+4)", 14), ("(1+2)3", 9),
        ("1/2\\pi", 1 / (2 * math.pi)), ("3\\frac{1}{2}", 1.5), ("2^3^2", 64), ("-2^2", -4), ("2^10", 1024),
        ("2^{-1}", 0.5), ("0^0", 1), ("2^2_3", 4), ("5!", 120), ("2^{3}!", 40320), ("5'", 5), ("5^2'", 25),
        ("1<2", 1), ("2>3", 0), ("1\\leq 1", 1), ("1>2<3", 1),
        # Fractions, roots, functions.
        ("\\frac{6}{4}", 1.5), ("\\dfrac{1}{2}", 0.5), ("\\sqrt{4}", 2.0), ("\\sqrt[3]{8}", 2.0),
        ("\\frac{3^{1008}-1}{3^{1009}}", 1 / 3), ("3\\frac{67}{200}", 1.005), ("4-2\\sqrt{3}", 4 - 2 * math.sqrt(3)),
        ("\\binom{5}{2}", 10), ("{5 \\choose 2}", 10), ("(5)_{3}", 60.0), ("\\lfloor 2.5\\rfloor", 2),
        ("\\pi", math.pi), ("2\\tau", 2 * math.tau), ("e^2", math.exp(2)), ("e^{0}", 1), ("\\exp(2)", math.exp(2)),
        ("\\sin 2\\cdot 3", math.sin(6)), ("\\sin 2\\cos 3", math.sin(2) * math.cos(3)), ("\\sin(2)3", 3 * math.sin(2)),
        ("\\sin{2}3", math.sin(6)), ("\\sin(2)/3", math.sin(2) / 3), ("\\sin^2 2", math.sin(2) ** 2),
        ("\\sin^{-1} 1", math.pi / 2), ("\\arctan(1)", math.pi / 4), ("\\sin^{0} 5", math.sin(5)),
        ("\\log 8", math.log10(8)), ("\\log_2 8", 3.0), ("\\log_{2}(8)", 3.0),
        # Brackets.
        ("[3]", 3), ("\\{3\\}", 3), ("\\left[3\\right]", 3), ("\\left(3\\right)", 3), ("\\lgroup3\\rgroup", 3),
        ("$3$", 3), ("3\\quad4", 12),
    ],
)  # fmt: skip
def test_values(text, value):
    got = latex_value(text)
    assert got == pytest.approx(value, abs=1e-12) and type(got) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "()", "{}", "5,", "5;6", "3,4", "(3,4)", "5+", "5+)", "(3", "(3]", "2^", "2^-1", "2^(2)", "5apples",
        "5%",
        "50 \\%", "5°", "\\circ", "5^{\\circ}", "\\boxed{5}", "\\frac12", "\\frac{360}7", "\\sqrt3", "\\sqrt{}", "-",
        "e", "2e", "e^{1}", "1e5", "x", "\\alpha", "\\tau_1", "\\pi r", "|3|", "\\ln 8", "\\max(3,4)", "7 \\mod 3",
        "\\lceil 2.5\\rceil", "\\sec 2", "\\infty", "1/0", "0^{-1}", "\\frac{0}{0}", "\\sqrt{-4}", "\\sqrt[3]{-8}",
        "(-1)!", "(6/2)!", "2.5!", "1\\ne 2", "2=2", "\\log 0", "\\log_1 3", "\\sqrt[0]{3}", "5\\;6", "\\left[3)",
        "9^{9^{9^{9}}}", "10^{400}*0.5", "9999!", "9" * 2000, "\\text{five}", "(1<2)", "\\int_0^1 x dx",
    ],
)  # fmt: skip
def test_what_has_no_value(text):
    with pytest.raises(NoValue):
        latex_value(text)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        # A letter at the end or at the start.
        ("So the answer must be B.", "b"), ("It is (C).", "c"), ("D\nBecause of that.", "d"), ("(E)\nSo.", "e"),
        ("(A) A\nSince", "a"), ("(F)\nSo.", "(f)\nso".replace("\n", "")), ("We get F.", "wegetf"),
        # A number behind the last "is ".
        ("The sum is 12.", "12"), ("x is 3 and y is 4..", "4"), ("60", "60"),
        # What the answer is said to be.
        ("Well, the answer is 7 cm. Not 8.\nNo.", "7cm"), ("The answer is 7\nor so", "7"),
        ("The final answer is $\\frac{1}{2}$", "\\frac{1}{2}"), ("the answer should be red", "red"),
        ("the correct answer is 5. 6", "5"), ("the answer is 3. Or the answer is 4. 5", "4"),
        # The last box; not where a phrase stands beside it.
        ("\\boxed{3} and \\boxed{4}", "4"), ("the answer is 5, \\boxed{6}", "6"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{7} done} no", "7"), ("\\boxed{8", "\\boxed{8"), ("OXED{9}", "9"), ("\\boxed{a{}b}", "ab"),
        # What is taken out of it.
        ("\\boxed{x = 5}", "5"), ("\\boxed{x \\approx 5.1}", "5.1"), ("\\boxed{12\\text{ km}}", "12"),
        ("\\boxed{30^{\\circ}}", "30"), ("\\boxed{30^\\circ}", "30"), ("\\boxed{3\\,000}", "3000"),
        ("\\boxed{5 units}", "5"), ("\\boxed{5m^3}", "5"), ("\\boxed{\\left(3\\right)}", "(3)"),
        ("\\boxed{+∞}", "\\infty"),
        ("\\boxed{50\\%}", "50"), ("\\boxed{\\$5}", "5"), ("\\boxed{.5}", "\\frac{1}{2}"),
        ("\\boxed{0.5}", "\\frac{1}{2}"),
        ("\\boxed{3/4}", "\\frac{3}{4}"), ("\\boxed{-3/4}", "\\frac{-3}{4}"), ("\\boxed{03/4}", "03/4"),
        ("\\boxed{3/-0}", "3/-0"), ("\\boxed{1/2/3}", "1/2/3"), ("\\boxed{\\dfrac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\sqrt3}", "\\sqrt{3}"), ("\\boxed{\\frac12}", "\\frac12"),
        ("\\boxed{\\frac12\\sqrt3}", "\\frac{1}{2}\\sqrt{3}"), ("\\boxed{\\frac1{2}\\sqrt3}", "\\frac{1}{2}\\sqrt{3}"),
        ("\\boxed{\\sqrt{2}\\frac}", "\\sqrt{2}\\frac"),
        # A letter in brackets; signs at the ends.
        ("\\boxed{(B)}", "b"), ("\\boxed{\\text{C}}", "c"), ("\\boxed{{d}}", "d"), ("\\boxed{:7.}", "7"),
        ("(B) and (C)", "bandc"), ("", ""), ("  \n ", ""), ("\ud800", "\ud800"),
    ],
)  # fmt: skip
def test_reading(response, answer):
    assert read_answer(response) == answer


@pytest.mark.parametrize(
    ("answer", "truth", "same"),
    [
        ("a", "A", True), ("5 ", " 5", True), ("", "", False), (" ", " ", False), ("5", "", False),
        ("\n", "\n", True), ("red", "Red", True), ("red", "green", False),
        ("0.5", "\\frac{1}{2}", True), ("0.333", "1/3", True), ("0.34", "1/3", False), ("2.0", "2", True),
        ("5trees", "5", True), ("5apples", "5", False), ("5%", "5", False), ("\\frac{1}{0}", "\\frac{2}{0}", False),
        ("(3,-4)", "(3, -4)", True), ("(6/2,1)", "(3,1)", False), ("[1,\\infty)", "[1,\\infty)", True),
        ("(1/2,a)", "(0.5,a)", True), ("(1,x)", "(1,y)", False), ("[1,2]", "(1,2)", False), ("(3)", "3", True),
        ("(1/2,\\infty)", "(0.5,\\infty)", True), ("x", "x", True), ("x+1", "1+x", False),
    ],
)  # fmt: skip
def test_equality(answer, truth, same):
    assert same_answer(answer, truth) is same


def test_a_choice_is_right_as_letter_or_as_text():
    options = ["$1$", "$\\frac{3}{4}$", "2", "Sunday", "none"]
    assert is_right("b", "B", options) and is_right("0.75", "B", options) and is_right("sunday", "D", options)
    assert not is_right("1", "B", options) and not is_right("a", "B", options)


LATEX = st.text(alphabet="0123456789.,+-*/^_!(){}[]\\|<>=' \n$%abdestxİ∞", max_size=40)
PIECES = st.lists(
    st.sampled_from(["\\frac{", "\\sqrt{", "}{", "}", "(", ")", "9^{", "^{-1}", "!", "\\log", "\\sin", "\\binom{",
                     "99999", "1,000", "\\boxed{", "the answer is ", "is ", "\\left", "\\right", ". ", "\\pi", "/",
                     "oxed{"]),
    max_size=60,
).map("".join)  # fmt: skip


@given(st.one_of(LATEX, PIECES, st.text()), st.one_of(LATEX, PIECES))
@example("(" * 100_000, "1")
def test_no_text_raises(response, truth):
    answer = read_answer(response)
    assert isinstance(answer, str) and same_answer(answer, truth) in (True, False)
    assert not answer.replace(" ", "") or same_answer(answer, answer)


MEGABYTE = 1_000_000
HOSTILE = {
    "deep groups": "(" * 500_000 + "1" + ")" * 500_000,
    "deep fractions": "\\frac{" * 150_000 + "1" + "}{2}" * 150_000,
    "deep roots": "\\sqrt{" * 150_000 + "2" + "}" * 150_000,
    "deep boxes": "\\boxed{" * 140_000 + "}" * 140_000,
    "boxes without an end": "OXED{" * 200_000,
    "a tower": "9^{" * 300_000 + "9" + "}" * 300_000,
    "huge exponents": "9^{999999999}" + "9^{99999}" * 50_000,
    "negative exponents": "2^{-99999999}",
    "factorials": "9" + "!" * MEGABYTE,
    "a factorial": "99999999!",
    "a binomial": "\\binom{99999999}{55555555}",
    "digits": "9" * MEGABYTE,
    "digits after a point": "0." + "3" * MEGABYTE,
    "digits over digits": "9" * 500_000 + "/" + "7" * 500_000,
    "digits in groups": "1" + ",000" * 250_000,
    "factors": "(1)" * 333_000,
    "many big factors": "(9^{4000})" * 1_000,
    "terms": "1+" * 500_000 + "1",
    "signs": "-" * MEGABYTE + "1",
    "functions": "\\sin" * 250_000 + "1",
    "items": "(" + "1," * 500_000 + "1)",
    "a permutation": "(" + "a" * 500_000 + ")_{" + "a" * 400_000,
    "permutations": "(a)_{" * 200_000,
    "phrases": "the answer is " * 70_000,
    "numbers that are": "is 1" * 250_000,
    "spaces": " " * MEGABYTE + "1",
    "braces": "{}" * 500_000,
    "equations": "=1" * 500_000,
    "roots without braces": "\\sqrt" * 200_000,
    "fractions without braces": "\\sqrt2" + "\\frac1" * 160_000,
    "letters": "(a)" * 333_000,
    "a word of the grammar": "orthogonalize" * 70_000,
    "surrogates": "\ud800" * MEGABYTE,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_takes_long(name):
    text = HOSTILE[name]
    for response in (text, f"\\boxed{{{text}}}"):
        begun = time.process_time()
        answer = read_answer(response)
        for truth in ("7", "(1,2)", "$\\frac{3}{4}$"):
            assert same_answer(answer, truth) is False or name in ("negative exponents", "items")
        assert same_answer(text, "(1,2)") in (True, False)
        assert time.process_time() - begun < SECONDS


# math-verify, in its process


@pytest.fixture(scope="module")
def verifier():
    verifier = modern.Verifier()
    yield verifier
    verifier.close()


@pytest.mark.parametrize(
    ("response", "values", "letters", "verdict"),
    [
        ("I get \\boxed{\\frac12}.", ["0.5"], [], 1.0), ("The answer is 7.", ["7"], [], 1.0),
        ("The answer is 8.", ["7"], [], 0.0), ("\\boxed{B}", ["12"], ["B"], 1.0),
        ("The answer is (B).", [], ["B"], 1.0),
        ("\\boxed{\\text{(C)}}", [], ["B"], 0.0), ("\\boxed{\\frac{2}{4}}", ["\\frac{1}{2}"], ["B"], 1.0),
        ("", ["7"], [], 0.0), ("\ud800 \\boxed{7}", ["7"], [], 1.0),
    ],
)  # fmt: skip
def test_math_verify(verifier, response, values, letters, verdict):
    assert verifier.verify(response, values, letters) == verdict


def test_math_verify_ends_in_time_and_goes_on(verifier):
    assert verifier.verify("\\boxed{7}", ["7"]) == 1.0
    before = verifier._process.pid
    for text in ("\\boxed{9^{9^{9^{9^{9}}}}}", "1+" * 2_000, "(" * 4_000, "9" * MEGABYTE):
        begun = time.monotonic()
        assert verifier.verify(text, ["2"]) == 0.0
        assert time.monotonic() - begun < SECONDS
    assert verifier.verify("\\boxed{7}", ["7"]) == 1.0 and verifier._process.pid == before


def test_a_dead_process_is_begun_again_and_threads_share_one(verifier):
    assert verifier.verify("\\boxed{7}", ["7"]) == 1.0
    verifier._process.kill()
    verifier._process.wait()
    verdicts = {}

    def ask(number):
        verdicts[number] = verifier.verify(f"\\boxed{{{number}}}", [str(number - number % 2)])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {number: float(number % 2 == 0) for number in range(8)}


def test_where_math_verify_cannot_be_had_it_has_no_verdict(monkeypatch):
    monkeypatch.setattr(modern.sys, "executable", "no/such/python")
    verifier = modern.Verifier()
    assert [verifier.verify("\\boxed{7}", ["7"]) for _ in range(5)] == [None] * 5
