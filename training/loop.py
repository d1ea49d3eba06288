"""The one training loop: batches in, checkpoints and curves out; one process or many, killed at any step it goes on.

What a step is stands in `train`, whole. What is learnt (the batches, the loss, what is written at the end) is a `Task`:
`training.language`, `training.vae` and `training.edit` have one each. Devices come from Accelerate.
"""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin, broadcast_object_list, send_to_device, set_seed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from training.curves import draw_curves
from training.optim import build_optimizer
from training.schedule import Schedule

# It warns at each checkpoint that the tied head is written once; that is what tying means.
logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)

LOG_EVERY_SECONDS = 10  # of the plain lines where no terminal shows the bar


class Task(Protocol):
    """What a stage learns.

    Attributes:
        model: its weights with `requires_grad` are trained; all its weights and buffers are in the checkpoints.
    """

    model: torch.nn.Module

    def batches(self, first_step: int, workers: int, rank: int, world_size: int) -> Iterable[list[dict]]:
        """From `first_step` on, this rank's share of every step as micro-batches: pure functions of the step."""
        ...

    def count(self, batch: dict) -> int:
        """How many things (tokens, pictures, ...) the loss of a micro-batch is summed over."""
        ...

    def loss(self, model: torch.nn.Module, batch: dict) -> torch.Tensor:
        """The loss of a micro-batch on the model's device, summed over what `count` counts."""
        ...

    def after_step(self, model: torch.nn.Module, step: int) -> None:
        """Called on every process when the optimizer has stepped."""
        ...

    def look(self, model: torch.nn.Module, folder: Path) -> None:
        """Puts something to look at into `folder`, at every checkpoint and at the end; main process alone."""
        ...

    def write(self, model: torch.nn.Module, state: dict[str, torch.Tensor], folder: Path) -> None:
        """Writes the trained model into a new folder; main process alone. `state` is gathered from all devices."""
        ...


def made_ahead(data: Dataset, first_step: int, workers: int) -> DataLoader:
    """The items of `data`, a step each, from `first_step` on, made by `workers` other processes so that no step waits;
    0 makes them in this one."""
    return DataLoader(data, batch_size=None, sampler=range(first_step, len(data)), num_workers=workers,
                      prefetch_factor=4 if workers else None)  # fmt: skip


def faster_precision(device: torch.device) -> str:
    """`bf16` where this device multiplies faster in bfloat16 than in float32, else `no`; measured, not looked up."""

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(256, 256, dtype=dtype, device=device)
        best = math.inf
        for _ in range(4):
            start = time.perf_counter()
            (a @ a).sum().item()
            best = min(best, time.perf_counter() - start)
        return best

    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    return "bf16" if seconds(torch.bfloat16) < seconds(torch.float32) else "no"


def learning_rate_factor(stage: Schedule, step: int) -> float:
    """Of the peak rate at `step` (from 0): in each `Schedule.part` a linear warm-up, then a cosine to
    `final_learning_rate`."""
    first, end = stage.part(step)
    if step - first < stage.warmup_steps:
        return (step - first + 1) / stage.warmup_steps
    progress = (step - first - stage.warmup_steps) / max(1, end - first - stage.warmup_steps)
    return stage.final_learning_rate + (1 - stage.final_learning_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def make_accelerator(stage: Schedule, *, fsdp: bool = False, trackers: str | None = None, out: Path) -> Accelerator:
    """An `Accelerator` for the stage; FSDP2 with one wrapped layer a unit when `fsdp`."""
    precision = stage.precision
    if precision == "auto":
        # One process measures for all: near a tie they could disagree.
        precision = broadcast_object_list([faster_precision(PartialState().device)])[0]
    plugin = None
    if fsdp and torch.cuda.is_available():
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type="SHARDED_STATE_DICT",
            activation_checkpointing=stage.gradient_checkpointing,
        )  # fmt: skip
    return Accelerator(mixed_precision=precision, fsdp_plugin=plugin, log_with=trackers, project_dir=str(out))


