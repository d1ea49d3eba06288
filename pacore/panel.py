"""The demo's panel "Ask": a picture, a question, a streamed answer, and the tree of its rounds where it has some."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import gradio as gr
from PIL import Image

from pacore.agreement import Adaptive
from pacore.backends import BackendError
from pacore.coordination import PacoreError
from pacore.local_backend import LocalBackend
from pacore.panel_answers import coordinated_answer, one_answer
from pacore.plan import BUDGETS, Plan, parse_rounds
from pacore.tree import KEEP_OPEN
from vlm.answering import ModelError
from vlm.page import Stoppable, cached, drawn_picture, picture_input, quiet, sample_gallery, warn
from vlm.pictures import PictureError, open_picture
from vlm.rollout import Rollout

OFF = "off"

ABOUT_PARALLEL = (
    "The trajectories of a round work alone, the next round reads their conclusions, the last one answers. Rounds of "
    "your own can be typed in place of a name, such as `16,4`.\n\n"
    "**mini** is not trained to synthesise yet: look at what its trajectories agree on, not at its last word."
)
CSS = """
#picture img { width: 100%; height: 100%; object-fit: contain; }
#samples .grid-container { grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); padding-top: 0; }
#samples .caption-label { font-size: 10px; line-height: 1; padding: 3px 5px; max-width: 100%; }
#parallel { display: flex; align-items: center; gap: 0.6rem; padding-left: 0.75rem; overflow: visible; }
#parallel::before { content: "Parallel reasoning"; flex: none; font-size: var(--text-sm); }
#parallel > * { flex: 1; min-width: 0; }
#answers img { max-height: 120px; width: auto; border-radius: var(--radius-md); }
#answers .message-buttons, #answers .image-container .icon-button-wrapper { display: none; }
#answers pre.reasoning { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: var(--text-sm);
  font-family: var(--font-mono); background: none; border: 0; padding: 0; }
