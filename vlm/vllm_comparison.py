"""vLLM beside our engine: the same checkpoint, prompts and sampling, in a process of its own (see `vlm.vllm_child`)."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from vlm.answering import end_ids
from vlm.configuration import view_tokens
from vlm.modeling import Step3VLForConditionalGeneration
from vlm.pictures import open_picture
from vlm.processing import Step3VLProcessor

CHILD = Path(__file__).with_name("vllm_child.py")


class VLLMError(RuntimeError):
    """vLLM gave no answer; the message is one line."""


@dataclass(frozen=True)
class Answer:
    """The tokens of `samples` [prompt][sample], the ending one included, and the time they took."""

    seconds: float
    prompts: list[list[int]]
    samples: list[list[list[int]]]

    @property
    def tokens(self) -> int:
        return sum(len(sample) for own in self.samples for sample in own)


def interpreter_with_vllm() -> str | None:
    """This one where vLLM is installed beside the model; it is not imported."""
    return sys.executable if importlib.util.find_spec("vllm") else None


class VLLM:
    """A running vLLM, warm, with `model` saved in the released layout. Close it, or use it in a `with` block.

    Args:
        python: the interpreter that has vLLM.
        conversations: as everywhere; at least two pictures in all, or none (see `vlm.vllm_child`).
        n: samples a prompt.
        sampling: more of vLLM's `SamplingParams`; by default plain sampling.
        start_within, answer_within: seconds; compiling the model takes vLLM about a minute.

    Raises:
        VLLMError: it does not start, runs on another kind of device than `model`, or not in time.
    """

    def __init__(
        self, python: str, model: Step3VLForConditionalGeneration, processor: Step3VLProcessor,
        conversations: list[list[dict]], max_tokens: int, n: int = 1, sampling: dict | None = None,
        start_within: float = 900, answer_within: float = 900,
    ):  # fmt: skip
        self._prompts = [_token_ids(processor, own) for own in conversations]
        self._answer_within = answer_within
        self._folder = tempfile.TemporaryDirectory(prefix="vllm-")
        folder = Path(self._folder.name)
        model.save_pretrained(folder / "model", layout="released")
        processor.save_pretrained(folder / "model")
        pictures = processor.image_processor
        job = {
            "model": str(folder / "model"),
            "dtype": str(model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "context": max(map(len, self._prompts)) + max_tokens,
            "batch": n * sum(map(len, self._prompts)),
            "sampling": {
                "n": n, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": max_tokens,
                "stop_token_ids": sorted(end_ids(model, processor)), **(sampling or {}),
            },
            # Its own defaults are the released sizes.
            "picture_sizes": {
                "image_size": pictures.image_size,
                "patch_size": pictures.crop_size,
                "num_image_feature_size": view_tokens(pictures.image_size, pictures.patch_size),
                "num_patch_feature_size": view_tokens(pictures.crop_size, pictures.patch_size),
                "enable_patch": pictures.local_crops,
            },
            "prompts": [_prompt(processor, own, folder / str(i)) for i, own in enumerate(conversations)],
        }  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        try:
            self._child = subprocess.Popen(
                # -P: the child lies beside modules of this package, whose names are not for it to import.
                [python, "-P", str(CHILD), str(folder / "job.json")],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._folder.cleanup()
            raise VLLMError(f"{python} cannot be run ({error.strerror}).") from error
        try:
            ready = self._read(start_within, ("version", "device"))
            self.version = ready["version"]
            if ready["device"] != model.device.type:
                raise VLLMError(f"it runs on {ready['device']}, the model here on {model.device.type}.")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "VLLM":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def answer(self) -> Answer:
        """All prompts once more, nothing kept from the last time. Raises VLLMError."""
        with contextlib.suppress(OSError):  # where it has ended, what it said last tells why
            self._child.stdin.write("again\n")
            self._child.stdin.flush()
        answer = Answer(**self._read(self._answer_within, tuple(Answer.__annotations__)))
        if answer.prompts != self._prompts:
            raise VLLMError("it reads the prompts as other tokens than the model here does.")
        return answer

    def close(self) -> None:
        """Ends the process, and whatever it started."""
        self._kill()
        self._child.communicate()
        self._folder.cleanup()

    def _kill(self) -> None:
        if self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGKILL)

    def _read(self, within: float, keys: tuple[str, ...]) -> dict:
        """The next line's values, which are those of `keys`."""
        late = threading.Event()
        timer = threading.Timer(within, lambda: (late.set(), self._kill()))
        timer.start()
        line = self._child.stdout.readline()
        timer.cancel()
        if late.is_set():
            raise VLLMError(f"it gave no answer within {within:g} seconds.")
        if not line:
            raise VLLMError(f"it ended with exit status {self._child.wait()} and no answer.")
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if isinstance(values, dict) and "error" in values:
            raise VLLMError(str(values["error"]))
        if not isinstance(values, dict) or sorted(values) != sorted(keys):
            raise VLLMError(f"its answer is not an object of {', '.join(keys)}: {line.strip()[:80]!r}.")
        return values


def _token_ids(processor: Step3VLProcessor, conversation: list[dict]) -> list[int]:
    inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, add_generation_prompt=True)
    return [int(token) for token in inputs["input_ids"][0]]


def _prompt(processor: Step3VLProcessor, conversation: list[dict], folder: Path) -> dict:
    """The text with one token for each picture, and the pictures as files."""
    folder.mkdir()
    paths = []
    for turn in conversation:
        for part in turn["content"]:
            if part["type"] == "image":
                paths.append(str(folder / f"{len(paths)}.png"))
                open_picture(part["image"]).save(paths[-1])
    text = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    return {"text": text, "pictures": paths}
