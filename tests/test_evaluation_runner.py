"""The runner: every question once, whatever happens; what failed is failed; shards add up; mini is judged as it was."""

import asyncio
import json
from dataclasses import replace

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scripted_backend import ScriptedBackend, failing

from evaluation.benchmark import BenchmarkError, Question, Verdict
from evaluation.benchmarks import BENCHMARKS, benchmark_named
from evaluation.benchmarks.world import BENCHMARK as WORLD
from evaluation.comparison import compare
from evaluation.runner import open_folder, run_questions, select, settings_of, weights_digest
from evaluation.runs import RunError, read_run, read_runs, write_run
from evaluation.summary import summarize
from evaluation.tables import as_markdown, of_comparison, of_summary
from pacore import Completion, Plan, Sampling
from training.verifiers import Verifier, verify
from training.world import draw_sample
from vlm.reasoning import split_reasoning

RED = Image.new("RGB", (8, 8), "red")


class Sums:
    """What is i + i? Every third question shows a picture; "?" is an answer the rule has to guess."""

    name, title, version, splits, source, layout = "sums", "Sums", "1", ("test",), "nowhere", "nothing"
    judge_is_away = False

    def load(self, location, split, prompt=None):
        return [self.question(i) for i in range(9)]

    def question(self, i):
        picture = [{"type": "image", "image": RED}] * (i % 3 == 0)
        content = [*picture, {"type": "text", "text": f"What is {i} + {i}?"}]
        groups = {"parity": "odd" if i % 2 else "even"}
        return Question(f"sum {i}", [{"role": "user", "content": content}], {"answer": str(2 * i)}, groups)

    def score(self, question, response):
        if self.judge_is_away:
            raise BenchmarkError("the judge is away")
        right = response == question.truth["answer"]
        return Verdict(float(right or response == "?"), response, guessed=response == "?", modern=float(right))

    def summarize(self, scored):
        return {"right": f"{sum(v.score for _, v in scored):g}/{len(scored)}"}


def sum_of(conversation, sampling=None, call=0):
    text = conversation[-1]["content"][-1]["text"]
    return str(2 * int(text.split("What is ")[-1].split()[0]))


def run(path, backend, benchmark=None, *, plan=None, samples=1, at_once=64, shard=(1, 1), pictures=True, blind=False,
        limit=None, resume=False, seed=0):  # fmt: skip
    """What `python -m evaluation run` does, without its options; the run as it can be read."""
    benchmark = benchmark or Sums()
    plan = plan or Plan((), Sampling(temperature=0.0 if samples == 1 else 1.0), seed=seed)
    selection = select(benchmark.load(None, "test"), limit, shard)
    settings = settings_of(benchmark, "test", selection, plan, model=backend.name, samples=samples, shard=shard,
                           pictures=pictures, blind=blind, limit=limit)  # fmt: skip
    folder = open_folder(path, settings, selection, resume=resume)
    try:
        asyncio.run(run_questions(backend, benchmark, selection, plan, folder, at_once))
    finally:
        folder.close()
    return read_run(path)


# What is recorded


def test_a_run_can_be_read_with_all_that_was_asked_and_said(tmp_path):
    said = Completion("2", "let me see", 10, 3, "length", seconds=0.5)
    done = run(
        tmp_path / "run", ScriptedBackend(lambda c, s, n: said if "1 + 1" in c[0]["content"][-1]["text"] else "0")
    )
    assert [asked.id for asked in done.questions] == [f"sum {i}" for i in range(9)]
    assert [answer.id for answer in done.answers] == [f"sum {i}" for i in range(9)]
    one = done.answers[1]
    assert (one.response, one.reasoning, one.finish, one.score, one.parsed) == ("2", "let me see", "length", 1.0, "2")
    assert (one.prompt_tokens, one.completion_tokens, one.seconds, one.rounds) == (10, 3, 0.5, ())
    asked = done.questions[0]
    picture, text = asked.conversation[0]["content"]
    assert Image.open(picture["image"]).getpixel((0, 0)) == (255, 0, 0) and text["text"] == "What is 0 + 0?"
    assert asked.question.truth == {"answer": "0"} and asked.question.groups == {"parity": "even"}
    assert len(list((tmp_path / "run" / "pictures").iterdir())) == 1  # all three show the same one
    versions = json.loads((tmp_path / "run" / "run.json").read_text())["sessions"][0]["versions"]
    assert {"python", "torch", "transformers"} <= set(versions)


