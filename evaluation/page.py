"""A report as one HTML page that needs nothing else: no network, no other file, no script but its own.

What models said reaches it by two ways alone: Jinja, which escapes everything, and JSON in which no `<` is left, which
`page_*.js` shows as text. A Content-Security-Policy names the page's script and style by their hashes, so that nothing
else would run if it got in.
"""

import base64
import hashlib
import os
import string
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluation.benchmarks import edit_benchmark_named
from evaluation.chart import Measured, draw
from evaluation.page_questions import PageQuestions, page_questions
from evaluation.page_room import embedded
from evaluation.report import Report
from evaluation.runs import RunError

BEGINNING = '<!doctype html>\n<html lang="en">\n<!-- triptych: evaluation report -->\n'
CHARTS = {"wide": (760, 340), "narrow": (340, 280)}
SCRIPTS = ("elements", "question", "filters", "list")  # in the order in which they run
IDS_SHOWN = 100
HEADLINES = 8  # official figures that a run's card has room for


def check_out(path: Path) -> None:
    """Raises RunError where a page cannot be written to `path`, or something that is no page is there."""
    if path.is_dir():
        raise RunError(f"{str(path)!r} is a folder; give the page's file, such as {str(path / 'report.html')!r}.")
    if not path.parent.is_dir():
        raise RunError(f"there is no folder {str(path.parent)!r} for the page; make it, or write to another file.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise RunError(f"{str(path)!r} cannot be written; write the page to another file.")
    if path.exists():
        with path.open("rb") as file:
            if file.read(len(BEGINNING)) not in (BEGINNING.encode(), b""):
                raise RunError(f"{str(path)!r} is there and no page of this command; write to another file.")


def write_page(report: Report, path: Path) -> None:
    """Writes the page; an earlier one is replaced as a whole. Raises RunError."""
    check_out(path)
    text = page_html(report)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"{str(path)!r} cannot be written ({error}); write the page to another file.") from None


def page_html(report: Report) -> str:
    """The page's text."""
    questions = page_questions(report)
    letters = [letter(place) for place in range(len(report.runs))]
    comparisons = _comparisons(report, letters)
    only = {flips["key"]: {"label": flips["label"], "ids": flips["ids"]}
            for _, _, pairs in comparisons for pair in pairs for flips in pair["flips"]}  # fmt: skip
    index = questions.index | {
        "letters": letters,
        "titles": [_title(summary) for summary in report.summaries],
        "samples": [run.settings.samples for run in report.runs],
        "pictures": [[*one.size, *one.shown, one.problem] for one in questions.pictures],
        "only": only,
        "noun": "edits" if report.edits else "questions",
    }
    script, style = _script(), _asset("page.css")
    made = _environment().get_template("page.jinja").render(
        report=report, letters=letters, titles=index["titles"], questions=questions, comparisons=comparisons,
        charts={name: draw(_measured(report, letters), *size) for name, size in CHARTS.items()},
        official=[_official({} if report.edits else summary["official"]) for summary in report.summaries],
        scored=[
            edit_benchmark_named(own["benchmark"]).rows(own["official"]) if report.edits else []
            for own in report.summaries
        ],
        groups=_groups(report), errors=[_errors(run) for run in report.runs],
        guessed=[_guessed(run) for run in report.runs], smaller=_smaller(questions),
        with_rounds=any(run.settings.rounds for run in report.runs),
        uncounted=", ".join(_uncounted(report, letters)), ids_shown=IDS_SHOWN,
        script=Markup(script), style=Markup(style), script_hash=_hash(script), style_hash=_hash(style),
        index=Markup(embedded(index)), rows=Markup("\n".join(map(embedded, questions.rows))),
        pictures=Markup("\n".join(one.uri for one in questions.pictures)),
    )  # fmt: skip
    return BEGINNING + made.encode("utf-8", "replace").decode()


def letter(place: int) -> str:
    """A, B … Z, A1, B1 …"""
    round_, place = divmod(place, 26)
    return string.ascii_uppercase[place] + (str(round_) if round_ else "")


def _title(summary: dict) -> str:
    return f"{summary['model']}, {summary['how']}"


