"""vLLM's side of the comparison, run by an interpreter that has vLLM and need not have anything of this repository:

    PYTHON -P vllm_child.py JOB.json

It speaks in lines of JSON on its standard output. `{"version", "device"}` comes once, when the engine has started and
has answered all prompts for the first time. Then each line on the standard input asks for all of them again, and gets
`{"seconds", "prompts", "samples"}`: the token ids of each prompt, and of each of its samples. `{"error"}`, one line
of text, comes before an early end. What vLLM itself has to say goes to the standard error.

The job has `model` (a folder in the released layout), `dtype`, `threads`, `context` (tokens of the longest row),
`batch` (tokens of all rows' prompts), `sampling` (of vLLM's `SamplingParams`), `picture_sizes` (of its processor) and
`prompts`, each `{"text", "pictures"}` with paths.

Tried with vLLM 0.32.0 on a CPU.
"""

import json
import os
import sys
import time


def main(job: dict, say) -> None:
    """Answers until the standard input ends."""
    # One process, as ours is. It also takes all prompts in before its first step, which it must: a step that encodes a
    # single picture fails in vLLM 0.32.0 ("Expected a.stride(-1) == 1"), its oneDNN product takes no transposed input.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # By default a core is left out for the scheduler's process, and threads are pinned; there is no such process here.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["OMP_NUM_THREADS"] = str(job["threads"])
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GiB; by default most of the machine's memory

    import vllm
    from PIL import Image
    from vllm.platforms import current_platform

    engine = vllm.LLM(
        job["model"],
        dtype=job["dtype"],
        max_model_len=job["context"],
        # All rows at once, and all their prompts in the first step.
        max_num_seqs=len(job["prompts"]) * job["sampling"]["n"],
        max_num_batched_tokens=max(4096, job["batch"]),
        # The smallest that vLLM prefers on a CPU: what samples of one prompt share is whole blocks of it.
        block_size=32,
        limit_mm_per_prompt={"image": max(len(prompt["pictures"]) for prompt in job["prompts"])},
        skip_mm_profiling=True,  # it would show the encoder a picture of the released size
        disable_log_stats=True,
    )
    prompts = []
    for prompt in job["prompts"]:
        given = {"prompt": prompt["text"]}
        if prompt["pictures"]:
            pictures = [Image.open(path).convert("RGB") for path in prompt["pictures"]]
            given |= {"multi_modal_data": {"image": pictures}, "mm_processor_kwargs": job["picture_sizes"]}
        prompts.append(given)
    sampling = vllm.SamplingParams(**job["sampling"])

    engine.generate(prompts, sampling, use_tqdm=False)
    say({"version": vllm.__version__, "device": current_platform.device_type})
    for _ in sys.stdin:
        # Nothing stays from the last time, as in a new engine of ours.
        engine.reset_prefix_cache()
        engine.reset_mm_cache()
        engine.llm_engine.reset_encoder_cache()
        started = time.perf_counter()
        answers = engine.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - started
        say(
            {
                "seconds": seconds,
                "prompts": [list(answer.prompt_token_ids) for answer in answers],
                "samples": [[list(sample.token_ids) for sample in answer.outputs] for answer in answers],
            }
        )


if __name__ == "__main__":  # vLLM may start processes that read this file again
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(values: dict) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        with open(sys.argv[1], encoding="utf-8") as file:
            main(json.load(file), say)
    except Exception as error:
        text = str(error).strip().splitlines() or [""]
        say({"error": f"{type(error).__name__}: {text[0]}"})
        sys.exit(1)
