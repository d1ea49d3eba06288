"""What the trajectories of a coordinated answer said: each by itself, by vote, and the best of them."""

import json
import sys
from collections import Counter

import pytest
from fault_server import FaultServer, hang, say, status
from hypothesis import given
from hypothesis import strategies as st
from sample_runs import answer_of, questions, written

from evaluation import __main__ as command
from evaluation import tables
from evaluation.benchmarks import benchmark_named
from evaluation.comparison import compare
from evaluation.rounds import majority_of_round, of_rounds
from evaluation.runs import Answer, Member, read_run
from evaluation.summary import summarize

AIME = benchmark_named("aime2025")


def voter(said: str, truth: str = "1") -> Member:
    tokens = {"prompt_tokens": 10, "completion_tokens": 2}
    return Member(f"\\boxed{{{said}}}", finish="stop", score=float(said == truth), parsed=said, **tokens)


LOST, CANCELLED = Member(error="no luck"), Member(cancelled=True)
SYNTHESIS = (Member("\\boxed{7}", finish="stop"),)


def answer(*members: Member, id: str = "q1", right: bool = False, sample: int = 0) -> Answer:
    known = vars(answer_of(id, "1", right, sample=sample))
    return Answer(**(known | {"rounds": (members, SYNTHESIS)}))


def test_the_majority_is_that_of_the_finished_ones():
    row = answer(voter("1"), LOST, voter("2"), voter("1"), CANCELLED)
    assert majority_of_round([row], 0) == 1.0
    (values,) = of_rounds([[row]], 1)
    assert values == {"score": [2 / 3], "majority": [1.0], "best": [1.0], "trajectories": [3.0], "tokens": [36.0]}


def test_a_tie_counts_as_if_one_were_drawn_and_no_answer_has_no_vote():
    assert majority_of_round([answer(voter("1"), voter("2"))], 0) == 0.5
    assert majority_of_round([answer(voter("1"), voter(""), voter(""))], 0) == 1.0


def test_samples_of_a_question_count_alike():
    rows = [answer(voter("1")), answer(voter("2"), voter("2"), sample=1)]
    assert majority_of_round(rows, 0) == 0.5


@pytest.mark.parametrize("row", [answer(), answer(LOST), answer(Member("\\boxed{1}"), voter("1"))])
def test_where_nothing_finished_or_was_judged_there_is_no_figure(row):
    assert majority_of_round([row], 0) is None and majority_of_round([row], 5) is None
    assert of_rounds([[row]], 1) == [{name: [] for name in ("score", "majority", "best", "trajectories", "tokens")}]


@given(st.lists(st.sampled_from("123"), min_size=1, max_size=9))
def test_a_vote_lies_between_the_worst_and_the_best(said):
    (values,) = of_rounds([[answer(*map(voter, said))]], 1)
    assert 0 <= values["score"][0] <= values["best"][0] and values["majority"][0] <= values["best"][0]
    if said.count("1") * 2 > len(said):
        assert values["majority"] == [1.0]


def run_folder(folder, votes: dict[str, str], **others):
    """Questions whose truth is 1, the synthesis always wrong."""
    asked = questions(len(votes))
    rows = [answer(*map(voter, said), id=q.id) for q, said in zip(asked, votes.values(), strict=True)]
    return read_run(written(folder, asked, rows, rounds=(3,), sampling={"temperature": 1.0}, **others))


def test_the_summary_shows_the_round_beside_the_synthesis(tmp_path):
    run = run_folder(tmp_path / "run", {"a": "112", "b": "122", "c": "111", "d": "222"})
    summary = summarize(run, AIME)
    assert summary["score"]["value"] == 0.0
    (first,) = summary["rounds"]
    assert (first["width"], first["trajectories"], first["tokens"]) == (3, 3.0, 36.0)
    assert [first[name]["value"] for name in ("score", "majority", "best")] == [0.5, 0.5, 0.75]
    assert first["majority"]["n"] == 4 and "wilson" in first["majority"]
    text = tables.as_markdown(*tables.of_summary(summary))
    assert "what the rounds before the answer said" in text and "| 3 of 3 | 36 |" in text


def test_a_single_answer_s_summary_has_no_rounds(tmp_path):
    run = read_run(written(tmp_path / "run", questions(2), [answer_of("q0", "0")]))
    assert "rounds" not in summarize(run, AIME)


def test_two_runs_are_compared_by_their_votes_too(tmp_path):
    before = run_folder(tmp_path / "a", {"a": "112", "b": "122", "c": "122", "d": "222"})
    after = run_folder(tmp_path / "b", {"a": "112", "b": "112", "c": "112", "d": "222"})
    score, vote = compare(before, after)["pairs"]
    assert score["figures"] == ["score", "score"] and score["won"] == score["lost"] == 0
    assert vote["figures"] == ["round's majority"] * 2 and vote["n"] == 4
    assert (vote["before"], vote["after"], vote["flips"]["won"]) == (0.25, 0.75, ["q1", "q2"])


def test_a_run_of_before_trajectories_were_judged_is_compared_by_its_scores_alone(tmp_path):
    asked = questions(2)
    rows = [Answer(**(vars(answer_of(q.id, "1")) | {"rounds": ((Member("1"),), SYNTHESIS)})) for q in asked]
    old = read_run(written(tmp_path / "old", asked, rows, rounds=(1,)))
    assert [pair["figures"] for pair in compare(old, old)["pairs"]] == [["score", "score"]]
    summary = summarize(old, AIME)
    assert summary["rounds"][0]["majority"] is None and tables.of_summary(summary)


@pytest.mark.parametrize(
    ("options", "calls", "trajectories"),
    [((), 9, 8.0), (("--quorum", "6/8"), 9, 6.0), (("--adaptive",), 5, 4.0), (("--views",), 9, 8.0)],
)
def test_a_run_judges_every_trajectory_whichever_way_the_round_ends(
    tmp_path, monkeypatch, capsys, options, calls, trajectories
):
    """Over a server that is always of one mind; the synthesis says something else."""

    asked = Counter()

    def script(call):
        words = json.dumps(call.body["messages"][0]["content"][-1])
        asked[words] += 1
        if "--quorum" in options and asked[words] in (3, 4):  # two of a round are never heard of again
            return hang()
        return say("Answer: nonsense" if "Attempt 1" in words else "Answer: 4")

    with FaultServer(script) as server:
        arguments = ["run", "world", "--data", "1", "--limit", "2", "--pacore", "8", "--base-url", server.url,
                     "--model", "m", "--out", str(tmp_path / "run"), "--json", *options]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["evaluation", *arguments])
        assert command.main() == 0
        assert len(server.calls) == 2 * calls
    (first,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rounds"]
    assert first["trajectories"] == trajectories and first["score"]["n"] == 2
    for row in read_run(tmp_path / "run").answers:
        finished = [member for member in row.rounds[0] if member.finished]
        assert {(member.parsed, member.score) for member in finished} == {("4", finished[0].score)}
        assert row.parsed == row.rounds[1][0].parsed == "nonsense"


def test_a_trajectory_that_failed_has_no_verdict(tmp_path, monkeypatch):
    with FaultServer(lambda call: status(400, "no") if call.number == 0 else say("Answer: 4")) as server:
        arguments = ["run", "world", "--data", "1", "--limit", "1", "--pacore", "3", "--base-url", server.url,
                     "--model", "m", "--out", str(tmp_path / "run")]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["evaluation", *arguments])
        assert command.main() == 0
    (row,) = read_run(tmp_path / "run").answers
    assert sorted(member.score is None for member in row.rounds[0]) == [False, False, True]
