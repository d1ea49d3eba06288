"""Edits on disk: what is written is read back, in the released form; broken folders are named, not half read."""

import json

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as Picture
from PIL import Image

from training.__main__ import Export, Sheet, run
from training.edit_folder import export_edits, load_edits
from training.schedule import RecipeError
from training.world.edits import draw_edit


@pytest.fixture
def folder(tmp_path):
    export_edits(tmp_path / "edits", "train", 3)
    return tmp_path / "edits"


def same(a, b) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


def rewrite(folder, change) -> None:
    path = folder / "metadata.json"
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


def test_what_is_exported_is_read_back(folder):
    pairs = load_edits(folder)
    assert len(pairs) == 3
    for seed, pair in enumerate(pairs):
        edit = draw_edit(seed, "train")
        assert same(pair.reference, edit.before) and same(pair.target, edit.after)
        assert pair.instruction == edit.instruction


def test_the_file_is_what_the_released_trainer_reads(folder, monkeypatch):
    """Keys are target pictures, and every path exists from where the trainer is run: the folder itself."""
    monkeypatch.chdir(folder)
    for target, entry in json.loads((folder / "metadata.json").read_text(encoding="utf-8")).items():
        assert Image.open(target).mode == Image.open(entry["ref_image_path"]).mode == "RGB"
        assert entry["caption"].strip()


def test_lines_and_foreign_paths_and_missing_endings_are_read(folder):
    rows = [
        {"file_name": "images/000000", "ref_image_path": "/another/machine/references/000000.png", "caption": "a"},
        {"file_name": "000001.png", "ref_image_path": str(folder / "references" / "000001.png"), "tags": "b"},
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    pairs = load_edits(folder / "rows.jsonl")
    assert [pair.instruction for pair in pairs] == ["a", "b"]
    for seed, pair in enumerate(pairs):
        edit = draw_edit(seed, "train")
        assert same(pair.reference, edit.before) and same(pair.target, edit.after)


def test_transparent_gray_and_large_pictures_become_rgb(folder):
    Image.new("LA", (40, 30), (0, 0)).save(folder / "references" / "000000.png")
    Image.new("L", (50, 20), 7).save(folder / "images" / "000000.png")
    reference, target, _ = load_edits(folder)[0]
    assert reference.mode == target.mode == "RGB"
    assert reference.size == (40, 30) and reference.getpixel((0, 0)) == (255, 255, 255)


def test_tables_of_pairs_are_read_by_their_usual_columns(tmp_path):
    edits = [draw_edit(seed) for seed in range(2)]
    rows = {"source_img": [e.before for e in edits], "target_img": [e.after for e in edits],
            "edited_prompt_list": [[e.instruction, "or so"] for e in edits]}  # fmt: skip
    features = Features({"source_img": Picture(), "target_img": Picture(), "edited_prompt_list": List(Value("string"))})
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "table")
    pairs = load_edits(tmp_path / "table")
    assert len(pairs) == 2 and pairs[1].instruction == edits[1].instruction
    assert same(pairs[1].reference, edits[1].before) and same(pairs[1].target, edits[1].after)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda m: {}, "no entries"),
        (lambda m: "text", "no entries"),
        (lambda m: dict.fromkeys(m, 3), "entry 1: it is 3; .*3 of 3"),
        (lambda m: {k: v | {"caption": " "} for k, v in m.items()}, "no instruction for 'images/000000.png'"),
        (lambda m: {k: {"caption": "x"} for k in m}, "no reference picture; .*ref_image_path"),
        (lambda m: m | {"images/9.png": m["images/000000.png"]}, "no picture 'images/9.png'.*1 of 4"),
    ],
)
def test_broken_metadata_is_named(folder, change, words):
    rewrite(folder, change)
    with pytest.raises(RecipeError, match=words):
        load_edits(folder)


def test_unreadable_files_are_named(folder):
    (folder / "references" / "000001.png").write_bytes(b"no picture")
    with pytest.raises(RecipeError, match=r"000001\.png' cannot be read"):
        load_edits(folder)[1]
    (folder / "metadata.json").write_text("{", encoding="utf-8")
    with pytest.raises(RecipeError, match="cannot be read as JSON"):
        load_edits(folder)


def test_absent_folders_hub_ids_and_columns_are_named(tmp_path):
    with pytest.raises(RecipeError, match="there is no file"):
        load_edits(tmp_path / "none.json")
    with pytest.raises(RecipeError, match=r"someone/edits.*metadata\.json, or a hub id"):
        load_edits("someone/edits")
    Dataset.from_dict({"source": ["a"], "text": ["b"]}).save_to_disk(tmp_path / "table")
    with pytest.raises(RecipeError, match="none of them is a target: call one target or file_name"):
        load_edits(tmp_path / "table")
    Dataset.from_dict({"source": ["a"], "target": ["a"], "text": ["b"]}).save_to_disk(tmp_path / "strings")
    with pytest.raises(RecipeError, match="row 0: source is a str"):
        load_edits(tmp_path / "strings")[0]


def test_the_commands_write_a_folder_and_a_sheet(tmp_path, folder):
    run(Export(tmp_path / "new", edits=True, count=2, family="text", language="zh", size=64))
    pair = load_edits(tmp_path / "new")[1]
    assert pair.target.size == (64, 64) and pair.instruction == draw_edit(1, "train", "text", "zh").instruction
    with pytest.raises(ValueError, match="not an empty folder"):
        run(Export(folder, edits=True))
    with pytest.raises(ValueError, match="count 0"):
        run(Export(tmp_path / "none", edits=True, count=0))
    run(Sheet(tmp_path / "sheet.png", edits=True, columns=1))
    assert Image.open(tmp_path / "sheet.png").width < Image.open(tmp_path / "sheet.png").height
