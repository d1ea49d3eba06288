"""One question, one streamed answer: what the command line and the app share."""

import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import torch
from huggingface_hub import constants, snapshot_download
from transformers import DynamicCache

from vlm.auto import Step3VLConfig, Step3VLForConditionalGeneration, Step3VLProcessor
from vlm.configuration import RELEASED_MODEL_TYPES
from vlm.reasoning import OPEN_TAG

# The folder that holds `mini/`, when it is not the repository's own `checkpoints/`.
CHECKPOINTS_VARIABLE = "TRIPTYCH_CHECKPOINTS"


class ModelError(ValueError):
    """The model cannot be had, or not be used as asked; the message is one line with the remedy."""


def load(model: str, dtype: torch.dtype | None = None) -> tuple[Step3VLForConditionalGeneration, Step3VLProcessor]:
    """A model ready to answer, and its processor.

    Args:
        model: `mini`, the model this repository ships; a folder; or a hub id such as `stepfun-ai/Step3-VL-10B`.
        dtype: when given, weights in that precision on the CPU, for a caller who places them itself (training).

    Returns:
        The model in evaluation mode: bfloat16 on CUDA, float32 elsewhere whatever the weights' own precision, because
        most CPUs compute bfloat16 many times slower.

    Raises:
        ModelError: nothing there, another kind of model, or weights that are missing or damaged.
    """
    folder = locate(model)
    config = read_config(folder, model)
    cuda = dtype is None and torch.cuda.is_available()
    try:
        network, report = Step3VLForConditionalGeneration.from_pretrained(
            folder,
            config=config,
            dtype=dtype or (torch.bfloat16 if cuda else torch.float32),
            device_map="auto" if cuda else None,
            output_loading_info=True,
        )
        processor = Step3VLProcessor.from_pretrained(folder)
    except Exception as error:  # each file format fails in types of its own
        raise ModelError(
            f"model {model!r} cannot be loaded ({_first_line(error)}); check that it is complete, or fetch it again."
        ) from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"model {model!r} lacks {len(missing)} weights, {missing[0]} the first; use a complete checkpoint."
        )
    if processor.image_token_id != config.image_token_id:
        raise ModelError(
            f"model {model!r} has image_token_id {config.image_token_id}, its tokenizer {processor.image_token_id}; "
            f"put the tokenizer that belongs to the weights beside them."
        )
    return network.eval(), processor


def checkpoints() -> Path:
    """The folder of what is shipped."""
    return Path(os.environ.get(CHECKPOINTS_VARIABLE) or Path(__file__).resolve().parent.parent / "checkpoints")


def locate(model: str, weights: bool = True) -> Path:
    """The folder that `model` (see `load`) stands for; a hub id is downloaded, or found in the cache of downloads.

    Args:
        weights: whether they are wanted too; without, only the config of a hub id is downloaded.

    Raises:
        ModelError: no such folder or repository, no connection, or no config (or weights) in it.
    """
    if model == "mini":
        folder = checkpoints() / "mini"
        if not folder.is_dir():
            raise ModelError(
                f"the mini model is not at {folder}; train it with `python -m training all --recipe mini`, or set "
                f"{CHECKPOINTS_VARIABLE} to the folder that holds mini/."
            )
    else:
        folder = Path(model).expanduser()
    if not folder.is_dir():
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model):
            raise ModelError(
                f"there is no folder {model!r}; give 'mini', an existing folder or a hub id like 'owner/name'."
            )
        folder = _download(model, weights)
    if not (folder / "config.json").is_file():
        raise ModelError(f"the folder {str(folder)!r} has no config.json; give the folder of a saved model.")
    if weights and not any(folder.glob("*.safetensors")):
        raise ModelError(f"the folder {str(folder)!r} has no *.safetensors weights; give the folder of a saved model.")
    return folder


def _download(hub_id: str, weights: bool) -> Path:
    """A folder with the repository's files; with weights, its progress is shown."""
    patterns = ["*.json", "*.jinja", "*.txt", "*.model"] + ["*.safetensors"] * weights
    online = hub_is_reachable()
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns, local_files_only=not online))
    except Exception as error:
        if online:
            raise ModelError(
                f"the hub model {hub_id!r} cannot be fetched ({_first_line(error)}); check its name and your access."
            ) from error
        raise ModelError(
            f"the hub model {hub_id!r} is not on this machine and {constants.ENDPOINT} cannot be "
            f"reached; connect once to download it, or give the folder of a copy."
        ) from error


