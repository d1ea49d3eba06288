"""Edits of pictures that the world's own renderer did not draw: does an editor do as well what it is told there?

The same pages before and after are drawn by other tools, see `training.foreign`; what is new has the tone an editor has
learnt to paint, all else the tool's own colours.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from edit.loading import load_editor
from training.edit_report import embed_edits, paint
from training.edit_sheet import results_sheet
from training.foreign import as_photo, by_tool, in_perspective, through_cairo, through_matplotlib
from training.intervals import wilson
from training.world.edit_pages import Page
from training.world.edits import EDIT_FAMILIES, Edit, draw_edit
from training.world.rendering import TONES
from training.world.sample import stream
from training.world.scenes import Scene

# The drawing tools have white paper, no patterns and, for edits, no letters.
ON_PAPER = ("recolour", "resize", "move", "add", "remove", "replace", "swap", "count")
TOOLS = {"svg": ON_PAPER, "matplotlib": ON_PAPER, "photo": EDIT_FAMILIES}
SHOWN = 12


def redraw_edit(edit: Edit, tool: str) -> Edit:
    """The edit with its pictures drawn by `tool` (a key of `TOOLS`), 480 x 480."""
    parts = Image.fromarray(edit.parts.astype(np.uint8))
    if tool == "photo":

        def view():
            return stream("photo", edit.split, edit.seed, edit.family)

        before, after = (as_photo(picture, view()) for picture in (edit.before, edit.after))
        parts = in_perspective(parts, view(), Image.Resampling.NEAREST, 0)
    else:
        draw = through_cairo if tool == "svg" else through_matplotlib
        before, after = (draw(_on_paper(page)) for page in edit.pages)
        parts = parts.resize(before.size, Image.Resampling.NEAREST)
    return replace(edit, before=before, after=after, parts=np.asarray(parts).astype(edit.parts.dtype))


def _on_paper(page: Page) -> Scene:
    """The page's things, in the tool's colour of their name or, where they have the tone of what is new, in that."""
    things = []
    for item in filter(None, page.items):
        new = item.tone == TONES[item.thing.colour][0]
        things.append(replace(item.thing, colour=f"#{bytes(item.tone).hex()}") if new else item.thing)
    return Scene(tuple(things))


def foreign_edits(model: str, samples: int, out: Path | None = None) -> dict:
    """Success by tool on `samples` new edits each (split `test`), beside the same edits on the native drawing.

    Args:
        model: `mini` or the folder of an editor.
        out: a folder for a sheet of the first edits of each tool.

    Returns:
        {tool: {"foreign": {success, n, interval, change, preservation}, "native": {...}}}; a tool that is not installed
        here has {"skipped": why}.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; it must be at least 1.")
    pipeline = load_editor(model)
    pipeline.set_progress_bar_config(disable=True)

    def judge(tool: str, drawn: list[Edit], redrawn: list[Edit]) -> dict:
        figures = {}
        for name, edits in (("foreign", redrawn), ("native", drawn)):
            painted = paint(pipeline, edits, embed_edits(pipeline, edits))
            figures[name] = _figures(edits, painted)
            if out is not None and name == "foreign":
                out.mkdir(parents=True, exist_ok=True)
                results_sheet(edits[:SHOWN], painted[:SHOWN]).save(out / f"{tool}.png")
        return figures

    return by_tool(TOOLS, samples, draw_edit, redraw_edit, judge)


def _figures(edits: list[Edit], painted: list[Image.Image]) -> dict:
    scores = [edit.verifier(picture) for edit, picture in zip(edits, painted, strict=True)]
    n, done = len(scores), sum(score.success for score in scores)
    return {
        "success": round(done / n, 4),
        "n": n,
        "interval": [round(bound, 4) for bound in wilson(done, n)],
        "change": round(sum(score.change for score in scores) / n, 4),
        "preservation": round(sum(score.preservation for score in scores) / n, 4),
    }
