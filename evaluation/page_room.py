"""What a page has room for: pictures are made smaller, and texts lose their middle, until all of them fit."""

import base64
import io
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vlm.pictures import PictureError, open_picture

PICTURES = 16 * 2**20  # bytes of a page that all pictures may take together
TEXTS = 24 * 2**20  # and what models said and were asked
LONGEST_EDGE = 640  # pixels of a picture on the page, however much room there is
SHORTEST_EDGE = 48  # below this nothing can be seen
QUALITY = 80
FEW_COLOURS = 1024  # a picture with no more is a drawing


@dataclass(frozen=True)
class Thumbnail:
    """A picture on the page.

    Attributes:
        uri: `data:image/webp;base64,…`; "" where the picture cannot be read, or there is no room for it.
        size: (width, height) of the picture itself, in pixels; (0, 0) where it cannot be read.
        shown: of what is on the page.
        problem: why it is not there, in a line.
    """

    uri: str
    size: tuple[int, int] = (0, 0)
    shown: tuple[int, int] = (0, 0)
    problem: str = ""


def water_level(sizes: Sequence[int], room: int) -> int:
    """The greatest level to which all sizes can be cut so that together they take at most `room`."""
    left, ordered = room, sorted(sizes)
    for place, size in enumerate(ordered):
        share = left // (len(ordered) - place)
        if size > share:
            return share
        left -= size
    return max(ordered, default=0)


def thumbnails(paths: Sequence[str | Path], room: int = PICTURES) -> list[Thumbnail]:
    """The pictures at no more than `LONGEST_EDGE`, the largest ones smaller still where all need more than `room`."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow works beside Python
        made = list(pool.map(_thumbnail, paths))
        level = water_level([len(one.uri) for one in made], room)
        large = [place for place, one in enumerate(made) if len(one.uri) > level]
        for place, smaller in zip(large, pool.map(lambda place: _thumbnail(paths[place], level), large), strict=True):
            made[place] = smaller
    return made


def _thumbnail(path: str | Path, most: int | None = None) -> Thumbnail:
    """The picture in at most `most` characters."""
    try:
        picture = open_picture(path)
    except PictureError as error:
        return Thumbnail("", problem=str(error).replace(str(path), Path(path).name))
    edge = min(LONGEST_EDGE, max(picture.size))
    while True:
        uri, shown = _encoded(picture, edge)
        if most is None or len(uri) <= most:
            return Thumbnail(uri, picture.size, shown)
        if edge <= SHORTEST_EDGE:
            return Thumbnail("", picture.size, problem="there is no room for it on this page")
        edge = max(SHORTEST_EDGE, int(edge * max(0.3, min(0.9, 0.95 * (most / len(uri)) ** 0.5))))


def _encoded(picture: Image.Image, edge: int) -> tuple[str, tuple[int, int]]:
    small = picture.copy()
    small.thumbnail((edge, edge))
    kinds: list[dict] = [{"quality": QUALITY, "method": 2}]
    # A drawing is blurred by what a photograph loses, and often the smaller without any loss.
    if small.size == picture.size and picture.getcolors(FEW_COLOURS) is not None:
        kinds.append({"lossless": True, "method": 2})
    made = []
    for options in kinds:
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", **options)
        made.append(buffer.getvalue())
    return "data:image/webp;base64," + base64.b64encode(min(made, key=len)).decode(), small.size


def embedded(value) -> str:
    """JSON that may stand inside of a `<script>` element: nothing in it can close that."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:  # what data files say of a missing number is no JSON
        return embedded(_finite(value))
    # UTF-8 has no room for half of a surrogate pair.
    return text.replace("<", "\\u003c").encode("utf-8", "replace").decode()


def _finite(value):
    if isinstance(value, dict):
        return {name: _finite(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def text_limits(first: Sequence[str], others: Sequence[str], room: int = TEXTS) -> tuple[int | None, int | None]:
    """The most bytes that each of the first texts, and each of the others, may take; None where nothing is cut.

    The others share what the first ones leave, and at least a quarter of the room.
    """
    sizes, more = [_size(text) for text in first], [_size(text) for text in others]
    limit = water_level(sizes, room - min(sum(more), room // 4))
    other = water_level(more, room - sum(min(size, limit) for size in sizes))
    return limit if limit < max(sizes, default=0) else None, other if other < max(more, default=0) else None


def clipped(text: str, limit: int | None) -> str:
    """The text, or its beginning and end in about `limit` bytes, with what was left out counted between them."""
    size = _size(text) if limit is not None else 0
    if limit is None or size <= limit:
        return text
    keep = int(len(text) * limit / size)
    head = keep // 3  # conclusions stand at the end
    return f"{text[:head]}\n[… {len(text) - keep:,} characters …]\n{text[len(text) - keep + head :]}"


def _size(text: str) -> int:
    return len(embedded(text).encode()) - 2
