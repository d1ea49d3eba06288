"""Edits on disk: the metadata form that Step1X-Edit is fine-tuned from, and tables of pairs as `datasets` reads them.

The released trainer (kohya's, with `edit_dataset = true`) reads one JSON object, an entry a target picture:

    {"images/000000.png": {"caption": "Make the star red.", "ref_image_path": "references/000000.png"}, ...}

The key is the picture after the edit, `caption` the instruction (or `tags`, where there is none), `ref_image_path` the
picture before it. It opens both from the folder it is run in; what `export_edits` writes is relative to its own folder,
so run it there, with `image_dir = "."` and `metadata_file = "metadata.json"`. Entries may hold more than it reads.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from PIL import Image, ImageOps

from training.conversations import open_table
from training.schedule import RecipeError
from training.world.edits import draw_edit
from training.world.rendering import SIDE

ENDINGS = ("", ".png", ".jpg", ".jpeg", ".webp", ".bmp")  # a key may leave the ending out
# What the columns of public tables of edits are called; the first that is there counts.
REFERENCES = ("reference", "ref_image_path", "ref_image", "source_image", "source_img", "src_img", "original_image",
              "input_image", "source", "input", "before")  # fmt: skip
TARGETS = ("target", "file_name", "target_image", "target_img", "edited_image", "edited_img", "output_image", "output",
           "edited", "after")  # fmt: skip
INSTRUCTIONS = ("instruction", "caption", "edit_prompt", "edit_instruction", "edited_prompt_list", "prompt", "tags",
                "text")  # fmt: skip
WANTED = "rows with reference, target and instruction, or one with metadata.json"


class EditPair(NamedTuple):
    """What an editor learns from: two RGB pictures, of any sizes, and what turns the first into the second."""

    reference: Image.Image
    target: Image.Image
    instruction: str


class FolderEdits(Sequence[EditPair]):
    """Pairs of a metadata file; pictures are opened when they are asked for."""

    def __init__(self, rows: list[tuple[Path, Path, str]], name: str):
        self.rows, self.name = rows, name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> EditPair:
        reference, target, instruction = self.rows[index]
        return EditPair(_open(reference, self.name), _open(target, self.name), instruction)


class TableEdits(Sequence[EditPair]):
    """Pairs of a `datasets` table whose columns go by one of the usual names."""

    def __init__(self, table: Dataset, name: str):
        names = {}
        for what, usual in (("reference", REFERENCES), ("target", TARGETS), ("instruction", INSTRUCTIONS)):
            names[what] = next((column for column in usual if column in table.column_names), None)
            if names[what] is None:
                raise RecipeError(f"dataset {name!r} has columns {', '.join(table.column_names)}; none of them is a "
                                  f"{what}: call one {' or '.join(usual[:3])}.")  # fmt: skip
        if len(table) == 0:
            raise RecipeError(f"dataset {name!r} is empty.")
        self.table, self.name, self.columns = table, name, names

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> EditPair:
        try:
            row = self.table[index]
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise RecipeError(f"dataset {self.name!r}, row {index}: a picture cannot be read: {error}") from error
        pictures = []
        for what in ("reference", "target"):
            picture = row[self.columns[what]]
            if not isinstance(picture, Image.Image):
                raise RecipeError(f"dataset {self.name!r}, row {index}: {self.columns[what]} is a "
                                  f"{type(picture).__name__}; give a column of pictures.")  # fmt: skip
            pictures.append(_rgb(picture))
        said = _said(row[self.columns["instruction"]])
        if said is None:
            raise RecipeError(f"dataset {self.name!r}, row {index}: {self.columns['instruction']} has no text.")
        return EditPair(*pictures, said)


def load_edits(name: str | Path, split: str = "train") -> FolderEdits | TableEdits:
    """Opens pairs to learn from.

    Args:
        name: a metadata file (`.json` in the released form, `.jsonl` with an object a line whose `file_name` is the
            target); a folder with `metadata.json` or `metadata.jsonl`; a folder that `datasets` reads; or a hub id.
        split: which split of a table.

    Pictures are looked for where the metadata says, from the metadata's folder, its subfolders and here; absolute paths
    of another machine are found again by their last two parts.

    Raises:
        RecipeError: it is not there, cannot be read, is empty, or an entry lacks a picture or an instruction; the
            message names the first such entry and how many there are.
    """
    path = Path(name)
    if path.is_dir():
        found = next((path / n for n in ("metadata.json", "metadata.jsonl") if (path / n).is_file()), None)
        if found:
            return _read_metadata(found)
    elif path.suffix in (".json", ".jsonl"):
        return _read_metadata(path)
    return TableEdits(open_table(str(name), split, WANTED), str(name))


def export_edits(
    out: Path, split: str = "train", count: int = 1000, family: str | None = None, language: str | None = None,
    size: int = SIDE,
) -> FolderEdits:  # fmt: skip
    """Writes `count` edits of the world (seeds 0 ...) in the released form at `out`, a new folder, and opens it."""
    if count < 1:
        raise ValueError(f"count {count} leaves nothing to write; give at least 1.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{str(out)!r} is there already and not an empty folder; give a new one.")
    entries = {}
    for seed in range(count):
        edit = draw_edit(seed, split, family, language, size)
        target, reference = (Path(folder) / f"{seed:06d}.png" for folder in ("images", "references"))
        for path, picture in ((target, edit.after), (reference, edit.before)):
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            picture.save(out / path)
        entries[target.as_posix()] = {
            "caption": edit.instruction,
            "ref_image_path": reference.as_posix(),
            "family": edit.family,
            "language": edit.language,
            "steps": list(edit.steps),
        }
    # Last, so that a folder with metadata is a whole one.
    (out / "metadata.json").write_text(json.dumps(entries, ensure_ascii=False, indent=1), encoding="utf-8")
    return load_edits(out)


def _read_metadata(path: Path) -> FolderEdits:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            entries = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            entries = json.loads(text)
    except FileNotFoundError:
        raise RecipeError(f"there is no file {str(path)!r}; give a metadata file or its folder.") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{str(path)!r} cannot be read as {path.suffix[1:].upper()}: {error}") from error
    if isinstance(entries, dict):
        entries = [entry | {"file_name": key} if isinstance(entry, dict) else entry for key, entry in entries.items()]
    if not isinstance(entries, list) or not entries:
        raise RecipeError(
            f'{str(path)!r} has no entries; give {{"TARGET": {{"caption": ..., "ref_image_path": ...}}}}.'
        )
    places = _Places(path.parent)
    rows, faults = [], []
    for number, entry in enumerate(entries, 1):
        try:
            rows.append(_read_entry(entry, places))
        except RecipeError as fault:
            faults.append(f"entry {number}: {fault}")
    if faults:
        raise RecipeError(f"{str(path)!r}: {faults[0]} ({len(faults)} of {len(entries)} entries cannot be used)")
    return FolderEdits(rows, str(path))


def _read_entry(entry, places: "_Places") -> tuple[Path, Path, str]:
    if not isinstance(entry, dict):
        raise RecipeError(f"it is {json.dumps(entry)[:60]}; give an object with caption and ref_image_path.")
    target, reference, said = (next((entry[n] for n in names if entry.get(n)), None)
                               for names in (TARGETS, REFERENCES, INSTRUCTIONS))  # fmt: skip
    for value, what, usual in ((target, "target", "file_name"), (reference, "reference", "ref_image_path")):
        if not isinstance(value, str):
            raise RecipeError(f"no {what} picture; give its path as {usual}.")
    instruction = _said(said)
    if instruction is None:
        raise RecipeError(f"no instruction for {target!r}; give it as caption.")
    return places.find(reference), places.find(target), instruction


class _Places:
    """Where the pictures of a metadata file may lie."""

    def __init__(self, folder: Path):
        self.bases = [folder, Path(), *sorted(p for p in folder.iterdir() if p.is_dir())]

    def find(self, path: str) -> Path:
        tail = Path(*Path(path).parts[-2:])
        for candidate in (*(base / path for base in self.bases), *(base / tail for base in self.bases)):
            for ending in ENDINGS:
                if (whole := candidate.with_name(candidate.name + ending)).is_file():
                    return whole
        raise RecipeError(f"there is no picture {path!r}, neither in {str(self.bases[0])!r} nor here.")


def _said(value) -> str | None:
    """An instruction, or the first of several; None for what is none."""
    if isinstance(value, list) and value:
        value = value[0]
    return value.strip() or None if isinstance(value, str) else None


def _open(path: Path, name: str) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return _rgb(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RecipeError(f"{name!r}: the picture {str(path)!r} cannot be read: {error}") from error


def _rgb(picture: Image.Image) -> Image.Image:
    """As it is meant to be seen: turned as the camera says, on white where it is transparent."""
    picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert("RGB")
