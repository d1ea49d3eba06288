"""How well an editor edits: success, change and preservation by family, beside what its autoencoder allows."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from edit import EditPipeline
from edit.loading import load_editor
from training.edit_batches import Painting
from training.edit_places import NUMBERS
from training.edit_primer import paint_by_places
from training.edit_said import said_right, spells
from training.edit_sheet import results_sheet
from training.edit_thought import Thinking, paint_with_thought, thinking_figures
from training.intervals import mean_of, wilson
from training.vae import psnr, reconstruct, to_pictures, to_pixels
from training.world.edits import EDIT_FAMILIES, Edit, draw_edit

SHOWN, COLUMNS = 1, 3  # edits a family on the sheet, and beside each other
# What an editor is told: the instruction; the world's own plan, as if it had planned without fault; or what becomes of
# each place, in numbers, by which the painter alone is judged.
TOLD = ("instruction", "plan", "numbers")
SPLITS = {"test": ("families", "mean"), "held_out": ("held_out_families", "held_out_compositions"),
          "hard": ("hard_families", "hard")}  # fmt: skip


def edit_report(
    editor: str,
    samples: int,
    splits: Sequence[str] = ("test", "held_out"),
    steps: int | None = None,
    guidance: float | None = None,
    batch_size: int = 16,
    out: Path | None = None,
    thinking: Thinking | None = None,
    told: str = "instruction",
) -> dict:
    """Edits `samples` pictures a family and split (seeds from 0) and scores the results.

    Args:
        editor: `mini` or a folder, see `edit.loading.locate_editor`.
        steps, guidance: of sampling; the editor's own by default.
        out: a folder for `edits.png` (input, output, truth) and `edits.jsonl`, a row an edit.
        thinking: paints one edit at a time, with plan, candidates and inspections as asked.
        told: one of `TOLD`; `numbers` only of an editor whose transformer began with `edit_primer`.

    Returns:
        `families`: {name: {success, n, interval, change, preservation, ceiling, ceiling_psnr, said}} on `test`, where
        `ceiling` is the success of the truth itself after it went through the autoencoder, `ceiling_psnr` its likeness
        to the truth in dB, and `said` the share of which the connector says all that the painter needs to know, see
        `edit_said`: None with thinking, by numbers, and of a connector that was not taught to; `mean` of the successes
        with `mean_interval`; `held_out_compositions` and `hard` likewise. Fractions, but for the dB. `source` is what
        the editor reads, see `edit.conditioning.SOURCES`. With thinking, `{split}_thinking` has
        `edit_thought.thinking_figures`.

    Raises:
        ValueError: nothing asked for, an unknown split, or told what it cannot be.
        ModelError: there is no such editor.
    """
    if samples < 1 or batch_size < 1:
        raise ValueError(f"samples is {samples} and batch_size {batch_size}; both must be at least 1.")
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise ValueError(f"no split named {unknown[0]!r}; there are {', '.join(SPLITS)}.")
    thinks = thinking is not None and thinking.asked
    if told not in TOLD or (thinks and told != "instruction"):
        raise ValueError(f"told is {told!r}; give one of {', '.join(TOLD)}, and the first of them with thinking.")
    pipeline = load_editor(editor)
    pipeline.set_progress_bar_config(disable=True)
    size = max(pipeline.config.size_levels)
    started, rows, shown = time.perf_counter(), [], []
    summary: dict = {"editor": editor, "source": pipeline.conditioning.source, "told": told,
                     "samples_per_family": samples}  # fmt: skip
    for split in splits:
        scored, thoughts = {}, []
        for family in track(EDIT_FAMILIES, f"{split:9}", console=Console(stderr=True)):
            edits = [draw_edit(seed, split, family, size=size) for seed in range(samples)]
            own_thoughts, said = [{}] * len(edits), None
            if thinks:
                painted, own_thoughts = paint_with_thought(pipeline, edits, thinking, steps, guidance)
                thoughts += own_thoughts
            elif told == "numbers":
                painted = _paint_by_places(pipeline, edits, steps, batch_size)
            else:
                embeddings = embed_edits(pipeline, edits, told, batch_size)
                painted = paint(pipeline, edits, embeddings, steps, guidance, batch_size)
                said = said_right(pipeline, edits, embeddings, batch_size) if spells(pipeline) else None
            scored[family], own = _score(pipeline, edits, painted)
            scored[family]["said"] = said and round(mean(said), 4)
            rows += [row | thought for row, thought in zip(own, own_thoughts, strict=True)]
            shown += list(zip(edits, painted, strict=True))[:SHOWN]
        by_family, name = SPLITS[split]
        figure, interval = mean_of({f: {"accuracy": s["success"], "n": s["n"]} for f, s in scored.items()})
        summary |= {by_family: scored, name: figure, f"{name}_interval": interval}
        if thoughts:
            summary[f"{split}_thinking"] = thinking_figures(thinking, thoughts)
    summary["seconds"] = round(time.perf_counter() - started, 1)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        results_sheet(*map(list, zip(*shown, strict=True)), columns=COLUMNS).save(out / "edits.png")
        (out / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return summary


def compare_edit_reports(editors: Sequence[str], *arguments) -> dict[str, list[dict]]:
    """`{"against": the reports of these editors}`, empty where there are none; see `edit_report` for the arguments."""
    return {"against": [edit_report(editor, *arguments) for editor in editors]} if editors else {}


def embed_edits(
    pipeline: EditPipeline, edits: list[Edit], told: str = "instruction", batch_size: int = 16
) -> list[torch.Tensor]:
    """(tokens, width) each, of the edits told by their instructions, or with `plan` by what the editor is told of a
    planned edit; see `EditPipeline.encode_prompt`."""
    words = [e.instruction for e in edits]
    if told == "plan":
        words = [pipeline.conditioning.with_plan(e.instruction, "; ".join(e.steps)) for e in edits]
    return pipeline.encode_prompt([e.before for e in edits], words, batch_size)


def paint(
    pipeline: EditPipeline,
    edits: list[Edit],
    embeddings: list[torch.Tensor],
    steps: int | None = None,
    guidance: float | None = None,
    batch_size: int = 16,
) -> list[Image.Image]:
    """The edits, read by `embed_edits`, as the editor makes them, each from its own seed; see `edit_report` for the
    arguments."""
    generators = [torch.Generator().manual_seed(edit.seed) for edit in edits]
    return pipeline(
        [e.before for e in edits],
        prompt_embeds=embeddings,
        generator=generators,
        num_inference_steps=steps,
        guidance_scale=guidance,
        batch_size=batch_size,
    ).images


def _paint_by_places(pipeline: EditPipeline, edits: list[Edit], steps, batch_size: int) -> list:
    width = pipeline.transformer.config.joint_attention_dim
    if width < NUMBERS:
        raise ValueError(f"the transformer's text stream has {width} channels, and a place takes {NUMBERS}; tell "
                         f"numbers to an editor that began with `edit_primer`.")  # fmt: skip
    parts = pipeline.transformer, pipeline.vae, pipeline.scheduler, Painting.of(pipeline.config)
    steps = steps or pipeline.config.num_inference_steps
    batches = (edits[first : first + batch_size] for first in range(0, len(edits), batch_size))
    return [image for batch in batches for image in paint_by_places(*parts, batch, steps)]


def _score(pipeline: EditPipeline, edits: list[Edit], painted: list) -> tuple[dict, list[dict]]:
    """Means over the edits of one family, and a row for each."""
    truths = to_pixels([e.after for e in edits], edits[0].after.size)
    again = reconstruct(pipeline.vae, truths).cpu().float()
    ceilings = [e.verifier(picture).success for e, picture in zip(edits, to_pictures(again), strict=True)]
    scores = [e.verifier(result) for e, result in zip(edits, painted, strict=True)]
    n, done = len(edits), sum(s.success for s in scores)
    low, high = wilson(done, n)
    rows = [
        {"split": e.split, "family": e.family, "seed": e.seed, "language": e.language, "instruction": e.instruction,
         "change": s.change, "preservation": s.preservation, "success": s.success, "ceiling": c}
        for e, s, c in zip(edits, scores, ceilings, strict=True)
    ]  # fmt: skip
    return {
        "success": round(done / n, 4),
        "n": n,
        "interval": [round(low, 4), round(high, 4)],
        "change": round(mean(s.change for s in scores), 4),
        "preservation": round(mean(s.preservation for s in scores), 4),
        "ceiling": round(mean(ceilings), 4),
        "ceiling_psnr": round(mean(psnr(float(e)) for e in (again - truths).square().mean((1, 2, 3))), 2),
    }, rows


def print_edit_report(summary: dict, *, as_json: bool) -> None:
    for split, (by_family, name) in SPLITS.items():
        if by_family not in summary:
            continue
        table = Table(title=f"edits, {split}: {summary['editor']}, told by {summary['told']}")
        for column in ("family", "success", "95 %", "change", "preservation", "ceiling", "ceiling PSNR", "said"):
            table.add_column(column, justify="left" if column == "family" else "right")
        for family, s in summary[by_family].items():
            low, high = s["interval"]
            table.add_row(family, f"{s['success']:.1%}", f"{low:.0%} to {high:.0%}", f"{s['change']:.2f}",
                          f"{s['preservation']:.2f}", f"{s['ceiling']:.1%}", f"{s['ceiling_psnr']:.1f} dB",
                          "" if s["said"] is None else f"{s['said']:.1%}")  # fmt: skip
        low, high = summary[f"{name}_interval"]
        table.add_row("mean", f"{summary[name]:.1%}", f"{low:.1%} to {high:.1%}", style="bold")
        Console().print(table)
        if f"{split}_thinking" in summary:
            Console().print(", ".join(f"{name} {value}" for name, value in summary[f"{split}_thinking"].items()))
        if "against" in summary:
            _print_side_by_side(split, by_family, name, [summary, *summary["against"]])
    if as_json:
        print(json.dumps(summary))


def _print_side_by_side(split: str, by_family: str, name: str, reports: list[dict]) -> None:
    table = Table(title=f"edits, {split}: success by what the editor is told")
    table.add_column("family")
    for report in reports:
        table.add_column(f"{report['source']}\n{report['editor']}", justify="right")
    for family in reports[0][by_family]:
        cells = [report[by_family][family] for report in reports]
        table.add_row(family, *(f"{c['success']:.1%} [{c['interval'][0]:.0%}, {c['interval'][1]:.0%}]" for c in cells))
    means = [(report[name], report[f"{name}_interval"]) for report in reports]
    table.add_row("mean", *(f"{mean:.1%} [{low:.1%}, {high:.1%}]" for mean, (low, high) in means), style="bold")
    Console().print(table)
