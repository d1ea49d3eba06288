"""A report of runs: what it says of one and of several, its page's text, what that has room for, what is refused."""

import base64
import hashlib
import html
import io
import json
import re
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sample_runs import HOSTILE, SESSION, answer_of, coordinated, picture, questions, sampled, single, written

from evaluation import __main__ as command
from evaluation import page_questions, page_room
from evaluation.benchmark import BenchmarkError
from evaluation.chart import Measured, draw
from evaluation.page import page_html, write_page
from evaluation.report import read_report
from evaluation.runs import RunError


def run(monkeypatch, capsys, *arguments):
    """(exit code, standard output, standard error)."""
    monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments)])
    code = command.main()
    return code, *capsys.readouterr()


def part(page: str, id: str) -> str:
    """The text of one of the page's data blocks."""
    return re.search(rf'<script type="[a-z/]+" id="{id}">(.*?)</script>', page, re.DOTALL)[1]


def rows_of(page: str) -> list[dict]:
    return [json.loads(line) for line in part(page, "rows").strip("\n").split("\n")]


def words_of(page: str) -> str:
    """What stands before the data, without its markup."""
    shown = re.sub(r"<style>.*?</style>", "", page.partition('<script type="application/json"')[0], flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", shown)).split())


# One run and several


def test_one_run_is_told_as_before(monkeypatch, capsys, tmp_path):
    folder = single(tmp_path / "one")
    code, out, _ = run(monkeypatch, capsys, "report", folder, "--html", tmp_path / "out.html", "--json")
    summary = json.loads(out.strip().splitlines()[-1])
    assert code == 0 and f"The page is {tmp_path / 'out.html'}" in out
    assert summary["score"]["value"] == pytest.approx(8 / 11, abs=1e-6) and summary["guessed"] == 1
    assert summary["settings"]["prompts"] == "ab" * 32 and summary["sessions"][0]["commit"] == "c0ffee+"
    words = words_of((tmp_path / "out.html").read_text())
    low, high = summary["score"]["interval"]
    assert f"72.7% [{low:.1%}, {high:.1%}]" in words
    assert "strict no guesses 63.6%" in words and "modern math-verify 0.0%" in words
    assert "accuracy official 72.73" in words and "failed as wrong 66.7%" in words
    assert "HTTP 500: the server is on fire" in words and "Guessed: 1 questions q1" in words
    assert "ab" * 32 in words and "c0ffee+" in words and "torch 2.9" in words and "1,100" in words
    assert "Comparison" not in words and "test-time compute" not in words


def test_groups_stand_in_the_order_of_their_numbers_with_bars(tmp_path):
    page = page_html(read_report([single(tmp_path / "one")]))
    by_level = page.partition("by level")[2].partition("</table>")[0]
    assert re.findall(r'data-value="(\d+)"', by_level) == ["9", "10", "11"]
    assert by_level.count('<svg class="bar"') == 3 and 'width="75.0%"' in by_level


def test_several_runs_stand_beside_each_other(monkeypatch, capsys, tmp_path):
    folders = [single(tmp_path / "one"), coordinated(tmp_path / "three"), sampled(tmp_path / "four")]
    code, out, _ = run(monkeypatch, capsys, "report", *folders, "--html", tmp_path / "out.html", "--json")
    told = json.loads(out.strip().splitlines()[-1])
    assert code == 0 and [summary["score"]["value"] for summary in told["runs"]] == [0.727273, 1.0, 0.75]
    assert told["comparisons"][0]["pairs"][0]["flips"] == {"won": ["q9", "q10", "q11"], "lost": []}
    assert "three: AIME 2025, test: tiny, PaCoRe 3" in " ".join(out.split())
    page = (tmp_path / "out.html").read_text()
    words = words_of(page)
    assert "Comparison with A" in words and "3 better in B than in A q9 q10 q11" in words
    assert "p = 0.25 (McNemar, exact) " in words and "by score → majority" in words
    assert "a trajectory of round 1 of 3 50.0%" in words  # one right, one wrong, and one that failed and is not judged
    points = re.findall(r"<title>(\w[^<]*)</title><line", page)
    assert sorted({point.partition(":")[0] for point in points}) == ["A", "B", "C", "C maj@4"]
    assert any("C: 75.0%" in point and "at 150 tokens" in point for point in points)
    assert any("C maj@4: 100.0%" in point and "at 600 tokens" in point for point in points)
    assert len(rows_of(page)) == 12 and len(part(page, "pictures").strip().split("\n")) == 1


def test_shards_are_one_run_and_another_run_is_another(tmp_path):
    asked = questions(6)
    answers = [answer_of(q.id, q.truth["answer"]) for q in asked]
    shards = [written(tmp_path / str(i), asked[i::2], answers[i::2], shards=(i + 1,), shard_count=2) for i in (0, 1)]
    other = written(tmp_path / "other", asked, answers, seed=1)
    made = read_report([shards[1], other, shards[0]])
    assert made.names == ("1+0", "other") and [len(run.answers) for run in made.runs] == [6, 6]
    assert made.runs[0].settings.shards == (1, 2)
    assert "Not the whole: 1 of 2 shards." in words_of(page_html(read_report([shards[0]])))
    with pytest.raises(RunError, match="shard 2 of 2 is there twice"):
        read_report([shards[1], shards[1]])


def test_a_run_at_work_and_one_that_has_just_begun(tmp_path):
    asked = questions(4, picture(tmp_path))
    begun = written(tmp_path / "begun", asked, [], sessions=[replace(SESSION, finished=None)])
    work = written(tmp_path / "work", asked, [answer_of("q1", "1")], [replace(SESSION, finished=None)], seed=1)
    (work / "answers.jsonl").open("a").write('{"id": "q2", "resp')  # half a row
    words = words_of(page_html(read_report([begun, work])))
    assert "4 answers are to come" in words and "3 answers are to come" in words and "at work or killed" in words
    assert "No question has a score yet." in words and "no question in common that both have a score of" in words


def test_withheld_questions_are_named(tmp_path):
    asked = [replace(q, given=bool(q.place % 3)) for q in questions(7, picture(tmp_path))]
    answers = [answer_of(q.id, q.truth["answer"]) for q in asked if q.given]
    page = page_html(read_report([written(tmp_path / "blind", asked, answers, pictures=False)]))
    assert "3 of 7" in words_of(page) and "Withheld: 3 questions q0, q3, q6" in words_of(page)
    states = json.loads(part(page, "index"))["runs"][0]
    assert [bool(flags & page_questions.WITHHELD) for _, flags, _ in states] == [not q.given for q in asked]


def test_questions_asked_without_their_pictures_are_named_and_show_them(tmp_path):
    asked = questions(7, picture(tmp_path))
    answers = [answer_of(q.id, q.truth["answer"]) for q in asked]
    page = page_html(read_report([written(tmp_path / "blind", asked, answers, blind=True)]))
    assert "by the text alone: 3 of 7 questions" in words_of(page)
    assert "Asked without their pictures: 3 questions q0, q3, q6" in words_of(page)
    states = json.loads(part(page, "index"))["runs"][0]
    assert [bool(flags & page_questions.BLIND) for _, flags, _ in states] == [not q.place % 3 for q in asked]
    assert len(part(page, "pictures").split()) == 1


def test_every_sample_has_its_tree_parse_truth_and_verdict(tmp_path):
    row = rows_of(page_html(read_report([coordinated(tmp_path / "run")])))[5]
    answer = row["runs"][0]["answers"][0]
    assert row["truth"] == {"answer": "5"} and row["asked"][0][0]["content"][-1]["text"] == "What is 5?"
    assert answer["response"] == "It is \\boxed{5}." and answer["reasoning"] == "Let me think."
    (right, wrong, lost), (last,) = answer["rounds"]
    assert (right["message"], right["parsed"], right["score"]) == ("so \\boxed{5}", "5", 1.0)
    assert (wrong["parsed"], wrong["score"]) == ("998", 0.0) and lost["error"] == "no luck"
    assert last["message"] is None and last["score"] == 1.0  # the answer itself, said once


def test_without_a_judge_trajectories_have_no_verdicts_and_the_page_says_why(tmp_path):
    class Away:
        def score(self, question, response):
            raise BenchmarkError("the judge is away")

    made = replace(read_report([coordinated(tmp_path / "run")]), benchmark=Away())
    page = page_html(made)
    assert "no verdicts: the judge is away" in words_of(page)
    assert "score" not in rows_of(page)[0]["runs"][0]["answers"][0]["rounds"][0][0]


def test_runs_that_asked_in_other_words_show_both(tmp_path):
    asked = questions(2)
    turn = [{"role": "user", "content": "Say zero."}]
    other = [replace(asked[0], conversation=turn), asked[1]]
    answers = [answer_of(q.id, q.truth["answer"]) for q in asked]
    made = read_report([written(tmp_path / "a", asked, answers), written(tmp_path / "b", other, answers, seed=1)])
    first, second = rows_of(page_html(made))
    assert [run["asked"] for run in first["runs"]] == [0, 1] and first["asked"][1] == turn
    assert [run["asked"] for run in second["runs"]] == [0, 0]


# Hostile text


def hostile_run(folder):
    """A run with hostile words wherever a model, a data set or a file can put them."""
    asked = [replace(q, id=f"q{i}{HOSTILE}", groups={HOSTILE: HOSTILE}, truth={"answer": HOSTILE, HOSTILE: [HOSTILE]})
             for i, q in enumerate(questions(3))]  # fmt: skip
    asked[0] = replace(asked[0], conversation=[{"role": HOSTILE, "content": HOSTILE}])
    said = dict.fromkeys(("response", "reasoning", "parsed", "note"), HOSTILE) | {"notes": (HOSTILE,)}
    answers = [answer_of(asked[0].id, "", guessed=True, **said), answer_of(asked[1].id, "", error=HOSTILE, score=None)]
    return written(folder, asked, answers, [replace(SESSION, versions={HOSTILE: HOSTILE}, commit=HOSTILE)],
                   model=HOSTILE, template=HOSTILE, plan={HOSTILE: HOSTILE})  # fmt: skip


def test_hostile_text_is_text(tmp_path):
    page = page_html(read_report([hostile_run(tmp_path / "run"), hostile_other(tmp_path / "other")]))
    assert page.count("<script") == 4 == page.count("</script") and "<img" not in page and "onerror='" in page
    assert "<!--" not in page.partition("<head>")[2] and "7 * 7" in page
    assert rows_of(page)[0]["runs"][0]["answers"][0]["response"] == HOSTILE
    assert json.loads(part(page, "index"))["ids"][2] == f"q2{HOSTILE}"


def hostile_other(folder):
    return written(folder, [replace(q, id=f"q{q.place}{HOSTILE}") for q in questions(2)],
                   [answer_of(f"q{i}{HOSTILE}", str(i), False) for i in range(2)], seed=2)  # fmt: skip


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("</>&'\"!-\n\u2028\ud83d")), max_size=60))
def test_what_is_embedded_can_close_nothing_and_comes_back(text):
    made = page_room.embedded({text: [text]})
    assert "<" not in made and "\n" not in made
    kept = text.encode("utf-8", "replace").decode()
    assert json.loads(made) == {kept: [kept]}


