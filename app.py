"""The demo: one page, a tab a panel. `python app.py --help` lists what can be set.

The page needs no internet: its fonts are the reader's own, and Gradio's telemetry is off.
"""

import os
import sys
import threading
from collections.abc import Iterable

# Read by Gradio and the hub client when they are imported, hence before them.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
import tyro

from edit.panel import CSS as EDIT_CSS
from edit.panel import Editors, EditPanel
from edit.pipeline import EditPipeline
from edit.thinking import Ask
from evaluation.panel import CSS as RESULTS_CSS
from evaluation.panel import ResultsPanel
from pacore.asking import ask_in_parallel
from pacore.panel import CSS as ASK_CSS
from pacore.panel import AskPanel
from pacore.tree import CSS as TREE_CSS
from training.world import FAMILIES, Sample, draw_sample
from training.world.edits import EDIT_FAMILIES, Edit, draw_edit
from vlm.answering import ModelError, load

MINI = "mini"
SAMPLE_SEED = 20

ABOUT_MINI = (
    "**mini** learned to see on two CPU cores, from drawn scenes alone: shapes, counts, sums, printed digits, charts, "
    "clocks and small mazes. On new pictures of these kinds it is right about six times in seven, on printed sums "
    "seven times in ten. It has never seen a photograph and cannot chat: outside its world it answers just as "
    "fluently, and wrongly."
)
ABOUT_OTHERS = "Each question stands alone: the model sees the picture and this question, not the earlier answers."
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
#about p, .about p { color: var(--neutral-500); font-size: var(--text-sm); line-height: 1.5; max-width: 110ch; }
.dark #about p, .about p { color: var(--neutral-400); }
.notice { margin: 0; padding: 0.6rem 0.8rem; border-radius: var(--radius-lg); overflow-wrap: anywhere;
  color: #7c2d12; background: #fff4e8; border: 1px solid #f2c9a1; }
.dark .notice { color: #fed7aa; background: #33211a; border-color: #7c4a2d; }
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


def think(pipeline: EditPipeline, trajectories: int) -> Ask:
    """The editor's own model, thinking in parallel: it judges candidates and inspects results."""
    return ask_in_parallel(pipeline.vision_language_model, pipeline.processor, trajectories)


def build(
    models: Models, model_name: str = MINI, samples: Iterable[Sample] = (), edits: Iterable[Edit] = ()
) -> gr.Blocks:
    """The page. The model is loaded at once, so that the first answer need not wait; raises `ModelError`."""
    models.get(model_name)
    with gr.Blocks(title="Triptych", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown("# Triptych", elem_id="title")
        ask = AskPanel(models, model_name, list(samples), others=[MINI])
        edit = EditPanel(Editors(), list(edits), think)
        with gr.Tabs():
            for name, panel in (("Ask", ask), ("Edit", edit), ("Results", ResultsPanel())):
                with gr.Tab(name, id=name):
                    panel.build()
        page.unload(ask.leave)
        page.unload(edit.leave)
    return page


def launch(page: gr.Blocks, host: str, port: int, **options) -> str:
    """Serve the page and return its address. Raises `OSError` when the port is taken."""
    css = CSS + ASK_CSS + TREE_CSS + EDIT_CSS + RESULTS_CSS
    # Without Gradio's own look at the page (`_frontend`), which waits 3 seconds and then takes a slow machine for one
    # that cannot be reached; its first request, for the startup events, has been answered by then.
    _, address, _ = page.launch(
        server_name=host, server_port=port, theme=THEME, css=css, footer_links=[], quiet=True, ssr_mode=False,
        show_error=True, max_file_size="100mb", _frontend=False, **options,
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
        edits = [draw_edit(SAMPLE_SEED, family=family, language="en") for family in EDIT_FAMILIES]
        page = build(models, model, samples, edits)
        address = launch(page, host, port, prevent_thread_lock=True)
    except ModelError as error:
        sys.exit(f"triptych: {error}")
    except OSError:
        sys.exit(f"triptych: port {port} of {host} cannot be used, it may be taken: choose another with --port")
    print(f"Triptych is at {address} (Ctrl-C stops it)", flush=True)
    page.block_thread()


if __name__ == "__main__":
    tyro.cli(main)
