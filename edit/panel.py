"""The demo's panel "Edit": a picture, an instruction, the picture repainted; what was edited can be edited again."""

import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import gradio as gr
import torch
from PIL import Image

from edit.inputs import EditError
from edit.loading import load_editor
from edit.pipeline import EditPipeline
from edit.thinking import Ask, Thought, think_and_edit
from vlm.page import Stoppable, cached, picture_input, quiet, sample_gallery, warn
from vlm.pictures import open_picture

MINI = "mini"
PREVIEWS = 12  # of an edit at most: each decodes latents, which costs about as much as a step
TRAJECTORIES = 4  # of a question to the model, where candidates are judged or results inspected
POLL_SECONDS = 0.1

ABOUT = (
    "The model reads picture and instruction, and its embeddings steer a diffusion transformer that repaints the "
    "whole picture. **mini** knows drawn scenes alone and does what it is told three times in five, most "
    "often removing, recolouring or replacing a shape; it can hardly write, and has never seen a photograph."
)
CSS = """
#edit-picture img { width: 100%; height: 100%; object-fit: contain; }
#edit-samples .grid-container, #history .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); padding-top: 0; }
#edit-samples .caption-label, #history .caption-label { font-size: 10px; line-height: 1.1; padding: 3px 5px;
  max-width: 100%; }
"""


class Sample(Protocol):
    """A picture to try, with an instruction."""

    before: Image.Image
    instruction: str
    family: str


class Editors:
    """The editor in memory, one at a time."""

    def __init__(self):
        self._lock = threading.Lock()
        self._name, self._loaded = None, None

    def get(self, name: str) -> EditPipeline:
        """`mini` or a folder. Raises `ModelError`; the earlier editor then stays."""
        with self._lock:
            if name != self._name:
                loaded = load_editor(name)
                loaded.set_progress_bar_config(disable=True)
                self._name, self._loaded = name, loaded
            return self._loaded


@dataclass(frozen=True)
class Entry:
    """A picture of the history: where it is, and what made it of the one before."""

    path: str
    words: str


