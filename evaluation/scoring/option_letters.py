"""Which option a response names: the exact matching of VLMEvalKit (`can_infer`, as of 2025), quirks included.

1. A response with a stock phrase of refusal names option Z, which is never right.
2. `.()[],:;!*#{}` become spaces. Where exactly one option's letter is a word of the response, it is that option, if it
   first stands among the last four words; quirks: "A" is a letter also where it is an article, lower-case letters are
   none, and a letter early in a long response does not count, even where it comes again at the end. Without a letter
   of an option, a word "Z" names Z.
3. Else, where exactly one option's text occurs in the response (case aside), it is that option, unless the response is
   more than twice as long as all texts together; quirk: "1" occurs in "10".

What names no option is wrong: nothing is drawn at random.
"""

from collections.abc import Mapping

REFUSED = "Z"

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_SPACES = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_WORDS = 4


def infer_option(response: str, options: Mapping[str, str]) -> str:
    """The letter among `options` (letter to text) that the response names, `Z` for a refusal, or ""."""
    return _by_letter(response, options) or _by_text(response, options)


def _by_letter(response: str, options: Mapping[str, str]) -> str:
    if any(phrase in response for phrase in _REFUSALS):
        return REFUSED
    words = response.translate(_SPACES).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1:
        return named[0] if words.index(named[0]) >= len(words) - _LAST_WORDS else ""
    return REFUSED if not named and REFUSED in words else ""


def _by_text(response: str, options: Mapping[str, str]) -> str:
    if len(response) > 2 * sum(map(len, options.values())):
        return ""
    said = response.lower()
    named = [letter for letter, text in options.items() if text.lower() in said]
    return named[0] if len(named) == 1 else ""
