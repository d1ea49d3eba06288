r"""Final answers of competitions in LaTeX: found in their box, and put into one form, so that most are equal as text.

After what MathArena's parser does before it turns an answer into symbols (its `parser.py` as of 2025).
"""

import re

_BOX = re.compile(r"\\?(?:boxed|fbox)(?=\{)")
_BRACE = re.compile(r"[{}]")
_WHOLE_NUMBER = re.compile(r"\b\d++\b")

_ALIKE = str.maketrans(
    {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "√": r"\sqrt", "π": r"\pi ", "\u202f": " "}
)
_SUBSTITUTIONS = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"\\[,;:! ]|\\q?quad(?![a-zA-Z])|[$~]", " "),
        (r"\\(?:left|right|[Bb]igg?[lr]?|displaystyle)(?![a-zA-Z])", ""),
        (r"\^\{?\\circ\}?", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\times(?![a-zA-Z])", r"\\cdot"),
        (r"\\(?:text|mbox)\{\s*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])|;", ","),
        (r"\\(?:text|mbox)\{[^{}]*\}", ""),
        (r"\\(?:mathrm|operatorname)\{([^{}]*)\}", r"\1"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
        (r"([\^_])\{(\w)\}", r"\1\2"),
        (r"(\\[a-zA-Z]+)\s+(?=[a-zA-Z])|\s+", lambda space: f"{space[1]} " if space[1] else ""),
    )
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_OPENING, _CLOSING = "([{", ")]}"


def boxed(response: str) -> str | None:
    r"""What the last closed `\boxed{}` or `\fbox{}` holds, boxes inside it undone; None without one."""
    ends: dict[int, int] = {}
    opened: list[int] = []
    for brace in _BRACE.finditer(response):
        if brace[0] == "{":
            opened.append(brace.start())
        elif opened:
            ends[opened.pop()] = brace.start()
    found, behind = None, 0
    for box in _BOX.finditer(response):
        # One inside another is part of it.
        if box.start() >= behind and (end := ends.get(box.end())) is not None:
            found, behind = response[box.end() + 1 : end], end
    return found if found is None else _BOX.sub("", found)


def last_whole_number(response: str) -> str | None:
    """What MathArena takes where nothing is boxed; of "1.5" it is 5."""
    numbers = _WHOLE_NUMBER.findall(response)
    return numbers[-1] if numbers else None


def is_list(answer: str) -> bool:
    """Whether it has a comma that does not separate thousands."""
    return "," in _THOUSANDS.sub("", answer)


def parts_of(answer: str, several: bool = False) -> list[str]:
    """The answer in one form, in parts: what follows the last "=", and stands before "≈", without spaces and units.

    Args:
        several: it may be a list, whose parts are sorted, since their order does not matter; else a comma within
            digits separates thousands, and there is one part.
    """
    plain = answer.strip().translate(_ALIKE)
    for pattern, by in _SUBSTITUTIONS:
        plain = pattern.sub(by, plain)
    if not several:
        return [_bare(_THOUSANDS.sub("", _value(plain)))]
    plain = plain.replace("\\{", "{").replace("\\}", "}")
    # "(x,y)=(1,2)" is one value, and "x=1,y=2" are two.
    plain = _bare(_value(plain) if plain.count("=") == 1 else plain)
    return sorted(_bare(_value(part)) for part in _split(plain))


def _value(text: str) -> str:
    return text.rpartition("=")[2].partition("\\approx")[0].removesuffix(".")


def _split(text: str) -> list[str]:
    """At the commas outside of all brackets."""
    parts, depth, start = [], 0, 0
    for sign in re.finditer(r"[()\[\]{},]", text):
        if sign[0] == ",":
            if depth == 0:
                parts.append(text[start : sign.start()])
                start = sign.end()
        else:
            depth += 1 if sign[0] in _OPENING else -1
    return [part for part in [*parts, text[start:]] if part]


def _bare(text: str) -> str:
    """Without the brackets that go around all of it."""
    around = 0
    pairs: dict[int, int] = {}
    opened: list[int] = []
    for sign in re.finditer(r"[()\[\]{}]", text):
        if sign[0] in _OPENING:
            opened.append(sign.start())
        elif opened:
            pairs[opened.pop()] = sign.start()
    while pairs.get(around) == len(text) - 1 - around and around < len(text) // 2:
        around += 1
    return text[around : len(text) - around]
