"""Conversations on disk: what any stage can train from, and the export of the world into that form.

A row is `{"messages": [{role, content}, ...], "images": [picture, ...]}`, the form TRL and others read. `content` is a
string or a list of parts; an image part without a picture of its own takes the next of `images`.
"""

from pathlib import Path

from datasets import Dataset, DatasetDict, Features, Image, List, Value, load_dataset, load_from_disk

from training.schedule import RecipeError
from training.world import draw_sample


class Conversations:
    """Rows of a `datasets` table as conversations with PIL pictures in place."""

    def __init__(self, table: Dataset, name: str):
        self.column = next((c for c in ("messages", "conversation", "conversations") if c in table.column_names), None)
        if self.column is None:
            raise RecipeError(f"dataset {name!r} has columns {table.column_names}; one must be called `messages`.")
        if len(table) == 0:
            raise RecipeError(f"dataset {name!r} is empty.")
        self.table, self.name = table, name

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> list[dict]:
        row = self.table[index]
        pictures = iter(row.get("images") or ([row["image"]] if row.get("image") is not None else []))
        turns = []
        for turn in row[self.column]:
            content = turn["content"]
            if isinstance(content, str):
                turns.append({"role": turn["role"], "content": [{"type": "text", "text": content}]})
                continue
            parts = []
            for part in content:
                if part["type"] != "image":
                    parts.append({"type": "text", "text": part["text"] or ""})
                    continue
                picture = part.get("image") or next(pictures, None)
                if picture is None:
                    raise RecipeError(f"dataset {self.name!r}, row {index}: more image parts than pictures.")
                parts.append({"type": "image", "image": picture})
            turns.append({"role": turn["role"], "content": parts})
        return turns


def read_conversations(name: str, split: str) -> Conversations:
    """Opens a folder (`save_to_disk`, parquet or JSON files) or a hub id; raises `RecipeError` naming the remedy."""
    return Conversations(open_table(name, split, "rows with `messages`"), name)


def open_table(name: str, split: str, contents: str) -> Dataset:
    """One split of a folder or hub id of rows; `contents` says in the error what is wanted."""
    path = Path(name)
    try:
        if path.exists():
            saved = (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()
            table = load_from_disk(name) if saved else load_dataset(name)
            if isinstance(table, DatasetDict):
                if split not in table:
                    raise RecipeError(f"dataset {name!r} has no split {split!r}; it has {', '.join(table)}.")
                table = table[split]
        else:
            table = load_dataset(name, split=split)
    except RecipeError:
        raise
    except Exception as error:  # every library below raises its own kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RecipeError(f"dataset {name!r} cannot be read: {reason} Give a folder of {contents}, or a hub id this "
                          f"machine can reach.") from error  # fmt: skip
    return table


FEATURES = Features(
    {
        "messages": List(
            {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
        ),
        "images": List(Image()),
        "answer": Value("string"),
        "family": Value("string"),
        "verifier": Value("string"),
        "difficulty": Value("float32"),
        "seed": Value("int64"),
    }
)


def export_world(out: Path, split: str, count: int, family: str | None = None, modality: str = "picture") -> Dataset:
    """Writes `count` samples of the world (seeds 0 ...) as a `datasets` folder at `out`, and returns the table."""
    import json

    def rows():
        for seed in range(count):
            sample = draw_sample(seed, split, family, modality)
            messages = [
                {"role": turn["role"], "content": [{"type": p["type"], "text": p.get("text")} for p in turn["content"]]}
                for turn in sample.conversation()
            ]
            yield {
                "messages": messages,
                "images": [sample.picture] if sample.picture is not None else [],
                "answer": sample.answer,
                "family": sample.family,
                "verifier": json.dumps(sample.verifier),
                "difficulty": sample.difficulty,
                "seed": seed,
            }

    table = Dataset.from_list(list(rows()), features=FEATURES)
    table.save_to_disk(str(out))
    return table
