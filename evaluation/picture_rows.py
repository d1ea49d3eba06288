"""Rows of published tables that hold pictures, which stay encoded until somebody looks at them.

A benchmark's thousand pictures take a tenth of their decoded size; here each is a `data:` address.
"""

import base64
import binascii
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from evaluation.benchmark import BenchmarkError

# How pandas, with which VLMEvalKit reads its tables, writes and reads "no value": an option "None" is no option there.
MISSING = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
     "NULL", "NaN", "None", "n/a", "nan", "null")
)  # fmt: skip

_KINDS = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"II*\0", "tiff"),
          (b"MM\0*", "tiff"))  # fmt: skip


def picture_rows(folder: Path, layout: str, names: Sequence[str] = ("*",)) -> list[dict]:
    """The rows of the files that have one of the names and a known ending: Parquet, else TSV, JSONL or JSON.

    Args:
        names: patterns without the ending; the first that any file has counts, in whatever folder below it is.

    Raises:
        BenchmarkError: there are no such files, or one cannot be read.
    """
    for name in names:
        for kind, read in (("parquet", _parquet), ("tsv", _tsv), ("jsonl", _jsonl), ("json", _json)):
            if files := sorted(path for path in folder.rglob(f"{name}.{kind}") if path.is_file()):
                try:
                    return [row for path in files for row in read(path)]
                except Exception as error:  # each format fails in types of its own
                    reason = " ".join(str(error).split())[:200]
                    raise BenchmarkError(
                        f"{str(folder)!r} cannot be read ({reason}); it must hold {layout}."
                    ) from error
    raise BenchmarkError(f"{str(folder)!r} has no such file; it must hold {layout}.")


def picture_address(cell: object, folder: Path) -> str:
    """The picture in a cell as a `data:` address.

    Args:
        cell: what Parquet holds ({bytes, path}), base64 as TSV has it, or a path in the folder.

    Raises:
        ValueError: none of these, or not the bytes of a picture.
    """
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and cell:
        path = folder / cell
        cell = path.read_bytes() if len(cell) < 256 and path.is_file() else _decoded(cell)
    if not isinstance(cell, bytes):
        raise ValueError("there is no picture")
    kind = next((kind for start, kind in _KINDS if cell.startswith(start)), None)
    if kind is None and cell[:4] == b"RIFF" and cell[8:12] == b"WEBP":
        kind = "webp"
    if kind is None:
        raise ValueError("its picture has no format that is known")
    return f"data:image/{kind};base64,{base64.b64encode(cell).decode()}"


def is_missing(cell: object) -> bool:
    """Whether a cell says that there is no value, as pandas reads it."""
    return cell is None or cell != cell or (isinstance(cell, str) and cell in MISSING)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("its picture is neither a file that is there nor base64") from None


def _parquet(path: Path) -> Iterator[dict]:
    from datasets import load_dataset  # which takes seconds

    # Streamed, as otherwise a copy of the data goes into a cache.
    yield from load_dataset("parquet", data_files=str(path), split="train", streaming=True).decode(False)


def _tsv(path: Path) -> Iterator[dict]:
    csv.field_size_limit(sys.maxsize)  # a picture is one field
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t")


def _jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _json(path: Path) -> list[dict]:
    """A list of rows, or an object whose values they are."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    rows = list(whole.values()) if isinstance(whole, dict) else whole
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path.name} is no list of objects")
    return rows