def hub_is_reachable() -> bool:
    """The hub's client retries for half a minute where there is no network at all; one name look-up tells at once."""
    if constants.is_offline_mode():
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # the proxy looks names up
    try:
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def read_config(folder: Path, model: str) -> Step3VLConfig:
    """The config in `folder`, called `model` in messages. Raises ModelError where it is not one of ours."""
    try:
        values, _ = Step3VLConfig.get_config_dict(folder)
    except Exception as error:
        raise ModelError(f"model {model!r} has no readable config ({_first_line(error)}); fetch it again.") from error
    kind = values.get("model_type")
    if kind not in RELEASED_MODEL_TYPES:
        raise ModelError(
            f"model {model!r} is of type {kind!r}, this program runs {' and '.join(RELEASED_MODEL_TYPES)}; "
            f"use a STEP3-VL checkpoint or one trained here."
        )
    try:
        return Step3VLConfig.from_dict(values)
    except Exception as error:
        raise ModelError(f"model {model!r} has a config that does not fit: {_first_line(error)}") from error


def stream_answer(
    model: Step3VLForConditionalGeneration,
    processor: Step3VLProcessor,
    conversation: list[dict],
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    stop: threading.Event | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """The answer to the last turn, piece by piece; the pieces joined are the whole text, `<think>` marks included.

    Args:
        conversation: `[{role, content: [{type: image | text, …}]}]`, ending with the user's turn.
        max_new_tokens: the answer ends there at the latest, or where the model's context does.
        temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature).
        stop: set from another thread, it ends the answer at the next token.
        seed: of the draw; the same seed gives the same answer on the same machine.

    Raises:
        PictureError: a picture cannot be read.
        ModelError: the prompt alone is longer than the model's context, or an argument is out of range.
    """
    if max_new_tokens < 1 or temperature < 0:
        raise ModelError(
            f"max_new_tokens is {max_new_tokens} and temperature {temperature}; use at least 1 and at least 0."
        )
    inputs = processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    ).to(model.device, model.dtype)
    room = model.config.text_config.max_position_embeddings - inputs["input_ids"].shape[1]
    if room < 1:
        raise ModelError(
            f"the prompt takes {inputs['input_ids'].shape[1]} tokens, the model reads at most "
            f"{model.config.text_config.max_position_embeddings}; shorten it or give fewer pictures."
        )
    text = TokenText(processor.tokenizer)
    # Some chat templates open the reasoning themselves; then the text would close what it never opened.
    if processor.tokenizer.decode(inputs["input_ids"][0, -8:]).rstrip().endswith(OPEN_TAG):
        yield OPEN_TAG + "\n"

    draw = torch.Generator().manual_seed(seed)
    ends = end_ids(model, processor)
    cache = DynamicCache(config=model.config.text_config)
    for _ in range(min(max_new_tokens, room)):
        logits = _next_logits(model, inputs, cache)
        if temperature > 0:
            token = int(torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=draw))
        else:
            token = int(logits.argmax())
        if token in ends or (stop is not None and stop.is_set()):
            break
        if piece := text.add(token):
            yield piece
        inputs = {"input_ids": torch.tensor([[token]], device=model.device)}
    if piece := text.rest():
        yield piece


class TokenText:
    """Turns a growing list of tokens into pieces of text, never half a character."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        # A token's text may depend on the one before it (its leading space), so the last piece is decoded again.
        self.before, self.done = 0, 0

    def add(self, token: int) -> str:
        """The text that `token` completes, often just its own."""
        self.tokens.append(token)
        return self._take(lambda piece: not piece.endswith("\N{REPLACEMENT CHARACTER}"))

    def rest(self) -> str:
        """What is left at the end, a broken character as its replacement mark."""
        return self._take(lambda piece: True)

    def _take(self, complete) -> str:
        said = self._decode(self.tokens[self.before : self.done])
        piece = self._decode(self.tokens[self.before :])[len(said) :]
        if not piece or not complete(piece):
            return ""
        self.before, self.done = self.done, len(self.tokens)
        return piece

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@torch.inference_mode()
def _next_logits(model: Step3VLForConditionalGeneration, inputs: dict, cache: DynamicCache) -> torch.Tensor:
    """(vocabulary,) float32 on the CPU, where the draw is the same whatever the device."""
    logits = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return logits[0, -1].float().cpu()


def end_ids(model: Step3VLForConditionalGeneration, processor: Step3VLProcessor) -> set[int]:
    """The tokens that end a turn: the model's and the tokenizer's, which in released repositories may differ."""
    ends = model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, list | tuple) else {ends}
    return (ends | {processor.tokenizer.eos_token_id}) - {None}


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
