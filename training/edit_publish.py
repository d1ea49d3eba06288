"""Turns a trained editor into a shipped one, beside the model that sees: bfloat16 weights and a card."""

import hashlib
import json
import os
import platform
import shutil
from collections import Counter
from pathlib import Path

import torch
from PIL import Image

from edit import EditPipeline
from training.edit_stages import EditStage, PrimerStage
from training.edit_start import take_primer
from training.publish import check_size, read_log
from training.recipe import Recipe
from training.schedule import RecipeError
from vlm.answering import ModelError, load

STAGES = ("vae", "edit_primer", "edit", "edit_joint")

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: image-to-image
---

# {name}: the editor

{parameters}. It carries out instructions in English and Chinese on drawn scenes of {size} x {size} pixels; it has never
seen a photograph.

| | |
| --- | --- |
| data | {data} |
| command | {commands} |
| seed | {seed} |
| stages | {stages} |
| samples | {samples:,} ({hours:.2f} hours on {machine}, {threads} threads) |
| told by | {source} |
| weights | bfloat16, read as float32 on a CPU |

## Scores

{scores}
{sheet}
## Files

| file | sha256 |
| --- | --- |
{files}
"""

SHEET = """
New edits, the first of each family: input, output, truth.

![input, output and truth of an edit a family](edits.webp)
"""
SHEET_QUALITY = 50

SOURCES = {
    "picture": "the hidden states of the model that sees, of picture and instruction",
    "instruction": "the hidden states of the model that sees, of the instruction alone",
    "words": "the embeddings of the instruction's words alone",
}


def publish_editor(
    recipe: Recipe, run: Path, out: Path, report: Path | None = None, stage: str = "edit", sheet: Path | None = None
) -> Path:
    """Writes the editor that `stage` left in the run to `out`, whole or not at all; of `edit_primer` the editor that is
    there, with the transformer that stage left.

    Args:
        run: the folder of the run.
        out: the folder to fill, inside that of the model that sees (`checkpoints/mini/editor`); replaced where it is
            there. An editor that was trained together with its model brings its own.
        report: a file whose last line is the JSON of `python -m training report --edits --json`.
        sheet: the picture that `report --edits --out DIR` drew, `edits.png`, for the card.

    Raises:
        RecipeError: the sheet is no picture; the stage is not done, trained adapters alone or was trained with another
            model than the one it would lie beside; or all that is shipped would be too large.
    """
    shown = _picture(sheet) if sheet else None
    own = recipe.stages.get(stage)
    if not isinstance(own, EditStage | PrimerStage):
        edits = ", ".join(name for name, value in recipe.stages.items() if isinstance(value, EditStage | PrimerStage))
        raise RecipeError(f"recipe {recipe.name!r} has no editor's stage {stage!r}; it has {edits or 'none'}.")
    folder = run / stage / "model"
    if not folder.is_dir():
        raise RecipeError(f"{folder} is missing; finish `python -m training {_command(stage)} --recipe {recipe.name}`.")
    if isinstance(own, PrimerStage):
        pipeline = _with_painter(out, folder)
    elif own.lora:
        raise RecipeError(f"stage {stage!r} trains adapters alone; share {folder} as it is, it needs its base editor.")
    else:
        pipeline = EditPipeline.from_pretrained(folder)
    beside = ".." if pipeline.config.vision_language else None
    if beside:
        _check_model(pipeline, out.parent)
    pipeline.to(torch.bfloat16)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial, vision_language=beside)
    _forget_paths(partial)
    if shown:
        shown.save(partial / "edits.webp", quality=SHEET_QUALITY, method=6)
    (partial / "README.md").write_text(_card(recipe, run, stage, pipeline, partial, report), encoding="utf-8")
    try:
        check_size(out.parent, instead_of=out)
    except RecipeError:
        shutil.rmtree(partial)
        raise
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)
    return out


def _picture(path: Path) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise RecipeError(
            f"the sheet {path} is no picture that can be read ({error}); give edits.png of `report --edits --out DIR`."
        ) from error


def _with_painter(editor: Path, transformer: Path) -> EditPipeline:
    if not editor.is_dir():
        raise RecipeError(f"there is no editor in {editor} for this painter; publish `--stage edit` there first.")
    pipeline = EditPipeline.from_pretrained(editor)
    parts = {"transformer": pipeline.transformer, "connector": pipeline.connector}
    take_primer(parts, str(transformer))
    pipeline.register_modules(**parts)
    return pipeline


def _forget_paths(folder: Path) -> None:
    """diffusers writes where each part was loaded from, a path of this machine."""
    for path in folder.rglob("*.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_model(pipeline: EditPipeline, shipped: Path) -> None:
    """The model beside it must be the one it learnt from, to the precision that is shipped."""
    try:
        theirs = load(str(shipped), dtype=torch.bfloat16)[0].state_dict()
    except ModelError as error:
        raise RecipeError(f"the editor needs its model beside it: {error} Publish that first.") from error
    ours = pipeline.vision_language_model.state_dict()
    if ours.keys() != theirs.keys() or not all(torch.equal(v.bfloat16(), theirs[k]) for k, v in ours.items()):
        raise RecipeError(
            f"the editor was trained with another model than the one in {shipped}; publish that one there first, or "
            f"train the editor with `vision_language: {shipped}`."
        )


def _card(recipe: Recipe, run: Path, stage: str, pipeline: EditPipeline, folder: Path, report: Path | None) -> str:
    before = [name for name in recipe.stages if name in STAGES]
    done = before[: before.index(stage) + 1]
    logs = {name: read_log(run / name / "log.jsonl") for name in done if (run / name / "log.jsonl").exists()}
    counts = [f"{name} {sum(p.numel() for p in getattr(pipeline, name).parameters()) / 1e6:.1f} M"
              for name in ("transformer", "connector", "vae")]  # fmt: skip
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    summary = json.loads(report.read_text(encoding="utf-8").strip().splitlines()[-1]) if report else None
    return CARD.format(
        name=folder.parent.name,
        parameters=f"Parameters: {', '.join(counts)}",
        size=max(pipeline.config.size_levels),
        data=_data(recipe.stages[stage]),
        commands=_commands(recipe, done, stage),
        seed=recipe.seed,
        stages=", ".join(f"{name} {len(log)} steps" for name, log in logs.items()),
        samples=sum(r["samples"] for log in logs.values() for r in log),
        hours=sum(r["seconds"] for log in logs.values() for r in log) / 3600,
        machine=f"{platform.machine()} CPU",
        threads=torch.get_num_threads(),
        source=SOURCES[pipeline.conditioning.source],
        scores=_scores(summary) if summary else "Not measured yet.",
        sheet=SHEET if (folder / "edits.webp").exists() else "",
        files="\n".join(
            f"| {p.relative_to(folder).as_posix()} | `{hashlib.sha256(p.read_bytes()).hexdigest()}` |" for p in files
        ),
    )


def _command(stage: str) -> str:
    return stage.replace("_", "-")


def _commands(recipe: Recipe, done: list[str], stage: str) -> str:
    stages = [*map(_command, done), f"publish --stage {stage}"]
    return ", then ".join(f"`python -m training {words} --recipe {recipe.name}`" for words in stages)


def _data(stage: EditStage | PrimerStage) -> str:
    if isinstance(stage, PrimerStage):
        return (
            f"`training.world.edits`, {_pairs(stage)} full pages told by numbers for the transformer, {stage.easy:.0%} "
            f"of them of the split `easy`, the others of `train`; the other parts are those of the editor before"
        )
    if stage.edits:
        return stage.edits
    times = Counter(stage.families or ())
    families = ", ".join(f"{name} ({n} times)" if n > 1 else name for name, n in times.items()) or "all families"
    return (
        f"`training.world.edits`, {_pairs(stage)} pairs of {families}, {stage.easy:.0%} of them of the split `easy`, "
        f"the others of `train`; nothing else"
    )


def _pairs(stage: EditStage | PrimerStage) -> str:
    return f"drawn while it learnt, the newest {stage.live:,} held:" if stage.live else f"{stage.pairs:,}"


def _scores(summary: dict) -> str:
    """The report as a Markdown table: success with its 95 % interval, the parts of the score and the ceiling."""
    splits = (("families", "mean", "test"), ("held_out_families", "held_out_compositions", "held-out compositions"),
              ("hard_families", "hard", "hard"))  # fmt: skip
    tables = []
    for key, mean, title in splits:
        if key not in summary:
            continue
        low, high = summary[f"{mean}_interval"]
        lines = [f"| {title} | success | change | preservation | ceiling | ceiling PSNR | n |",
                 "| --- |" + " ---: |" * 6]  # fmt: skip
        for family, s in summary[key].items():
            lines.append(
                f"| {family} | {s['success']:.1%} [{s['interval'][0]:.0%}, {s['interval'][1]:.0%}] | {s['change']:.2f} "
                f"| {s['preservation']:.2f} | {s['ceiling']:.1%} | {s['ceiling_psnr']:.1f} dB | {s['n']} |"
            )
        lines.append(f"| **mean** | **{summary[mean]:.1%}** [{low:.1%}, {high:.1%}] |  |  |  |  |  |")
        tables.append("\n".join(lines))
    command = f"`python -m training report --edits --samples {summary['samples_per_family']} --json`"
    return "\n\n".join([*tables, command])