def train(
    name: str,
    stage: Schedule,
    task: Task,
    out: Path,
    *,
    seed: int = 0,
    fsdp: bool = False,
    trackers: str | None = None,
    workers: int = 1,
) -> Path:
    """Trains `task.model` as `stage` says and writes it to `out/model`, resuming from `out` if it was interrupted.

    Args:
        name: what the log and the bar call this stage.
        trackers: any Accelerate tracker's name (`tensorboard`, `wandb`, ...), or None.
        workers: processes that make batches ahead; 0 makes them in this one.

    Returns:
        `out/model`, as the task writes it.
    """
    out.mkdir(parents=True, exist_ok=True)
    set_seed(seed)
    accelerator = make_accelerator(stage, fsdp=fsdp, trackers=trackers, out=out)
    console = Console(stderr=True, quiet=not accelerator.is_main_process)
    optimizer = build_optimizer(task.model, stage.optimizer)
    peaks = [group["lr"] for group in optimizer.param_groups]
    model, optimizer = accelerator.prepare(task.model, optimizer)
    model.train()
    if trackers:
        accelerator.init_trackers("triptych", config=stage.model_dump())

    log_path = out / "log.jsonl"
    first = _resume(accelerator, out)
    before = _truncate_log(log_path, first)
    if first:
        console.print(f"{name}: resuming at step {first} of {stage.steps}")
    batches = iter(task.batches(first, workers, accelerator.process_index, accelerator.num_processes))
    log = log_path.open("a", encoding="utf-8") if accelerator.is_main_process else None
    saved_at = told_at = began = time.monotonic()
    at = first
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                   TextColumn("{task.fields[status]}"), console=console)  # fmt: skip
    with bar, _attention(stage):
        row = bar.add_task(name, total=stage.steps, completed=first, status="")
        for step in range(first, stage.steps):
            elapsed = before + time.monotonic() - began
            at = _position(accelerator, stage, step, elapsed)
            if at >= stage.steps:
                break
            started = time.perf_counter()
            micro_batches = next(batches)
            waited = time.perf_counter() - started
            factor = learning_rate_factor(stage, at)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor

            # The loss is the mean over the tokens of the whole step, wherever they are: sums here, one division.
            count = torch.tensor(sum(map(task.count, micro_batches)), device=accelerator.device)
            count = int(accelerator.reduce(count, "sum"))
            total = torch.zeros((), device=accelerator.device)
            for index, batch in enumerate(micro_batches):
                batch = send_to_device(batch, accelerator.device)
                last = index == len(micro_batches) - 1
                with accelerator.autocast(), _synchronised(accelerator, model, last):
                    loss = task.loss(model, batch) / count
                    # Data parallelism averages gradients over processes; the mean over tokens wants their sum.
                    accelerator.backward(loss * accelerator.num_processes)
                total += loss.detach()
            norm = accelerator.clip_grad_norm_(model.parameters(), stage.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            task.after_step(accelerator.unwrap_model(model), step)

            total = float(accelerator.reduce(total, "sum"))
            if not math.isfinite(total):
                raise FloatingPointError(
                    f"{name}: the loss is {total} at step {step}; lower the learning rate or start from an earlier "
                    f"checkpoint in {out}."
                )
            seconds = time.perf_counter() - started
            record = {"stage": name, "step": step, "loss": total, "grad_norm": float(norm), "factor": factor,
                      "count": count, "samples": stage.batch_size, "seconds": round(seconds, 4),
                      "waited": round(waited, 4), "elapsed": round(elapsed, 2)}  # fmt: skip
            if log:
                log.write(json.dumps(record) + "\n")
                log.flush()
            if trackers:
                accelerator.log({"loss": total, "grad_norm": float(norm), "learning_rate": peaks[0] * factor}, step)
            status = f"loss {total:.3f}  {stage.batch_size / seconds:.1f} samples/s"
            bar.update(row, completed=at + 1, status=status)
            now = time.monotonic()
            if not console.is_terminal and (now - told_at > LOG_EVERY_SECONDS or at + 1 == stage.steps):
                console.print(f"{name} {_told(step + 1, at + 1, stage)}  {status}", highlight=False)
                told_at = now
            due = now - saved_at > stage.checkpoint_minutes * 60
            # One clock decides for all processes.
            due = bool(accelerator.reduce(torch.tensor(float(due), device=accelerator.device), "max"))
            if due and step + 1 < stage.steps:
                _save(accelerator, out, step + 1)
                if accelerator.is_main_process:
                    draw_curves([log_path], out / "curves.png")
                    task.look(accelerator.unwrap_model(model), out)
                saved_at = time.monotonic()
    if log:
        log.close()
    _write_model(accelerator, task, model, out)
    if accelerator.is_main_process:
        draw_curves([log_path], out / "curves.png")
        task.look(accelerator.unwrap_model(model), out)
        for stale in out.glob("checkpoint-*"):
            shutil.rmtree(stale)
    if trackers:
        accelerator.end_training()
    accelerator.wait_for_everyone()
    return out / "model"


def _attention(stage: Schedule):
    """In which PyTorch's attention has the kernels that the stage wants."""
    if stage.attention == "auto":
        return nullcontext()
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def _position(accelerator: Accelerator, stage: Schedule, step: int, elapsed: float) -> int:
    """Where the schedule is, in steps, when `step` of them are done after so many seconds."""
    if stage.minutes is None:
        return step
    by_clock = int(elapsed / (60 * stage.minutes) * stage.steps)
    # One clock decides for all processes.
    return int(accelerator.reduce(torch.tensor(max(step, by_clock), device=accelerator.device), "max"))


def _told(done: int, at: int, stage: Schedule) -> str:
    return f"{done}/{stage.steps}" if stage.minutes is None else f"{done} steps, {at / stage.steps:.0%}"


def _synchronised(accelerator: Accelerator, model, last: bool):
    """Gradients travel between processes with the last micro-batch alone."""
    return nullcontext() if last else accelerator.no_sync(model)


def _save(accelerator: Accelerator, out: Path, step: int) -> None:
    """Writes `checkpoint-STEP` aside and renames it: a kill in the middle leaves the last whole one."""
    partial, final = out / "partial", out / f"checkpoint-{step}"
    if accelerator.is_main_process and partial.exists():
        shutil.rmtree(partial)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial), safe_serialization=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.replace(partial, final)
        for older in _checkpoints(out)[:-1]:
            shutil.rmtree(out / f"checkpoint-{older}")
    accelerator.wait_for_everyone()