@dataclass
class EditPanel(Stoppable):
    """The panel "Edit". `build` lays it out; the other methods are events.

    Attributes:
        think: makes the `Ask` with which candidates are judged and results inspected, of the editor and a number of
            trajectories; None leaves both to the editor's own model.
    """

    editors: Editors
    samples: list[Sample] = field(default_factory=list)
    think: Callable[[EditPipeline, int], Ask] | None = None

    def build(self) -> None:
        """Add the panel's components and events to the surrounding `gr.Blocks`."""
        history = gr.State([])
        gr.Markdown(ABOUT, elem_classes="about")
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                picture = picture_input("edit-picture", "The picture to edit")
                picture_notice = gr.HTML(visible=False, padding=False)
                if self.samples:
                    gr.Markdown("Or take a sample, with its instruction:")
                gallery = sample_gallery([(sample.before, sample.family) for sample in self.samples], "edit-samples")
            with gr.Column(scale=6, min_width=320):
                instruction = gr.Textbox(
                    label="Instruction", lines=1, max_lines=6, placeholder="Make the red circle blue.",
                    elem_id="instruction",
                )  # fmt: skip
                with gr.Row():
                    edit_button = gr.Button("Edit", variant="primary", scale=2, min_width=120, elem_id="edit")
                    stop_button = gr.Button("Stop", interactive=False, scale=1, min_width=80, elem_id="edit-stop")
                    undo_button = gr.Button("Undo", interactive=False, scale=1, min_width=80, elem_id="undo")
                notice = gr.HTML(visible=False, padding=False)
                slider = gr.ImageSlider(
                    label="Before and after", format="png", max_height=340, interactive=False, buttons=["fullscreen"],
                    elem_id="before-after",
                )  # fmt: skip
                progress = gr.Markdown(elem_id="edit-progress")
                download = gr.DownloadButton("Download", interactive=False, elem_id="download")
                how = self._settings()
                past = gr.Gallery(
                    label="History: click a picture to go back to it", height=150, format="png", object_fit="contain",
                    allow_preview=False, buttons=[], interactive=False, visible=False, elem_id="history",
                )  # fmt: skip
        shown = [history, slider, past, download, undo_button]
        picture.upload(self.take_picture, [picture, history], [picture, picture_notice, *shown])
        picture.clear(self.clear_picture, None, [picture_notice, *shown])
        gallery.select(self.take_sample, None, [picture, instruction, picture_notice, *shown])
        past.select(self.go_back, history, [picture, *shown])
        undo_button.click(self.undo, history, [picture, *shown])
        gr.on([edit_button.click, instruction.submit], self.start, None, [edit_button, stop_button], queue=False).then(
            self.edit, [history, instruction, *how], [notice, progress, *shown], show_progress="hidden"
        ).then(self.finish, None, [edit_button, stop_button], queue=False)
        stop_button.click(self.stop, None, None, queue=False)

    def _settings(self) -> list[Any]:
        with gr.Accordion("Settings", open=False):
            name = gr.Textbox(MINI, label="Editor", info="mini, or the folder of a saved editor", elem_id="editor")
            strength = gr.Slider(0.1, 1, 1, step=0.05, label="Strength", info="1 repaints from nothing but noise")
            with gr.Row():
                seed = gr.Number(0, precision=0, minimum=0, label="Seed")
                seeds = gr.Slider(1, 8, 1, step=1, label="Candidates", info="the model keeps the best")
            plan = gr.Checkbox(label="Plan first: what must change, what must stay")
            reflect = gr.Checkbox(label="Inspect the result: accept it, try again, or leave the picture as it was")
        return [name, strength, seed, seeds, plan, reflect]

    # Pictures

    def take_picture(self, path: str | None, history: list[Entry]):
        """An uploaded or pasted file begins a new history; one that cannot be read leaves the earlier one there."""
        try:
            kept = cached(open_picture(path))
        except ValueError as error:
            # Only the file's own name: the folder is Gradio's, the reader never saw it.
            line = str(error).replace(f"{Path(path).parent}{os.sep}", "")
            return history[-1].path if history else None, warn(line), *show(history)
        return kept, quiet(), *show([Entry(kept, "as it came")])

    def clear_picture(self):
        return quiet(), *show([])

    def take_sample(self, chosen: gr.SelectData):
        """A sample becomes the picture, with its instruction."""
        sample = self.samples[chosen.index]
        path = cached(sample.before)
        return path, sample.instruction, quiet(), *show([Entry(path, "as it came")])

    def undo(self, history: list[Entry]):
        """Takes the last edit back."""
        kept = history[:-1] if len(history) > 1 else history
        return kept[-1].path if kept else None, *show(kept)

    def go_back(self, history: list[Entry], chosen: gr.SelectData):
        """Takes back all edits after the chosen picture."""
        kept = history[: chosen.index + 1]
        return kept[-1].path, *show(kept)

    # Edits

    def edit(
        self, history: list[Entry], instruction: str, name: str, strength: float, seed: int | None, seeds: int,
        plan: bool, reflect: bool, request: gr.Request,
    ) -> Iterator[tuple]:  # fmt: skip
        """Streams (notice, progress, what `show` gives): previews by step, then the picture in the history.

        A refusal leaves everything as it was.
        """
        unchanged = [gr.skip()] * 5
        stop = self.stopped(request)
        instruction = instruction.strip()
        try:
            if not history:
                raise EditError("There is no picture yet: upload or paste one, or take a sample.")
            if not instruction:
                raise EditError("There is no instruction yet: type one, then press Edit.")
            yield quiet(), "Loading the editor …", *unchanged
            pipeline = self.editors.get((name or MINI).strip())
            ask = self.think(pipeline, TRAJECTORIES) if self.think and (seeds > 1 or reflect) else None
            before = open_picture(history[-1].path)
            work = Work(pipeline, stop, lambda callback: think_and_edit(
                pipeline, before, instruction, planning=plan, reflections=3 if reflect else 0, seeds=int(seeds),
                seed=int(seed or 0), ask=ask, strength=strength, callback_on_step_end=callback,
                callback_on_step_end_tensor_inputs=("denoised",),
            ))  # fmt: skip
            yield quiet(), "Reading picture and instruction …", *unchanged
            for step, steps, preview in work.steps():
                shown = gr.skip() if preview is None else (history[-1].path, cached(preview.resize(before.size)))
                yield quiet(), f"Step {step} of {steps}", gr.skip(), shown, *unchanged[2:]
            thought = work.result()
        # ValueError is what PictureError, ModelError, EditError and ConditioningError are.
        except (ValueError, RuntimeError) as error:
            yield warn(str(error)), "", *unchanged
            return
        entry = Entry(cached(thought.image), instruction)
        yield quiet(), told(thought, stopped=stop.is_set()), *show([*history, entry])


