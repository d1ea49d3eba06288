"""Speed of the pipeline against the reference algorithm, step by step, with the same weights and steps, on the CPU.

The reference is Step1X-Edit's sampler as released (arXiv 2504.17761): text streams padded to their full length, the
connector run anew in every step, guidance as two passes, and the output of the reference half computed and thrown away.
What the pipeline does otherwise is measured one device at a time, each against the pipeline without it.
"""

import contextlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from diffusers import FirstBlockCacheConfig
from PIL import Image
from rich.console import Console
from rich.table import Table

from edit.conditioning import embed, pad, text_stream
from edit.flow import restore_reference_output, set_schedule, skip_reference_output, velocity
from edit.latents import decode, encode, image_ids, pack, target_size, unpack
from edit.pipeline import EditPipeline

# Of both ways, where an editor's own needs one branch (mini's): the reference always computes two, and one of them for
# nothing would compare settings.
GUIDANCE = 1.5
# Of the first block's change between two steps; below it, the other blocks' last result is used again.
CACHE_THRESHOLD = 0.1

INSTRUCTION = "Make the red circle in the top left corner blue."


@dataclass(frozen=True)
class Devices:
    """What the pipeline leaves out of the reference algorithm's work; all of it here, none in the reference."""

    one_padding_token: bool = True
    refined_beforehand: bool = True
    branches_together: bool = True
    noisy_half_only: bool = True

    def without(self, name: str) -> "Devices":
        return Devices(**{**vars(self), name: False})


@dataclass(frozen=True)
class Speed:
    """Of whole edits, from picture to picture.

    Attributes:
        speedup_exact, speedup_cached: of the pipeline over the reference, without and with first-block caching.
        exact_difference: the largest difference of a pixel, 0 to 1, between the reference's result and the pipeline's.
        cached_loss: the mean difference of a pixel, 0 to 1, that caching makes.
        seconds: an edit of each, the median.
        computed_steps: how many of `steps` went through all blocks in spite of the cache.
        devices: how many times longer an edit takes without each of the pipeline's devices.
    """

    speedup_exact: float
    speedup_cached: float
    exact_difference: float
    cached_loss: float
    seconds: dict[str, float]
    steps: int
    guidance: float
    computed_steps: int
    cache_threshold: float
    devices: dict[str, float]


