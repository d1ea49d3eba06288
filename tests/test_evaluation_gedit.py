"""Benchmarks whose answers are pictures: painted by a small editor, gone on with, judged by a judge or by rules."""

import io
import json
import sys
from functools import cache

import pytest
import torch
from datasets import Dataset, Features, Image, Value
from fault_server import FaultServer, say, status
from PIL import Image as Pillow
from PIL import ImageChops
from small_editor import make_pipeline

from edit import loading
from evaluation import __main__ as command
from evaluation.benchmark import BenchmarkError
from evaluation.benchmarks.gedit import BENCHMARK as GEDIT
from evaluation.benchmarks.gedit import CATEGORIES
from evaluation.benchmarks.world_edits import BENCHMARK as WORLD
from training.intervals import mean_of
from vlm.pictures import open_picture


def png(colour, size=(24, 16)):
    buffer = io.BytesIO()
    Pillow.new("RGB", size, colour).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def row(key, category, language="en", shared=True, instruction="Make it red."):
    said = {"key": key, "task_type": category, "instruction": instruction, "instruction_language": language}
    return said | {"input_image": png("blue"), "input_image_raw": png("blue", (48, 32)), "Intersection_exist": shared}


ROWS = [row("aa", "color_alter"), row("bb", "color_alter", shared=False), row("cc", "subject-add"),
        row("aa", "color_alter", "cn", instruction="变成红色")]  # fmt: skip
NAMES = ["fullset/color_alter/en/aa", "fullset/color_alter/en/bb", "fullset/subject-add/en/cc",
         "fullset/color_alter/cn/aa"]  # fmt: skip


def write(folder, rows):
    folder.mkdir(parents=True)
    kinds = dict.fromkeys(rows[0], Value("string"))
    kinds |= {"input_image": Image(), "input_image_raw": Image(), "Intersection_exist": Value("bool")}
    Dataset.from_list(rows, Features(kinds)).to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "data", ROWS)


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("editor") / "small"
    make_pipeline().save_pretrained(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two for so small a model wait for each other, minutes long where the machine is busy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_editor", cache(loading.load_editor))  # once for all tests
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def pictures(tmp_path):
    """Somebody's results, without a word on who painted them."""
    folder = tmp_path / "pictures"
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("RGB", (12, 8), (250, 0, number)).save(folder / f"{name}.png")
    return folder


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments)])
    code = command.main()
    return code, *capsys.readouterr()


def last_line(out):
    return json.loads(out.strip().splitlines()[-1])


def asked(call):
    """(what was asked, how many pictures were shown)"""
    content = call.body["messages"][-1]["content"]
    return content[-1]["text"], len(content) - 1


# What is read


def test_the_published_table_becomes_tasks(data):
    tasks = GEDIT.load(data, "train")
    assert [task.name for task in tasks] == NAMES and tasks[3].instruction == "变成红色"
    assert open_picture(tasks[0].picture).size == (48, 32) and open_picture(tasks[0].source).size == (24, 16)
    assert tasks[1].groups == {"category": "color_alter", "language": "en", "intersection": "no"}


@pytest.mark.parametrize(
    ("change", "says"),
    [({"key": "../../etc"}, "its `key`"), ({"key": ""}, "its `key`"), ({"task_type": "magic"}, "none of the eleven"),
     ({"instruction_language": "fr"}, "must be en or cn"), ({"instruction": " "}, "no `instruction`"),
     ({"input_image": None}, "there is no picture")],
    ids=str,
)  # fmt: skip
def test_a_row_that_makes_no_sense(tmp_path, change, says):
    with pytest.raises(BenchmarkError) as error:
        GEDIT.load(write(tmp_path / "data", [ROWS[0] | change]), "train")
    assert says in str(error.value) and "row 1" in str(error.value) and "\n" not in str(error.value)


