"""Which option a response chose: the rules of MMMU and of MMMU-Pro, which differ, with their quirks.

Both look for letters in brackets, then for bare letters, then, in a response of more than five words, for the options'
own texts. Where several are found the one whose last occurrence is last counts, and where none is found the official
programs draw at random. So do these, from a generator that the caller seeds, so that a result repeats, and say so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

# In this order, each from both ends; a "'." at the end keeps its "'", for "." goes before it.
_STRIPPED = ",.!?;:'"
_FEW_WORDS = 5  # a response of so many words is not searched for the options' texts


@dataclass(frozen=True)
class Choice:
    """The letter, and whether it was drawn because the response names none. "" where there was nothing to choose."""

    letter: str
    guessed: bool = False


def mmmu_choice(response: str, options: Mapping[str, str], draw: Random) -> Choice:
    """MMMU's reading (its `eval_utils`, see SCORERS.md): "(B)", else " B ", else an option's text.

    Args:
        options: the options' texts by their letters, in the order in which they are shown.
        draw: decides where none is found; used only then. A question's own, `Random(id)`, gives it the same letter in
            whatever company it is judged.
    """
    text = _padded(response)
    return _last_of(
        options, draw, _written(text, options, "({})"), _written(text, options, " {} "), _quoted(text, options)
    )


def mmmu_pro_choice(response: str, options: Mapping[str, str], draw: Random) -> Choice:
    """MMMU-Pro's reading: the letter after the last "Answer:", if exactly one occurs there; else as MMMU's, but laxer.

    Quirks of the official program: after "Answer:" any capital of the options counts, also within a word (in "Answer:
    Both" it is B); a bare letter needs a space on its right alone ("NASA " is A), or else a full stop ("A."). Where
    several are bare, though, their places are those of " B ", and without such a place the first of them counts.
    """
    _, marked, said = response.rpartition("Answer:")
    if marked:
        named = [letter for letter in options if letter in said]
        if len(named) == 1:
            return Choice(named[0])
    text = _padded(response)
    spaced = {letter: text.rfind(f" {letter} ") for letter in options if f"{letter} " in text}
    stopped = {letter: text.rfind(f" {letter} ") for letter in options if f"{letter}." in text}
    return _last_of(options, draw, _written(text, options, "({})"), lambda: spaced, lambda: stopped,
                    _quoted(text, options))  # fmt: skip


_Places = Callable[[], Mapping[str, int]]


def _padded(response: str) -> str:
    for sign in _STRIPPED:
        response = response.strip(sign)
    return f" {response} "


def _written(text: str, letters: Sequence[str] | Mapping[str, str], form: str) -> _Places:
    """Where each letter occurs last, written so; those that do not occur are left out."""
    return lambda: {letter: place for letter in letters if (place := text.rfind(form.format(letter))) >= 0}


def _quoted(text: str, options: Mapping[str, str]) -> _Places:
    """Where each option's own text occurs last, in whatever case."""

    def places() -> dict[str, int]:
        if len(text.split()) <= _FEW_WORDS:
            return {}
        lower = text.lower()
        return {letter: place for letter, option in options.items() if (place := lower.rfind(option.lower())) >= 0}

    return places


def _last_of(options: Mapping[str, str], draw: Random, *kinds: _Places) -> Choice:
    """Of the first kind that finds anything, the letter whose place is last; of equal places the first letter."""
    for kind in kinds:
        if places := kind():
            return Choice(max(places, key=places.__getitem__))
    return Choice(draw.choice(list(options)) if options else "", guessed=True)
