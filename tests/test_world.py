"""The world: equal seeds give equal samples, truths follow from scenes, withheld compositions stay withheld."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.verifiers import Verifier, verify
from training.world import FAMILIES, SPLITS, TASKS, charts, clocks, draw_sample, mazes, numbers, scenes
from training.world.rendering import box, outline
from training.world.sample import stream
from training.world.sheet import contact_sheet

seeds = st.integers(0, 2**40)


@settings(max_examples=150, deadline=None)
@given(seeds, st.sampled_from(SPLITS), st.sampled_from(FAMILIES), st.sampled_from(("picture", "text")))
def test_the_taught_response_satisfies_its_own_verifier(seed, split, family, modality):
    sample = draw_sample(seed, split, family, modality)
    assert verify(sample.response, Verifier.from_dict(sample.verifier)) == 1.0
    assert sample.conclusion.endswith(f"Answer: {sample.answer}")
    assert 0 <= sample.difficulty <= 1


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from(FAMILIES), st.sampled_from(TASKS))
def test_equal_arguments_give_equal_samples(seed, family, task):
    first, second = (draw_sample(seed, "train", family, task=task) for _ in range(2))
    assert first.prompt == second.prompt and first.response == second.response
    assert first.picture.tobytes() == second.picture.tobytes()
    assert first.picture.size == (128, 128) and first.picture.mode == "RGB"


@settings(max_examples=200, deadline=None)
@given(seeds, st.sampled_from(SPLITS))
def test_scenes_hold_together(seed, split):
    scene = scenes.draw_scene(stream("t", seed), split)
    things = scene.things
    assert things == scenes.reading_order(list(things))
    for i, a in enumerate(things):
        assert 1 <= a.row <= 4 and 1 <= a.column <= 4
        for b in things[i + 1 :]:
            assert math.hypot(a.x - b.x, a.y - b.y) > 0.9 * (a.radius + b.radius), "overlap"
    words = scene.transcription().replace("\n", " ")
    assert all(t.full_name in words for t in things)


@settings(max_examples=200, deadline=None)
@given(seeds, st.sampled_from(("easy", "train", "test")))
def test_training_and_test_never_show_what_is_held_out(seed, split):
    rng = stream("t", seed)
    assert not {(t.colour, t.shape) for t in scenes.draw_scene(rng, split).things} & scenes.HELD_OUT_PAIRS
    assert not set(charts.draw_chart(rng, split, "bar").pairs) & charts.HELD_OUT_VALUES
    clock = clocks.draw_clock(rng, split)
    assert not clocks.held_out(clock.hour, clock.minute)
    maze = mazes.draw_maze(rng, split)
    assert not mazes.held_out(maze.start, maze.goal)
    digits = numbers.draw_number(rng, split).text
    assert not any(pair in digits for pair in numbers.HELD_OUT_BIGRAMS)


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_the_held_out_split_always_shows_something_held_out(seed):
    rng = stream("t", seed)
    assert {(t.colour, t.shape) for t in scenes.draw_scene(rng, "held_out").things} & scenes.HELD_OUT_PAIRS
    assert set(charts.draw_chart(rng, "held_out", "line").pairs) & charts.HELD_OUT_VALUES
    clock = clocks.draw_clock(rng, "held_out")
    assert clocks.held_out(clock.hour, clock.minute)


@settings(max_examples=100, deadline=None)
@given(seeds, st.sampled_from(SPLITS))
def test_the_way_through_a_maze_is_open_and_shortest(seed, split):
    maze = mazes.draw_maze(stream("t", seed), split)
    way = maze.path()
    cell = maze.start
    for move, reached in way:
        cell = (cell[0] + mazes.MOVES[move][0], cell[1] + mazes.MOVES[move][1])
        assert cell == reached and cell in maze.open_cells
    assert cell == maze.goal
    assert len(way) >= abs(maze.start[0] - maze.goal[0]) + abs(maze.start[1] - maze.goal[1])


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_a_shape_is_drawn_inside_its_box(seed):
    """The box comes from the outline; pixels of the shape's colour must not lie outside it."""
    from training.world.rendering import Nuisance, render

    scene = scenes.draw_scene(stream("t", seed), "train")
    if not scene.things:
        return
    single = scenes.Scene(scene.things[:1])
    picture = render(single, stream("p", seed), Nuisance(supersampling=1))
    background = picture.getpixel((0, 0)) if box(single.things[0])[0] > 2 else picture.getpixel((127, 127))
    marked = [(x, y) for x in range(128) for y in range(128) if picture.getpixel((x, y)) != background]
    x1, y1, x2, y2 = (v * 1.28 for v in box(single.things[0]))
    assert marked
    assert min(x for x, _ in marked) >= x1 - 2 and max(x for x, _ in marked) <= x2 + 2
    assert min(y for _, y in marked) >= y1 - 2 and max(y for _, y in marked) <= y2 + 2


@settings(max_examples=100, deadline=None)
@given(seeds, st.sampled_from(("picture", "text")))
def test_marks_are_behind_those_things_that_the_legend_names(seed, modality):
    sample = draw_sample(seed, "train", task="match", modality=modality)
    legend = dict(entry.rsplit(" ", 1) for entry in sample.prompt.rpartition("? ")[2].split(", "))
    assert len(set(legend.values())) == len(legend) > 1
    cells = re.split(r"\s(?=r\dc\d)", sample.answer)
    said = [words for cell in cells for words in cell.split(" ", 1)[1].split(" + ") if words != "-"]
    for thing, words in zip(sample.scene.things, said, strict=True):
        known = {key: legend[key] for key in (thing.colour, thing.shape, thing.name) if key in legend}
        assert [word for word in words.split() if len(word) == 1] == list(known.values())
        for key, letter in known.items():
            assert f"{key} {letter}" in words
    assert len(cells) == 16


def test_changing_one_thing_leaves_the_others():
    scene = next(s for s in (scenes.draw_scene(stream(i), "train") for i in range(99)) if len(s.things) > 3)
    changed = scene.with_thing(1, colour="gray")
    assert sum(a != b for a, b in zip(scene.things, changed.things, strict=True)) == 1
    assert len(outline(changed.things[1])) >= 3


def test_every_family_is_asked_in_several_ways_and_sometimes_as_a_choice():
    for family in FAMILIES:
        samples = [draw_sample(seed, "train", family, "text") for seed in range(60)]
        assert len({s.prompt.rpartition("\n")[2] for s in samples}) > 3, family
    kinds = {draw_sample(seed, "train", None, "text").verifier["kind"] for seed in range(300)}
    assert kinds == {"exact", "numeric", "time", "choice", "box", "objects"}


@pytest.mark.parametrize(
    "arguments", [{"split": "nope"}, {"family": "nope"}, {"modality": "sound"}, {"task": "sing"}], ids=str
)
def test_unknown_names_are_refused_with_the_choices(arguments):
    with pytest.raises(ValueError, match="there are"):
        draw_sample(1, **arguments)


def test_contact_sheet_has_a_row_a_family():
    sheet = contact_sheet(columns=2, families=("count", "maze"))
    assert sheet.width == 2 * 188 and sheet.height == 2 * (sheet.height // 2)
