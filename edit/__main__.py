"""The command line of the model that repaints: `python -m edit PICTURE "INSTRUCTION" -o OUT.png`, `serve`, `bench`."""

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from transformers.utils import logging

from edit.benchmark import CACHE_THRESHOLD, measure, show_speed
from edit.checkpoints import CheckpointError
from edit.conditioning import ConditioningError
from edit.configuration import PRESETS, mini_editor
from edit.inputs import EditError
from edit.loading import load_editor, locate_editor
from edit.pipeline import EditPipeline
from edit.thinking import think_and_edit
from pacore import BackendError, PacoreError, PlanError
from pacore.asking import ask_in_parallel
from vlm.answering import ModelError, load
from vlm.commands import exit_code
from vlm.pictures import PictureError, open_picture


@dataclass
class Edit:
    """Edit a picture: `python -m edit cat.png "Make the cat white." -o white.png`.

    `python -m edit serve --help` is about an endpoint for it, `python -m edit bench --help` about its speed.
    """

    picture: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PICTURE")]
    """Its path."""
    instruction: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="INSTRUCTION")]
    """What to change."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Where the result goes; its ending says the format."""
    model: str = "mini"
    """mini, the editor shipped with the repository, or the folder of a saved one."""
    steps: int | None = None
    """Of sampling; the editor's own number by default."""
    guidance: float | None = None
    """How far to go beyond the instruction-free prediction; the editor's own value by default, 1 for not at all."""
    strength: float = 1.0
    """Near 0 the picture hardly changes; 1 starts from pure noise."""
    size: int | None = None
    """One of the editor's size levels; by default the nearest to the picture's own."""
    seed: int = 0
    """Of the noise; the same seed gives the same picture."""
    seeds: int = 1
    """Candidates from as many seeds; the model judges them and the best is kept."""
    plan: bool = False
    """Let the model first write what must change and what must stay."""
    reflect: bool = False
    """Let the model inspect the result: accept it, try again from another seed, or leave the picture as it was."""
    reflections: int = 3
    """Results that are inspected at most."""
    rollouts: int = 1
    """Trajectories a question to the model; above 1 they are drawn in parallel and put together."""
    lora: Path | None = None
    """A LoRA on top: a .safetensors file or a folder with one, in diffusers' or the released layout."""


@dataclass
class Serve:
    """Serve the editor as an OpenAI-compatible endpoint, `POST /v1/images/edits`."""

    model: str = "mini"
    """mini, the editor shipped with the repository, or the folder of a saved one."""
    host: str = "127.0.0.1"
    """0.0.0.0 to be reached from other machines; then set a key."""
    port: int = 8001
    """Of the server."""
    key_variable: str = "TRIPTYCH_API_KEY"
    """The environment variable that holds the key clients must send; without it everybody is let in."""


@dataclass
class Bench:
    """Measure the pipeline against the reference algorithm: same weights, same steps, on the CPU."""

    model: str | None = None
    """mini or a folder; by default the shipped editor, or one with random weights of its size where there is none."""
    picture: str | None = None
    """By default noise, the same every time."""
    steps: int = 28
    repeats: int = 3
    """Of everything, in turn; the medians count."""
    threshold: float = CACHE_THRESHOLD
    """Of the first-block cache: the relative change of the first block below which the others are not computed."""
    json: bool = False
    """End with one JSON line."""


class UsageError(ValueError):
    """The command makes no sense; the message is one line with the remedy."""


# Everything whose message is one line for the person who asked.
REFUSALS = (
    BackendError, CheckpointError, ConditioningError, EditError, ModelError, OSError, PacoreError, PictureError,
    PlanError, UsageError,
)  # fmt: skip


