"""Edits of the world: equal seeds give equal pairs, only what was asked changes, what is withheld stays withheld."""

import hashlib
import os
import re
import subprocess
import sys
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from edit.configuration import PRESETS
from training.world import numbers, scenes
from training.world.edit_pages import Page, TextPage, draw_page
from training.world.edit_phrases import LANGUAGES, TEMPLATES, thing_name
from training.world.edit_steps import HELD_OUT_GROUNDS, ROUND, Desk
from training.world.edits import EDIT_FAMILIES, HELD_OUT_WORDS, draw_edit
from training.world.sample import SPLITS, NotAskable, stream
from training.world.sheet import edit_sheet
from vlm.answering import checkpoints

seeds = st.integers(0, 2**40)
families, splits = st.sampled_from(EDIT_FAMILIES), st.sampled_from(SPLITS)
WITHHELD = (
    scenes.HELD_OUT_PAIRS
    | HELD_OUT_GROUNDS
    | {("digits", pair) for pair in numbers.HELD_OUT_BIGRAMS}
    | {("word", word) for word in HELD_OUT_WORDS}
)


def pixels(picture) -> np.ndarray:
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize("family", EDIT_FAMILIES)
def test_pictures_are_equal_wherever_nothing_was_asked(family):
    for split in SPLITS:
        for seed in range(12):
            edit = draw_edit(seed, split, family)
            apart = np.abs(pixels(edit.before) - pixels(edit.after)).max(-1)
            assert not apart[~edit.changed].any(), (split, seed)
            for part in range(1, edit.parts.max() + 1):
                assert (apart[edit.parts == part] > 40).sum() > 5, (split, seed, part)


@settings(max_examples=60)
@given(seeds, splits, families, st.sampled_from((48, 128, 200)))
def test_pictures_have_the_size_that_was_asked_for(seed, split, family, size):
    edit = draw_edit(seed, split, family, size=size)
    for picture in (edit.before, edit.after):
        assert picture.size == (size, size) and picture.mode == "RGB"
    assert edit.parts.shape == (size, size) and edit.changed.dtype == bool
    assert 0 <= edit.difficulty <= 1
    apart = np.abs(pixels(edit.before) - pixels(edit.after)).max(-1)
    assert not apart[~edit.changed].any()


@settings(max_examples=40)
@given(seeds, splits, st.one_of(st.none(), families))
def test_equal_arguments_give_equal_edits(seed, split, family):
    first, second = (draw_edit(seed, split, family) for _ in range(2))
    assert (first.instruction, first.plan) == (second.instruction, second.plan)
    assert first.before.tobytes() == second.before.tobytes() and first.after.tobytes() == second.after.tobytes()


def digest() -> str:
    drawn = hashlib.sha256()
    for seed in range(2):
        for family in EDIT_FAMILIES:
            edit = draw_edit(seed, "train", family)
            drawn.update(edit.before.tobytes() + edit.after.tobytes() + (edit.instruction + edit.plan).encode())
    return drawn.hexdigest()


def test_another_process_draws_the_same():
    """Sets and hashes have another order there."""
    code = "import sys; sys.path.insert(0, 'tests'); import test_world_edits; print(test_world_edits.digest())"
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == digest()


@settings(max_examples=40)
@given(seeds, splits, families)
def test_both_languages_ask_for_the_same_pictures(seed, split, family):
    english, chinese = (draw_edit(seed, split, family, language) for language in LANGUAGES)
    assert english.after.tobytes() == chinese.after.tobytes() and english.plan == chinese.plan
    assert not re.search("[一-鿿]", english.instruction) and re.search("[一-鿿]", chinese.instruction)
    assert not re.search("[{}]", english.instruction + chinese.instruction)


@settings(max_examples=100)
@given(seeds, st.sampled_from(("easy", "train", "test", "hard")), families)
def test_no_other_split_shows_or_asks_what_is_held_out(seed, split, family):
    edit = draw_edit(seed, split, family)
    if (split, edit.family) == ("hard", "text"):
        return  # there, as in the questions, any digits may stand together
    assert not edit.pairs & WITHHELD
    for page in edit.pages:
        if isinstance(page, Page):
            assert not {(t.colour, t.shape) for t in page.scene.things} & scenes.HELD_OUT_PAIRS
        else:
            assert not any(pair in page.text for pair in (*numbers.HELD_OUT_BIGRAMS, *HELD_OUT_WORDS))


