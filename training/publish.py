"""Turns a run into a shipped checkpoint: bfloat16 weights, the processor, and a card that says where they come from."""

import hashlib
import json
import platform
from pathlib import Path

import torch

from training.recipe import Recipe
from training.report import MAX_NEW_TOKENS
from training.schedule import RecipeError
from vlm.answering import load

MOST_BYTES = 48_000_000  # of all that is shipped in one folder of `checkpoints/`, the editor in it included

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# {name}

{parameters:.1f} million parameters: a perception encoder, a 16x-downsampling projector and a Qwen3 decoder, trained
together from fresh weights on drawn scenes. It answers questions about shapes, numbers, charts, clocks and small
mazes; it has never seen a photograph and cannot chat.

| | |
| --- | --- |
| data | `training.world`, splits `easy` and `train`, drawn while training; nothing else |
| command | `python -m training {train}`, then `python -m training publish --recipe {name} --stage {last}` |
| seed | {seed} |
| stages | {stages} |
| samples | {samples:,} ({hours:.2f} hours on {machine}, {threads} threads, float32) |
| weights | bfloat16, read as float32 on a CPU |

## Scores

{scores}

`python -m training report --model checkpoints/{name} --samples 200 --json`

## Files

| file | sha256 |
| --- | --- |
{files}
"""


def publish(recipe: Recipe, run: Path, out: Path, report: Path | None = None, stage: str | None = None) -> Path:
    """Writes a stage's model to `out` with its card.

    Args:
        run: the folder of `python -m training all`.
        out: the folder to fill; files of the same names are replaced.
        stage: whose model, `pretrain` or `sft`; by default the recipe's last of these.
        report: a file whose last line is the JSON of `python -m training report --json`, for the card's scores.

    Raises:
        RecipeError: that stage, or one before it, is not done, or all that is shipped is too large.
    """
    order = [name for name in recipe.stages if name in ("pretrain", "sft")]
    last = stage or (order[-1] if order else "pretrain")
    if last not in order:
        raise RecipeError(
            f"recipe {recipe.name!r} has no stage {last!r}; it has {', '.join(order) or 'no such model'}."
        )
    stages = order[: order.index(last) + 1]
    for name in stages:
        if not (run / name / "model").is_dir():
            raise RecipeError(f"{run / name / 'model'} is missing; finish the run with `python -m training all`.")
    model, processor = load(str(run / last / "model"), dtype=torch.float32)
    out.mkdir(parents=True, exist_ok=True)
    # Where a caller says nothing, an answer ends here at the latest, as in the report.
    model.generation_config.max_new_tokens = MAX_NEW_TOKENS
    model.to(torch.bfloat16).save_pretrained(out)
    processor.save_pretrained(out)

    logs = {name: read_log(run / name / "log.jsonl") for name in stages}
    summary = json.loads(report.read_text().strip().splitlines()[-1]) if report else None
    files = sorted(path for path in out.iterdir() if path.is_file() and path.name != "README.md")
    card = CARD.format(
        name=recipe.name,
        last=last,
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        seed=recipe.seed,
        stages=", ".join(f"{name} {len(log)} steps" for name, log in logs.items()),
        train=f"all --recipe {recipe.name}" if last == order[-1] else f"{last} --recipe {recipe.name}",
        samples=sum(r["samples"] for log in logs.values() for r in log),
        hours=sum(r["seconds"] for log in logs.values() for r in log) / 3600,
        machine=f"{platform.machine()} CPU",
        threads=torch.get_num_threads(),
        scores=_scores(summary) if summary else "Not measured yet.",
        files="\n".join(f"| {p.name} | `{hashlib.sha256(p.read_bytes()).hexdigest()}` |" for p in files),
    )
    (out / "README.md").write_text(card, encoding="utf-8")
    check_size(out)
    return out


def check_size(folder: Path, instead_of: Path | None = None) -> None:
    """Raises `RecipeError` where the folder holds more than is shipped; `instead_of` is about to go."""
    files = [path for path in folder.rglob("*") if path.is_file() and instead_of not in path.parents]
    total = sum(path.stat().st_size for path in files)
    if total > MOST_BYTES:
        largest = max(files, key=lambda path: path.stat().st_size)
        raise RecipeError(
            f"{folder} would hold {total / 1e6:.1f} MB, at most {MOST_BYTES / 1e6:.0f} MB are shipped; train something "
            f"smaller, or leave out what is not needed ({largest.relative_to(folder)} is the largest file)."
        )


def read_log(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _scores(summary: dict) -> str:
    """The report as a Markdown table: accuracy and 95 % interval by family and split."""
    splits = (("families", "mean", "test"), ("held_out_families", "held_out_compositions", "held-out compositions"),
              ("hard_families", "hard", "hard"))  # fmt: skip
    shown = [s for s in splits if s[0] in summary]
    lines = ["| family | " + " | ".join(f"{title} | majority" for _, _, title in shown) + " |",
             "| --- |" + " ---: | ---: |" * len(shown)]  # fmt: skip
    for family in summary[shown[0][0]]:
        cells = []
        for key, _, _ in shown:
            f = summary[key][family]
            cells.append(f"{f['accuracy']:.1%} [{f['interval'][0]:.0%}, {f['interval'][1]:.0%}]")
            cells.append(f"{f['majority_baseline']:.0%}")
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    means = []
    for _, mean, _ in shown:
        low, high = summary[f"{mean}_interval"]
        means.append(f"**{summary[mean]:.1%}** [{low:.1%}, {high:.1%}] | ")
    lines.append("| **mean** | " + " | ".join(means) + " |")
    return "\n".join(lines)
