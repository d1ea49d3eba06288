"""Questions whose text says where their pictures go, as MMMU's do: "<image 1>", in the question or in an option."""

import ast
import re
from collections.abc import Mapping, Sequence

from evaluation.picture_rows import is_missing

_PLACEHOLDER = re.compile(r"<image (\d{1,2})>")


def interleaved(text: str, pictures: Mapping[int, str]) -> list[dict]:
    """The text as the parts of a turn, each picture wherever it is named, also where it is named twice.

    A picture that is named nowhere comes first, so that none is lost. A name without a picture stays text.
    """
    pieces = _PLACEHOLDER.split(text)
    parts = [_picture(pictures[number]) for number in sorted(pictures.keys() - set(map(int, pieces[1::2])))]
    said = pieces[0]
    for name, after in zip(map(int, pieces[1::2]), pieces[2::2], strict=True):
        if name in pictures:
            parts += [*_text(said), _picture(pictures[name])]
            said = after
        else:
            said += f"<image {name}>{after}"
    return parts + _text(said)


def options_of(cell: object) -> list[str]:
    """The options in a cell: a list, or, as MMMU publishes it, a string that holds one as Python writes it.

    Raises ValueError where it holds no list of texts.
    """
    if isinstance(cell, str):
        try:
            cell = ast.literal_eval(cell)  # literals alone, and of the data set, not of a model
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            raise ValueError(f"its options {cell[:60]!r} are no list") from None
    if not isinstance(cell, list) or not all(isinstance(option, str | int | float) for option in cell):
        raise ValueError(f"its options {str(cell)[:60]!r} are no list of texts")
    return [str(option) for option in cell]


def lettered(options: Sequence[str]) -> dict[str, str]:
    """The options by their letters. Raises ValueError for more than there are letters."""
    if len(options) > 26:
        raise ValueError(f"it has {len(options)} options; at most 26 have a letter")
    return {chr(ord("A") + place): option for place, option in enumerate(options)}


def text_of(cell: object) -> str:
    """A cell's text, "" where it is empty."""
    return "" if cell is None or (not isinstance(cell, str) and is_missing(cell)) else str(cell).strip()


def _picture(address: str) -> dict:
    return {"type": "image", "image": address}


def _text(said: str) -> list[dict]:
    return [{"type": "text", "text": said}] if said.strip() else []