@settings(max_examples=100)
@given(seeds, families)
def test_the_held_out_split_always_asks_about_something_held_out(seed, family):
    assert draw_edit(seed, "held_out", family).pairs & WITHHELD


def test_held_out_things_are_edited_and_edited_into():
    into = 0
    for seed in range(40):
        edit = draw_edit(seed, "held_out", "recolour")
        before, after = edit.pages
        index = next(i for i in before.present if before.items[i] != after.items[i])
        thing = after.items[index].thing
        into += (thing.colour, thing.shape) in scenes.HELD_OUT_PAIRS
    assert 5 < into <= 40


def changes(edit):
    before, after = edit.pages
    pairs = [(before.items[i] if i < len(before.items) else None, after.items[i]) for i in range(len(after.items))]
    return [(old, new) for old, new in pairs if old != new]


def test_every_family_changes_what_it_says():
    for seed in range(15):
        for old, new in changes(draw_edit(seed, "train", "recolour")):
            assert old.thing.colour != new.thing.colour and old.thing.shape == new.thing.shape
        for old, new in changes(draw_edit(seed, "train", "resize")):
            assert old.thing.radius != new.thing.radius and old.tone == new.tone
        for old, new in changes(draw_edit(seed, "train", "move")):
            assert old.thing.place != new.thing.place and old.thing.radius == new.thing.radius
        for old, new in changes(draw_edit(seed, "train", "replace")):
            assert old.thing.shape != new.thing.shape and old.thing.place == new.thing.place
            # What cannot be seen of the old thing does not show in the new one.
            assert new.thing.rotation == (0 if old.thing.shape in ROUND else old.thing.rotation)
        for old, new in changes(draw_edit(seed, "train", "restyle")):
            assert old.style != new.style and old.thing == new.thing
        assert [bool(old) for old, _ in changes(draw_edit(seed, "train", "add"))] == [False]
        assert [bool(new) for _, new in changes(draw_edit(seed, "train", "remove"))] == [False]
        assert len(changes(draw_edit(seed, "train", "swap"))) == 2
        assert not any(new for _, new in changes(draw_edit(seed, "train", "count")))
        edit = draw_edit(seed, "train", "background")
        assert not changes(edit) and edit.pages[0].ground != edit.pages[1].ground
        edit = draw_edit(seed, "train", "text")
        assert isinstance(edit.pages[0], TextPage) and edit.pages[0].text != edit.pages[1].text
        assert 2 <= len(draw_edit(seed, "train", "multi").steps) <= 3


@settings(max_examples=150)
@given(seeds, st.sampled_from(("train", "hard")))
def test_a_thing_is_called_what_nothing_else_could_be_called(seed, split):
    page = draw_page(Random(seed), scenes.draw_scene(stream("t", seed), split))
    desk = Desk(Random(seed), Random(seed), "en", False, page)
    for index in page.present:
        try:
            reference = desk.reference(page, index)
        except NotAskable:
            continue
        fitting = [t for t in page.scene.things if reference.fits(t)]
        assert fitting == [page.items[index].thing]
        assert all(word in thing_name(reference, "en", Random(0)) for word in (reference.shape, reference.size) if word)


def test_the_plan_names_what_changes_and_what_stays():
    for seed in range(30):
        edit = draw_edit(seed, "train", "remove")
        change, keep = edit.plan.splitlines()
        assert change == f"change: {edit.steps[0]}" and edit.steps[0].endswith(" goes")
        kept = edit.pages[1].scene.things
        assert keep == "keep: " + ", ".join([*(f"{t.place} {t.full_name}" for t in kept), "background"])
        assert edit.response == f"<think>\n{edit.reading}\n{edit.plan}\n</think>\n{edit.steps[0]}"
        picture, text = edit.conversation()[0]["content"]
        assert picture["image"] is edit.before and text["text"] == edit.instruction
        (twin,) = edit.conversation("Plan: {instruction}", "text")[0]["content"]
        assert twin["text"] == f"Picture:\n{edit.transcription}\nPlan: {edit.instruction}"