def test_half_a_surrogate_pair_is_judged_as_it_is_stored(tmp_path):
    done = run(tmp_path / "run", ScriptedBackend(lambda c, s, n: "\ud83d"), limit=1)
    assert done.answers[0].response == done.answers[0].parsed == "?" and done.answers[0].guessed


def test_rounds_are_kept_as_a_tree(tmp_path):
    lost = iter([failing("no luck")])
    backend = ScriptedBackend(lambda c, s, n: next(lost, None) or f"it is {s.temperature:g}")
    done = run(tmp_path / "run", backend, plan=Plan((3,), Sampling(temperature=0.7)), limit=1)
    first, last = done.answers[0].rounds
    assert sorted(member.error for member in first) == ["", "", "no luck"] and len(last) == 1
    assert last[0].message == done.answers[0].response == "it is 0.7"
    assert done.answers[0].completion_tokens == 9 and "1 of 3 failed" in done.answers[0].notes[0]


def test_sample_k_of_a_question_is_drawn_alike_in_whatever_company(tmp_path):
    backends = [ScriptedBackend(lambda c, s, n: str(s.seed)) for _ in range(3)]
    many = run(tmp_path / "a", backends[0], samples=4)
    few = run(tmp_path / "b", backends[1], samples=2, at_once=1, limit=3)
    other = run(tmp_path / "c", backends[2], samples=2, limit=3, seed=1)
    drawn = {(a.id, a.sample): a.response for a in many.answers}
    assert len(set(drawn.values())) == 36
    assert all(drawn[a.id, a.sample] == a.response for a in few.answers)
    assert not {a.response for a in other.answers} & set(drawn.values())


# What is in work at once


