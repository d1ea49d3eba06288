"""The questions of a page: what its script shows of each, in a form that it can take apart one by one.

`index` is small and read at once: what the list shows and filters by. Every question is a row of its own, read when it
is opened or searched, and every picture a line of its own.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.benchmark import Benchmark, BenchmarkError, Verdict
from evaluation.edit_report import Painted
from evaluation.kept_pictures import with_pictures
from evaluation.page_room import Thumbnail, clipped, text_limits, thumbnails
from evaluation.report import Report
from evaluation.runs import Answer, Asked, Member, Run
from evaluation.summary import figure, is_blind, mean_of

SHORT = 60  # characters of an answer in the list

FAILED, GUESSED, CUT_OFF, WITHHELD, TO_COME, NOT_ASKED, NO_SCORE, BLIND = (1 << i for i in range(8))


@dataclass(frozen=True)
class PageQuestions:
    """Plain JSON, but for `pictures`.

    Attributes:
        index: `ids`, `truths` (clipped), `groups` [{name, values, of}] with a place in `values` or None a question;
            `asked`, of edits what was asked for (clipped), else []; `runs`, a list a run with [mean score or None,
            flags, first parse] a question.
        rows: a question each: `asked` [conversation], whose pictures are places in `pictures`; `truth`; `runs`
            [{asked, answers}], where `asked` is a place in `asked`.
        pictures: each once.
        text_limits: bytes of the longest text that is here as a whole, of questions and answers, and of reasoning and
            rounds; None where all are.
        rounds: a list a run with the figure of each round's trajectories before the last, by their own answers.
        unjudged: why trajectories have no verdicts; "" where they have.
    """

    index: dict
    rows: list[dict]
    pictures: list[Thumbnail]
    text_limits: tuple[int | None, int | None]
    rounds: list[list[dict | None]]
    unjudged: str


def page_questions(report: Report) -> PageQuestions:
    """Everything that a reader of the page may open, small enough for one."""
    questions: dict[str, list[Asked | None]] = {}
    for place, run in enumerate(report.runs):
        for asked in run.questions:
            questions.setdefault(asked.id, [None] * len(report.runs))[place] = asked
    order = sorted(questions, key=lambda id: next(asked.place for asked in questions[id] if asked))
    answers = [run.by_question() for run in report.runs]
    verdicts, unjudged = _verdicts(report)
    paths, places = _pictures(report)
    limits = text_limits(list(_texts(report)), list(_inner_texts(report)))
    rows = [
        _Row(*limits, places, verdicts).of(questions[id], [own.get(id, []) for own in answers]) for id in order
    ]  # fmt: skip
    index = {
        "ids": order,
        "truths": [_short(_answer_of(next(filter(None, questions[id])))) for id in order],
        "groups": _groups([next(filter(None, questions[id])) for id in order]),
        # What names a question of the benchmark says nothing to a reader of edits.
        "asked": [_short(_text_of(next(filter(None, questions[id])))) for id in order] if report.edits else [],
        "runs": [
            [_state(questions[id][place], answers[place].get(id, []), run) for id in order]
            for place, run in enumerate(report.runs)
        ],
    }
    rounds = [_rounds(run, place, verdicts) for place, run in enumerate(report.runs)]
    return PageQuestions(index, rows, thumbnails(paths), limits, rounds, unjudged)


# Verdicts on the trajectories of rounds

# By (run, question, sample), a list a round with a verdict a trajectory; None where there is nothing to judge.
Verdicts = dict[tuple[int, str, int], list[list[Verdict | None]]]


def _verdicts(report: Report) -> tuple[Verdicts, str]:
    """What the scorer says of every trajectory, and why it says nothing where it cannot be had."""
    found: Verdicts = {}
    for place, run in enumerate(report.runs):
        asked = {one.id: one.question for one in run.questions}
        for answer in run.answers:
            try:
                found[place, answer.id, answer.sample] = [
                    [_verdict(report.benchmark, asked[answer.id], answer, member) for member in round_]
                    for round_ in answer.rounds
                ]
            except BenchmarkError as error:  # a judge that is not there
                return {}, str(error)
    return found, ""


def _verdict(benchmark: Benchmark, question, answer: Answer, member: Member) -> Verdict | None:
    if member.error or member.cancelled:
        return None
    if member.message == answer.response and not answer.error:
        return answer.verdict
    return benchmark.score(question, member.message)


def _rounds(run: Run, place: int, verdicts: Verdicts) -> list[dict | None]:
    """By round, the mean over questions of the score of a trajectory, each taken for an answer."""
    scores: list[dict[str, list[float]]] = [{} for _ in run.settings.rounds]
    for answer in run.answers:
        for own, judged in zip(scores, verdicts.get((place, answer.id, answer.sample), [])[:-1], strict=False):
            own.setdefault(answer.id, []).extend(v.score for v in judged if v and v.score is not None)
    return [figure([float(np.mean(own)) for own in by_id.values() if own]) for by_id in scores]


# The index


def _state(asked: Asked | None, answers: list[Answer], run: Run) -> list:
    """[mean score or None, flags, first parse]"""
    if asked is None:
        return [None, NOT_ASKED, ""]
    if not asked.given:
        return [None, WITHHELD, ""]
    had = [answer for answer in answers if not answer.error]
    flags = FAILED * (len(had) < len(answers)) + TO_COME * (len(answers) < run.settings.samples)
    flags += GUESSED * any(a.guessed for a in had) + CUT_OFF * any(a.finish == "length" for a in had)
    scored = [answer for answer in had if answer.score is not None]
    flags += NO_SCORE * (len(scored) < len(had)) + BLIND * is_blind(asked, run)
    return [round(mean_of(scored), 4) if scored else None, flags, _short(had[0].parsed) if had else ""]


def _groups(questions: list[Asked]) -> list[dict]:
    names = list(dict.fromkeys(name for asked in questions for name in asked.groups))
    groups = []
    for name in names:
        values = list(dict.fromkeys(asked.groups[name] for asked in questions if name in asked.groups))
        place = {value: number for number, value in enumerate(values)}
        groups.append({"name": name, "values": values, "of": [place.get(q.groups.get(name)) for q in questions]})
    return groups


def _answer_of(asked: Asked) -> str:
    return str(asked.truth.get("answer", ""))


def _short(text: str) -> str:
    text = " ".join(text[: 20 * SHORT].split())
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"


# Rows


def _pictures(report: Report) -> tuple[list[str], dict[str, int]]:
    """(the pictures' paths, each picture once; every path's place among them)"""
    paths, places, known = [], {}, {}
    for path in (path for run in report.runs for path in _paths(run)):
        if path not in places:
            place = places[path] = known.setdefault(_digest(path), len(paths))
            if place == len(paths):
                paths.append(path)
    return paths, places


def _paths(run: Run) -> Iterable[str]:
    for asked in run.questions:
        yield from (part["image"] for part in _parts(asked) if part["type"] == "image")
    yield from (answer.picture for answer in run.answers if isinstance(answer, Painted))


def _digest(path: str) -> bytes | str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).digest()
    except OSError:  # the page says why it is not there
        return path


def _text_of(asked: Asked) -> str:
    return " ".join(part["text"] for part in _parts(asked) if part["type"] == "text")


def _parts(asked: Asked) -> list[dict]:
    turns = [turn["content"] for turn in asked.conversation]
    return [part for content in turns if not isinstance(content, str) for part in content]


def _texts(report: Report) -> Iterable[str]:
    """What rows hold of questions and answers."""
    for run in report.runs:
        for asked in run.questions:
            yield from (part["text"] for part in _parts(asked) if part["type"] == "text")
            yield from (turn["content"] for turn in asked.conversation if isinstance(turn["content"], str))
            yield from map(str, asked.truth.values())
        for answer in run.answers:
            yield from (answer.response, answer.error, answer.parsed, answer.note, *answer.notes)
            if isinstance(answer, Painted):
                yield from answer.words.values()


def _inner_texts(report: Report) -> Iterable[str]:
    """And of the ways to them."""
    for answer in (answer for run in report.runs for answer in run.answers):
        yield answer.reasoning
        yield from (text for round_ in answer.rounds for one in round_ for text in (one.message, one.error))


@dataclass(frozen=True)
class _Row:
    limit: int | None
    inner_limit: int | None
    places: dict[str, int]
    verdicts: Verdicts

    def of(self, asked: list[Asked | None], answers: list[list[Answer]]) -> dict:
        there = [one for one in asked if one]
        conversations, runs = [], []
        for place, (one, own) in enumerate(zip(asked, answers, strict=True)):
            conversation = one and self._conversation(one)
            if conversation and conversation not in conversations:
                conversations.append(conversation)
            runs.append({"asked": conversation and conversations.index(conversation),
                         "answers": [self._answer(answer, place) for answer in own]})  # fmt: skip
        truth = {name: self._clip(v) if isinstance(v, str) else v for name, v in there[0].truth.items()}
        return {"asked": conversations, "truth": truth, "runs": runs}

    def _conversation(self, asked: Asked) -> list[dict]:
        shown = with_pictures(asked.conversation, self.places.get)
        return [
            {"role": turn["role"], "content": self._clip(turn["content"]) if isinstance(turn["content"], str)
             else [{**part, "text": self._clip(part["text"])} if part["type"] == "text" else part
                   for part in turn["content"]]}
            for turn in shown
        ]  # fmt: skip

    def _answer(self, answer: Answer, place: int) -> dict:
        painted = {"picture": self.places[answer.picture]} if isinstance(answer, Painted) else {}
        if answer.error:
            return {"sample": answer.sample, "error": self._clip(answer.error)} | painted
        if painted:
            return painted | {
                "sample": answer.sample, "score": answer.score, "guessed": False, "parsed": answer.parsed,
                "scores": {name: round(value, 3) for name, value in answer.scores.items()},
                "words": {name: self._clip(words) for name, words in answer.words.items()},
            }  # fmt: skip
        judged = self.verdicts.get((place, answer.id, answer.sample), [])
        return {
            "sample": answer.sample, "response": self._clip(answer.response),
            "reasoning": self._clip_inner(answer.reasoning), "finish": answer.finish,
            "score": answer.score, "parsed": self._clip(answer.parsed),
            "guessed": answer.guessed, "modern": answer.modern, "note": self._clip(answer.note),
            "tokens": [answer.prompt_tokens, answer.completion_tokens], "seconds": answer.seconds,
            "notes": [self._clip(note) for note in answer.notes],
            "rounds": [[self._member(member, answer, judged, r, i) for i, member in enumerate(round_)]
                       for r, round_ in enumerate(answer.rounds)],
        }  # fmt: skip

    def _member(self, member: Member, answer: Answer, judged: list[list[Verdict | None]], r: int, i: int) -> dict:
        if member.error or member.cancelled:
            return {"error": self._clip_inner(member.error), "cancelled": member.cancelled}
        row = {"finish": member.finish, "tokens": member.completion_tokens}
        # The answer is above, and is not said again.
        again = r == len(answer.rounds) - 1 and member.message == answer.response
        row["message"] = None if again else self._clip_inner(member.message)
        if judged and (verdict := judged[r][i]):
            row |= {"parsed": self._clip(verdict.parsed), "score": verdict.score, "guessed": verdict.guessed}
        return row

    def _clip(self, text: str) -> str:
        return clipped(text, self.limit)

    def _clip_inner(self, text: str) -> str:
        return clipped(text, self.inner_limit)
