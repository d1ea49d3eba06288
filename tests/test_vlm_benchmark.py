"""The speed comparison: what it measures of a small model, and that a vLLM which fails leaves one line and a null."""

import json
import sys

import pytest
from small_vlm import make_config, make_model, make_processor, noise, user

from vlm import benchmark
from vlm.__main__ import main
from vlm.benchmark import Workload, bench
from vlm.vllm_comparison import VLLM, VLLMError, interpreter_with_vllm

CONVERSATIONS = [user(noise(32, 32), "what?"), user(noise(30, 40, 1), "a longer question")]
READY = {"version": "0", "device": "cpu"}


@pytest.fixture(scope="module")
def small():
    config = make_config()
    return Workload("mini", make_model(config), make_processor(config), CONVERSATIONS, 6, 1)


@pytest.fixture
def bench_of_small(small, monkeypatch):
    """`bench` with the small model in place of its two."""
    monkeypatch.setattr(benchmark, "mini", lambda: small)
    monkeypatch.setattr(benchmark, "hundred_million", lambda: Workload("100M", *list(vars(small).values())[1:]))
    return bench


@pytest.fixture
def interpreter(tmp_path):
    """Makes a program that is called like an interpreter with vLLM and runs `code` instead of our file."""

    def made(code: str) -> str:
        path = tmp_path / "python"
        path.write_text(f"#!{sys.executable}\nimport json, sys, time\n{code}\n")
        path.chmod(0o755)
        return str(path)

    return made


def says(*answers: object) -> str:
    """One answer when it starts, and one each time it is asked; then it ends."""
    lines = [answer if isinstance(answer, str) else json.dumps(answer) for answer in answers]
    return f"for line in {lines!r}:\n    print(line, flush=True)\n    sys.stdin.readline()"


def prompts_of(small) -> list[list[int]]:
    return [
        small.processor.apply_chat_template(own, tokenize=True, return_dict=True, add_generation_prompt=True)[
            "input_ids"
        ][0]
        for own in CONVERSATIONS
    ]


def start(small, python: str, **limits) -> VLLM:
    return VLLM(python, small.model, small.processor, CONVERSATIONS, 4, **limits)


def last_line(capsys) -> tuple[dict, list[str]]:
    """The summary, and the notes on the standard error."""
    captured = capsys.readouterr()
    notes = [line for line in captured.err.splitlines() if line.startswith("note: ")]
    return json.loads(captured.out.splitlines()[-1]), notes


def test_without_vllm_the_figure_is_null_and_the_others_are_there(bench_of_small, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "interpreter_with_vllm", lambda: None)
    bench_of_small(True, 1)
    summary, notes = last_line(capsys)
    assert summary["speedup_vs_vllm"] is None and summary["vllm"] is None
    assert summary["models"]["100M"]["speedup_vs_vllm"] is None
    for name in ("speedup_vs_generate", "speedup_vs_num_return_sequences", "peak_memory_ratio", "tokens_per_second"):
        assert summary[name] > 0, name
    assert len(notes) == 1 and "--vllm-python" in notes[0]


@pytest.mark.skipif(interpreter_with_vllm() is not None, reason="vLLM is installed here")
def test_an_interpreter_without_vllm_leaves_a_note_for_each_model(bench_of_small, capsys):
    bench_of_small(True, 1, sys.executable)
    summary, notes = last_line(capsys)
    assert summary["speedup_vs_vllm"] is None and summary["speedup_vs_generate"] > 0
    assert len(notes) == 2 and all("No module named 'vllm'" in note for note in notes)


def test_a_vllm_that_dies_on_the_way_leaves_a_note(bench_of_small, small, interpreter, capsys):
    answer = {"seconds": 1.0, "prompts": prompts_of(small), "samples": [[[1, 2]] * 16] * 2}
    bench_of_small(True, 2, interpreter(says(READY, answer)))
    summary, notes = last_line(capsys)
    assert summary["speedup_vs_vllm"] is None and summary["vllm"] == "0"
    assert len(notes) == 2 and "failed on mini" in notes[0] and "exit status 0" in notes[0]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.exit(3)", "exit status 3"),
        (says("loading ..."), "not an object of version, device: 'loading"),
        (says([1]), "not an object"),
        (says({"version": "0"}), "not an object"),
        (says({"error": "ValueError: no such architecture"}), "ValueError: no such architecture"),
        (says({**READY, "device": "tpu"}), "it runs on tpu, the model here on cpu"),
        ("time.sleep(60)", "no answer within 0.5 seconds"),
    ],
    ids=lambda value: value[:30],
)
def test_a_vllm_that_does_not_start(small, interpreter, code, message):
    limit = 0.5 if "sleep" in code else 60
    with pytest.raises(VLLMError, match=message) as error:
        start(small, interpreter(code), start_within=limit)
    assert "\n" not in str(error.value)


def test_an_interpreter_that_cannot_be_run(small, tmp_path):
    with pytest.raises(VLLMError, match="cannot be run"):
        start(small, str(tmp_path / "nowhere"))
    (tmp_path / "text").write_text("not a program")
    with pytest.raises(VLLMError, match="cannot be run"):
        start(small, str(tmp_path / "text"))


def test_an_answer_to_other_prompts_does_not_count(small, interpreter):
    other = says(READY, {"seconds": 1.0, "prompts": [[1], [2]], "samples": []})
    with start(small, interpreter(other)) as vllm, pytest.raises(VLLMError, match="other tokens"):
        vllm.answer()
    assert vllm._child.poll() is not None, "nothing is left running"


def test_the_child_is_given_the_checkpoint_and_the_prompts(small, interpreter, tmp_path):
    """What it reads, seen from its side; vLLM itself reads it in `test_vlm_vllm.py`."""
    copy = f"import shutil, os; shutil.copytree(os.path.dirname(sys.argv[-1]), {str(tmp_path / 'seen')!r})"
    with start(small, interpreter(f"{copy}\n{says(READY)}"), n=3):
        pass
    job = json.loads((tmp_path / "seen" / "job.json").read_text())
    assert job["sampling"]["n"] == 3 and job["sampling"]["stop_token_ids"] == [2]
    assert [prompt["text"].count("<im_patch>") for prompt in job["prompts"]] == [1, 1]
    config = json.loads((tmp_path / "seen" / "model" / "config.json").read_text())
    assert config["architectures"] == ["StepVLForConditionalGeneration"]
    assert job["picture_sizes"]["image_size"] == config["vision_config"]["image_size"] == 32
    assert job["picture_sizes"]["num_image_feature_size"] == 4


@pytest.mark.parametrize(("options", "message"), [(["--vllm-python", "nowhere"], "nowhere"), (["--repeats", "0"], "0")])
def test_bad_options_are_refused_before_anything_is_measured(options, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vlm", "bench", *options])
    assert main() == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
