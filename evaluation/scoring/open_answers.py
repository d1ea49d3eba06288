"""Open answers with numbers, as MMMU judges them: everything the response may mean is held against the truth.

A response is cut into lines; of each counts what follows a word such as "is " or "answer ", and every number in it. It
is right when a true text occurs in any of these, or a number equals a true one to two decimals. So a response that
names several candidates is right if one of them is: a quirk of the official rule.
"""

import re
from collections.abc import Sequence

_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(":,.!?;'")

# The official three kinds of number, in their order. Possessive, and begun only where digits begin, which finds the
# same: a run of a million digits costs one pass over it, not one from each of its digits.
_WITH_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?(?<!\d)\d++(?:\.\d++)?+[eE][+-]?\d+")
_PLAIN = re.compile(r"-?(?:(?<!\d)\d++\.\d++|\.\d++|(?<!\d)\d++\b)(?![eE][+-]?\d)(?![,\d])")


def predictions(response: str) -> list[str | float]:
    """What the response may mean, each once: lower-cased texts, and numbers rounded to two decimals."""
    said = _conclusions(response)
    numbers = [number for text in said for kind in (_WITH_COMMAS, _SCIENTIFIC, _PLAIN) for number in kind.findall(text)]
    return list(dict.fromkeys(value for text in [*said, *numbers] for value in normalized(text)))


def is_right(predicted: Sequence[str | float], truths: Sequence[str]) -> bool:
    """Whether any prediction holds, or equals, any of the true answers."""
    true = [value for truth in truths for value in normalized(truth)]
    texts = [value for value in true if isinstance(value, str)]
    numbers = {value for value in true if isinstance(value, float)}
    return any(value in numbers if isinstance(value, float) else any(text in value for text in texts)
               for value in predicted)  # fmt: skip


def normalized(text: str) -> list[str | float]:
    """A number, as Python reads one once its commas are gone ("1_000" and "inf" too); else the text in lower case.

    A single letter stands for itself with a space on either side, so that it does not match within every word.
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]


def _conclusions(response: str) -> list[str]:
    # The official split at ". " before a capital comes after this lower-casing, so it never happens.
    whole = response.strip().strip(".").lower()
    lines = whole.split("\n")
    said = []
    for number, line in enumerate(lines, 1):
        tail = _tail(line, _INDICATORS if number < len(lines) else (*_INDICATORS, "="))
        if tail and tail not in _TRIVIAL:
            said.append(tail)
    return said or [whole]


def _tail(line: str, indicators: Sequence[str]) -> str:
    """The shortest of what follows the indicators' last occurrences; an empty one gives way to the next."""
    tail = ""
    for indicator in indicators:
        _, found, after = line.rpartition(indicator)
        if found and (not tail or len(after.strip()) < len(tail)):
            tail = after.strip()
    return tail
