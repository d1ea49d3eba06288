"""From conversations to packed batches.

The batch of step t is a pure function of (recipe, seed, t): sample i of the step is drawn by its own generator, and
rank r of n takes the samples i = r, r + n, ... So a run resumes exactly from the step number alone, and the same
samples are seen whatever the number of processes.
"""

import random
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from training.conversations import read_conversations
from training.recipe import Phase, Source, Stage, World
from training.world import FAMILIES, draw_sample
from training.world.edits import EDIT_FAMILIES, draw_edit
from training.world.sample import stream

IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """One conversation as tokens.

    Attributes:
        input_ids: (tokens,) with placeholders where the picture's features go.
        labels: (tokens,) the same ids where loss is taken, -100 elsewhere; not shifted.
        images: what the image processor gave for this sample's pictures, or None.
    """

    input_ids: list[int]
    labels: list[int]
    images: dict | None


def encode_conversation(conversation: list[dict], processor, loss_on: str) -> Encoded:
    """Tokens, labels and pictures of one conversation.

    Args:
        conversation: turns in the ecosystem's shape; pictures as `{"type": "image", "image": PIL}`.
        processor: a `Step3VLProcessor`.
        loss_on: `assistant` for what the assistant says (with its end-of-turn token); `all` for every token that is
            not a picture's.

    Raises:
        ValueError: no turn to learn from, or a chat template that rewrites earlier turns.
    """
    pictures = [part["image"] for turn in conversation if not isinstance(turn["content"], str)
                for part in turn["content"] if part["type"] == "image"]  # fmt: skip
    images = dict(processor.image_processor(images=pictures, return_tensors="pt")) if pictures else None
    tokenizer, placeholder = processor.tokenizer, processor.image_token
    # Special tokens in what people wrote would be read as structure; only the template may write them.
    segments = _segments(conversation, tokenizer)
    ids: list[int] = []
    labels: list[int] = []
    seen = 0
    for text, said in segments:
        while placeholder in text and not said:
            head, _, text = text.partition(placeholder)
            head_ids = tokenizer(head, add_special_tokens=False).input_ids
            view = tokenizer(processor.replace_image_token(images, seen), add_special_tokens=False).input_ids
            ids += head_ids + view
            labels += (head_ids if loss_on == "all" else [IGNORED] * len(head_ids)) + [IGNORED] * len(view)
            seen += 1
        rest = tokenizer(text, add_special_tokens=False).input_ids
        ids += rest
        labels += rest if said or loss_on == "all" else [IGNORED] * len(rest)
    if seen != len(pictures):
        raise ValueError(f"the conversation has {len(pictures)} pictures but {seen} placeholders {placeholder!r}.")
    if all(label == IGNORED for label in labels[1:]):
        raise ValueError("the conversation has no assistant turn to learn from.")
    return Encoded(ids, labels, images)


def _segments(conversation: list[dict], tokenizer) -> list[tuple[str, bool]]:
    """The rendered chat in pieces, each with whether the assistant says it."""
    whole = tokenizer.apply_chat_template(conversation, tokenize=False)
    pieces, done = [], 0
    for index, turn in enumerate(conversation):
        if turn["role"] != "assistant":
            continue
        before = tokenizer.apply_chat_template(conversation[:index], tokenize=False, add_generation_prompt=True)
        through = tokenizer.apply_chat_template(conversation[: index + 1], tokenize=False)
        if not (whole.startswith(before) and whole.startswith(through)):
            raise ValueError("this chat template rewrites earlier turns; train on one assistant turn a conversation.")
        # The end-of-turn token is said by the assistant, the line break after it by the template.
        end = len(through.rstrip("\n"))
        pieces += [(whole[done : len(before)], False), (whole[len(before) : end], True)]
        done = end
    return [*pieces, (whole[done:], False)]


class WorldReader:
    """Draws a conversation of the world with a generator."""

    def __init__(self, world: World):
        self.world = world
        self.families = tuple(world.families or (EDIT_FAMILIES if world.task == "edit" else FAMILIES))
        if world.task == "edit":
            from edit.thinking import Questions  # which brings all of diffusers

            # As the painter will be told of it, or as the editor asks for a plan.
            self.asked = ("{instruction}", Questions().plan)

    def __call__(self, rng: random.Random) -> list[dict]:
        world, seed, family = self.world, rng.getrandbits(48), rng.choice(self.families)
        if world.task == "edit":
            return draw_edit(seed, world.split, family).conversation(rng.choice(self.asked), world.modality)
        return draw_sample(seed, world.split, family, world.modality, world.task).conversation()