def test_all_samples_of_a_question_begin_together_and_no_more_than_there_is_room_for(tmp_path):
    backend = ScriptedBackend(sum_of, delay=lambda call: 0.2)
    run(tmp_path / "run", backend, samples=4, at_once=9)
    assert backend.peak == 8 and len(backend.calls) == 36
    texts = [backend.last_text(call) for call in range(36)]
    assert sorted(texts[:8]) == ["What is 0 + 0?"] * 4 + ["What is 1 + 1?"] * 4
    assert all(set(texts[i : i + 8]) == {f"What is {j} + {j}?" for j in (i // 4, i // 4 + 1)} for i in (0, 8, 16, 24))


def test_a_question_with_more_trajectories_than_there_is_room_for_is_asked_alone(tmp_path):
    backend = ScriptedBackend(sum_of, delay=lambda call: 0.1)
    run(tmp_path / "run", backend, plan=Plan((5,)), at_once=1, limit=3)
    assert backend.peak == 5 and len(backend.calls) == 18


# What goes wrong


def test_what_failed_is_failed_and_not_wrong_and_resume_asks_it_alone(tmp_path):
    broken = [True]
    backend = ScriptedBackend(lambda c, s, n: failing("on fire") if broken[0] and "4 + 4" in c[0]["content"][-1]["text"]
                              else sum_of(c))  # fmt: skip
    done = run(tmp_path / "run", backend)
    summary = summarize(done, Sums())
    assert summary["failed"] == {"count": 1, "ids": ["sum 4"], "at_pictures": False} and summary["answers"] == 8
    assert summary["score"]["value"] == 1.0 and summary["score"]["n"] == 8
    assert summary["score_failed_as_0"]["value"] == pytest.approx(8 / 9, abs=1e-6)
    assert summary["score_failed_as_0"]["n"] == 9 and summary["official"] == {"right": "8/8"}
    assert "on fire" in next(a.error for a in done.answers if a.id == "sum 4")
    broken[0] = False
    again = run(tmp_path / "run", backend, resume=True)
    assert len(backend.calls) == 10 and len(again.answers) == 9 and len(again.sessions) == 2
    assert summarize(again, Sums())["failed"]["count"] == 0


def test_a_judge_that_is_away_fails_the_answer_which_is_not_paid_for_again(tmp_path):
    backend, benchmark = ScriptedBackend(sum_of), Sums()
    benchmark.judge_is_away = True
    done = run(tmp_path / "run", backend, benchmark)
    assert {a.error for a in done.answers} == {"not judged: the judge is away"}
    assert summarize(done, benchmark)["score"] is None and summarize(done, benchmark)["failed"]["count"] == 9
    benchmark.judge_is_away = False
    again = run(tmp_path / "run", backend, benchmark, resume=True)
    assert len(backend.calls) == 9 and summarize(again, benchmark)["score"]["value"] == 1.0


def test_a_blind_model_is_not_given_pictures_and_the_report_says_so(tmp_path):
    backend = ScriptedBackend(sum_of)
    done = run(tmp_path / "run", backend, pictures=False)
    assert len(backend.calls) == 6 and all(part["type"] == "text" for c, _ in backend.calls for part in c[0]["content"])
    summary = summarize(done, Sums())
    assert summary["withheld"] == {"count": 3, "ids": ["sum 0", "sum 3", "sum 6"]} and summary["score"]["n"] == 6
    assert "Not given, for they have pictures: 3 of 9 questions, sum 0, sum 3, sum 6." in of_summary(summary)[1]


def test_a_blind_model_is_asked_by_the_text_alone_and_the_report_says_so(tmp_path):
    backend = ScriptedBackend(lambda c, s, n: sum_of([{"content": [{"text": c[0]["content"]}]}] if n % 3 == 0 else c))
    done = run(tmp_path / "run", backend, blind=True, at_once=1)
    assert [c[0]["content"] for c, _ in backend.calls[::3]] == [f"What is {i} + {i}?" for i in (0, 3, 6)]
    assert done.questions[0].question.has_pictures and done.questions[0].given  # a reader of the report still sees it
    summary = summarize(done, Sums())
    assert summary["blind"] == {"count": 3, "ids": ["sum 0", "sum 3", "sum 6"]} and summary["score"]["n"] == 9
    said = "Asked without their pictures, by the text alone: 3 of 9 questions, sum 0, sum 3, sum 6."
    assert said in of_summary(summary)[1] and summary["how"].endswith("greedy, without pictures")


def test_guesses_are_counted_and_there_is_a_figure_without_them(tmp_path):
    backend = ScriptedBackend(lambda c, s, n: "?" if "0 + 0" in c[0]["content"][-1]["text"] else sum_of(c))
    summary = summarize(run(tmp_path / "run", backend, limit=4), Sums())
    assert summary["guessed"] == 1 and summary["score"]["value"] == 1.0
    assert summary["strict"]["value"] == summary["modern"]["value"] == 0.75


def test_half_a_row_of_a_killed_run_is_cut_off(tmp_path):
    backend = ScriptedBackend(sum_of)
    run(tmp_path / "run", backend)
    rows = (tmp_path / "run" / "answers.jsonl").read_bytes()
    (tmp_path / "run" / "answers.jsonl").write_bytes(rows[:-20])
    assert len(read_run(tmp_path / "run").answers) == 8
    again = run(tmp_path / "run", backend, resume=True)
    assert len(again.answers) == 9 and len(backend.calls) == 9  # from the journal


# Folders


@pytest.mark.parametrize(
    ("change", "says"),
    [({"seed": 3}, "seed is 0 there and 3 here"), ({"samples": 2}, "temperature is 0.0 there and 1.0 here"),
     ({"limit": 5}, "the prompts have changed"), ({"shard": (1, 2)}, "shard_count is 1 there and 2 here"),
     ({"pictures": False}, "pictures is True there"), ({"plan": Plan((4,))}, "rounds is () there and (4,) here")],
    ids=str,
)  # fmt: skip
def test_another_run_does_not_go_on_in_the_folder(tmp_path, change, says):
    backend = ScriptedBackend(sum_of)
    run(tmp_path / "run", backend)
    before = (tmp_path / "run" / "answers.jsonl").read_bytes()
    with pytest.raises(RunError, match="there already; add --resume"):
        run(tmp_path / "run", backend)
    with pytest.raises(RunError, match="is another one") as error:
        run(tmp_path / "run", backend, resume=True, **change)
    assert says in str(error.value) and (tmp_path / "run" / "answers.jsonl").read_bytes() == before


def test_nobody_elses_folder_is_written_to(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="no run of this command"):
        run(tmp_path, ScriptedBackend(sum_of), resume=True)
    with pytest.raises(RunError, match="no run of this command"):
        run(tmp_path / "thesis.txt", ScriptedBackend(sum_of), resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_killed_while_its_folder_was_made_begins_anew(tmp_path):
    run(tmp_path / "run", ScriptedBackend(sum_of))
    (tmp_path / "run" / "run.json").unlink()
    for name in ("journal", "journal-wal", "journal-shm"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
    assert len(run(tmp_path / "run", ScriptedBackend(sum_of), resume=True).answers) == 9


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / "lock"), pytest.raises(RunError, match="another process works in"):
        run(tmp_path / "run", ScriptedBackend(sum_of), resume=True)


def test_a_picture_that_is_not_there_is_said_before_anything_is_paid_for(tmp_path):
    class Holes(Sums):
        def question(self, i):
            content = [{"type": "image", "image": str(tmp_path / "none.png")}, {"type": "text", "text": "?"}]
            return replace(super().question(i), conversation=[{"role": "user", "content": content}])

    backend = ScriptedBackend(sum_of)
    with pytest.raises(RunError, match="'sum 0': its picture cannot be read"):
        run(tmp_path / "run", backend, Holes())
    assert not backend.calls


@pytest.mark.parametrize("text", ["", "{", '{"form": 9}', '{"form": 1, "settings": {}, "sessions": []}'])
def test_a_folder_that_is_no_run_is_one_line(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError) as error:
        read_run(tmp_path)
    assert "\n" not in str(error.value) and "run" in str(error.value)


# Shards


def test_shards_together_are_the_whole_run(tmp_path):
    def say(conversation, sampling, call):  # right or wrong by the sample's own seed
        return sum_of(conversation) if sampling.seed % 3 else "0"

    whole = run(tmp_path / "whole", ScriptedBackend(say), samples=4)
    parts = [tmp_path / f"part {i}" for i in (1, 2, 3)]
    for number, part in enumerate(parts, 1):
        run(part, ScriptedBackend(say), samples=4, shard=(number, 3))
    merged = read_runs(parts[::-1])
    assert [a.id for a in merged.questions] == [a.id for a in whole.questions]
    figures = [summarize(r, Sums()) for r in (whole, merged)]
    for summary in figures:
        del summary["sessions"], summary["settings"], summary["seconds"]
    assert figures[0] == figures[1] and figures[0]["pass_at"]["4"]["value"] >= figures[0]["score"]["value"]
    write_run(merged, tmp_path / "merged")
    again = read_run(tmp_path / "merged")
    assert again.answers == merged.answers and again.settings == merged.settings
    assert Image.open(again.questions[0].conversation[0]["content"][0]["image"]).size == (8, 8)
    with pytest.raises(RunError, match="cannot be made"):
        write_run(merged, tmp_path / "merged")


def test_what_does_not_belong_together_is_not_put_together(tmp_path):
    for name, options in (("a", {"shard": (1, 2)}), ("b", {"shard": (2, 2), "seed": 1})):
        run(tmp_path / name, ScriptedBackend(sum_of), **options)
    with pytest.raises(RunError, match="not shards of one run: seed is 0 there and 1 here"):
        read_runs([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(RunError, match="shard 1 of 2 is there twice"):
        read_runs([tmp_path / "a", tmp_path / "a"])
    notes = of_summary(summarize(read_run(tmp_path / "a"), Sums()))[1]
    assert "Not the whole: 1 of 2 shards, 1." in notes


@given(st.integers(1, 40), st.integers(1, 9))
def test_every_question_is_in_exactly_one_shard(count, of):
    questions = [Question(str(i), [{"role": "user", "content": "?"}], {}) for i in range(count)]
    if of > count:
        with pytest.raises(RunError, match=f"{count} questions cannot be shared"):
            select(questions, shard=(1, of))
        return
    parts = [select(questions, shard=(i, of)) for i in range(1, of + 1)]
    assert sorted(place for part in parts for place, _ in part.places) == list(range(count))
    assert len({part.prompts for part in parts}) == 1


@pytest.mark.parametrize(("limit", "shard"), [(0, (1, 1)), (None, (0, 1)), (None, (3, 2)), (None, (1, 0))])
def test_selections_that_make_no_sense(limit, shard):
    with pytest.raises(RunError, match=r"the (limit|shard) is"):
        select(Sums().load(None, "test"), limit, shard)


def test_an_id_that_is_there_twice_is_refused():
    with pytest.raises(RunError, match="'sum 0' is there twice"):
        select([Sums().question(0)] * 2)


# Two runs


def test_two_runs_are_compared_question_by_question(tmp_path):
    wrong = {"What is 1 + 1?", "What is 2 + 2?", "What is 3 + 3?"}

    def half(conversation, sampling, call):
        return "0" if conversation[0]["content"][-1]["text"] in wrong else sum_of(conversation)

    before, after = run(tmp_path / "a", ScriptedBackend(half)), run(tmp_path / "b", ScriptedBackend(sum_of))
    (pair,) = compare(before, after)["pairs"]
    assert pair["flips"] == {"won": ["sum 1", "sum 2", "sum 3"], "lost": []}
    assert (
        pair["p"] == 0.25 and pair["test"] == "McNemar, exact" and pair["difference"] == pytest.approx(1 / 3, abs=1e-6)
    )
    several = run(tmp_path / "c", ScriptedBackend(sum_of), samples=2)
    compared = compare(before, several)
    assert [p["figures"] for p in compared["pairs"]] == [["score", "score"], ["score", "majority"]]
    text = as_markdown(*of_comparison(compared))
    assert "| score → majority | 66.7% | 100.0% |" in text and "better: sum 1, sum 2, sum 3." in text


def test_runs_of_different_questions_are_not_compared(tmp_path):
    one = run(tmp_path / "a", ScriptedBackend(sum_of))
    with pytest.raises(RunError, match="split is 'test' before and 'other' after"):
        compare(one, replace(one, settings=replace(one.settings, split="other")))
    with pytest.raises(RunError, match="no question in common"):
        compare(one, replace(one, answers=()))


# The world, and the model that is shipped


@given(st.lists(st.sampled_from(["<think>", "</think>", "Answer: 7", "\n", "7", "yes", " ", "small red circle"])))
def test_the_world_judges_as_training_does(pieces):
    """The runner hands over the text after the reasoning, `training report` all of it."""
    response = "".join(pieces)
    verifiers = [{"kind": "numeric", "truth": 7}, {"kind": "exact", "truth": ["yes"]},
                 {"kind": "objects", "truth": ["small red circle"]}]  # fmt: skip
    for verifier in verifiers:
        question = Question("q", [], {"verifier": verifier, "answer": ""})
        score = WORLD.score(question, split_reasoning(response)[1]).score
        assert score == verify(response, Verifier.from_dict(verifier))


def test_the_world_is_balanced_and_its_right_answers_are_right():
    questions = WORLD.load("2", "held_out")
    assert [q.groups["family"] for q in questions[:15]] == [q.groups["family"] for q in questions[15:]]
    samples = [draw_sample(seed, "held_out", q.groups["family"]) for seed, q in
               zip([0] * 15 + [1] * 15, questions, strict=True)]  # fmt: skip
    verdicts = [WORLD.score(q, s.response) for q, s in zip(questions, samples, strict=True)]
    assert all(v.score == 1.0 and v.parsed for v in verdicts)
    summary = WORLD.summarize(list(zip(questions, verdicts, strict=True)))
    assert summary["mean"] == 1.0 and summary["families"]["count"]["n"] == 2
    assert WORLD.score(questions[0], "").score == 0.0


def test_mini_is_judged_as_training_report_judges_it(tmp_path):
    """Through the engine, the journal and the folder; and each prompt is read once for all its samples."""
    from pacore.local_backend import LocalBackend
    from training.report import answer, score
    from vlm.answering import load, locate
    from vlm.rollout import Rollout

    prefilled = []

    class Counting(Rollout):
        def _prefill(self, prompt):
            prefilled.append(prompt.key)
            super()._prefill(prompt)

    class ThreeFamilies(type(WORLD)):
        def load(self, location, split, prompt=None):
            return [q for q in super().load("1", split, prompt) if q.groups["family"] in families]

    families = ("clock", "maze", "extreme")
    model, processor = load("mini")
    backend = LocalBackend(Counting(model, processor, max_rows=16), "mini")
    try:
        greedy = run(tmp_path / "greedy", backend, ThreeFamilies())
        prefilled.clear()
        several = run(tmp_path / "several", backend, ThreeFamilies(), samples=2, at_once=4)
    finally:
        asyncio.run(backend.close())
    drawn = [draw_sample(0, "test", asked.groups["family"]) for asked in greedy.questions]
    expected = answer(model, processor, [sample.conversation()[:1] for sample in drawn])
    assert [a.response for a in greedy.answers] == [split_reasoning(text)[1] for text in expected]
    for sample, text in zip(drawn, expected, strict=True):
        own = summarize(greedy, WORLD)["official"]["families"][sample.family]
        assert own == score([sample], [text])
    assert len(several.answers) == 6 and len(prefilled) == len(set(prefilled)) == 3
    assert weights_digest(locate("mini")) == weights_digest(locate("mini")) != weights_digest(tmp_path)


def test_every_benchmark_keeps_the_contract():
    for name in BENCHMARKS:
        benchmark = benchmark_named(name)
        assert benchmark.name == name and benchmark.splits and benchmark.title and benchmark.version
        assert benchmark.source and benchmark.layout
        with pytest.raises(BenchmarkError) as error:
            benchmark.load(None, "no such split")
        assert "\n" not in str(error.value)
    with pytest.raises(BenchmarkError, match=r"no benchmark 'no such'; there are .*world"):
        benchmark_named("no such")
