"""The panel Results: its events called directly, on run folders written here."""

import html
from pathlib import Path

import gradio as gr
import pytest
from sample_runs import sampled, single

from evaluation.panel import ResultsPanel


@pytest.fixture
def panel(tmp_path, monkeypatch) -> ResultsPanel:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return ResultsPanel(tmp_path / "runs")


def last(panel: ResultsPanel, *folders) -> tuple:
    return list(panel.open([str(folder) for folder in folders]))[-1]


def line(update) -> str:
    """The notice of an update; empty when the update hides it."""
    return update.value if update.visible else ""


def test_a_run_opens_as_the_page_that_can_be_downloaded(panel, tmp_path):
    (tmp_path / "runs").mkdir()
    folder = single(tmp_path / "runs" / "one")
    assert panel.found() == [str(folder)]
    notice, framed, download = last(panel, folder)
    page = Path(download.value["path"]).read_text(encoding="utf-8")
    assert not line(notice) and "<!doctype html>" in page
    # A document that runs its own script and reaches nothing of ours.
    assert 'sandbox="allow-scripts"' in framed and framed.count("<") == 2
    assert html.unescape(framed.partition('srcdoc="')[2].partition('"></iframe>')[0]) == page


def test_runs_of_a_benchmark_are_opened_together(panel, tmp_path):
    _, framed, _ = last(panel, single(tmp_path / "one"), sampled(tmp_path / "many"))
    assert "one" in framed and "many" in framed


def test_a_run_that_begins_later_is_found(panel, tmp_path):
    assert panel.refresh().choices == []
    panel.folder.mkdir()
    single(panel.folder / "later")
    assert [name for name, _ in panel.refresh().choices] == [str(tmp_path / "runs" / "later")]


@pytest.mark.parametrize(
    ("folders", "words"), [((), "python -m evaluation run"), (("/nowhere",), "is no run"), ((" ",), "no run in")]
)
def test_what_cannot_be_opened_is_one_line_and_leaves_the_report(panel, folders, words):
    notice, framed, download = last(panel, *folders)
    assert words in line(notice) and framed == download == gr.skip()