@pytest.mark.parametrize("split", SPLITS)
def test_many_steps_are_done_on_one_page(split):
    edits = [draw_edit(seed, split, "multi", steps=6) for seed in range(12)]
    assert all(2 <= len(edit.steps) <= 6 for edit in edits)
    assert sum(len(edit.steps) for edit in edits) / 12 > 4
    for edit in edits:
        assert {int(part) for part in np.unique(edit.parts)} - {0} and edit.verifier(edit.after).success
        assert sum(step.startswith("background") for step in edit.steps) <= 1
    said = "; ".join(step for edit in edits for step in edit.steps)
    assert all(word in said for word in ("swap", "moves to", "goes", "appears", "background"))
    # Without it all is as it was.
    assert len({draw_edit(seed, "train", "multi").steps for seed in range(5)} & {e.steps for e in edits}) == 0


def test_the_reading_marks_what_is_meant():
    """A letter for each name, and behind each thing that has it; without the letters it is the transcription."""
    for family in EDIT_FAMILIES:
        for seed in range(12):
            edit = draw_edit(seed, "train", family)
            assert draw_edit(seed, "train", family, "zh").reading == draw_edit(seed, "train", family, "en").reading
            if edit.reading == edit.transcription:
                assert family in ("add", "background", "text")
                continue
            legend, _, read = edit.reading.partition("\n")
            assert re.sub(r" [A-F]\b", "", read) == edit.transcription
            for name in legend.removeprefix("? ").split(", "):
                words, letter = name.rsplit(" ", 1)
                place = words.split()[0] if re.match(r"r\dc\d", words) else ""
                marked = re.findall(r"(r\dc\d)?((?: [a-z]+)+(?: [A-F])+)", read)
                found = [(at, thing) for at, thing in marked if letter in thing.split()]
                assert found and (family == "count" or len(found) == 1)
                assert all(word in thing.split() for _, thing in found for word in words.removeprefix(place).split())
                assert not place or found[0][0] in (place, "")
    assert draw_edit(3, "train", "remove").reading.startswith("? ")


def test_people_say_it_in_many_ways():
    for family in EDIT_FAMILIES:
        for language in LANGUAGES:
            said = {draw_edit(seed, "train", family, language).instruction for seed in range(8)}
            assert len(said) > 5, (family, language)
    assert all(len(kinds[language]) >= 2 for kinds in TEMPLATES.values() for language in LANGUAGES)
    languages = [draw_edit(seed).language for seed in range(120)]
    assert 20 < languages.count("zh") < 60


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"split": "nope"}, "there are easy, train"),
        ({"family": "nope"}, "there are recolour"),
        ({"language": "fr"}, "there are en, zh"),
        ({"size": 8}, "32 to 2048"),
        ({"steps": 4, "family": "add"}, "of the family 'multi'"),
        ({"steps": 1, "family": "multi"}, "at least 2"),
    ],
    ids=str,
)
def test_unknown_arguments_are_refused_with_the_choices(arguments, words):
    with pytest.raises(ValueError, match=words):
        draw_edit(1, **arguments)


def test_the_sheet_has_a_row_a_family():
    sheet = edit_sheet(columns=2, families=("add", "text"))
    assert sheet.width == 2 * edit_sheet(columns=1, families=("add",)).width and sheet.height % 2 == 0
    with pytest.raises(ValueError, match="columns 0"):
        edit_sheet(columns=0)


def test_the_longest_instructions_are_read_whole():
    """Three steps in Chinese, some of whose characters are two or three tokens, within what the mini editor reads."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoints() / "mini")
    most = PRESETS["mini"]["pipeline"]["conditioning"]["max_tokens"]
    lengths = []
    for seed in range(40):
        said = draw_edit(seed, "train", "multi", "zh", size=64).instruction
        tokens = tokenizer(said, add_special_tokens=False).input_ids
        assert tokenizer.decode(tokens) == said
        lengths.append(len(tokens))
    # Beside it there are the picture's 18 and the turn's end.
    assert 60 < max(lengths) < 0.8 * most - 25
