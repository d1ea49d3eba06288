"""What a summary and a comparison look like on the standard output: tables for people, or Markdown for a page."""

import sys
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evaluation.benchmarks import edit_benchmark_named

IDS_SHOWN = 10
OFFICIAL_SHOWN = 24


@dataclass(frozen=True)
class Section:
    """A table: its title, its columns, its rows; every cell is text, all but the first `right` or `left`."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    justify: str = "right"


def show(sections: list[Section], notes: list[str], markdown: bool) -> None:
    """Prints the tables and, below them, the notes."""
    if markdown:
        print(as_markdown(sections, notes))
        return
    # Where nobody looks at it, in a file or a pipe, eighty columns would only break the rows.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    for section in sections:
        table = Table(title=escape(section.title), title_justify="left")
        for number, column in enumerate(section.columns):
            table.add_column(column, justify=section.justify if number else "left", overflow="fold")
        for row in section.rows:
            table.add_row(*map(escape, row))
        console.print(table)
    for note in notes:
        print(note)


def as_markdown(sections: list[Section], notes: list[str]) -> str:
    lines = []
    for section in sections:
        side = "---:" if section.justify == "right" else "---"
        align = ["---", *[side] * (len(section.columns) - 1)]
        lines += [f"**{section.title}**", ""]
        lines += [_line(row) for row in (section.columns, align, *section.rows)]
        lines.append("")
    return "\n".join([*lines, *notes])


def _line(cells) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def of_summary(summary: dict) -> tuple[list[Section], list[str]]:
    """The tables of `evaluation.summary.summarize`, and what has to be said about them."""
    failed = summary["failed"]["count"]
    figures = [("score", summary["score"])]
    if failed and summary["score_failed_as_0"]:
        figures.append(("score, failed answers as 0", summary["score_failed_as_0"]))
    if summary["guessed"] and summary["strict"]:
        figures.append(("score without guesses", summary["strict"]))
    if summary["modern"]:
        figures.append(("math-verify's verdict", summary["modern"]))
    figures += [(f"pass@{k}", value) for k, value in summary.get("pass_at", {}).items()]
    figures += [(f"majority@{k}", value) for k, value in summary.get("majority_at", {}).items()]
    title = f"{summary['title']}, {summary['split']}: {summary['model']}, {summary['how']}"
    sections = [Section(title, ("", "score [95 %]", "questions"), [_row(name, value) for name, value in figures])]
    if summary.get("rounds"):
        columns = ("round", "one [95 %]", "majority [95 %]", "best [95 %]", "questions", "trajectories", "tokens")
        rows = [_round(number, figures) for number, figures in enumerate(summary["rounds"], 1)]
        sections.append(Section("what the rounds before the answer said", columns, rows))
    for name, groups in summary["groups"].items():
        sections.append(Section(f"by {name}", (name, "score [95 %]", "questions"),
                                [_row(group, value) for group, value in groups.items()]))  # fmt: skip
    official = [(key, str(value)) for key, value in summary["official"].items() if isinstance(value, str | int | float)]
    if official:
        sections.append(Section("official figures", ("", "value"), official[:OFFICIAL_SHOWN]))
    return sections, _notes(summary, len(official))


def of_edits(summary: dict) -> tuple[list[Section], list[str]]:
    """The same of `evaluation.edit_report.read_edits`."""
    rows = edit_benchmark_named(summary["benchmark"]).rows(summary["official"])
    title = f"{summary['title']}, {summary['split']}: {summary['model']}, {summary['how']}"
    notes = [f"{summary['answers']} pictures are judged."]
    failed, missing = summary["failed"], summary["missing"]
    if failed["count"]:
        notes.append(f"Not judged, and in no figure: {failed['count']}, {_ids(failed['ids'])}.")
    if missing["count"]:
        notes.append(f"Not there, and in no figure: {missing['count']}, {_ids(missing['names'])}.")
    return [Section(title, rows[0], rows[1:])], notes


def _notes(summary: dict, official: int) -> list[str]:
    tokens, seconds = summary["tokens"], summary["seconds"]
    failed, withheld, blind = (summary[key] for key in ("failed", "withheld", "blind"))
    notes = [
        f"{summary['answers']:,} answers; {tokens['prompt']:,} prompt and {tokens['completion']:,} completion tokens, "
        f"{tokens['a_question']:,.0f} a question; {seconds['an_answer']:.1f} s an answer beside the others, "
        f"{seconds['clock']:,.0f} s on the clock."
    ]
    if (judged := summary["settings"]["version"]) != summary["version"]:
        notes.append(f"Judged by version {judged} of the benchmark, which now has version {summary['version']}.")
    if failed["count"]:
        notes.append(f"Failed: {failed['count']} answers, of {_ids(failed['ids'])}.")
    if failed["at_pictures"]:
        notes.append("No question with a picture was answered. If the model has no eyes, --no-pictures withholds these "
                     "questions, and --blind asks them by their text alone.")  # fmt: skip
    if withheld["count"]:
        notes.append(
            f"Not given, for they have pictures: {withheld['count']} of {summary['questions']} questions, "
            f"{_ids(withheld['ids'])}."
        )
        if withheld["count"] == summary["questions"]:
            notes.append("So nothing was asked; --blind asks such questions by their text alone.")
    if blind["count"]:
        notes.append(
            f"Asked without their pictures, by the text alone: {blind['count']} of {summary['questions']} questions, "
            f"{_ids(blind['ids'])}."
        )
    if summary["unanswered"]:
        notes.append(f"Not finished: {summary['unanswered']} answers are to come; `run --resume` goes on.")
    shards, of = summary["settings"]["shards"], summary["settings"]["shard_count"]
    if len(shards) < of:
        notes.append(f"Not the whole: {len(shards)} of {of} shards, {', '.join(map(str, shards))}.")
    if summary["unjudged"]:
        notes.append(f"No score: the answers to {summary['unjudged']} questions are not published.")
    if summary["guessed"]:
        notes.append(f"The official rule guessed {summary['guessed']} answers.")
    if summary["cut_off"]:
        notes.append(f"Cut off by the limit on tokens: {summary['cut_off']} answers.")
    if official > OFFICIAL_SHOWN:
        notes.append(f"{official - OFFICIAL_SHOWN} more official figures are in --json.")
    notes.append("Intervals: Wilson's where all scores are 0 or 1, else bootstrap over questions; --json has both.")
    return notes


def of_comparison(compared: dict) -> tuple[list[Section], list[str]]:
    """The tables of `evaluation.comparison.compare`, and what has to be said about them."""
    rows = []
    for pair in compared["pairs"]:
        low, high = pair["interval"]
        rows.append((
            " → ".join(dict.fromkeys(pair["figures"])), f"{pair['before']:.1%}", f"{pair['after']:.1%}",
            f"{pair['difference']:+.1%} [{low:+.1%}, {high:+.1%}]", f"{pair['p']:.2g}", pair["test"],
            f"{pair['won']} / {pair['lost']}", str(pair["n"]),
        ))  # fmt: skip
    sides = [f"{compared[side]['model']}, {compared[side]['how']}" for side in ("before", "after")]
    title = f"{compared['benchmark']}, {compared['split']}: {sides[0]} (before) and {sides[1]} (after)"
    columns = ("", "before", "after", "difference [95 %]", "p", "test", "better / worse", "questions")
    tokens = [f"{compared[side]['tokens']['a_question']:,.0f}" for side in ("before", "after")]
    notes = [f"Tokens a question: {tokens[0]} before, {tokens[1]} after."] if tokens != ["0", "0"] else []
    for pair in compared["pairs"]:
        name = " → ".join(dict.fromkeys(pair["figures"]))
        notes += [f"{name}, {word}: {_ids(pair['flips'][key])}." for word, key in (("better", "won"), ("worse", "lost"))
                  if pair["flips"][key]]  # fmt: skip
    if any(compared["in_one_only"]):
        notes.append("Answered in one run only, and left out: {} before, {} after.".format(*compared["in_one_only"]))
    return [Section(title, columns, rows)], notes + [note.capitalize() + "." for note in compared["notes"]]


def _row(name: str, figure: dict | None) -> tuple[str, str, str]:
    if figure is None:
        return name, "–", "0"
    low, high = figure.get("wilson", figure["interval"])
    return name, f"{figure['value']:.1%} [{low:.1%}, {high:.1%}]", str(figure["n"])


def _round(number: int, figures: dict) -> tuple[str, ...]:
    own = [_row("", figures[name]) for name in ("score", "majority", "best")]
    finished = f"{figures['trajectories']:g} of {figures['width']}"
    return str(number), *(row[1] for row in own), own[0][2], finished, f"{figures['tokens']:,.0f}"


def _ids(ids: list[str]) -> str:
    more = f" and {len(ids) - IDS_SHOWN} more" if len(ids) > IDS_SHOWN else ""
    return ", ".join(ids[:IDS_SHOWN]) + more
