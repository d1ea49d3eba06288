"""The demo's panel "Results": runs of `python -m evaluation run` as the page that `report --html` writes."""

import hashlib
import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder

from evaluation.benchmark import BenchmarkError
from evaluation.page import page_html
from evaluation.report import read_report
from evaluation.runs import RunError
from vlm.page import quiet, warn

RUNS = Path("runs/evaluation")  # where `run` puts them

ABOUT = (
    "A run is what `python -m evaluation run BENCHMARK` writes. Open one, also while it is still at work, or several "
    "of the same benchmark to compare them: the report has their figures with intervals and every answer."
)
NONE_YET = "There is no run in {folder} yet: `python -m evaluation run world --limit 50` makes one in a few minutes."
CSS = """
#report iframe { width: 100%; height: 82vh; border: 1px solid var(--border-color-primary);
  border-radius: var(--radius-lg); background: white; }
"""


@dataclass
class ResultsPanel:
    """The panel "Results". `build` lays it out; the other methods are events."""

    folder: Path = RUNS

    def build(self) -> None:
        """Add the panel's components and events to the surrounding `gr.Blocks`."""
        gr.Markdown(ABOUT, elem_classes="about")
        with gr.Row():
            runs = gr.Dropdown(
                self.found(), multiselect=True, allow_custom_value=True, label="Runs", scale=6, min_width=280,
                info="of the list, or the path of another run's folder", elem_id="runs",
            )  # fmt: skip
            open_button = gr.Button("Open", variant="primary", scale=1, min_width=120, elem_id="open-report")
            download = gr.DownloadButton("Download", interactive=False, scale=1, min_width=120, elem_id="save-report")
        notice = gr.HTML(visible=False, padding=False)
        report = gr.HTML(padding=False, apply_default_css=False, elem_id="report")
        runs.focus(self.refresh, None, runs)
        open_button.click(self.open, runs, [notice, report, download])

    def found(self) -> list[str]:
        """The runs of the folder, the latest first."""
        heads = self.folder.glob("*/run.json") if self.folder.is_dir() else ()
        return [str(head.parent) for head in sorted(heads, key=lambda head: -head.stat().st_mtime)]

    def refresh(self):
        """A run that has begun since the page was opened is in the list too."""
        return gr.Dropdown(choices=self.found())

    def open(self, folders: list[str] | None) -> Iterator[tuple]:
        """The report of these runs; what cannot be opened leaves an earlier report there."""
        chosen = [Path(folder.strip()).expanduser() for folder in folders or [] if folder.strip()]
        try:
            if not chosen:
                waiting = "Choose a run first." if self.found() else NONE_YET.format(folder=self.folder)
                raise RunError(waiting.replace("`", "'"))
            yield quiet(), gr.skip(), gr.skip()
            page = page_html(read_report(chosen))
        except (RunError, BenchmarkError) as error:
            yield warn(str(error)), gr.skip(), gr.skip()
            return
        path = Path(get_upload_folder()) / hashlib.sha256(page.encode()).hexdigest()[:16] / "report.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
        # A document of its own origin: nothing that a model wrote can reach this page, whatever it is.
        framed = f'<iframe title="Report" sandbox="allow-scripts" srcdoc="{html.escape(page)}"></iframe>'
        yield quiet(), framed, gr.DownloadButton(value=str(path), interactive=True)