def test_the_policy_names_the_pages_own_script_and_style_and_nothing_else(tmp_path):
    page = page_html(read_report([single(tmp_path / "one")]))
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1])
    directives = dict(one.strip().split(" ", 1) for one in policy.split(";"))
    assert directives["default-src"] == "'none'" and directives["img-src"] == "data:"
    for name, found in (("script-src", re.findall(r"<script>(.*?)</script>", page, re.DOTALL)),
                        ("style-src", re.findall(r"<style>(.*?)</style>", page, re.DOTALL))):  # fmt: skip
        (own,) = found
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert directives[name] == f"'sha256-{digest}'"
    assert not re.search(r"""\s(style|on\w+)=["']""", page.partition('<script type="application/json"')[0])
    assert not re.search(r"https?://(?!127\.0\.0\.1/v1)", page)
    assert "innerHTML" not in page and "eval(" not in page


# What the page has room for


@given(st.lists(st.integers(0, 5000), max_size=40), st.integers(0, 50_000))
def test_the_water_level_fills_the_room_and_no_more(sizes, room):
    level = page_room.water_level(sizes, room)
    assert sum(min(size, level) for size in sizes) <= room
    assert level == max(sizes, default=0) or sum(min(size, level + 1) for size in sizes) > room


@given(st.lists(st.text(max_size=60), max_size=9), st.lists(st.text(max_size=60), max_size=9), st.integers(0, 900))
def test_what_led_to_an_answer_gives_way_to_it_but_not_altogether(first, others, room):
    limit, other = page_room.text_limits(first, others, room)
    sizes = [[len(page_room.embedded(text).encode()) - 2 for text in texts] for texts in (first, others)]
    taken = [sum(size if most is None else min(size, most) for size in own)
             for own, most in zip(sizes, (limit, other), strict=True)]  # fmt: skip
    assert sum(taken) <= room
    if limit is not None:  # then the others have their quarter, but for what cannot be shared out evenly
        assert taken[1] >= min(sum(sizes[1]), room // 4) - len(others)


@given(st.text(max_size=3000), st.integers(0, 400))
def test_a_clipped_text_says_how_much_is_gone(text, limit):
    short = page_room.clipped(text, limit)
    if short != text:
        gone = re.search(r"\n\[… ([\d,]+) characters …\]\n", short)
        kept = len(short) - len(gone[0])
        assert kept + int(gone[1].replace(",", "")) == len(text)
        assert text.startswith(short[: gone.start()]) and text.endswith(short[gone.end() :])
    else:
        assert page_room.clipped(text, None) == text


def test_pictures_are_shown_smaller_where_all_need_more_than_there_is_room(tmp_path):
    noise = Image.effect_noise((300, 200), 90).convert("RGB")
    paths = []
    for i in range(4):
        paths.append(tmp_path / f"{i}.png")
        noise.rotate(i).save(paths[-1])
    small = picture(tmp_path, "blue", (30, 20))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    made = page_room.thumbnails([*paths, small, tmp_path / "broken.png"], room=12_000)
    assert sum(len(one.uri) for one in made) <= 12_000
    for one in made[:4]:
        shown = Image.open(io.BytesIO(base64.b64decode(one.uri.partition(",")[2])))
        assert shown.size == one.shown and 48 <= max(one.shown) < 300 and one.size == (300, 200)
    assert made[4].shown == made[4].size == (30, 20)
    assert not made[5].uri and "broken.png" in made[5].problem and str(tmp_path) not in made[5].problem
    crowded = page_room.thumbnails(paths, room=600)
    assert [one.uri for one in crowded] == [""] * 4 and "no room" in crowded[0].problem


def test_long_texts_lose_their_middle_and_the_page_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(page_questions, "text_limits", lambda *texts: page_room.text_limits(*texts, 40_000))
    asked = questions(20)
    answers = [answer_of(q.id, "0", False, reasoning="<thought> " * 2000 + "the end") for q in asked]
    page = page_html(read_report([written(tmp_path / "run", asked, answers)]))
    assert len(part(page, "rows")) < 60_000 and "without their middle" in words_of(page)
    reasoning = rows_of(page)[7]["runs"][0]["answers"][0]["reasoning"]
    assert rows_of(page)[7]["runs"][0]["answers"][0]["response"] == "It is \\boxed{999}."  # before what led to it
    assert reasoning.startswith("<thought>") and reasoning.endswith("the end") and "characters …]" in reasoning


def test_a_missing_number_in_the_data_is_no_end_of_the_page():
    assert json.loads(page_room.embedded({"precision": float("nan"), "a": [float("inf"), 1.5]})) == {
        "precision": "nan", "a": ["inf", 1.5]
    }  # fmt: skip


# The chart


@given(st.lists(st.tuples(st.floats(1, 1e9), st.floats(0, 1), st.floats(0, 0.4)), min_size=1, max_size=8))
def test_the_chart_holds_its_points_and_labels(drawn):
    measured = [Measured(f"r{i}", tokens, value, max(0, value - half), min(1, value + half))
                for i, (tokens, value, half) in enumerate(drawn)]  # fmt: skip
    made = draw(measured, 340, 280)
    assert len(made.points) == len(drawn) and 2 <= len(made.across) <= 9 and 2 <= len(made.up) <= 7
    for point in made.points:
        assert made.left <= point.x <= made.right
        assert made.top <= point.high <= point.y + 0.1 and point.y <= point.low + 0.1 <= made.bottom + 0.2
    assert all(made.left <= x <= made.right for x, _ in made.across)
    labels = [(point.x, point.label_y) for point in made.points]
    assert not any(abs(a[0] - b[0]) < 20 and abs(a[1] - b[1]) < 12 for i, a in enumerate(labels) for b in labels[:i])


def test_a_server_that_counts_no_tokens_has_no_point_and_the_page_says_so(tmp_path):
    assert draw([Measured("A", 0, 0.5, 0.4, 0.6)], 340, 280) is None
    asked = questions(3)
    runs = []
    for seed, tokens in enumerate((5, 50, 0)):
        counted = {"prompt_tokens": tokens, "completion_tokens": tokens}
        answers = [answer_of(q.id, q.truth["answer"], **counted) for q in asked]
        runs.append(written(tmp_path / str(seed), asked, answers, seed=seed))
    assert "its server counts no tokens: C" in words_of(page_html(read_report(runs)))


# What is refused


def test_what_cannot_be_reported_is_one_clear_line(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = single(tmp_path / "one")
    other = written(tmp_path / "world", questions(2), [], benchmark="world")
    split = written(tmp_path / "split", questions(2), [], split="train")
    gone = written(tmp_path / "gone", questions(2), [], benchmark="no-such")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    for arguments, says in (
        (["none", "--html", "a.html"], "'none' is no run"),
        (["empty", "--html", "a.html"], "'empty' is no run"),
        (["notes.txt", "--html", "a.html"], "'notes.txt' is no run"),
        (["one", "world"], "benchmark is 'aime2025' and 'world'; report each for itself"),
        (["one", "split"], "split is 'test' and 'train'"),
        (["one", "one"], "shard 1 of 1 is there twice"),
        (["gone"], "there is no benchmark 'no-such'"),
        (["one", "--html", "nowhere/a.html"], "there is no folder 'nowhere'"),
        (["one", "--html", "empty"], "'empty' is a folder; give the page's file, such as 'empty/report.html'"),
        (["one", "--html", "notes.txt"], "'notes.txt' is there and no page of this command"),
        (["one", "--html", "one/answers.jsonl"], "no page of this command"),
    ):
        code, out, err = run(monkeypatch, capsys, "report", *arguments)
        assert (code, out) == (2, "") and err.startswith("error: ") and says in err and err.count("\n") == 1, arguments
    assert not (tmp_path / "a.html").exists() and (tmp_path / "notes.txt").read_text() == "mine"
    assert all(path.is_dir() for path in (folder, other, split, gone))


def test_an_earlier_page_is_replaced_as_a_whole_and_a_full_disk_is_one_line(monkeypatch, tmp_path):
    made = read_report([single(tmp_path / "one")])
    out = tmp_path / "out.html"
    write_page(made, out)
    first = out.read_text()
    write_page(made, out)
    assert out.read_text() == first

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("evaluation.page.os.replace", full)
    with pytest.raises(RunError, match="No space left on device"):
        write_page(made, out)
    assert out.read_text() == first and [p.name for p in tmp_path.glob("*.partial")] == []