def test_one_name_for_two_tasks_and_no_such_split(tmp_path):
    with pytest.raises(BenchmarkError, match="is there twice"):
        GEDIT.load(write(tmp_path / "data", [ROWS[0], ROWS[0]]), "train")
    with pytest.raises(BenchmarkError, match="no split 'test'"):
        GEDIT.load(tmp_path / "data", "test")


# Painting


def test_an_editor_paints_the_official_layout_and_goes_on_where_it_was(monkeypatch, capsys, data, editor, tmp_path):
    common = ["edits", "gedit", "--data", data, "--model", editor, "--steps", 1]
    out = tmp_path / "out"
    code, said, _ = run(monkeypatch, capsys, *common, "--out", out, "--limit", 2)
    assert code == 0 and "2 of 2 pictures" in said
    assert Pillow.open(out / f"{NAMES[0]}.png").size == (48, 32)
    assert Pillow.open(out / f"{NAMES[0]}_SRCIMG.png").getpixel((0, 0)) == (0, 0, 255)
    code, _, err = run(monkeypatch, capsys, *common, "--out", out)
    assert code == 2 and "is there already; add --resume" in err
    code, _, err = run(monkeypatch, capsys, *common, "--out", out, "--resume", "--seed", 1)
    assert code == 2 and "the pictures" in err and "seed is 0 there and 1 here" in err
    (out / f"{NAMES[1]}.png").unlink()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png") if path.name == "aa.png"}
    code, said, _ = run(monkeypatch, capsys, *common, "--out", out, "--resume")
    assert code == 0 and "4 of 4" in said and all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert len(list(out.rglob("*.png"))) == 8 and not list(out.rglob("*.partial"))
    # A picture follows from the seed and its own name, in whatever company it was painted.
    code, _, _ = run(monkeypatch, capsys, *common, "--out", tmp_path / "alone", "--batch", 1)
    for name in NAMES:
        one, two = (Pillow.open(folder / f"{name}.png").convert("RGB") for folder in (out, tmp_path / "alone"))
        assert max(high for _, high in ImageChops.difference(one, two).getextrema()) <= 2
    assert (out / f"{NAMES[0]}.png").read_bytes() != (out / f"{NAMES[1]}.png").read_bytes()


