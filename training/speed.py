"""How fast training is on this machine, as shares of what the machine can do in the same minute."""

import json
import time
from collections import defaultdict

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from training.data import Steps
from training.loop import faster_precision
from training.optim import build_optimizer
from training.pretrain import start
from training.recipe import Recipe
from training.schedule import RecipeError

# Which operator belongs to which line of the table; what matches none is `everything else`.
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear"),
    "attention": ("scaled_dot_product", "_flash_attention", "_efficient_attention"),
    "convolutions": ("convolution", "mkldnn_conv"),
    "element-wise, compiled": ("CompiledFxGraph", "graph_", "triton_", "cpp_fused"),
    "optimizer": ("Optimizer.step",),
}


def matmul_peak(dtype: torch.dtype, device: torch.device, side: int = 1024, seconds: float = 1.0) -> float:
    """The best rate of square matrix products in `dtype`, in FLOP/s."""
    a = torch.randn(side, side, device=device).to(dtype)
    best, deadline = 0.0, time.perf_counter() + seconds
    while True:
        start_time = time.perf_counter()
        b = a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        best = max(best, 2 * side**3 / (now - start_time))
        if now > deadline:
            del b
            return best


def speed(recipe: Recipe, steps: int) -> dict:
    """Times `steps` steps of the recipe's last stage of the model that sees, after two of warm-up, in this process.

    Returns:
        `samples_per_second`, `pictures_per_second`, `tokens_per_second` (learnt tokens), `flops_per_step` (matrix
        products, attention and convolutions, counted, those of the optimizer too),
        `peak_float32` and `peak_bfloat16` (FLOP/s, this run), `share_of_peak_float32` and `share_of_peak_bfloat16`,
        `precision` and `where` (shares of the step's time).
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1.")
    timed = [name for name in ("pretrain", "sft") if name in recipe.stages]
    if not timed:
        raise RecipeError(
            f"recipe {recipe.name!r} has the stages {', '.join(recipe.stages)}; pretrain or sft is timed."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stage = recipe.stages[timed[-1]]
    precision = faster_precision(device) if stage.precision == "auto" else stage.precision
    peaks = {name: matmul_peak(getattr(torch, name), device) for name in ("float32", "bfloat16")}
    model, processor = start(recipe)
    model.to(device).train()
    optimizer = build_optimizer(model, stage.optimizer)
    data = Steps(stage, processor, "assistant", recipe.seed)
    drawing = time.perf_counter()
    batches = [data[step] for step in range(steps + 2)]
    drawing = (time.perf_counter() - drawing) / len(batches)

    def one(micro_batches, timings=None):
        began = time.perf_counter()
        for batch in micro_batches:
            batch = {key: value.to(device) for key, value in batch.items()}
            keep, targets = batch.pop("keep"), batch.pop("targets")
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = model(**batch, logits_to_keep=keep, use_cache=False).logits
                loss = functional.cross_entropy(logits.float(), targets)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if timings is not None:
            timings.append(time.perf_counter() - began)

    with FlopCounterMode(display=False) as counter:
        one(batches[0])
    flops = counter.get_total_flops()
    if stage.compile:
        for layer in [*model.model.vision_model.layers, *model.model.language_model.layers]:
            layer.compile(dynamic=True)
    one(batches[1])
    timings: list[float] = []
    for batch in batches[2:]:
        one(batch, timings)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        one(batches[-1])
    where = _where(profiler)
    seconds = sorted(timings)[len(timings) // 2]
    pictures = sum(len(b["pixel_values"]) for batch in batches[2:] for b in batch if "pixel_values" in b) / steps
    tokens = sum(len(b["targets"]) for batch in batches[2:] for b in batch) / steps
    return {
        "samples_per_second": round(stage.batch_size / seconds, 2),
        "pictures_per_second": round(pictures / seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1),
        "seconds_per_step": round(seconds, 3),
        "drawing_seconds_per_step": round(drawing, 3),
        "precision": precision,
        "flops_per_step": int(flops),
        **{f"peak_{name}": round(peak) for name, peak in peaks.items()},
        **{f"share_of_peak_{name}": round(flops / seconds / peak, 4) for name, peak in peaks.items()},
        "where": where,
    }


def _where(profiler) -> dict[str, float]:
    """Shares of the self time by kind of operator."""
    spent: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        kind = next((k for k, names in KINDS.items() if any(n in event.key for n in names)), "everything else")
        spent[kind] += event.self_cpu_time_total
    total = sum(spent.values()) or 1.0
    return {kind: round(value / total, 3) for kind, value in sorted(spent.items(), key=lambda item: -item[1])}


def print_speed(result: dict, *, as_json: bool) -> None:
    table = Table(title="Training speed on this machine")
    table.add_column("what")
    table.add_column("value", justify="right")
    for key, value in result.items():
        if key != "where":
            table.add_row(key.replace("_", " "), f"{value:,}" if isinstance(value, int | float) else str(value))
    for kind, share in result["where"].items():
        table.add_row(f"  {kind}", f"{share:.1%}")
    Console().print(table)
    if as_json:
        print(json.dumps(result))
