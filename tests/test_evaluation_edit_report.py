"""Judged edits in a report: figures as the judging had them, a paired comparison of editors, every picture and word."""

import json
import sys

import pytest
from sample_runs import edited, single

from evaluation import __main__ as command
from evaluation.edit_report import holds_edits, read_edits
from evaluation.page import page_html
from evaluation.report import read_report
from evaluation.runs import RunError
from evaluation.tables import as_markdown


def test_a_judged_folder_is_a_run_whose_scores_are_fractions(tmp_path):
    folder = edited(tmp_path / "ours")
    run, judged, summary = read_edits(folder)
    assert holds_edits(folder) and judged.title == "GEdit-Bench" and run.settings.model == "ours"
    assert [answer.score for answer in run.answers] == [0.6, 0.6, None]
    assert run.answers[2].error == "the judge is on fire"
    assert run.answers[0].parsed == "SC 9, PQ 4, O 6" and run.answers[0].words["quality"] == "A smear."
    before, asked = run.questions[0].conversation[0]["content"]
    assert before["image"].endswith("aa_SRCIMG.png") and asked["text"] == "Paint the scarf aa."
    assert summary["score"]["value"] == 0.6 and summary["failed"]["count"] == summary["missing"]["count"] == 1
    assert summary["official"]["en"]["fullset"]["G_O"] == 6.0 and summary["how"] == "judged by critic"


def test_two_editors_are_compared_by_a_paired_test_and_in_their_own_figures(tmp_path):
    report = read_report([edited(tmp_path / "ours"), edited(tmp_path / "theirs", "green", 1.0)])
    (pair,) = report.comparisons[0]["pairs"]
    assert pair["n"] == 2 and pair["before"] == 0.6 and pair["after"] == 0.2 and len(pair["flips"]["lost"]) == 2
    said = as_markdown(*report.tables())
    assert "| en, fullset, 1 of 11 | 9.000 | 4.000 | 6.000 | 2 |" in said and "okens" not in said
    assert "ours: Not judged, and in no figure: 1, fullset/color_alter/en/cc." in said
    assert "theirs: Not there, and in no figure: 1, fullset/color_alter/en/dd." in said


def test_the_page_holds_every_picture_once_and_the_judges_words(tmp_path):
    page = page_html(read_report([edited(tmp_path / "ours"), edited(tmp_path / "theirs", "green", 1.0)]))
    parts = [page.split(f'id="{name}">')[1].split("</script>")[0] for name in ("index", "rows", "pictures")]
    index, rows, pictures = parts
    index, rows = json.loads(index), [json.loads(row) for row in rows.strip().split("\n")]
    # Three before, which both folders have alike; of the results the first is the same in both.
    assert len(pictures.split()) == len(index["pictures"]) == 3 + 1 + 2 and index["noun"] == "edits"
    assert index["asked"][0] == "Paint the scarf aa."
    row = rows[0]
    ours, theirs = (run["answers"][0] for run in row["runs"])
    assert len(row["asked"]) == 1 and ours["picture"] == theirs["picture"] != row["asked"][0][0]["content"][0]["image"]
    assert ours["scores"]["followed"] == 9.0 and theirs["words"]["consistency"] == "The scarf is red now."
    assert rows[2]["runs"][0]["answers"][0]["error"] == "the judge is on fire"
    assert "Cost" not in page.split("<script")[0].split("</style>")[1]


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments)])
    code = command.main()
    return code, *capsys.readouterr()


def test_the_command_writes_the_page(monkeypatch, capsys, tmp_path):
    out = tmp_path / "page.html"
    code, said, _ = run(monkeypatch, capsys, "report", edited(tmp_path / "ours"), "--html", out, "--json")
    assert code == 0 and json.loads(said.strip().splitlines()[-1])["missing"]["count"] == 1
    assert "GEdit-Bench, train" in said and out.stat().st_size > 10_000


def test_what_cannot_be_shown_is_one_clear_line(monkeypatch, capsys, tmp_path):
    folder = edited(tmp_path / "ours")
    code, _, err = run(monkeypatch, capsys, "report", single(tmp_path / "a"), folder)
    assert code == 2 and "holds no judged edits" in err
    (folder / "judged.json").unlink()  # killed while it was written
    code, _, err = run(monkeypatch, capsys, "report", folder)
    assert code == 2 and "were not judged yet, or not to the end; run" in err
    assert f"`python -m evaluation judge BENCHMARK {folder}`" in err


@pytest.mark.parametrize("name", ["../../secret", "/etc/secret"])
def test_nothing_outside_of_the_folder_is_shown(tmp_path, name):
    folder = edited(tmp_path / "ours")
    rows = (folder / "scores.jsonl").read_text().replace("fullset/color_alter/en/aa", name)
    (folder / "scores.jsonl").write_text(rows)
    with pytest.raises(RunError, match="outside of the folder"):
        read_edits(folder)
