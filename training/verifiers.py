"""Answers to rewards: pure functions of (response, truth) in [0, 1].

Nothing here reads a file, a clock or a network, or evaluates text. A response is untrusted: whatever it holds, scoring
it does not raise, and only the last `WINDOW` characters of its conclusion are parsed, in linear time. Each kind asks
for one committed answer: two different ones ("red or blue", "7, maybe 8") earn 0, because a reward for hedging is the
first thing reinforcement learning finds. The *last* marked answer counts, so repeating guesses gains nothing.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, model_validator

WINDOW = 4000  # characters; longer than any honest conclusion, short enough that scoring stays in milliseconds

_LETTERS = "ABCDEF"
# For each kind: the shapes its truth may have, and how to say so.
_SHAPES = {
    "exact": ({"string", "strings"}, "a string, or a list of accepted strings"),
    "numeric": ({"number", "string"}, "a number, or a string with one number in it"),
    "time": ({"string"}, "a string such as '3:05'"),
    "choice": ({"string"}, "a capital letter A to F, within the options if there are any"),
    "box": ({"numbers"}, "four numbers x1, y1, x2, y2 that enclose an area"),
    "objects": ({"strings"}, "a list of strings such as 'small red circle'"),
}


class Verifier(BaseModel):
    """What a right answer is; frozen, hashable and JSON-serialisable.

    kind: one of exact, numeric, time, choice, box, objects. truth: its shape depends on the kind, see `_SHAPES`.
    options: the texts of choices A, B, ... (choice only). threshold: the least IoU that counts, in (0, 1] (box only).
    tolerance: absolute, in the unit of the truth (numeric only).
    Raises pydantic's ValidationError (a ValueError) for a truth that its own canonical answer would not satisfy: such a
    question could never be answered, and training would not notice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["exact", "numeric", "time", "choice", "box", "objects"]
    truth: StrictStr | StrictInt | StrictFloat | tuple[StrictStr, ...] | tuple[float, ...]
    options: tuple[StrictStr, ...] = Field(default=(), max_length=len(_LETTERS))
    threshold: float = Field(default=0.5, gt=0, le=1)
    tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _answerable(self) -> "Verifier":
        many = isinstance(self.truth, tuple)
        first = next(iter(self.truth), "") if many else self.truth
        shape = ("string" if isinstance(first, str) else "number") + ("s" if many else "")
        allowed, expected = _SHAPES[self.kind]
        if shape not in allowed or verify(canonical(self), self) != 1.0:
            raise ValueError(f"{self.kind} truth {self.truth!r} could never be answered: give {expected}")
        if self.options and self.kind != "choice":
            raise ValueError(f"options belong to kind 'choice', not {self.kind!r}: leave them out")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, every field present, so that stored rows do not change meaning with our defaults."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Verifier":
        """The inverse of `to_dict`. Raises ValidationError, which names the bad field."""
        return cls.model_validate(data)


def conclusion(response: str) -> str:
    """What follows the last `</think>`, else the whole text: PaCoRe's compaction rule (arXiv 2601.05593).

    One addition of ours: a `<think>` after the last `</think>` was never closed, and an unfinished thought has no
    conclusion: ''. (Where the chat template puts the opening tag into the prompt, the response cannot show this.)
    """
    closed = response.rfind("</think>")
    if response.rfind("<think>") > closed:
        return ""
    return response[closed + len("</think>") :] if closed >= 0 else response


