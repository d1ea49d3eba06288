"""Pictures that the world's own renderer did not draw: how well does what was learnt carry over?

The same scenes and questions are drawn by other tools: as SVG through cairo, by matplotlib, and as a photo-like view
(perspective, uneven light, blur, JPEG) of the native drawing. The model sees each through the ordinary processor.
"""

import io
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from rich.console import Console
from rich.progress import track
from rich.table import Table

from training.report import answer, question, score
from training.world import Sample, draw_sample
from training.world.charts import Chart
from training.world.numbers import Written
from training.world.rendering import outline
from training.world.sample import stream
from training.world.scenes import Scene
from vlm.answering import load

PIXELS = 480  # sides of these pictures: they reach the model by being scaled down, as people's do
SHAPE_FAMILIES = ("caption", "attribute", "existence", "count", "compare", "relation", "extreme", "tally")
# The warp moves things, so boxes are not asked about in it.
TOOLS = {
    "svg": (*SHAPE_FAMILIES, "number", "arithmetic"),
    "matplotlib": (*SHAPE_FAMILIES, "number", "arithmetic", "bar_chart", "line_chart"),
    "photo": (*SHAPE_FAMILIES, "number", "arithmetic", "bar_chart", "line_chart", "clock", "maze"),
}


def draw_svg(scene: Scene | Written) -> str:
    """The scene as SVG text, in the named colours of CSS."""
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{PIXELS}" height="{PIXELS}" viewBox="0 0 100 100">',
             '<rect width="100" height="100" fill="white"/>']  # fmt: skip
    if isinstance(scene, Written):
        size = min(34, 150 / len(scene.text))
        parts.append(f'<text x="50" y="58" font-size="{size:.1f}" font-family="sans-serif" text-anchor="middle" '
                     f'fill="black">{scene.text}</text>')  # fmt: skip
        return "".join([*parts, "</svg>"])
    for t in scene.things:
        x, y, r = 100 * t.x, 100 * t.y, 100 * t.radius
        style = f'fill="{t.colour}" transform="rotate({t.rotation:.1f} {x:.2f} {y:.2f})"'
        if t.shape == "circle":
            parts.append(f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{r:.2f}" {style}/>')
        elif t.shape == "ring":
            parts.append(f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{0.84 * r:.2f}" fill="none" stroke="{t.colour}" '
                         f'stroke-width="{0.32 * r:.2f}"/>')  # fmt: skip
        elif t.shape == "square":
            parts.append(f'<rect x="{x - 0.8 * r:.2f}" y="{y - 0.8 * r:.2f}" width="{1.6 * r:.2f}" '
                         f'height="{1.6 * r:.2f}" {style}/>')  # fmt: skip
        elif t.shape == "heart":
            left, right = f"{x - 1.6 * r:.2f}", f"{x + 1.6 * r:.2f}"
            near_left, near_right = f"{x - 0.8 * r:.2f}", f"{x + 0.8 * r:.2f}"
            tip, dip = f"{x:.2f} {y + 0.9 * r:.2f}", f"{x:.2f} {y - 0.4 * r:.2f}"
            side, top = f"{y - 0.1 * r:.2f}", f"{y - 1.3 * r:.2f}"
            curves = f"C{left} {side} {near_left} {top} {dip} C{near_right} {top} {right} {side} {tip}Z"
            parts.append(f'<path d="M{tip} {curves}" {style}/>')
        elif t.shape == "moon":
            parts.append(f'<path d="M{x + 0.45 * r:.2f} {y - 0.87 * r:.2f} A{r:.2f} {r:.2f} 0 1 0 {x + 0.45 * r:.2f} '
                         f'{y + 0.87 * r:.2f} A{0.9 * r:.2f} {0.9 * r:.2f} 0 0 1 {x + 0.45 * r:.2f} '
                         f'{y - 0.87 * r:.2f}Z" {style}/>')  # fmt: skip
        else:
            points = " ".join(f"{100 * px:.2f},{100 * py:.2f}" for px, py in outline(t))
            parts.append(f'<polygon points="{points}" fill="{t.colour}"/>')
    return "".join([*parts, "</svg>"])


def through_cairo(scene: Scene | Written) -> Image.Image:
    """Rasterises `draw_svg`; raises ImportError or OSError where cairosvg or cairo is not installed."""
    import cairosvg

    return Image.open(io.BytesIO(cairosvg.svg2png(bytestring=draw_svg(scene).encode()))).convert("RGB")


def through_matplotlib(scene: Scene | Written | Chart) -> Image.Image:
    """The scene as matplotlib draws it in its default style."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import patches, pyplot

    figure, axes = pyplot.subplots(figsize=(4.8, 4.8), dpi=PIXELS / 4.8)
    if isinstance(scene, Chart):
        labels = [label for label, _ in scene.pairs]
        if scene.kind == "bar":
            axes.bar(labels, scene.values)
        else:
            axes.plot(labels, scene.values, marker="o")
        axes.set_ylim(0, scene.top)
        axes.tick_params(labelsize=20)
    else:
        axes.set_position([0, 0, 1, 1])
        axes.axis("off")
        axes.set(xlim=(0, 1), ylim=(1, 0))
    if isinstance(scene, Written):
        axes.text(0.5, 0.5, scene.text, fontsize=min(80, 340 / len(scene.text)), ha="center", va="center")
    elif isinstance(scene, Scene):
        for t in scene.things:
            if t.shape == "circle":
                axes.add_patch(patches.Circle((t.x, t.y), t.radius, color=t.colour))
            elif t.shape == "ring":
                axes.add_patch(patches.Annulus((t.x, t.y), t.radius, 0.32 * t.radius, color=t.colour))
            else:
                axes.add_patch(patches.Polygon(outline(t), color=t.colour))
    stored = io.BytesIO()
    figure.savefig(stored, format="png")
    pyplot.close(figure)
    return Image.open(stored).convert("RGB")


def as_photo(picture: Image.Image, rng: random.Random) -> Image.Image:
    """A photo-like view: slight perspective, uneven light, blur, JPEG."""
    edge = picture.getpixel((1, 1))
    warped = in_perspective(picture, rng, Image.Resampling.BICUBIC, edge)
    warped = warped.filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 2.5)))
    angle, ramp = rng.uniform(0, 2 * math.pi), np.linspace(-0.5, 0.5, PIXELS)
    light = 1 + rng.uniform(0.05, 0.25) * (math.cos(angle) * ramp[None, :] + math.sin(angle) * ramp[:, None])
    pixels = np.clip(np.asarray(warped, dtype=np.float32) * light[..., None] * rng.uniform(0.85, 1.05), 0, 255)
    stored = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stored, "JPEG", quality=rng.randint(40, 75))
    return Image.open(stored).convert("RGB")


def in_perspective(picture: Image.Image, rng: random.Random, resample: Image.Resampling, edge) -> Image.Image:
    """Seen a little from the side, each corner moved by a twentieth of the side at most; `edge` fills what is bare."""
    large = picture.resize((PIXELS, PIXELS), resample)
    slack = 0.05 * PIXELS
    corners = [(x + rng.uniform(-slack, slack), y + rng.uniform(-slack, slack))
               for x, y in ((0, 0), (0, PIXELS), (PIXELS, PIXELS), (PIXELS, 0))]  # fmt: skip
    quad = [v for corner in corners for v in corner]
    return large.transform((PIXELS, PIXELS), Image.Transform.QUAD, quad, resample, fillcolor=edge)


def redraw(sample: Sample, tool: str) -> Image.Image:
    """The sample's scene by `tool` (a key of `TOOLS`)."""
    if tool == "photo":
        return as_photo(sample.picture, stream("photo", sample.seed, sample.family))
    return through_cairo(sample.scene) if tool == "svg" else through_matplotlib(sample.scene)


def foreign(model: str, samples: int, out: Path | None = None) -> dict:
    """Accuracy by tool on `samples` questions each, beside the native drawing of the same questions.

    Returns:
        {tool: {"foreign": {accuracy, n, interval, majority_baseline}, "native": {...}}}; a tool that is not installed
        here has {"skipped": why}.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; it must be at least 1.")
    network, processor = load(model)

    def judge(tool: str, drawn: list[Sample], pictures: list[Image.Image]) -> dict:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            for sample, picture in zip(drawn[:24], pictures, strict=False):
                picture.save(out / f"{tool}_{sample.seed:03d}_{sample.family}.png")
        asked = []
        for sample, picture in zip(drawn, pictures, strict=True):
            turn = question(sample)
            turn[0]["content"][0] = {"type": "image", "image": picture}
            asked.append(turn)
        return {
            "foreign": score(drawn, _answers(network, processor, asked)),
            "native": score(drawn, _answers(network, processor, [question(s) for s in drawn])),
        }

    return by_tool(TOOLS, samples, draw_sample, redraw, judge)


def by_tool(tools: dict[str, Sequence[str]], samples: int, draw: Callable, redraw: Callable, judge: Callable) -> dict:
    """{tool: what `judge` makes of `samples` drawn things of its families and the same redrawn by it}, or why not.

    Args:
        draw: (seed, split, family) -> a thing of the world.
        redraw: (thing, tool) -> the same drawn by the tool; an ImportError or OSError says that it is not installed.
        judge: (tool, things, redrawn) -> its figures.
    """
    results: dict[str, dict] = {}
    for tool, families in tools.items():
        drawn = [draw(seed, "test", families[seed % len(families)]) for seed in range(samples)]
        try:
            redrawn = [redraw(thing, tool) for thing in track(drawn, tool, console=Console(stderr=True))]
        except (ImportError, OSError) as error:
            results[tool] = {"skipped": f"cairosvg or the cairo library is not installed ({error})".splitlines()[0]}
            continue
        results[tool] = judge(tool, drawn, redrawn)
    return results


def _answers(network, processor, conversations: list, batch_size: int = 50) -> list[str]:
    return [
        text
        for start in range(0, len(conversations), batch_size)
        for text in answer(network, processor, conversations[start : start + batch_size])
    ]


def print_foreign(results: dict, *, as_json: bool, figure: str = "accuracy") -> None:
    """`foreign`'s results, or `foreign_edits`' with the figure `success`."""
    asked = "questions" if figure == "accuracy" else "edits"
    table = Table(title=f"The same {asked}, drawn by other tools")
    for column in ("tool", "n", "drawn by it", "native"):
        table.add_column(column, justify="left" if column == "tool" else "right")
    for tool, result in results.items():
        if "skipped" in result:
            table.add_row(tool, "", result["skipped"], "")
            continue
        cells = []
        for part in ("foreign", "native"):
            low, high = result[part]["interval"]
            cells.append(f"{result[part][figure]:.1%} [{low:.0%}, {high:.0%}]")
        table.add_row(tool, str(result["foreign"]["n"]), *cells)
    Console().print(table)
    if as_json:
        print(json.dumps(results))