class Work:
    """An edit on a thread of its own, so that its steps can be shown while it goes on."""

    def __init__(self, pipeline: EditPipeline, stop: threading.Event, edit: Callable[[Callable], Thought]):
        self._stop, self._edit = stop, edit
        self._news: queue.SimpleQueue = queue.SimpleQueue()
        self._thought: Thought | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="edit", daemon=True)

    def steps(self) -> Iterator[tuple[int, int, Image.Image | None]]:
        """(step, steps, preview or None) as they come, until the edit ends. Whoever leaves early ends it."""
        self._thread.start()
        try:
            while self._thread.is_alive() or not self._news.empty():
                try:
                    yield self._news.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    continue
        finally:
            if self._thread.is_alive():
                self._stop.set()
            self._thread.join()

    def result(self) -> Thought:
        """Raises what the edit raised."""
        if self._error is not None:
            raise self._error
        return self._thought

    def _run(self) -> None:
        try:
            self._thought = self._edit(self._take)
        except Exception as error:  # handed to whoever waits for the result
            self._error = error

    def _take(self, pipeline: EditPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        if self._stop.is_set():
            pipeline._interrupt = True
        steps = pipeline.num_timesteps
        every = -(-steps // PREVIEWS)
        preview = pipeline.preview(tensors["denoised"][:1])[0] if (step + 1) % every == 0 else None
        self._news.put((step + 1, steps, preview))
        return {}


def show(history: list[Entry]) -> tuple:
    """The history and what the components show of it: slider, gallery, download, undo."""
    edited = len(history) > 1
    pair = (history[-2].path, history[-1].path) if edited else None
    return (
        history,
        pair,
        gr.Gallery([(entry.path, entry.words) for entry in history], visible=edited),
        gr.DownloadButton(value=history[-1].path if edited else None, interactive=edited),
        gr.Button(interactive=edited),
    )


def told(thought: Thought, stopped: bool) -> str:
    """What the model thought of it, in Markdown; the model's own words as code, since they may be anything."""
    lines = ["Stopped: this is what the picture was becoming."] if stopped else []
    if thought.plan:
        lines.append(f"Plan: {_verbatim(thought.plan)}")
    for attempt in thought.attempts:
        if attempt.scores:
            pairs = zip(attempt.seeds, attempt.scores, strict=True)
            lines.append("Scores: " + ", ".join(f"seed {seed} {score:g}" for seed, score in pairs))
        if attempt.verdict:
            lines.append(f"{attempt.verdict.decision.capitalize()}: {_verbatim(attempt.verdict.words)}")
    return "\n\n".join(lines)


def _verbatim(words: str) -> str:
    line = " ".join(words.replace("`", "'").split())
    return f"`{line if len(line) <= 300 else line[:297] + '…'}`"