def final_answer(response: str, block: bool = False) -> str:
    r"""What follows the last "Answer:", "answer is" or `\boxed{` in the conclusion, to the end of its line.

    A marker at the end of a line takes the next line with text (with `block`, all lines up to a blank one). Without a
    marker the whole conclusion is the answer, unless it is longer than `WINDOW`: then ''. Outer spaces, quotes,
    markdown emphasis and the full stop are dropped.
    """
    text = conclusion(response).strip()
    window = text[-WINDOW:]
    last = max(_MARKER.finditer(window), key=re.Match.start, default=None)
    if last is None:
        # A window cut from longer text could show the one half of a hedge.
        answer = window if len(text) <= WINDOW else ""
    else:
        answer, _, below = window[last.end() :].partition("\n")
        if last[0].endswith("{") and (braced := _BRACED.match(window, last.end())):
            answer = braced[1]
        elif not answer.strip(_CLOSING):
            answer = below.strip().partition("\n\n" if block else "\n")[0]
    return answer.lstrip(_OPENING).rstrip(_CLOSING)


def canonical(verifier: Verifier) -> str:
    """The plainest right response, "Answer: ..."; `verify` gives it exactly 1.0."""
    truth = verifier.truth
    if verifier.kind == "box":
        return "Answer: [" + ", ".join(f"{Decimal(str(x)).normalize():f}" for x in truth) + "]"
    if verifier.kind == "objects":
        return "Answer: " + (", ".join(truth) or "none")
    return f"Answer: {next(iter(truth), '') if isinstance(truth, tuple) else truth}"