@torch.no_grad()
def edit_plainly(
    pipeline: EditPipeline, picture: Image.Image, instruction: str, steps: int, seed: int, devices: Devices,
    guidance: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """One edit in a loop that can be read beside the paper; (3, height, width) in 0 to 1.

    With all of `devices` it does the pipeline's work, with none of them the reference algorithm's; at the editor's own
    guidance, if none is given.
    """
    transformer, connector, vae = pipeline.transformer, pipeline.connector, pipeline.vae
    config, padded = pipeline.config, pipeline.conditioning.padded_tokens
    guidance = config.guidance_scale if guidance is None else guidance
    switch = skip_reference_output if devices.noisy_half_only else restore_reference_output
    switch(transformer)

    pairs = [picture, picture], [instruction, ""]
    embeddings = embed(pipeline.vision_language_model, pipeline.processor, *pairs, pipeline.conditioning)
    size = target_size(*picture.size, config.size_levels[0], pipeline.token_pixels)
    pixels = pipeline.image_processor.preprocess(picture.resize(size, Image.Resampling.LANCZOS))
    reference = pack(encode(vae, pixels), config.packing)
    width, height = (side // pipeline.vae_scale_factor for side in size)
    ids = image_ids(height, width, config.reference_index, packing=config.packing)
    shape = (1, vae.config.latent_channels, height, width)
    latents = pack(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), config.packing)

    timesteps = set_schedule(pipeline.scheduler, steps, latents.shape[1])
    together = [embeddings] if devices.branches_together else [embeddings[:1], embeddings[1:]]
    branches = []
    for own in together:
        hidden, mask = pad(own, padded, collapse=devices.one_padding_token)
        stream = text_stream(mask, height, width, pipeline.conditioning, config.packing)
        refined = pipeline.refine(hidden, mask, timesteps / 1000) if devices.refined_beforehand else None
        branches.append((hidden, mask, stream, refined))
    for number, timestep in enumerate(timesteps):
        predictions = []
        for hidden, mask, (given, told, bias), refined in branches:
            rows = len(hidden)
            level = (timestep / 1000).expand(rows)
            text, pooled = refined[number] if refined else connector(hidden, level, mask)
            noisy, picture_tokens = latents.expand(rows, -1, -1), reference.expand(rows, -1, -1)
            streams = (noisy, picture_tokens, level, text[:, given], pooled, ids, told, bias)
            predictions.append(velocity(transformer, *streams, config.reference_skip, config.reference_channels))
        wanted, unwanted = torch.cat(predictions).chunk(2)
        predicted = unwanted + guidance * (wanted - unwanted)
        latents = pipeline.scheduler.step(predicted, timestep, latents, return_dict=False)[0]
    skip_reference_output(transformer)
    pixels = decode(vae, unpack(latents, height, width, config.packing))
    return pipeline.image_processor.postprocess(pixels, output_type="pt")[0]


def measure(
    pipeline: EditPipeline, picture: Image.Image, steps: int = 28, repeats: int = 3, threshold: float = CACHE_THRESHOLD
) -> Speed:
    """Everything once unmeasured and then `repeats` times in turn, so that a slow moment of the machine hits all."""
    own = pipeline.config.guidance_scale
    guidance = own if own > 1 else GUIDANCE

    def piped() -> torch.Tensor:
        draw = torch.Generator().manual_seed(0)
        call = {"num_inference_steps": steps, "generator": draw, "output_type": "pt", "guidance_scale": guidance}
        return pipeline(picture, INSTRUCTION, size_level=pipeline.config.size_levels[0], **call).images[0]

    def cached() -> torch.Tensor:
        with _cache(pipeline, threshold):
            return piped()

    def plainly(devices: Devices) -> Callable[[], torch.Tensor]:
        return lambda: edit_plainly(pipeline, picture, INSTRUCTION, steps, 0, devices, guidance)

    names = list(vars(Devices()))
    ways = {
        "reference": plainly(Devices(**dict.fromkeys(names, False))),
        "exact": piped,
        "cached": cached,
        "all": plainly(Devices()),
        **{name: plainly(Devices().without(name)) for name in names},
    }
    results = {name: way() for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    seconds = {name: statistics.median(own) for name, own in times.items()}
    with _cache(pipeline, threshold) as computed:
        piped()
    return Speed(
        speedup_exact=seconds["reference"] / seconds["exact"],
        speedup_cached=seconds["reference"] / seconds["cached"],
        exact_difference=float((results["reference"] - results["exact"]).abs().max()),
        cached_loss=float((results["cached"] - results["exact"]).abs().mean()),
        seconds={name: seconds[name] for name in ("reference", "exact", "cached")},
        steps=steps,
        guidance=guidance,
        computed_steps=len(computed),
        cache_threshold=threshold,
        devices={name: seconds[name] / seconds["all"] for name in names},
    )


@contextlib.contextmanager
def _cache(pipeline: EditPipeline, threshold: float):
    """First-block caching for a while; yields a list that grows by one with every step that is computed in full."""
    computed: list[None] = []
    transformer = pipeline.transformer
    transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    # Deeper than the cache's own hooks, which skip the block with everything in it.
    counter = transformer.single_transformer_blocks[-1].norm.register_forward_hook(lambda *_: computed.append(None))
    try:
        yield computed
    finally:
        counter.remove()
        transformer.disable_cache()


def show_speed(speed: Speed, model: str, as_json: bool) -> None:
    """Prints a table, and where asked one JSON line after it."""
    how = f"{speed.steps} steps at a guidance of {speed.guidance:g}, {torch.get_num_threads()} threads"
    table = Table(title=f"One edit of {model} on the CPU, {how}")
    for column in ("", "seconds", "speed", "difference of a pixel, 0 to 1"):
        table.add_column(column, justify="right" if column else "left")
    seconds = {name: f"{value:.2f}" for name, value in speed.seconds.items()}
    largest, mean = f"{speed.exact_difference:.1e} at most", f"{speed.cached_loss:.1e} on average"
    table.add_row("reference algorithm", seconds["reference"], "1.00x", "")
    table.add_row("pipeline", seconds["exact"], f"{speed.speedup_exact:.2f}x", largest)
    how = f"with a cache, {speed.computed_steps} of {speed.steps} steps in full"
    table.add_row(how, seconds["cached"], f"{speed.speedup_cached:.2f}x", mean)
    for name, slower in speed.devices.items():
        table.add_row(f"without {name.replace('_', ' ')}", "", f"{speed.speedup_exact / slower:.2f}x", "")
    Console().print(table)
    if as_json:
        print(json.dumps({"model": model, "threads": torch.get_num_threads(), **asdict(speed)}))
