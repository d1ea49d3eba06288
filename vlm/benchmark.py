"""How fast the rollout engine is, against transformers' `generate` and vLLM on the same model in the same run."""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from vlm.answering import end_ids, load
from vlm.configuration import Step3VLConfig
from vlm.modeling import Step3VLForConditionalGeneration
from vlm.processing import Step3VLProcessor
from vlm.rollout import Rollout
from vlm.sampling import Sampling
from vlm.vllm_comparison import VLLM, VLLMError, interpreter_with_vllm

PROMPTS, SAMPLES = 8, 16
QUESTIONS = (
    "What is in row 2, column 3?", "How many objects are there?", "Describe the picture.", "Is there a red circle?",
    "Which object is the largest?", "What colour is the star?", "Count the rings.", "Transcribe the picture.",
)  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """A model, its prompts, how long a sample may get, and for how many samples a prompt `generate` is called alone.

    Called alone, each sample costs the same, so a part of them gives the rate.
    """

    name: str
    model: Step3VLForConditionalGeneration
    processor: Step3VLProcessor
    conversations: list[list[dict]]
    max_tokens: int
    alone: int


def mini() -> Workload:
    """The shipped model, with lengths as it gives them."""
    model, processor = load("mini")
    return Workload("mini", model, processor, _conversations(128), 256, 4)


