"""The command line of the model that sees: `python -m vlm ask`, `describe`, `bench`."""

import os
import shutil
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.text import Text
from transformers.utils import logging

from vlm.answering import ModelError, load, locate, read_config, stream_answer
from vlm.benchmark import bench
from vlm.commands import exit_code
from vlm.configuration import PRESETS, Step3VLConfig
from vlm.describing import describe
from vlm.pictures import PictureError, open_picture
from vlm.reasoning import split_reasoning


@dataclass
class Ask:
    """Ask about pictures, or about none: `python -m vlm ask cat.png dog.jpg "Which one is asleep?"`.

    The answer appears as it is written. On a terminal the reasoning comes before it, dim; in a pipe the answer alone.
    """

    words: Annotated[tyro.conf.Positional[list[str]], tyro.conf.arg(metavar="[PICTURE ...] QUESTION")]
    """The pictures' paths, if any, and last the question."""
    model: str = "mini"
    """mini (shipped with the repository), a folder, or a hub id such as stepfun-ai/Step3-VL-10B."""
    max_new_tokens: int = 512
    """The answer ends there at the latest, reasoning included."""
    temperature: float = 0.0
    """0 takes the likeliest word every time; 1 samples as the model was trained."""
    seed: int = 0
    """Of the sampling; the same seed gives the same answer."""
    reasoning: bool = False
    """Show the reasoning in a pipe too."""
    raw: bool = False
    """Print exactly what the model writes, its <think> marks included."""


@dataclass
class Describe:
    """Print a model's architecture, its parameters by part and their memory by precision; no weights are loaded."""

    model: tyro.conf.Positional[str]
    """A preset (mini, 10b), a folder, or a hub id."""


@dataclass
class Bench:
    """Measure the rollout engine: 16 samples of 8 prompts with pictures, against transformers' `generate` and vLLM."""

    json: bool = False
    """End with one JSON line."""
    repeats: int = 3
    """Of everything; the medians count."""
    vllm_python: str | None = None
    """An interpreter that has vLLM, by default this one where vLLM is installed; without one, vLLM is left out."""


class UsageError(ValueError):
    """The command makes no sense; the message is one line with the remedy."""


def ask(options: Ask) -> None:
    """Prints the answer. Raises UsageError, PictureError or ModelError, in this order."""
    if not options.words:
        raise UsageError('nothing is asked; write a question, like: python -m vlm ask picture.png "What is this?"')
    *pictures, question = options.words
    if os.path.isfile(question):  # unlike Path.is_file, no error for a question too long to be a name
        raise UsageError(f"the last word, {question!r}, is a file; write the question after the pictures.")
    # Opened before the model is loaded: a bad picture is reported at once.
    content = [{"type": "image", "image": open_picture(picture)} for picture in pictures]
    content.append({"type": "text", "text": question})
    model, processor = load(options.model)
    pieces = stream_answer(
        model,
        processor,
        [{"role": "user", "content": content}],
        options.max_new_tokens,
        options.temperature,
        seed=options.seed,
    )
    console = Console(highlight=False, soft_wrap=True)
    if options.raw:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        print()
    else:
        _show(pieces, console, options.reasoning or console.is_terminal)


def _show(pieces, console: Console, reasoning: bool) -> None:
    """Writes each part as far as it has come."""
    text, shown = "", {"reasoning": "", "answer": ""}
    for piece in pieces:
        text += piece
        now = dict(zip(shown, split_reasoning(text), strict=True))
        for part, style in (("reasoning", "dim"), ("answer", "")):
            if part == "reasoning" and not reasoning:
                continue
            if part == "answer" and now["answer"] and not shown["answer"] and shown["reasoning"]:
                console.print()
            console.print(Text(now[part][len(shown[part]) :], style), end="")
            shown[part] = now[part]
        console.file.flush()
    console.print()


def describe_model(options: Describe) -> None:
    """Prints the tables. Raises ModelError."""
    if options.model in PRESETS:
        config = Step3VLConfig.preset(options.model)
    else:
        config = read_config(locate(options.model, weights=False), options.model)
    Console().print(describe(options.model, config))


def measure(options: Bench) -> None:
    """Prints the rollout engine's speed. Raises UsageError."""
    if options.repeats < 1:
        raise UsageError(f"repeats is {options.repeats}; it must be at least 1.")
    if options.vllm_python and not shutil.which(options.vllm_python):
        raise UsageError(f"there is no program {options.vllm_python!r}; give the python that vLLM is installed for.")
    bench(options.json, options.repeats, options.vllm_python)


def main() -> int:
    """Runs the command line; 0, or 2 with one line on the standard error where something is wrong with the request."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    options = tyro.cli(
        Ask | Describe | Bench, prog="python -m vlm", description=__doc__, config=(tyro.conf.FlagCreatePairsOff,)
    )
    works = {Ask: ask, Describe: describe_model, Bench: measure}
    return exit_code(lambda: works[type(options)](options), (PictureError, ModelError, UsageError))


if __name__ == "__main__":
    sys.exit(main())