def test_what_cannot_be_painted_is_said_and_the_others_are_painted(monkeypatch, capsys, editor, tmp_path):
    rows = [row("aa", "color_alter"), row("bb", "color_alter", instruction="very " * 90 + "red"), row("cc", "ps_human")]
    write(tmp_path / "data", rows)
    code, said, err = run(monkeypatch, capsys, "edits", "gedit", "--data", tmp_path / "data", "--model", editor,
                          "--steps", 1, "--out", tmp_path / "out")  # fmt: skip
    assert code == 1 and "2 of 3 pictures" in said and "color_alter/en/bb" in err
    assert not (tmp_path / "out" / "fullset/color_alter/en/bb.png").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["edits", "nothing"], "no benchmark of edits 'nothing'; there are gedit, world-edits"),
        (["edits", "world-edits", "--data", "1", "--model", "/none"], "there is no folder '/none'"),
        (["edits", "world-edits", "--limit", "0"], "--limit is 0"),
        (["run", "gedit"], "the answers to gedit are pictures"),
        (["judge", "gedit", "none"], "there is no folder 'none'"),
        (["judge", "gedit", "."], "gedit is scored by a judge; name its server with --judge-url"),
        (["judge", "world-edits", ".", "--data", "1"], "has none of the 12 pictures, such as test/recolour/0.png"),
        (["judge", "world-edits", ".", "--data", "all"], "is drawn, not read from 'all'"),
        (["judge", "world-edits", ".", "--split", "train"], "no split 'train'"),
        (["judge", "world-edits", ".", "--against", "."], "leave out --against"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_clear_line(monkeypatch, capsys, tmp_path, arguments, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert code == 2 and not out and says in err.splitlines()[-1] and err.splitlines()[-1].startswith("error: ")


# Judging


def test_the_lower_of_each_pair_counts_and_categories_weigh_the_same(monkeypatch, capsys, data, pictures):
    def judge(call):
        text, shown = asked(call)
        assert shown == (2 if "edits of pictures" in text else 1)
        if shown == 1:
            return say('{"score": [9, 4], "reasoning": "a smear"}')
        return say('{"score": [1, 10]}' if "红" in text else '{"score": [10, 9]}')

    with FaultServer(judge, models=[{"id": "critic"}]) as server:
        arguments = ["judge", "gedit", pictures, "--data", data, "--judge-url", server.url, "--json"]
        code, out, _ = run(monkeypatch, capsys, *arguments)
        assert code == 0 and len(server.calls) == 8
        again, _, _ = run(monkeypatch, capsys, *arguments)
        assert again == 0 and len(server.calls) == 8  # judging again is free
    said = last_line(out)
    assert said["judge"] == "critic" and said["judged"] == said["tasks"] == 4 and said["missing"]["count"] == 0
    full, shared = (said["figures"]["en"][name] for name in ("fullset", "intersection"))
    assert (full["G_SC"], full["G_PQ"], full["G_O"]) == (9.0, 4.0, 6.0) and full["n"] == 3 and shared["n"] == 2
    assert full["categories"]["color_alter"] == {"n": 2, "SC": 9.0, "PQ": 4.0, "O": 6.0}
    assert said["figures"]["cn"]["fullset"]["G_O"] == 2.0 and "en, fullset, 2 of 11" in out
    rows = [json.loads(line) for line in (pictures / "scores.jsonl").read_text().splitlines()]
    assert [r["name"] for r in rows] == NAMES and rows[0]["scores"]["clean"] == 4


def test_means_are_over_categories_and_not_over_pictures(data):
    tasks = GEDIT.load(data, "train")
    given = [{"SC": 10, "PQ": 10, "O": 10}, {"SC": 0, "PQ": 4, "O": 0}, {"SC": 2, "PQ": 8, "O": 4}]
    figures = GEDIT.summarize(list(zip(tasks, given, strict=False)))
    full, shared = figures["en"]["fullset"], figures["en"]["intersection"]
    assert (full["G_SC"], full["G_PQ"], full["G_O"]) == (3.5, 7.5, 4.5) and full["of_categories"] == 2
    assert (shared["G_SC"], shared["G_O"]) == (6.0, 7.0) and "cn" not in figures
    assert list(full["categories"]) == [name for name in CATEGORIES if name in ("color_alter", "subject-add")]


def test_nothing_is_scored_0_because_a_judge_or_a_picture_is_not_there(monkeypatch, capsys, data, pictures):
    (pictures / f"{NAMES[2]}.png").unlink()
    (pictures / f"{NAMES[3]}.png").write_bytes(b"half a pic")
    broken = True

    def judge(call):
        _, shown = asked(call)
        if broken and shown == 2 and "bb" in seen(call):
            return status(500)
        return say("Lovely!") if broken and shown == 1 and "aa" in seen(call) else say('{"score": [8, 8]}')

    def seen(call):
        """Which picture, told by its third colour."""
        picture = open_picture(call.body["messages"][-1]["content"][-2]["image_url"]["url"])
        return {0: "aa", 1: "bb"}[picture.getpixel((0, 0))[2]]

    with FaultServer(judge) as server:
        arguments = ["judge", "gedit", pictures, "--data", data, "--judge-url", server.url, "--judge-retries", 0,
                     "--json"]  # fmt: skip
        code, out, err = run(monkeypatch, capsys, *arguments)
        said = last_line(out)
        assert code == 1 and said["failed"] == {"count": 3, "names": [NAMES[0], NAMES[1], NAMES[3]]}
        assert said["missing"] == {"count": 1, "names": [NAMES[2]]} and said["figures"] == {} and said["judged"] == 0
        text = " ".join(err.split())
        assert "no verdict that can be read" in text and "cannot be had" in text and "not a picture" in text
        paid, broken = len(server.calls), False
        code, out, _ = run(monkeypatch, capsys, *arguments)
        said = last_line(out)
        assert code == 1 and said["failed"]["names"] == [NAMES[3]] and said["judged"] == 2
        assert said["figures"]["en"]["fullset"]["G_O"] == 8.0
        assert len(server.calls) - paid == 3  # quality of aa, both of bb
    assert "Not there, and in no figure: 1" in " ".join(out.split())


def test_two_editors_are_compared_in_both_orders(monkeypatch, capsys, data, pictures, tmp_path):
    other = tmp_path / "other"
    for name in NAMES[:3]:
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("RGB", (24, 16), "green").save(other / f"{name}.png")

    def judge(call):
        _, first, second, text = call.body["messages"][-1]["content"]
        third = {open_picture(p["image_url"]["url"]).getpixel((0, 0))[0]: p for p in (first, second)}
        ours = "first" if third[250] is first else "second"
        number = open_picture(third[250]["image_url"]["url"]).getpixel((0, 0))[2]
        assert "Make it red." in text["text"]
        return say(json.dumps({"better": {0: ours, 1: "first", 2: "same"}[number]}))

    with FaultServer(judge) as server:
        code, out, _ = run(monkeypatch, capsys, "judge", "gedit", pictures, "--data", data, "--against", other,
                           "--judge-url", server.url, "--json")  # fmt: skip
        assert code == 0 and len(server.calls) == 6
    said = last_line(out)
    assert said["preferences"]["all"] == {"better": 1, "neither": 2, "worse": 0, "unsteady": 1}
    assert said["preferences"]["subject-add"] == {"better": 0, "neither": 1, "worse": 0, "unsteady": 0}
    assert said["missing"]["names"] == [NAMES[3]] and said["against"] == "other"


# Our own world


def test_world_edits_are_judged_by_rules(monkeypatch, capsys, tmp_path):
    tasks = WORLD.load(1, "test")
    folder = tmp_path / "pictures"
    for number, task in enumerate(tasks):
        (folder / task.name).parent.mkdir(parents=True)
        picture = task.truth.before if number % 2 else task.truth.after
        if number < 10:
            picture.save(folder / f"{task.name}.png")
    code, out, _ = run(monkeypatch, capsys, "judge", "world-edits", folder, "--data", 1, "--json")
    said = last_line(out)
    figures = said["figures"]
    assert code == 0 and said["judge"] is None and said["missing"]["count"] == 2 and said["judged"] == 10
    assert [own["success"] for own in figures["families"].values()] == [1.0, 0.0] * 5
    assert [own["change"] for own in figures["families"].values()] == [1.0, 0.0] * 5
    assert all(own["preservation"] == 1.0 for own in figures["families"].values())
    rates = {n: {"accuracy": f["success"], "n": f["n"]} for n, f in figures["families"].items()}
    assert (figures["mean"], figures["mean_interval"]) == mean_of(rates) and figures["mean"] == 0.5
    assert sum(own["n"] for own in figures["languages"].values()) == 10


def test_an_editor_in_the_world(monkeypatch, capsys, editor, tmp_path):
    out = tmp_path / "out"
    code, _, _ = run(monkeypatch, capsys, "edits", "world-edits", "--data", 1, "--limit", 3, "--model", editor,
                     "--steps", 1, "--batch", 3, "--out", out)  # fmt: skip
    assert code in (0, 1)  # some instructions are too long for this editor
    painted = len(list(out.rglob("[0-9].png")))
    size = json.loads((out / "edits.json").read_text())["size"]
    code, said, _ = run(monkeypatch, capsys, "judge", "world-edits", out, "--json")
    assert code == 0 and last_line(said)["judged"] == painted and last_line(said)["tasks"] == 12 and size == 32
    code, _, err = run(monkeypatch, capsys, "judge", "gedit", out, "--judge-url", "http://127.0.0.1:1/v1")
    assert code == 2 and "are of world-edits, not of gedit" in err