def _checkpoints(out: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in out.glob("checkpoint-*"))


def _resume(accelerator: Accelerator, out: Path) -> int:
    """Loads the newest checkpoint; the number of steps it has behind it, 0 without one."""
    found = _checkpoints(out)
    if not found:
        return 0
    accelerator.load_state(str(out / f"checkpoint-{found[-1]}"))
    return found[-1]


def _truncate_log(path: Path, first: int) -> float:
    """Drops what a killed run logged after its last checkpoint; those steps are about to be done again.

    Returns:
        The seconds that the kept steps took.
    """
    if not path.exists():
        return 0.0
    kept, seconds = [], 0.0
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
            if record["step"] < first:
                kept.append(line)
                seconds = record.get("elapsed", 0.0) + record["seconds"]
        except json.JSONDecodeError:
            break  # the line at which it was killed
    path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    return seconds


def _write_model(accelerator: Accelerator, task: Task, model, out: Path) -> None:
    """`out/model`, whole or not at all: its presence says that the stage is done."""
    state = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        partial = out / "model.partial"
        shutil.rmtree(partial, ignore_errors=True)
        task.write(accelerator.unwrap_model(model, keep_torch_compile=False), state, partial)
        os.replace(partial, out / "model")
    accelerator.wait_for_everyone()