class DatasetReader:
    """Takes a conversation of a dataset with a generator, each time from all of them."""

    def __init__(self, name: str, split: str):
        self.rows = read_conversations(name, split)

    def __call__(self, rng: random.Random) -> list[dict]:
        return self.rows[rng.randrange(len(self.rows))]


def read_source(source: Source) -> WorldReader | DatasetReader:
    """What reads one part of a mixture; raises `RecipeError` for a dataset that cannot be read."""
    if source.world is not None:
        return WorldReader(source.world)
    return DatasetReader(source.dataset, source.split)


class Steps(Dataset):
    """Item t is this rank's share of the batch of step t: a list of packed micro-batches."""

    def __init__(self, stage: Stage, processor, loss_on: str, seed: int, rank: int = 0, world_size: int = 1):
        if stage.batch_size % world_size:
            raise ValueError(f"batch_size {stage.batch_size} does not divide by {world_size} processes.")
        self.stage, self.processor, self.loss_on, self.seed = stage, processor, loss_on, seed
        self.rank, self.world_size = rank, world_size
        self.phases = [(phase, [read_source(s) for s in phase.mixture]) for phase in stage.phases]

    def __len__(self) -> int:
        return self.stage.steps

    def _phase(self, step: int) -> tuple[int, Phase, list]:
        for index, (phase, readers) in enumerate(self.phases):
            if step < phase.steps:
                return index, phase, readers
            step -= phase.steps
        raise IndexError(step)

    def __getitem__(self, step: int) -> list[dict]:
        index, phase, readers = self._phase(step)
        weights = [source.weight for source in phase.mixture]
        samples = []
        for i in range(self.rank, self.stage.batch_size, self.world_size):
            rng = stream("batch", self.seed, index, step, i)
            conversation = rng.choices(readers, weights)[0](rng)
            encoded = encode_conversation(conversation, self.processor, self.loss_on)
            if len(encoded.input_ids) > self.stage.max_length:
                raise ValueError(
                    f"a sample has {len(encoded.input_ids)} tokens and max_length is {self.stage.max_length}; raise it "
                    f"or shorten the data."
                )
            samples.append(encoded)
        parts = self.stage.gradient_accumulation_steps
        return [pack(samples[part::parts], self.stage.row_length) for part in range(parts) if samples[part::parts]]


def pack(samples: list[Encoded], row_length: int) -> dict[str, torch.Tensor]:
    """Several samples a row, first fit by decreasing length; attention stays inside a sample by its positions.

    Returns:
        `input_ids`, `position_ids` (rows, tokens), starting again at 0 with every sample; `keep` (rows, tokens), where
        the next token is learnt; `targets` (kept,), those next tokens in the order of `keep`; and the pictures'
        tensors in the order of their placeholders.
    """
    order = sorted(range(len(samples)), key=lambda i: -len(samples[i].input_ids))
    row_length = max(row_length, len(samples[order[0]].input_ids))
    rows: list[list[int]] = []
    room: list[int] = []
    for i in order:
        length = len(samples[i].input_ids)
        fitting = next((r for r, free in enumerate(room) if free >= length), None)
        if fitting is None:
            rows.append([i])
            room.append(row_length - length)
        else:
            rows[fitting].append(i)
            room[fitting] -= length
    shape = (len(rows), row_length)
    input_ids, position_ids = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    keep, targets = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.long)
    images = []
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            sample, length = samples[i], len(samples[i].input_ids)
            stop = start + length
            input_ids[r, start:stop] = torch.tensor(sample.input_ids)
            position_ids[r, start:stop] = torch.arange(length)
            labels = torch.tensor(sample.labels)
            keep[r, start : stop - 1] = labels[1:] != IGNORED
            targets[r, start : stop - 1] = labels[1:]
            images += [sample.images] if sample.images else []
            start = stop
        # What is left of the row is a sample of its own that nobody learns from.
        position_ids[r, start:] = torch.arange(row_length - start)
    batch = {"input_ids": input_ids, "position_ids": position_ids, "keep": keep, "targets": targets[keep]}
    if images:
        batch["pixel_values"] = torch.cat([image["pixel_values"] for image in images])
        counts = [torch.as_tensor(image["num_local_patches"]) for image in images]
        if any(int(count.sum()) for count in counts):
            batch["num_local_patches"] = torch.cat(counts)
            batch["pixel_values_local"] = torch.cat(
                [image["pixel_values_local"] for image in images if "pixel_values_local" in image]
            )
    return batch
