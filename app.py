"""The demo: one page, a tab a panel. `python app.py --help` lists what can be set.

The page needs no internet: its fonts are the reader's own, and Gradio's telemetry is off.
"""

import asyncio
import html
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

# Read by Gradio and the hub client when they are imported, hence before them.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
import tyro
from gradio.processing_utils import save_pil_to_cache
from gradio.utils import get_upload_folder
from PIL import Image
from starlette.concurrency import iterate_in_threadpool

from pacore import Adaptive, BackendError, Event, PacoreError, Plan, parse_rounds
from pacore.following import follow
from pacore.local_backend import LocalBackend
from pacore.plan import BUDGETS
from pacore.tree import CSS as TREE_CSS
from pacore.tree import KEEP_OPEN, answer_so_far, headline, tree_html
from training.world import FAMILIES, Sample, draw_sample
from vlm.answering import ModelError, load, stream_answer
from vlm.pictures import PictureError, open_picture
from vlm.reasoning import split_reasoning
from vlm.rollout import Rollout

MINI = "mini"
MAX_NEW_TOKENS = 1024
SAMPLE_SEED = 20
REFRESH_SECONDS = 0.05  # each refresh sends a message to the browser: faster than this costs more than it shows
TREE_SECONDS = 0.3
TREE_CHARACTERS = 1_000_000  # a second at most: the tree of a hundred long trajectories is redrawn less often
OFF = "off"

ABOUT_MINI = (
    "**mini** learned to see on two CPU cores, from drawn scenes alone: shapes, counts, sums, printed digits, charts, "
    "clocks and small mazes. On new pictures of these kinds it is right about every other time. It "
    "has never seen a photograph and cannot chat: outside its world it answers just as fluently, and wrongly."
)
ABOUT_OTHERS = "Each question stands alone: the model sees the picture and this question, not the earlier answers."
ABOUT_PARALLEL = (
    "The trajectories of a round work alone, the next round reads their conclusions, the last one answers. Rounds of "
    "your own can be typed in place of a name, such as `16,4`.\n\n"
    "**mini** is not trained to synthesise yet: look at what its trajectories agree on, not at its last word."
)
BRUSHES = ["#d62728", "#ff9f1c", "#f2d024", "#2ca02c", "#1f6fd6", "#8e44ad", "#111111"]
WHITE = Image.new("RGB", (512, 512), "white")  # a sheet to draw on; without one Gradio's brush is not picked up

