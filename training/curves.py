"""Draws a run's loss curves from its JSONL logs."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def draw_curves(logs: list[Path], out: Path) -> None:
    """Loss, gradient norm and samples a second over the steps of all logs, one after another, as a PNG."""
    records = [json.loads(line) for log in logs for line in log.read_text(encoding="utf-8").splitlines()]
    if not records:
        return
    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4), layout="constrained")
    panels = (("loss", lambda r: r["loss"]), ("gradient norm", lambda r: r["grad_norm"]),
              ("samples / s", lambda r: r["samples"] / r["seconds"]))  # fmt: skip
    for axis, (title, value) in zip(axes, panels, strict=True):
        offset = 0
        for stage in dict.fromkeys(r["stage"] for r in records):
            values = [value(r) for r in records if r["stage"] == stage]
            steps = range(offset, offset + len(values))
            (line,) = axis.plot(steps, values, alpha=0.25, linewidth=0.8)
            axis.plot(steps, _smoothed(values), color=line.get_color(), label=stage)
            offset += len(values)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[0].legend()
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def _smoothed(values: list[float], memory: float = 0.95) -> list[float]:
    """Exponential mean, corrected for its start."""
    mean, weight, smooth = 0.0, 0.0, []
    for value in values:
        mean, weight = memory * mean + (1 - memory) * value, memory * weight + (1 - memory)
        smooth.append(mean / weight)
    return smooth
