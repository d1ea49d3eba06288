"""What the demo's panels have in common: a picture input, a notice, pictures that the page may show. Needs Gradio."""

import html
import threading
from dataclasses import dataclass, field

import gradio as gr
from gradio.processing_utils import save_pil_to_cache
from gradio.utils import get_upload_folder
from PIL import Image

from vlm.pictures import open_picture


def picture_input(name: str, alt_text: str) -> gr.Image:
    """A picture input that hands over the uploaded file's path, unread.

    Gradio's own decoding would fail on a broken file before any handler runs; `open_picture` reads more kinds of file
    and says in one line what is wrong with the others.

    Args:
        name: the component's, for style sheets and tests.
    """
    picture = gr.Image(
        sources=["upload", "clipboard"], format="png", height=300, show_label=False, buttons=[], elem_id=name,
        placeholder="Drop a picture here\nor click to choose one", alt_text=alt_text,
    )  # fmt: skip
    # On the instance, since Gradio writes a .pyi file beside the source of every subclass of its components.
    picture.preprocess = lambda payload: payload.path if payload else None
    return picture


def sample_gallery(samples: list[tuple[Image.Image, str]], name: str) -> gr.Gallery:
    """Pictures to try, each over the name of its family; `name` is the component's."""
    return gr.Gallery(
        [(picture, family.replace("_", " ")) for picture, family in samples],
        show_label=False, height=232, format="png", object_fit="contain", allow_preview=False, buttons=[],
        interactive=False, visible=bool(samples), elem_id=name,
    )  # fmt: skip


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


@dataclass
class Stoppable:
    """A panel with a button that starts work and one that stops it; its methods are events.

    Attributes:
        stops: by browser session, what is set once its work is to end.
    """

    stops: dict[str, threading.Event] = field(default_factory=dict, kw_only=True)

    def stopped(self, request: gr.Request) -> threading.Event:
        """This session's entry of `stops`."""
        return self.stops.setdefault(request.session_hash, threading.Event())

    def start(self, request: gr.Request) -> tuple[gr.Button, gr.Button]:
        """Updates of the two buttons."""
        self.stops[request.session_hash] = threading.Event()
        return gr.Button(interactive=False), gr.Button(interactive=True)

    def finish(self, request: gr.Request) -> tuple[gr.Button, gr.Button]:
        """Updates of the two buttons."""
        self.stops.pop(request.session_hash, None)
        return gr.Button(interactive=True), gr.Button(interactive=False)

    def stop(self, request: gr.Request) -> None:
        """Ends the work; what there is of it stays."""
        if request.session_hash in self.stops:
            self.stops[request.session_hash].set()

    def leave(self, request: gr.Request) -> None:
        """Nobody reads on: the machine is not kept busy for a closed window."""
        self.stop(request)
        self.stops.pop(request.session_hash, None)
