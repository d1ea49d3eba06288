"""Where a benchmark's data is: a folder in the published layout, or a repository of the hub in its cache."""

import json
from collections.abc import Sequence
from pathlib import Path

from evaluation.benchmark import BenchmarkError


def data_folder(
    location: str | Path | None, source: str, layout: str, patterns: Sequence[str] | None = None
) -> Path:  # fmt: skip
    """The folder that `location` stands for; a hub id is downloaded, or found among earlier downloads.

    Args:
        location: a folder or a hub id; None takes `source`.
        source, layout: of the benchmark.
        patterns: the files of a hub repository that are wanted; None for all.

    Raises:
        BenchmarkError: no such folder, and no such repository that can be reached.
    """
    where = str(location or source)
    if Path(where).expanduser().is_dir():
        return Path(where).expanduser()
    if where.count("/") != 1 or where.startswith((".", "/", "~")):
        raise BenchmarkError(f"there is no folder {where!r}; give one with {layout}, or a hub id like {source!r}.")
    # What knows the hub brings torch with it, which takes seconds to load.
    from huggingface_hub import snapshot_download

    from vlm.answering import hub_is_reachable

    online = hub_is_reachable()
    try:
        return Path(snapshot_download(where, repo_type="dataset", allow_patterns=patterns and list(patterns),
                                      local_files_only=not online))  # fmt: skip
    except Exception as error:  # each library below fails in types of its own
        if online:
            reason = str(error).strip().splitlines()[0][:200]
            raise BenchmarkError(f"the data set {where!r} cannot be fetched ({reason}); check its name.") from error
        raise BenchmarkError(
            f"the data set {where!r} is not on this machine and the hub cannot be reached; connect once, or give "
            f"--data a folder with {layout}."
        ) from error


def read_rows(folder: Path, layout: str) -> list[dict]:
    """The rows of all Parquet files in the folder, else of all JSONL files, by the files' names.

    Raises:
        BenchmarkError: neither is there, or one cannot be read.
    """
    for kind, read in (("parquet", _parquet), ("jsonl", _jsonl)):
        if files := sorted(folder.rglob(f"*.{kind}")):
            try:
                return [row for file in files for row in read(file)]
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                raise BenchmarkError(f"{str(folder)!r} cannot be read ({reason}); it must hold {layout}.") from error
    raise BenchmarkError(f"{str(folder)!r} has no *.parquet and no *.jsonl; it must hold {layout}.")


def _parquet(path: Path) -> list[dict]:
    from datasets import load_dataset  # which takes seconds, and JSONL does not need it

    # Streamed, as otherwise a copy of the data goes into a cache.
    return list(load_dataset("parquet", data_files=str(path), split="train", streaming=True))


def _jsonl(path: Path) -> list[dict]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line.strip()]