def hundred_million() -> Workload:
    """A randomly initialised decoder of 100 M parameters that reads 169 image tokens; it hardly ever ends by itself."""
    _, processor = load("mini")
    vocabulary = len(processor.tokenizer)
    config = Step3VLConfig(
        image_token_id=processor.image_token_id,
        vision_config={"width": 128, "layers": 2, "heads": 2, "image_size": 416, "patch_size": 8, "mlp_ratio": 4.0},
        text_config={
            "model_type": "qwen3", "hidden_size": 768, "num_hidden_layers": 16, "num_attention_heads": 12,
            "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 2048, "vocab_size": vocabulary,
            "max_position_embeddings": 1024, "tie_word_embeddings": True, "pad_token_id": 0, "eos_token_id": 2,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    model = Step3VLForConditionalGeneration._from_config(config).eval()
    processor = Step3VLProcessor.for_config(config, processor.tokenizer, chat_template=processor.chat_template)
    return Workload("100M", model, processor, _conversations(416), 32, 1)


def _conversations(side: int) -> list[list[dict]]:
    """A picture of coloured bars and a question, eight times: what it shows does not matter for speed."""
    found = []
    for i, question in enumerate(QUESTIONS):
        picture = Image.new("RGB", (side, side), "white")
        picture.paste((40 * i % 256, 90, 200 - 20 * i), (side // 8, side // 8, side // 2, side // 4 + side // 16 * i))
        parts = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        found.append([{"role": "user", "content": parts}])
    return found


def measure(work: Workload, repeats: int, vllm: VLLM | None = None) -> dict[str, float]:
    """Tokens a second of each way, alternating so that a machine's moods meet them all, and the caches' bytes.

    Every way has run before it is timed. Without `vllm`, or where it fails on the way, its rate is NaN.
    """
    rates: dict[str, list[float]] = {"rollout": [], "generate": [], "num_return_sequences": [], "vllm": []}
    shared, expanded = _peak_bytes(work), []
    _generated(replace(work, conversations=work.conversations[:1]), 1, 1, [])
    for repeat in range(repeats):
        engine = Rollout(work.model, work.processor)
        rates["rollout"].append(_rate(lambda: _rolled(engine, work, repeat)))  # noqa: B023 - called at once
        if vllm:
            try:
                answer = vllm.answer()
                rates["vllm"].append(answer.tokens / answer.seconds)
            except VLLMError as error:
                _note(f"vLLM failed on {work.name}: {error}")
                vllm = None
        rates["num_return_sequences"].append(_rate(lambda: _generated(work, SAMPLES, 1, expanded)))
        rates["generate"].append(_rate(lambda: _generated(work, 1, work.alone, [])))
    if not vllm:
        rates["vllm"] = [math.nan]
    medians = {name: statistics.median(values) for name, values in rates.items()}
    # Of all prompts side by side, as the engine holds them.
    return medians | {"shared_bytes": shared, "expanded_bytes": sum(expanded) / repeats}


def _rate(run: Callable[[], int]) -> float:
    started = time.perf_counter()
    return run() / (time.perf_counter() - started)


def _rolled(engine: Rollout, work: Workload, seed: int) -> int:
    samples = engine.generate(work.conversations, Sampling(max_tokens=work.max_tokens, seed=seed), n=SAMPLES)
    return sum(len(sample.tokens) for own in samples for sample in own)


def _peak_bytes(work: Workload) -> int:
    """The most that the engine's cache takes."""
    engine = Rollout(work.model, work.processor)
    for i, conversation in enumerate(work.conversations):
        for j in range(SAMPLES):
            engine.submit(conversation, Sampling(max_tokens=work.max_tokens, seed=i * SAMPLES + j))
    most = 0
    while engine.step():
        most = max(most, engine.cache_bytes)
    return most


def _generated(work: Workload, together: int, calls: int, cache_bytes: list[int]) -> int:
    """Tokens that `generate` makes: `calls` times `together` samples of each prompt."""
    ends = end_ids(work.model, work.processor)
    tokens = 0
    for conversation in work.conversations:
        for call in range(calls):
            inputs = work.processor.apply_chat_template(
                conversation, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
            )
            torch.manual_seed(call)
            result = work.model.generate(
                **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=work.max_tokens,
                num_return_sequences=together, return_dict_in_generate=True,
            )  # fmt: skip
            said = result.sequences[:, inputs["input_ids"].shape[1] :]
            for row in said.tolist():
                tokens += next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            cache_bytes.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in result.past_key_values.layers))
    return tokens


def bench(as_json: bool, repeats: int = 3, vllm_python: str | None = None) -> None:
    """Prints a table; as the last line one JSON object, with the figures of `mini` on top and those of both inside.

    Args:
        vllm_python: an interpreter that has vLLM; by default this one where vLLM is installed. Without, or where vLLM
            cannot run the model, `speedup_vs_vllm` is null, and a line on the standard error says why.
    """
    vllm_python = vllm_python or interpreter_with_vllm()
    if vllm_python is None:
        _note("vLLM is not compared: it is not installed here; --vllm-python names an interpreter that has it.")
    found, version = {}, None
    for make in (mini, hundred_million):
        work = make()
        vllm = _start_vllm(vllm_python, work) if vllm_python else None
        try:
            got = measure(work, repeats, vllm)
        finally:
            if vllm:
                version = vllm.version
                vllm.close()
        found[work.name] = {
            "speedup_vs_generate": got["rollout"] / got["generate"],
            "speedup_vs_num_return_sequences": got["rollout"] / got["num_return_sequences"],
            "speedup_vs_vllm": None if math.isnan(got["vllm"]) else got["rollout"] / got["vllm"],
            "peak_memory_ratio": got["shared_bytes"] / got["expanded_bytes"],
            "tokens_per_second": got["rollout"],
        }
    table = Table("model", *next(iter(found.values())))
    for name, values in found.items():
        table.add_row(name, *("-" if value is None else f"{value:.2f}" for value in values.values()))
    Console(stderr=as_json).print(table)
    if as_json:
        summary = {**found["mini"], "models": found, "prompts": PROMPTS, "samples": SAMPLES, "repeats": repeats,
                   "threads": torch.get_num_threads(), "torch": torch.__version__, "vllm": version}  # fmt: skip
        print(json.dumps(summary))


def _start_vllm(python: str, work: Workload) -> VLLM | None:
    try:
        return VLLM(python, work.model, work.processor, work.conversations, work.max_tokens, SAMPLES)
    except VLLMError as error:
        _note(f"vLLM is not compared on {work.name}: {error}")
        return None


def _note(line: str) -> None:
    print(f"note: {line}", file=sys.stderr)