def verify(response: str, verifier: Verifier) -> float:
    """The reward of a response: 1.0 when its final answer is right, else 0.0. Raises nothing for any response."""
    truth = verifier.truth
    answer = _plain(final_answer(response))
    match verifier.kind:
        case "exact":
            return float(_same(answer, (truth,) if isinstance(truth, str) else truth))
        case "numeric":
            return float(_same_number(answer, _one_number(_plain(str(truth))), verifier.tolerance))
        case "time":
            return float(_minutes(answer) in {_minutes(_plain(truth))} - {None})
        case "choice":
            return float(_chosen(answer, verifier.options) == _LETTERS.find(truth))
        case "box":
            return float((box := _box(answer)) is not None and iou(box, truth) >= verifier.threshold)
        case "objects":
            return float(objects_f1(response, truth) == 1.0)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2, in any one unit; corners may be swapped.

    Symmetric, in [0, 1]; 0.0 where the union has no finite area. Raises ValueError unless each has four numbers.
    """
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a, b
    (ax1, ax2), (ay1, ay2), (bx1, bx2), (by1, by2) = map(sorted, ((ax1, ax2), (ay1, ay2), (bx1, bx2), (by1, by2)))
    shared = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
    # Not `union <= 0`: a NaN must fail the test too.
    return min(1.0, shared / union) if 0 < union < float("inf") else 0.0


def objects_f1(response: str, truth: Sequence[str]) -> float:
    """Partial credit for a list of objects: F1 of the two multisets, in [0, 1]; 1.0 when equal, 0.0 for no answer."""
    found = _objects(final_answer(response, block=True))
    wanted = sum((_objects(item) or Counter() for item in truth), Counter())
    if found is None or found == wanted:
        return float(found is not None)
    return 2 * (found & wanted).total() / (found.total() + wanted.total())


# Reading: from a response to plain text. Possessive quantifiers (*+, ++) here and below keep hostile runs linear.
_MARKER = re.compile(r"\banswer[*_]*+\s*+:|\banswer\s++is\b[*_]*+\s*+:?|\\boxed\s*+\{", re.IGNORECASE)
_BRACED = re.compile(r"((?:[^{}]++|\{(?:[^{}]++|\{[^{}]*+\})*+\})*+)\}")
_OPENING = " \t\r\n\f\v\0\"'“”‘’*_`"
_CLOSING = _OPENING + ".。"
_ALIKE = str.maketrans("‐‑‒–—―−﹣‘’′ʼ", "-" * 8 + "'" * 4)


@lru_cache(maxsize=4096)
def _fold(character: str) -> str:
    """One character in plain form: digits of any script and full-width forms to ASCII, control characters out."""
    if " " <= character <= "~" or character in "\n\u00a0\u2009\u202f":
        return character  # the special spaces may separate thousands
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    compatible = unicodedata.normalize("NFKC", character)
    if "⁄" in compatible:
        return f" {compatible.replace('⁄', '/')} "  # "3½" is 3 1/2, never 31/2
    if character.isdigit():
        return f"^{unicodedata.digit(character)}"  # "10²" is not 102, and "cm²" holds no number of its own
    if "\uff01" <= character <= "\uff5e":
        return compatible
    category = unicodedata.category(character)
    return "" if category == "Cf" else " " if category[0] == "C" else character


_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_STYLED = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")


def _plain(text: str) -> str:
    """Case-folded, with unicode look-alikes and the little LaTeX that models write resolved."""
    text = _STYLED.sub(r"\1", _FRACTION.sub(r" \1/\2 ", "".join(map(_fold, text.translate(_ALIKE)))))
    for written, plain in (("\\,", "\u2009"), ("{,}", ","), ("\\%", "%"), ("**", " "), ("`", " ")):
        text = text.replace(written, plain)
    return text.casefold().strip()


_DENIED = re.compile(r"\b(?:not|never|neither|nor|cannot)\b|n't\b")

# Words: exact.
_HYPHEN = re.compile(r"(?<=\w)-+|-(?!\d)")  # the minus of "-7" stays: it is not the answer "7"
_ARTICLE = re.compile(r"\b(?:an?|the)\s+(?=\S)")  # an article stands before a word; the point "A" is a name
_UNDECIDED = {"maybe", "perhaps", "possibly", "unsure", "idea", "clue", "answer", "unknown"}


def _words(text: str) -> str:
    text = _ARTICLE.sub("", " ".join(_HYPHEN.sub(" ", text).split()))
    return text.lstrip(" \"'*_([").rstrip(" \"'*_)].,;:!?")


def _same(answer: str, accepted: Sequence[str]) -> bool:
    said = _words(answer)
    wanted = {_words(_plain(text)) for text in accepted} - {""}
    polar = wanted & {"yes", "no"}
    if said in wanted or len(polar) != 1:
        return said in wanted
    # "Yes, there is one": the first word decides, unless the rest takes it back.
    first, *rest = re.findall(r"[^\W_]+", said) or [""]
    if first not in polar or rest[:1] == ["or"] or _UNDECIDED & set(rest):
        return False
    return not ({"no", "none"} & set(rest) or _DENIED.search(said)) if first == "yes" else "yes" not in rest


# Numbers: numeric.
_SMALL = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|"
    "eighteen|nineteen|twenty"
)
_TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
_VALUES = {word: 10 * value for value, word in enumerate(_TENS.split("|"), 2)}
_VALUES |= {word: value for value, word in enumerate(_SMALL.split("|"))}
_UNITS = "|".join(_SMALL.split("|")[1:10])
_WORD = rf"(?:(?:{_TENS})(?:[\s-]{{1,3}}(?:{_UNITS})\b)?|(?:{_SMALL})\b)"
_NUMBER = re.compile(
    rf"""
    (?<![\w.]) (?<![a-z]\^)  # not inside a word, nor the exponent of a unit
    (?P<sign> [-+]\s*+ | (?:minus|negative)\s++ )?
    (?: (?:(?P<mixed>\d++)\s++)? (?P<top>\d++)\s*+/\s*+(?P<bottom>\d++)
      | (?P<digits> (?:\d{{1,3}}(?:[,'\u00a0\u2009\u202f]\d{{3}})++(?!\d) | \d++) (?:\.\d++)? | \.\d++ )
        (?:e(?P<exponent>[-+]?\d++))?
      | (?P<word> {_WORD} | none )\b )
    (?P<percent> \s*+(?:%|per\s?cent\b) )?
    (?P<scale> (?:[\s-]|\band\b|\ba\b){{0,5}} (?:k|dozen|hundred|thousand|[mb]illion|hal(?:f|ves)|quarters?|thirds?|
        (?:four|fif|six|seven|eigh|nin|ten|hundred)ths?)\b )?
    (?P<tail> [\w.]*+ )
    """,
    re.VERBOSE,
)
_DIGIT = re.compile(r"\d")
_OPERATORS = {"", *"+-*/×÷x^:", "plus", "times", "over", "divided by"}
_BOUND = re.compile(r"(?:than|least|most|over|under|[<>≤≥≠])\s*$")


def _numbers(text: str) -> list[tuple[Fraction, bool]] | None:
    """The numbers in plain text, each with "is a percentage"; None if one is doubtful ("2+2", "two hundred", "> 7")."""
    text = re.sub(r"\s\s+", " ", text)
    found, end = [], None
    for match in _NUMBER.finditer(text):
        gap = text[end : match.start()] if end is not None else " and "
        glued = gap.strip() in _OPERATORS or not re.search(r"[\s\w]", gap)
        bounded = _BOUND.search(text[max(0, match.start() - 12) : match.start()])
        value = _value(match)
        if glued or bounded or value is None or match["scale"] or _DIGIT.search(match["tail"]):
            return None
        found.append((value, match["percent"] is not None))
        end = match.end()
    return found


def _value(match: re.Match[str]) -> Fraction | None:
    exponent = match["exponent"] or "0"
    # Exact arithmetic, so sizes are bounded first: Fraction("1e999999999") would fill the memory.
    huge = match.end() - match.start() > 400 or len(exponent) > 5 or abs(int(exponent)) > 400
    if huge or int(match["bottom"] or 1) == 0:
        return None
    if match["word"]:
        value = Fraction(_count(match["word"]))
    elif match["top"]:
        value = int(match["mixed"] or 0) + Fraction(int(match["top"]), int(match["bottom"]))
    else:
        value = Fraction(re.sub(r"[^\d.]", "", match["digits"]) + "e" + exponent)
    return -value if (match["sign"] or "+")[0] in "-mn" else value


def _count(text: str) -> int:
    return int(text) if text.isdigit() else sum(_VALUES.get(word, 0) for word in re.split(r"[\s-]+", text))


def _one_number(text: str) -> tuple[Fraction, bool] | None:
    distinct = set(_numbers(text) or ())
    return distinct.pop() if len(distinct) == 1 and not _DENIED.search(text) else None


def _same_number(answer: str, truth: tuple[Fraction, bool] | None, tolerance: float) -> bool:
    if (said := _one_number(answer)) is None or truth is None:
        return False
    (value, percent), (wanted, wanted_percent) = said, truth
    gaps = [value - wanted]
    if percent != wanted_percent:  # "%" is the unit of the bare number, or the bare number is a share of one
        gaps.append(value / 100 - wanted if percent else value - wanted / 100)
    return min(map(abs, gaps)) <= Fraction(str(tolerance))


# Clock times: time.
_HOUR = rf"(?:\d{{1,2}}|{_WORD})\b"
_MERIDIEM = r"(?:\s*[ap]\.?m\b\.?)"
_TIME = re.compile(
    rf"""
    (?<![\w.:-])
    (?: (?P<hour>\d{{1,2}})\s?[:.]\s?(?P<minute>\d{{2}})(?![:.]?\d){_MERIDIEM}?
      | (?: (?P<part>half|quarter) | (?P<minutes>{_HOUR})(?:\s+min(?:ute)?s?\b)? )
        \s+ (?P<side>past|after|to|till|before)\s+ (?P<base>{_HOUR})
      | (?P<full>\d{{1,2}}|{_WORD}) (?: \s*o'?\s?clock\b | {_MERIDIEM} ) )
    """,
    re.VERBOSE,
)


def _minutes(text: str) -> int | None:
    """Minutes since twelve, 0 to 719, of the one time named in plain text; None for no time or for several."""
    if _DIGIT.search(_TIME.sub(" ", text)) or _DENIED.search(text):
        return None
    times = set()
    for match in _TIME.finditer(text):
        hour = _count(match["hour"] or match["base"] or match["full"])
        minute = {"half": 30, "quarter": 15}.get(match["part"]) or _count(match["minute"] or match["minutes"] or "0")
        if hour > 23 or minute > 59:
            return None
        times.add((60 * hour + (-minute if match["side"] in ("to", "till", "before") else minute)) % 720)
    return times.pop() if len(times) == 1 else None


# Letters: choice.
_LETTER = re.compile(
    r"(?:(?:option|choice|letter)\s+)?[(\[]?([a-f])((?:\s*[)\]]|\s*[.:,](?=[\s)\]]|$)|\s+-(?=\s))*)(.*)", re.DOTALL
)
# A second letter is a hedge; "a" before a word is an article.
_NAMED = re.compile(r"\b(?:[b-f]\b|a\b(?!\s+\w))")


def _chosen(answer: str, options: Sequence[str]) -> int | None:
    """The index of the one option named by its letter or its own text; None for none, several or a contradiction."""
    match = _LETTER.fullmatch(answer)
    # Without a delimiter only the bare letter counts: "a red circle" is not option A.
    if match is None or (match[3] and not match[2]):
        named = _options_named(answer, options)
        return named[0] if len(named) == 1 else None
    letter, rest = match[1], match[3].strip()
    index = _LETTERS.lower().index(letter)
    named = _options_named(rest, options) if rest else []
    if named:
        return index if named == [index] else None
    return index if index < (len(options) or len(_LETTERS)) and not set(_NAMED.findall(rest)) - {letter} else None


def _options_named(text: str, options: Sequence[str]) -> list[int]:
    same = [index for index, option in enumerate(options) if _same(text, (option,))]
    plain = [_plain(option) for option in options]
    # Numbers stand for options only where the options differ in nothing else: "4" names "4 cm" beside "5 cm".
    if same or len({_NUMBER.sub("#", option) for option in plain}) != 1:
        return same
    return [index for index, option in enumerate(plain) if _same_number(text, _one_number(option), 0.0)]


# Coordinates: box.
_COORDINATE = re.compile(r"(?<![\w.])([-+]?(?:\d{1,20}(?:\.\d{1,20})?|\.\d{1,20}))([\w.]*+)")


def _box(text: str) -> tuple[float, ...] | None:
    """The one box in plain text, in the response's own unit. No thousands here: the comma parts coordinates."""
    found = _COORDINATE.findall(text)
    if len(found) != 4 or any(_DIGIT.search(tail) for _, tail in found) or _DENIED.search(text):
        return None
    return tuple(float(number) for number, _ in found)


# Lists of things: objects.
_BETWEEN = re.compile(r"[,;&\n]|\band\b")
_LEAD = re.compile(r"(?:[-*•]\s+|\(?\d{1,2}[.)]\s+)?(?:there\s+(?:is|are)\s+)?")  # a bullet, a phrase
_PLURAL = re.compile(r"(?:(?<=ss)|(?<=ch)|(?<=sh)|(?<=x))es$|(?<=[^s])s$")
_NOTHING = {"none", "nothing", "empty", "no object", "no shape"}


def _objects(text: str) -> Counter[str] | None:
    """The multiset of things listed; empty for "none", None where nothing is said."""
    items: Counter[str] = Counter()
    parts = [_words(_LEAD.sub("", part.strip(), count=1)) for part in _BETWEEN.split(_plain(text))]
    for part in filter(None, parts):
        count, name = 1, part
        head, _, tail = part.partition(" ")
        if tail and re.fullmatch(rf"\d{{1,4}}|{_WORD}", head):
            count, name = _count(head), _words(tail)
        # The order of adjectives is a habit, not a fact: "blue small star" is a small blue star.
        *adjectives, noun = name.split() or [""]
        items[" ".join([*sorted(adjectives), _PLURAL.sub("", noun)])] += count
    if not items:
        return None
    # `+items` drops "0 red circles".
    return Counter() if len(items) == 1 and set(items) <= _NOTHING else +items
