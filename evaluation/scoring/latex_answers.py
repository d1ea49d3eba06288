r"""MathVision's official rules: what a response says the answer is, and when that is right.

The rules are order, quirks and all, those of the official program's `evaluate.py`. They are plain text work in linear
time; where an answer's value decides, see `latex_value`.
"""

import re

from evaluation.scoring.latex_value import NoValue, latex_value

LETTERS = "ABCDE"
DECIMALS = 2
MAX_ITEMS = 100  # of a tuple; no true one has ten

_PHRASES = ("the final answer is", "the answer is", "the correct answer is", "the answer should be")
_SLASHED = re.compile(r"(-?(?:0|[1-9][0-9]*))/(-?(?:0|[1-9][0-9]*))")
# Taken out of an answer in this order, or replaced.
_OUT = (
    (" ", ""), ("\\,", ""), ("∞", "\\infty"), ("+\\infty", "\\infty"), ("\\\\", "\\"), ("\n", ""), ("\\text", ""),
    ("\\mbox", ""), ("bmatrix", "pmatrix"), ("\\left", ""), ("\\right", ""), ("^{\\circ}", ""), ("^\\circ", ""),
    ("{m}^3", ""), ("m^3", ""), ("{units}", ""), ("units", ""), ("{km}", ""), ("km", ""),
)  # fmt: skip
# The MATH data set's, before and after its units go.
_BEFORE_UNITS = (
    ("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", ""),
    ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""), ("$", ""),
)  # fmt: skip
_AFTER_UNITS = (("\\%", ""), (" .", " 0."), ("{.", "{0."))
_BRACKETED = tuple((f"{left}{letter}{right}", letter) for left, right in ("()", "{}") for letter in "abcde")


def read_answer(response: str) -> str:
    """The answer that a response gives, as the published files have it in `model_answer`; never raises."""
    text = response.strip()
    for letter in LETTERS:
        if text.endswith((f" {letter}.", f" ({letter}).")) or text.startswith(
            (f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")
        ):
            text = letter
    stated = text.rpartition("is ")[2].rstrip(".")
    if _is_number(stated):
        text = stated
    boxes = text.count("oxed{")
    if not boxes:
        text = _after_phrases(text)
    elif boxes > 1:
        text = "\\boxed{" + text.rpartition("oxed{")[2]
    answer = _replaced(_normalised(_found(text.lower())), _BRACKETED)
    return answer.rstrip(".").lstrip(":").strip()


def same_answer(answer: str, truth: str) -> bool:
    """Whether an answer that was read equals a true one: as text, item by item, or as a number; never raises."""
    answer, truth = answer.lower(), truth.lower()
    # Blank is what has nothing but spaces; other white space is a text, which equals itself.
    if not answer.replace(" ", "") or not truth.replace(" ", ""):
        return False
    if answer.strip() == truth.strip():
        return True
    answer, truth = _evaluated_items(answer), _evaluated_items(truth)
    if answer == truth:
        return True
    try:
        # The truth first: of most it is known at once that they are no number.
        return round(latex_value(truth), DECIMALS) == round(latex_value(answer), DECIMALS)
    except NoValue:
        return False


def is_right(answer: str, truth: str, options: list[str]) -> bool:
    """Whether an answer is the true one, or with options, the text of the true one.

    Args:
        answer: of `read_answer`.
        truth: a value; with options the letter of one of them.
    """
    return same_answer(answer, truth) or (bool(options) and same_answer(answer, options[LETTERS.index(truth)]))


def _after_phrases(text: str) -> str:
    """What follows the words that announce an answer, to the end of the line or sentence."""
    for phrase in _PHRASES:
        for said in (phrase, phrase.replace("the", "The")):
            _, found, after = text.rpartition(said)
            text = after.strip()
            if found:
                text = text.partition("\n")[0].partition(". ")[0]
    return text


def _found(text: str) -> str:
    text = text.replace("{}", "")
    start, end = text.find("oxed{"), text.rfind("}")
    if start >= 0 and end >= start + len("oxed{"):
        text = text[start + len("oxed{") : end]
    opening, closing = text.find("{"), text.find("}")
    if closing >= 0 and (opening < 0 or closing < opening):
        text = text[:closing]
    return _replaced(text.rpartition("=")[2].rpartition("\\approx")[2], _OUT)


def _normalised(text: str) -> str:
    text = _replaced(_replaced(text, _BEFORE_UNITS).partition("\\text{ ")[0], _AFTER_UNITS)
    if text.startswith("."):
        text = "0" + text
    for sign in ("=", "\\approx"):
        if text.count(sign) == 1:
            text = text.partition(sign)[2]
    rooted = "sqrt" in text
    text = (_braced_roots(text) if rooted else text).replace(" ", "")
    text = _braced_fractions(text) if rooted else text
    if text == "0.5":
        return "\\frac{1}{2}"
    slashed = _SLASHED.fullmatch(text)
    # As written back from integers: "-0" is none.
    if slashed and "-0" not in slashed.groups():
        return f"\\frac{{{slashed[1]}}}{{{slashed[2]}}}"
    return text


def _braced_roots(text: str) -> str:
    before, *after = text.split("\\sqrt")
    return before + "".join(
        "\\sqrt" + (part if not part or part[0] == "{" else f"{{{part[0]}}}{part[1:]}") for part in after
    )


def _braced_fractions(text: str) -> str:
    before, *after = text.split("\\frac")
    parts = [before]
    for part in after:
        if part.startswith("{"):
            parts.append("\\frac" + part)
        elif len(part) < 2:
            return text
        else:
            lower = part[1] if part[1] == "{" else f"{{{part[1]}}}"
            parts.append(f"\\frac{{{part[0]}}}{lower}{part[2:]}")
    return "".join(parts)


def _evaluated_items(text: str) -> str:
    """Of "(…, …)" and "[…, …]" each item as a number with two decimals; else, or if one has none, the text itself."""
    items = text[1:-1].split(",", MAX_ITEMS)
    if text[:1] + text[-1:] not in ("()", "[]") or not 1 < len(items) <= MAX_ITEMS:
        return text
    try:
        shown = [
            item if "infty" in item or item in ("a", "-a") else str(round(latex_value(item), DECIMALS))
            for item in items
        ]
    except NoValue:
        return text
    return text[0] + ",".join(shown) + text[-1]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _replaced(text: str, changes: tuple[tuple[str, str], ...]) -> str:
    for old, new in changes:
        text = text.replace(old, new)
    return text