"""
BRUSHES = ["#d62728", "#ff9f1c", "#f2d024", "#2ca02c", "#1f6fd6", "#8e44ad", "#111111"]
WHITE = Image.new("RGB", (512, 512), "white")  # a sheet to draw on; without one Gradio's brush is not picked up


class Models(Protocol):
    """The models the panel may ask, by name."""

    def get(self, name: str) -> tuple[Any, Any]:
        """(model, processor). Raises `ModelError`."""
        ...

    def about(self, name: str) -> str:
        """What can be expected of it, in one paragraph of Markdown. Raises `ModelError`."""
        ...


class Sample(Protocol):
    """A picture to try, with a question whose answer is known."""

    picture: Image.Image
    family: str
    prompt: str
    answer: str


@dataclass
class AskPanel(Stoppable):
    """The panel "Ask": a picture, a question, a streamed answer. `build` lays it out; the other methods are events."""

    models: Models
    model_name: str
    samples: list[Sample] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # models to pick besides the first

    def build(self) -> None:
        """Add the panel's components and events to the surrounding `gr.Blocks`."""
        kept, truth, drawing_chosen = gr.State(), gr.State(), gr.State(False)
        loaded_name = gr.State(self.model_name)
        about = gr.Markdown(self.models.about(self.model_name), elem_id="about")
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                with gr.Tabs() as ways:
                    with gr.Tab("Picture", id="picture") as picture_tab:
                        picture = picture_input("picture", "The picture to ask about")
                    with gr.Tab("Draw", id="draw") as draw_tab:
                        drawing = gr.Sketchpad(
                            WHITE, type="pil", canvas_size=WHITE.size, height=380, show_label=False, buttons=[],
                            layers=False, transforms=(), elem_id="drawing",
                            brush=gr.Brush(default_size=16, colors=BRUSHES, color_mode="fixed"),
                        )  # fmt: skip
                picture_notice = gr.HTML(visible=False, padding=False)
                if self.samples:
                    gr.Markdown("Or take a sample, with its question:")
                gallery = sample_gallery([(sample.picture, sample.family) for sample in self.samples], "samples")
            with gr.Column(scale=6, min_width=320):
                question = gr.Textbox(
                    label="Question", lines=1, max_lines=8, placeholder="How many red circles are there?",
                    elem_id="question",
                )  # fmt: skip
                with gr.Row():
                    rounds = rounds_choice()
                    ask_button = gr.Button("Ask", variant="primary", scale=2, min_width=120, elem_id="ask")
                    stop_button = gr.Button("Stop", interactive=False, scale=1, min_width=80, elem_id="stop")
                notice = gr.HTML(visible=False, padding=False)
                how = parallel_settings()
                answers = gr.Chatbot(
                    show_label=False, height=340, buttons=[], feedback_options=None, elem_id="answers",
                    placeholder="The answer appears here, its reasoning folded above it.",
                )  # fmt: skip
                tree = gr.HTML(padding=False, apply_default_css=False, js_on_load=KEEP_OPEN, elem_id="tree")
                names = list(dict.fromkeys([self.model_name, *self.others]))
                model_picker = gr.Dropdown(
                    names, value=self.model_name, allow_custom_value=True, label="Model",
                    info="mini, a directory with a checkpoint, or a hub id", elem_id="model",
                )  # fmt: skip

        picture.upload(self.take_picture, [picture, kept], [picture, kept, truth, picture_notice])
        picture.clear(self.clear_picture, None, [kept, truth, picture_notice])
        drawing.clear(self.clear_drawing, None, drawing)
        picture_tab.select(self.choose_picture, None, drawing_chosen)
        draw_tab.select(self.choose_drawing, None, drawing_chosen)
        gallery.select(self.take_sample, None, [picture, kept, truth, question, ways, drawing_chosen, picture_notice])
        model_picker.input(self.choose_model, [model_picker, loaded_name], [model_picker, loaded_name, about, notice])
        gr.on([ask_button.click, question.submit], self.start, None, [ask_button, stop_button], queue=False).then(
            self.ask,
            [kept, drawing, drawing_chosen, question, truth, loaded_name, answers, rounds, *how],
            [answers, notice, tree],
            show_progress_on=answers,
        ).then(self.finish, None, [ask_button, stop_button], queue=False)
        stop_button.click(self.stop, None, None, queue=False)

    # Pictures

    def take_picture(self, path: str | None, kept: str | None):
        """An uploaded or pasted file becomes the picture; one that cannot be read leaves the earlier picture there."""
        try:
            kept = cached(open_picture(path))
        except PictureError as error:
            # Only the file's own name: the folder is Gradio's, the reader never saw it.
            return kept, kept, gr.skip(), warn(str(error).replace(f"{Path(path).parent}{os.sep}", ""))
        return kept, kept, None, quiet()

    def clear_picture(self):
        return None, None, quiet()

    def clear_drawing(self) -> Image.Image:
        return WHITE

    def choose_picture(self) -> bool:
        return False

    def choose_drawing(self) -> bool:
        return True

    def take_sample(self, chosen: gr.SelectData):
        """A sample becomes the picture, with its question."""
        sample = self.samples[chosen.index]
        path = cached(sample.picture)
        truth = (sample.prompt, sample.answer)
        return path, path, truth, sample.prompt, gr.Tabs(selected="picture"), False, quiet()

    # Answers

    async def ask(
        self,
        kept: str | None,
        drawing: dict | None,
        drawing_chosen: bool,
        question: str,
        truth: tuple[str, str] | None,
        model_name: str,
        answers: list[dict],
        rounds: str | None,
        views: bool,
        adaptive: bool,
        quorum: float,
        seed: int | None,
        request: gr.Request,
    ) -> AsyncIterator[tuple[list[dict], dict, str]]:
        """Streams the answers with a new one at their end, and its tree; a refusal leaves the answers as they were."""
        question, before = question.strip(), answers
        try:
            plan = parallel_plan(rounds, views, adaptive, quorum, seed)
            path = drawn_picture(drawing) if drawing_chosen else kept
            if path is None:
                raise PictureError("There is no picture yet: upload, paste or draw one, or take a sample.")
            if not question:
                raise ValueError("There is no question yet: type one, then press Ask.")
            picture = await asyncio.to_thread(open_picture, path)
            model, processor = await asyncio.to_thread(self.models.get, model_name)

            answers = [*answers, {"role": "user", "content": [{"path": path, "alt_text": "The picture"}, question]}]
            yield answers, quiet(), ""
            content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
            conversation = [{"role": "user", "content": content}]
            stop = self.stopped(request)
            if plan is None:
                replies = one_answer(model, processor, conversation, stop)
            else:
                backend = LocalBackend(Rollout(model, processor), model_name)
                replies = coordinated_answer(backend, conversation, plan, stop)
            async with aclosing(replies):
                async for messages, tree in replies:
                    yield [*answers, *messages], quiet(), tree
            answers = [*answers, *messages]
            if truth and not drawing_chosen and question == truth[0]:
                answers.append({"role": "assistant", "content": f"*The scene itself says: {truth[1]}*"})
            yield answers, quiet(), tree
        # ValueError is what PictureError, ModelError and PlanError are, and a prompt too long for the model.
        except (ValueError, PacoreError, BackendError) as error:
            yield before, warn(str(error)), gr.skip()

    # Models

    def choose_model(self, name: str | None, current: str) -> Iterator[tuple]:
        """Loads a model; one that cannot be loaded leaves the earlier one in use."""
        name = (name or "").strip()
        try:
            if not name:
                raise ModelError(f"No model was named: type mini, a directory or a hub id. Still using {current}.")
            yield name, current, f"Loading `{name}` …", quiet()
            yield name, name, self.models.about(name), quiet()
        except ModelError as error:
            yield current, current, self.models.about(current), warn(str(error))


def rounds_choice() -> gr.Dropdown:
    """Off, a budget by name, or rounds as they are typed."""
    named = [(f"{name}: {','.join(map(str, widths))}", name) for name, widths in BUDGETS.items() if widths]
    return gr.Dropdown(
        [OFF, *named], value=OFF, allow_custom_value=True, container=False, scale=4, min_width=280,
        label="Parallel reasoning", elem_id="parallel",
    )  # fmt: skip


def parallel_settings() -> list[gr.components.Component]:
    """Views, adaptive breadth, quorum and seed, folded away."""
    with gr.Accordion("How parallel reasoning is done", open=False, elem_id="parallel-how"):
        gr.Markdown(ABOUT_PARALLEL)
        return [
            gr.Checkbox(label="Each trajectory sees its own crop, scale and contrast of the picture"),
            gr.Checkbox(label="Begin a round with four, widen it only while their answers differ"),
            gr.Slider(10, 100, 100, step=5, label="Go on when this share of a round is in, in percent"),
            gr.Number(0, precision=0, label="Seed"),
        ]


def parallel_plan(rounds: str | None, views: bool, adaptive: bool, quorum: float, seed: int | None) -> Plan | None:
    """What the reader chose, `quorum` in percent; None for a single answer. Raises `PlanError`."""
    rounds = (rounds or OFF).strip().lower()
    if rounds == OFF:
        return None
    share = None if quorum in (None, 100) else quorum / 100
    widening = Adaptive() if adaptive else None
    return Plan(parse_rounds(rounds), quorum=share, adaptive=widening, views=views, seed=seed or 0)