def _measured(report: Report, letters: list[str]) -> list[Measured]:
    """A point a run; where it has several samples, a vote of all of them too."""
    points = []
    for name, summary in zip(letters, report.summaries, strict=True):
        if summary["score"] is None:
            continue
        tokens = summary["tokens"]["prompt"] + summary["tokens"]["completion"]
        points.append(Measured(name, tokens / summary["answers"], summary["score"]["value"],
                               *summary["score"]["interval"]))  # fmt: skip
        samples = summary["settings"]["samples"]
        vote = summary.get("majority_at", {}).get(str(samples))
        if vote is not None:
            points.append(Measured(f"{name} maj@{samples}", samples * tokens / summary["answers"], vote["value"],
                                   *vote["interval"], majority=True))  # fmt: skip
    return points


def _uncounted(report: Report, letters: list[str]) -> list[str]:
    """The runs whose server does not count tokens."""
    return [name for name, summary in zip(letters, report.summaries, strict=True)
            if summary["answers"] and not summary["tokens"]["prompt"] + summary["tokens"]["completion"]]  # fmt: skip


def _groups(report: Report) -> dict[str, dict[str, list[dict | None]]]:
    """By the name of a grouping and the group, a figure a run."""
    groups: dict[str, dict[str, list[dict | None]]] = {}
    for place, summary in enumerate(report.summaries):
        for name, own in summary["groups"].items():
            for group, figure in own.items():
                figures = groups.setdefault(name, {}).setdefault(group, [None] * len(report.runs))
                figures[place] = figure
    return {name: dict(sorted(own.items(), key=lambda item: _by_number(item[0]))) for name, own in groups.items()}


def _by_number(group: str) -> tuple:
    """Levels in the order of their numbers, what has no number by its name."""
    return (0, int(group), "") if group.isascii() and group.isdigit() and len(group) < 10 else (1, 0, group.casefold())


def _comparisons(report: Report, letters: list[str]) -> list[tuple[str, dict | None, list[dict]]]:
    """(the other run's letter, its comparison with the first, its pairs with a name and flips [{key, label, ids}])."""
    rows = []
    for name, compared in zip(letters[1:], report.comparisons, strict=True):
        pairs = []
        for place, pair in enumerate(compared["pairs"] if compared else []):
            figures = " → ".join(dict.fromkeys(pair["figures"]))
            flips = [
                {"key": f"{name}-{place}-{way}", "ids": pair["flips"][way],
                 "label": f"{word} in {name} than in {letters[0]}" + f", by {figures}" * (figures != "score")}
                for way, word in (("won", "better"), ("lost", "worse"))
            ]  # fmt: skip
            pairs.append(pair | {"name": figures, "flips": flips})
        rows.append((name, compared, pairs))
    return rows


def _errors(run) -> list[tuple[str, list[str]]]:
    """What answers failed with, the commonest first, and the questions it was."""
    found: dict[str, list[str]] = {}
    for answer in run.answers:
        if answer.error:
            found.setdefault(" ".join(answer.error.split())[:300], []).append(answer.id)
    return sorted(found.items(), key=lambda item: -len(item[1]))


def _guessed(run) -> list[str]:
    return list(dict.fromkeys(answer.id for answer in run.answers if answer.guessed))


def _official(figures: dict) -> dict[str, list[tuple]]:
    """What stands in the open, where there is not much of it, and the others."""
    single = [(name, value) for name, value in figures.items() if isinstance(value, str | int | float)]
    if len(single) > HEADLINES:
        return {"headline": [], "others": list(_flat(figures))}
    named = {name for name, _ in single}
    return {"headline": single, "others": list(_flat({k: v for k, v in figures.items() if k not in named}))}


def _flat(official: dict, above: str = ""):
    """(name, value) of every official figure, of nested ones under the names of what they are in."""
    for name, value in official.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name} › ")
        else:
            yield f"{above}{name}", value


def _smaller(questions: PageQuestions) -> int:
    """How many pictures are shown smaller than they are."""
    return sum(one.shown != one.size for one in questions.pictures if one.uri)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _script() -> str:
    """The parts in one scope, so that none of their names is one of the window's."""
    parts = "\n".join(_asset(f"page_{name}.js") for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}}})();\n'


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


@lru_cache
def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                              loader=FileSystemLoader(Path(__file__).parent))  # fmt: skip
    environment.filters |= {
        "percent": lambda value: f"{value:.1%}",
        "signed": lambda value: f"{value:+.1%}",
        "number": lambda value: f"{value:,.0f}",
        "plain": lambda value: f"{value:g}" if isinstance(value, float) else str(value),
        "time": _time,
        "date": _date,
    }
    return environment


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
