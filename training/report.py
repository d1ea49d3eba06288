"""Evaluation on the world: accuracy by family, on compositions training never drew, and on the hard split."""

import json
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from training.intervals import family_figures, mean_of
from training.verifiers import Verifier, verify
from training.world import FAMILIES, Sample, draw_sample
from vlm.answering import load

MAX_NEW_TOKENS = 384  # well above the longest response the world teaches, hard split included


@torch.inference_mode()
def answer(model, processor, conversations: list[list[dict]], max_new_tokens: int = MAX_NEW_TOKENS) -> list[str]:
    """Greedy answers to many conversations at once, `<think>` included, in their order."""
    inputs = processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True},
    ).to(model.device, model.dtype)
    tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    said = tokens[:, inputs["input_ids"].shape[1] :]
    tokenizer = processor.tokenizer
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    texts = []
    for row in said.tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        # Tags such as <think> are special tokens to some tokenizers, and the verifiers need them.
        texts.append(tokenizer.decode(row[:stop], skip_special_tokens=False))
    return texts


def question(sample: Sample) -> list[dict]:
    """The user's turn alone."""
    return sample.conversation()[:1]


def score(samples: list[Sample], responses: list[str]) -> dict:
    """Accuracy, its 95 % interval, and what always giving the commonest answer would reach."""
    rewards = [verify(r, Verifier.from_dict(s.verifier)) for s, r in zip(samples, responses, strict=True)]
    return family_figures(rewards, [s.answer for s in samples])


def report(
    model: str,
    samples: int,
    splits: tuple[str, ...],
    batch_size: int,
    out: Path | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> dict:
    """Asks `samples` questions a family and split (seeds from 0) and scores the answers.

    Args:
        model: `mini`, a folder or a hub id.
        out: a folder for `answers.jsonl`, every question with its response and reward.
        max_new_tokens: where an answer is cut off, reasoning included.

    Returns:
        `families`: {name: {accuracy, n, interval, majority_baseline}} on `test`; `mean` of their accuracies with its
        `mean_interval`; `held_out_compositions` and `hard`, the means of those splits, with their families beside
        them; `seconds`. Fractions throughout.

    Raises:
        ValueError: no samples asked for, or an unknown split.
    """
    if samples < 1 or batch_size < 1:
        raise ValueError(f"samples is {samples} and batch_size {batch_size}; both must be at least 1.")
    network, processor = load(model)
    started = time.perf_counter()
    results: dict[str, dict] = {}
    rows = []
    for split in splits:
        results[split] = {}
        for family in track(FAMILIES, f"{split:9}", console=Console(stderr=True)):
            drawn = [draw_sample(seed, split, family) for seed in range(samples)]
            responses = []
            for start in range(0, samples, batch_size):
                asked = [question(s) for s in drawn[start : start + batch_size]]
                responses += answer(network, processor, asked, max_new_tokens)
            results[split][family] = score(drawn, responses)
            rows += [
                {"split": split, "family": family, "seed": s.seed, "prompt": s.prompt, "expected": s.response,
                 "response": r, "reward": verify(r, Verifier.from_dict(s.verifier))}
                for s, r in zip(drawn, responses, strict=True)
            ]  # fmt: skip
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "answers.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    summary = {"model": model, "samples_per_family": samples, "seconds": round(time.perf_counter() - started, 1)}
    names = {"test": ("families", "mean"), "held_out": ("held_out_families", "held_out_compositions"),
             "hard": ("hard_families", "hard")}  # fmt: skip
    for split, families in results.items():
        by_family, mean = names[split]
        summary[by_family] = families
        summary[mean], summary[f"{mean}_interval"] = mean_of(families)
    return summary


def print_report(summary: dict, *, as_json: bool) -> None:
    """A table to read; with `as_json` one JSON line after it."""
    table = Table(title=f"World, {summary['samples_per_family']} questions a family, model {summary['model']}")
    table.add_column("family")
    shown = [(k, t) for k, t in (("families", "test"), ("held_out_families", "held-out"), ("hard_families", "hard"))
             if k in summary]  # fmt: skip
    for _, title in shown:
        table.add_column(title, justify="right")
        table.add_column("majority", justify="right", style="dim")
    for family in FAMILIES:
        cells = []
        for key, _ in shown:
            f = summary[key][family]
            low, high = f["interval"]
            cells += [f"{f['accuracy']:.1%} [{low:.0%}, {high:.0%}]", f"{f['majority_baseline']:.0%}"]
        table.add_row(family, *cells)
    means = {"families": "mean", "held_out_families": "held_out_compositions", "hard_families": "hard"}
    cells = []
    for key, _ in shown:
        cells += [f"{summary[means[key]]:.1%}", ""]
    table.add_row("mean", *cells, style="bold")
    Console().print(table)
    if as_json:
        print(json.dumps(summary))