THEME = gr.themes.Base(
    primary_hue="teal",
    neutral_hue="slate",
    radius_size="lg",
    font=[gr.themes.Font("sans-serif")],
    font_mono=[gr.themes.Font("monospace")],
)
# `system-ui` is a keyword that Gradio's theme would put in quotes, which browsers read as the name of a font.
CSS = """
:root, .dark { --font: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
.gradio-container { width: 100%; max-width: 1180px !important; margin: 0 auto !important; }
#title h1 { margin-bottom: 0; font-weight: 650; letter-spacing: -0.02em; }
#about p { color: var(--neutral-500); font-size: var(--text-sm); line-height: 1.5; max-width: 110ch; }
.dark #about p { color: var(--neutral-400); }
.notice { margin: 0; padding: 0.6rem 0.8rem; border-radius: var(--radius-lg); overflow-wrap: anywhere;
  color: #7c2d12; background: #fff4e8; border: 1px solid #f2c9a1; }
.dark .notice { color: #fed7aa; background: #33211a; border-color: #7c4a2d; }
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


class Models:
    """The model in memory: one at a time, since a second large one may not fit."""

    def __init__(self):
        self._lock = threading.Lock()
        self._name, self._loaded = None, None

    def get(self, name: str):
        """(model, processor) of "mini", a directory or a hub id. Raises `ModelError`; the earlier model then stays."""
        with self._lock:
            if name != self._name:
                self._loaded = load(name)
                self._name = name
            return self._loaded

    def about(self, name: str) -> str:
        """What can be expected of the model, in one paragraph of Markdown."""
        if name == MINI:
            return ABOUT_MINI
        model, _ = self.get(name)
        millions = sum(weight.numel() for weight in model.parameters()) / 1e6
        return f"`{name}`: {millions:,.1f} million parameters, on {model.device.type}. {ABOUT_OTHERS}"


@dataclass
class AskPanel:
    """The panel "Ask": a picture, a question, a streamed answer. `build` lays it out; the other methods are events."""

    models: Models
    model_name: str = MINI
    samples: list[Sample] = field(default_factory=list)
    stops: dict[str, threading.Event] = field(default_factory=dict)  # by browser session

    def build(self) -> None:
        """Add the panel's components and events to the surrounding `gr.Blocks`."""
        kept, truth, drawing_chosen = gr.State(), gr.State(), gr.State(False)
        loaded_name = gr.State(self.model_name)
        about = gr.Markdown(self.models.about(self.model_name), elem_id="about")
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                with gr.Tabs() as ways:
                    with gr.Tab("Picture", id="picture") as picture_tab:
                        picture = picture_input()
                    with gr.Tab("Draw", id="draw") as draw_tab:
                        drawing = gr.Sketchpad(
                            WHITE, type="pil", canvas_size=WHITE.size, height=380, show_label=False, buttons=[],
                            layers=False, transforms=(), elem_id="drawing",
                            brush=gr.Brush(default_size=16, colors=BRUSHES, color_mode="fixed"),
                        )  # fmt: skip
                picture_notice = gr.HTML(visible=False, padding=False)
                if self.samples:
                    gr.Markdown("Or take a sample, with its question:")
                gallery = gr.Gallery(
                    [(sample.picture, sample.family.replace("_", " ")) for sample in self.samples],
                    show_label=False, height=232, format="png", object_fit="contain", allow_preview=False, buttons=[],
                    interactive=False, visible=bool(self.samples), elem_id="samples",
                )  # fmt: skip
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
                model_picker = gr.Dropdown(
                    list(dict.fromkeys([self.model_name, MINI])), value=self.model_name, allow_custom_value=True,
                    label="Model", info="mini, a directory with a checkpoint, or a hub id", elem_id="model",
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

    def start(self, request: gr.Request):
        self.stops[request.session_hash] = threading.Event()
        return gr.Button(interactive=False), gr.Button(interactive=True)

    def finish(self, request: gr.Request):
        self.stops.pop(request.session_hash, None)
        return gr.Button(interactive=True), gr.Button(interactive=False)

    def stop(self, request: gr.Request) -> None:
        """Ends the answer that is being written; what was written stays."""
        if request.session_hash in self.stops:
            self.stops[request.session_hash].set()

    def leave(self, request: gr.Request) -> None:
        """Nobody reads on: the machine is not kept busy for a closed window."""
        self.stop(request)
        self.stops.pop(request.session_hash, None)

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
            stop = self.stops.setdefault(request.session_hash, threading.Event())
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


def picture_input() -> gr.Image:
    """A picture input that hands over the uploaded file's path, unread.

    Gradio's own decoding would fail on a broken file before any handler runs; `open_picture` reads more kinds of file
    and says in one line what is wrong with the others.
    """
    picture = gr.Image(
        sources=["upload", "clipboard"], format="png", height=300, show_label=False, buttons=[], elem_id="picture",
        placeholder="Drop a picture here\nor click to choose one", alt_text="The picture to ask about",
    )  # fmt: skip
    # On the instance, since Gradio writes a .pyi file beside the source of every subclass of its components.
    picture.preprocess = lambda payload: payload.path if payload else None
    return picture


def warn(line: str) -> dict:
    """An update that shows one line where the reader looks, for screen readers too."""
    return gr.HTML(f'<p class="notice" role="alert">{html.escape(line)}</p>', visible=True)


def quiet() -> dict:
    """An update that takes an earlier line away."""
    return gr.HTML("", visible=False)


def cached(picture) -> str:
    """Path of the PIL picture as a lossless file that the page may show."""
    return save_pil_to_cache(picture, get_upload_folder(), name="picture", format="png")


def drawn_picture(drawing: dict | None) -> str | None:
    """Path of the sketch on white, or None while nothing is drawn."""
    layers = drawing["layers"] if drawing else []
    if all(layer.getbbox() is None for layer in layers):
        return None
    return cached(open_picture(drawing["composite"]))


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


async def one_answer(model, processor, conversation: list[dict], stop: threading.Event) -> AsyncIterator[tuple]:
    """Streams (chat messages, no tree) of one greedy answer."""
    pieces = stream_answer(model, processor, conversation, max_new_tokens=MAX_NEW_TOKENS, stop=stop)
    async for text in iterate_in_threadpool(growing(pieces, REFRESH_SECONDS)):
        yield answer_messages(*split_reasoning(text), finished=False), ""
    yield answer_messages(*split_reasoning(text), finished=True, stopped=stop.is_set()), ""


async def coordinated_answer(
    backend: LocalBackend, conversation: list[dict], plan: Plan, stop: threading.Event
) -> AsyncIterator[tuple[list[dict], str]]:
    """Streams (chat messages, tree) of a coordinated run; closes the backend, so that nothing works on behind it."""
    started, tree = time.monotonic(), ""
    try:
        run = follow(backend, conversation, plan, stop, lambda: TREE_SECONDS + len(tree) / TREE_CHARACTERS)
        async with aclosing(run):
            async for events, over in run:
                tree = tree_html(events, plan.rounds, time.monotonic() - started, over)
                yield coordinated_messages(events, plan, over, stop.is_set()), tree
    finally:
        await backend.close()


def growing(pieces: Iterable[str], seconds: float) -> Iterator[str]:
    """The text so far, at most once every `seconds`, and once at its end."""
    text, shown_at = "", time.monotonic()
    for piece in pieces:
        text += piece
        if time.monotonic() - shown_at >= seconds:
            yield text
            shown_at = time.monotonic()
    yield text


def reasoning_message(text: str, pending: bool, title: str = "Reasoning") -> dict:
    """A chat message open while `pending`, then folded; verbatim, since a maze of `#` and `-` is not Markdown."""
    metadata = {"title": title, "status": "pending" if pending else "done"}
    content = f'<pre class="reasoning">{html.escape(text, quote=False)}</pre>'
    return {"role": "assistant", "content": content, "metadata": metadata}


def answer_messages(reasoning: str, answer: str, finished: bool, stopped: bool = False) -> list[dict]:
    """Chat messages of a model's words, whole or partial: its reasoning, folded once the answer begins; its answer."""
    messages = []
    if reasoning:
        messages.append(reasoning_message(reasoning, pending=not (answer or finished)))
    if finished and stopped:
        answer = f"{answer}\n\n*Stopped.*"
    elif finished and not answer.strip():
        answer = "*No answer came; the limit of tokens includes the reasoning.*"
    if answer:
        messages.append({"role": "assistant", "content": answer})
    return messages


def coordinated_messages(events: list[Event], plan: Plan, over: bool, stopped: bool) -> list[dict]:
    """Chat messages of a run: where it is, then its final round's words; none of one that failed."""
    reasoning, answer = answer_so_far(events)
    if over and not stopped and not any(event.kind == "outcome" for event in events):
        return []
    if over or reasoning or answer:
        return answer_messages(reasoning, answer, finished=over, stopped=stopped)
    return [reasoning_message("", pending=True, title=headline(events, plan.rounds))]


def build(models: Models, model_name: str = MINI, samples: Iterable[Sample] = ()) -> gr.Blocks:
    """The page. The model is loaded at once, so that the first answer need not wait; raises `ModelError`."""
    models.get(model_name)
    with gr.Blocks(title="Triptych", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown("# Triptych", elem_id="title")
        with gr.Tabs(), gr.Tab("Ask"):
            panel = AskPanel(models, model_name, list(samples))
            panel.build()
        page.unload(panel.leave)
    return page


def launch(page: gr.Blocks, host: str, port: int, **options) -> str:
    """Serve the page and return its address. Raises `OSError` when the port is taken."""
    _, address, _ = page.launch(
        server_name=host, server_port=port, theme=THEME, css=CSS + TREE_CSS, footer_links=[], quiet=True,
        ssr_mode=False, show_error=True, max_file_size="100mb", **options,
    )  # fmt: skip
    return address


def main(host: str = "127.0.0.1", port: int = 7860, model: str = MINI) -> None:
    """Serve the Triptych demo.

    Args:
        host: address to listen on; 0.0.0.0 lets other machines in.
        port: port to listen on.
        model: mini (shipped with the repository), a directory with a checkpoint, or a hub id.
    """
    try:
        models = Models()
        samples = [draw_sample(SAMPLE_SEED, family=family) for family in FAMILIES]
        page = build(models, model, samples)
        address = launch(page, host, port, prevent_thread_lock=True)
    except ModelError as error:
        sys.exit(f"triptych: {error}")
    except OSError:
        sys.exit(f"triptych: port {port} of {host} cannot be used, it may be taken: choose another with --port")
    print(f"Triptych is at {address} (Ctrl-C stops it)", flush=True)
    page.block_thread()


if __name__ == "__main__":
    tyro.cli(main)