def edit(options: Edit) -> None:
    """Writes the edited picture. Raises UsageError, PictureError, ModelError, EditError or ConditioningError."""
    if Image.registered_extensions().get(options.out.suffix.lower()) not in Image.SAVE:
        raise UsageError(f"--out is {str(options.out)!r}, whose ending names no format; write to a .png, for instance.")
    if not options.out.parent.is_dir():
        raise UsageError(f"there is no folder {str(options.out.parent)!r}; make it first.")
    for name, value in (("rollouts", options.rollouts), ("reflections", options.reflections)):
        if value < 1:
            raise UsageError(f"--{name} is {value}; use at least 1.")
    if options.lora and not options.lora.exists():
        raise UsageError(f"there is no LoRA {str(options.lora)!r}; give a .safetensors file or a folder with one.")
    # Opened before the model is loaded: a bad picture is reported at once.
    picture = open_picture(options.picture)
    pipeline = load_editor(options.model)
    pipeline.set_progress_bar_config(disable=True)
    if options.lora:
        pipeline.load_lora_weights(options.lora)
    console = Console(stderr=True, highlight=False)
    ask = None
    if options.rollouts > 1:
        ask = ask_in_parallel(pipeline.vision_language_model, pipeline.processor, options.rollouts)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("editing", total=None)

        def show(running: EditPipeline, step: int, timestep, tensors: dict) -> dict:
            bar.update(task, completed=step + 1, total=running.num_timesteps)
            return {}

        thought = think_and_edit(
            pipeline,
            picture,
            options.instruction,
            planning=options.plan,
            reflections=options.reflections if options.reflect else 0,
            seeds=options.seeds,
            seed=options.seed,
            ask=ask,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            strength=options.strength,
            size_level=options.size,
            callback_on_step_end=show,
        )
    if thought.plan:
        console.print(f"plan: {_brief(thought.plan)}", markup=False)
    for attempt in thought.attempts:
        if attempt.scores:
            pairs = zip(attempt.seeds, attempt.scores, strict=True)
            console.print("scores: " + ", ".join(f"seed {seed} {score:g}" for seed, score in pairs))
        if attempt.verdict:
            console.print(f"{attempt.verdict.decision}: {_brief(attempt.verdict.words)}", markup=False)
    thought.image.save(options.out)
    print(options.out)


def _brief(words: str) -> str:
    """On one line."""
    line = " ".join(words.split())
    return line if len(line) <= 160 else line[:157] + "…"


def serve(options: Serve) -> None:
    """Until Ctrl-C or SIGTERM. Raises ModelError."""
    from edit.server import create_app
    from vlm.serving import serve as serve_app

    key = os.environ.get(options.key_variable) or None
    pipeline = load_editor(options.model)
    pipeline.set_progress_bar_config(disable=True)
    name = "mini" if options.model == "mini" else locate_editor(options.model).resolve().name
    app = create_app(pipeline, name, api_key=key)
    where = f"http://{options.host}:{options.port}/v1"
    print(f"{name} at {where}" + ("" if key else f", open to all: no {options.key_variable}"), flush=True)
    asyncio.run(serve_app(app, options.host, options.port))


def benchmark(options: Bench) -> None:
    """Prints the table. Raises ModelError or PictureError."""
    if options.picture:
        picture = open_picture(options.picture)
    else:
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128), np.uint8))
    model = options.model or "mini"
    try:
        locate_editor(model)
    except ModelError:
        if options.model:
            raise
        pipeline, model = _random_editor(), "random weights in the mini editor's size"
    else:
        pipeline = load_editor(model, torch.float32)
    for name, value in (("steps", options.steps), ("repeats", options.repeats)):
        if value < 1:
            raise UsageError(f"--{name} is {value}; use at least 1.")
    pipeline.set_progress_bar_config(disable=True)
    speed = measure(pipeline, picture.convert("RGB"), options.steps, options.repeats, options.threshold)
    show_speed(speed, model, options.json)


@torch.no_grad()
def _random_editor() -> EditPipeline:
    """Away from the start of training, where every block is the identity."""
    network, processor = load("mini", torch.float32)
    torch.manual_seed(0)
    parts = mini_editor(network)
    for part in (parts["connector"], parts["transformer"]):
        for parameter in part.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return EditPipeline(**parts, vision_language_model=network, processor=processor, **PRESETS["mini"]["pipeline"])


COMMANDS = {"serve": (Serve, serve), "bench": (Bench, benchmark)}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; 0, or 2 with one line on the standard error where something is wrong with the request."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    arguments = sys.argv[1:] if arguments is None else arguments
    # Editing is what this is for, so it needs no name.
    name = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    kind, work = COMMANDS.get(name, (Edit, edit))
    options = tyro.cli(
        kind,
        prog=f"python -m edit {name}".rstrip(),
        args=arguments[bool(name) :],
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return exit_code(lambda: work(options), REFUSALS)


if __name__ == "__main__":
    sys.exit(main())
