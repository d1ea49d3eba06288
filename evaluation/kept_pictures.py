"""The pictures of a run: kept beside it, each once, named by its bytes; or left out of a conversation."""

import base64
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from vlm.pictures import open_picture


def with_pictures(conversation: list[dict], change: Callable[[Any], Any]) -> list[dict]:
    """The conversation with `change` made to every picture in it."""
    return [
        turn if isinstance(turn["content"], str)
        else {**turn, "content": [{**part, "image": change(part["image"])} if part["type"] == "image" else part
                                  for part in turn["content"]]}
        for turn in conversation
    ]  # fmt: skip


def text_alone(conversation: list[dict]) -> list[dict]:
    """The conversation without its pictures; a turn that had some is one text, a line a piece."""
    return [
        {**turn, "content": "\n".join(part["text"] for part in turn["content"] if part["type"] == "text")}
        if not isinstance(turn["content"], str) and any(part["type"] == "image" for part in turn["content"]) else turn
        for turn in conversation
    ]  # fmt: skip


def keep_picture(picture: Image.Image | str | Path, folder: Path) -> str:
    """The picture's name in the folder, where its bytes are from now on.

    Raises OSError or ValueError where it cannot be read.
    """
    data, kind = _encoded(picture)
    name = f"pictures/{hashlib.sha256(data).hexdigest()[:32]}.{kind}"
    if not (folder / name).exists():
        (folder / name).write_bytes(data)
    return name


def _encoded(picture: Image.Image | str | Path) -> tuple[bytes, str]:
    """(bytes, file ending): a file's own, or a PNG of an open picture."""
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        open_picture(picture).save(buffer, "PNG")
        return buffer.getvalue(), "png"
    if isinstance(picture, str) and picture.startswith("data:"):
        head, _, data = picture.partition(",")
        return base64.b64decode(data), head.removeprefix("data:image/").partition(";")[0]
    return Path(picture).read_bytes(), Path(picture).suffix.lstrip(".").lower() or "png"
