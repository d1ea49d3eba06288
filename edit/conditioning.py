"""What the model that sees tells the painter: the last hidden states of (picture, instruction), padded and masked.

One code path for any vision-language model with a chat template and a processor: our own, and transformers' Qwen2.5-VL,
which the released Step1X-Edit weights were trained with (arXiv 2504.17761, section 3).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid
from PIL import Image
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from edit.latents import PACKING, text_ids

# What the painter may be told: everything; the instruction read without the picture; or the embeddings of its words and
# their positions, which no layer of the model has read.
SOURCES = ("picture", "instruction", "words")
BLANK = (128, 128, 128)


class ConditioningError(ValueError):
    """The embeddings cannot be made as asked; the message is one line with the remedy."""


@dataclass(frozen=True)
class Conditioning:
    """How pictures and instructions become embeddings; saved with the pipeline, replaced from a JSON file.

    Args:
        prefix: text before the picture in the user's turn, the same for every edit.
        dropped_tokens: leading tokens whose hidden states are left out: the turn's head and the prefix, which come
            before the picture and so know nothing of it. None counts them.
        max_tokens: embeddings a pair may have, the picture's included.
        padded_tokens: the length to which the transformer sees every text stream padded, 640 at the released size; 0
            where padding is hidden from it.
        source: one of `SOURCES`. Where it is not `picture` and there is a `view_side`, a blank picture stands in for
            each, so that there are tokens for all places whatever is told.
        view_side: tokens a side of the one square view in which the model sees every picture; they then stand at their
            places, see `latents.text_ids`. 0 as in Step1X-Edit, and for a model that cuts pictures into several views.
        only_places: whether those tokens are all that the transformer is given. The connector has then put into them
            what the text says of their places, and the transformer's stream is as short as that, whatever is said.
        skipped_layers: of the model, from its end. Its last states are there to say the next word; a small model's
            middle ones know more of what was read. They come before the model's last norm and get one without weights.
        with_words: whether behind each state, in as many channels again, stands what the source `words` says of its
            token. A layer's state tells the next layer what to do; which digit a token was, and which of several, is
            lost in it bit by bit, and the connector knows no order of its own.
        planned: what the painter is told where the edit was planned, of `{instruction}` and `{plan}`.
    """

    prefix: str = ""
    dropped_tokens: int | None = None
    max_tokens: int = 640
    padded_tokens: int = 0
    source: str = "picture"
    view_side: int = 0
    only_places: bool = False
    skipped_layers: int = 0
    with_words: bool = False
    planned: str = "{instruction} {plan}"

    def __post_init__(self):
        if self.source not in SOURCES:
            raise ConditioningError(f"conditioning source is {self.source!r}; use one of {', '.join(SOURCES)}.")
        for name, least in (("dropped_tokens", 0), ("max_tokens", 1), ("padded_tokens", 0), ("view_side", 0),
                            ("skipped_layers", 0)):  # fmt: skip
            value = getattr(self, name)
            if name == "dropped_tokens" and value is None:
                continue
            if not isinstance(value, int) or value < least:
                raise ConditioningError(f"conditioning {name} is {value!r}; use a whole number of at least {least}.")
        if 0 < self.padded_tokens < self.max_tokens:
            raise ConditioningError(
                f"padded_tokens is {self.padded_tokens}, max_tokens {self.max_tokens}; pad to at least max_tokens, "
                f"or to 0 for no padding."
            )
        try:
            told = self.with_plan("", "\0")
        except (AttributeError, KeyError, IndexError, ValueError) as error:
            raise ConditioningError(
                f"planned is {self.planned!r}, no template ({error}); it may name {{instruction}} and {{plan}}."
            ) from error
        if "\0" not in told:
            raise ConditioningError(f"planned is {self.planned!r}, without the plan; put '{{plan}}' where it comes.")
        if not isinstance(self.with_words, bool):
            raise ConditioningError(f"with_words is {self.with_words!r}; use true or false.")
        if self.with_words and self.source == "words":
            raise ConditioningError("the source 'words' is the words already; leave with_words out, or take another.")
        if self.only_places and not self.view_side:
            raise ConditioningError(
                "only_places leaves nothing of a picture without places; give its view_side, or leave only_places out."
            )

    @classmethod
    def from_file(cls, path: str | Path) -> "Conditioning":
        """Reads a JSON object of the fields above; those it leaves out have their defaults.

        Raises:
            ConditioningError: no such file, not a JSON object, or a field that does not exist.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConditioningError(f"{str(path)!r} is not a readable JSON file ({str(error)[:120]}).") from error
        known = [field.name for field in fields(cls)]
        if not isinstance(values, dict) or (unknown := sorted(values.keys() - set(known))):
            what = f"has the field {unknown[0]!r}" if isinstance(values, dict) else "is not a JSON object"
            raise ConditioningError(f"{str(path)!r} {what}; give an object of {', '.join(known)}.")
        return cls(**values)

    def width(self, hidden_size: int) -> int:
        """Of an embedding, by a model of this width."""
        return hidden_size * (1 + self.with_words)

    def with_plan(self, instruction: str, plan: str) -> str:
        """What the painter is told of a planned edit."""
        return self.planned.format(instruction=instruction, plan=plan)

    def to_dict(self) -> dict:
        return asdict(self)

    def replaced(self, **changes) -> "Conditioning":
        return replace(self, **changes)


@torch.no_grad()
def embed(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    pictures: Sequence[Image.Image],
    instructions: Sequence[str],
    conditioning: Conditioning,
) -> list[torch.Tensor]:
    """The embedding of every (picture, instruction) pair, read in one batch.

    Args:
        pictures: as many as instructions; of other sources than `picture`, no more than their sizes count.

    Returns:
        One (tokens, width) tensor a pair, of its own length, on the model's device and in its precision.

    Raises:
        ConditioningError: nothing is left of a pair, or it is longer than `max_tokens` or the model's context.
    """
    inputs = ask(processor, pictures, instructions, conditioning)
    return read(model, processor, inputs, conditioning)


def ask(
    processor: ProcessorMixin, pictures: Sequence[Image.Image], instructions: Sequence[str], conditioning: Conditioning
) -> BatchFeature:
    """What the model is given of these pairs, on the CPU; the first half of `embed`."""
    conversations = [
        _about(conditioning.prefix, _shown(picture, conditioning), instruction)
        for picture, instruction in zip(pictures, instructions, strict=True)
    ]
    return _tokenize(processor, conversations)


def read(
    model: PreTrainedModel, processor: ProcessorMixin, inputs: BatchFeature, conditioning: Conditioning
) -> list[torch.Tensor]:
    """What the model makes of it, with gradients where they are on; the second half of `embed`, which see."""
    inputs = inputs.to(model.device, model.dtype)
    dropped = conditioning.dropped_tokens
    if dropped is None:
        dropped = _common_head(processor, conditioning.prefix)
    room = model.config.get_text_config().max_position_embeddings
    if inputs["input_ids"].shape[1] > room:
        raise ConditioningError(
            f"the instruction and its picture take {inputs['input_ids'].shape[1]} tokens, the model reads at most "
            f"{room}; shorten the instruction."
        )
    if conditioning.view_side:
        _check_view(inputs["input_ids"], model.config.image_token_id, conditioning.view_side)
    words = None
    if conditioning.source == "words" or conditioning.with_words:
        words = _with_positions(model.get_input_embeddings()(inputs["input_ids"]), inputs["attention_mask"])
    if conditioning.source == "words":
        hidden = words
    else:
        # Through the whole model, not its body: offloading hooks watch the whole. One row of logits is made at most.
        states = model(**inputs, output_hidden_states=True, logits_to_keep=1, use_cache=False).hidden_states
        if conditioning.skipped_layers >= len(states):
            raise ConditioningError(
                f"skipped_layers is {conditioning.skipped_layers}, the model has {len(states) - 1} layers; skip fewer."
            )
        hidden = states[-1 - conditioning.skipped_layers]
        if conditioning.skipped_layers:
            hidden = functional.rms_norm(hidden, hidden.shape[-1:])
        if words is not None:
            hidden = torch.cat([hidden, words], -1)
    kept = []
    for row, seen in zip(hidden, inputs["attention_mask"].bool(), strict=True):
        own = row[seen][dropped:]
        if len(own) > conditioning.max_tokens:
            raise ConditioningError(
                f"the instruction and its picture take {len(own)} tokens, the editor reads at most "
                f"{conditioning.max_tokens}; shorten the instruction."
            )
        if not len(own):
            raise ConditioningError(
                f"all {int(seen.sum())} tokens of a prompt are dropped; dropped_tokens is {dropped}, lower it or "
                f"lengthen the prefix."
            )
        kept.append(own)
    return kept


def _check_view(input_ids: torch.Tensor, image_token: int, view_side: int) -> None:
    for count in (input_ids == image_token).sum(1).tolist():
        if count != view_side**2:
            raise ConditioningError(
                f"the model sees a picture in {count} tokens, view_side {view_side} means {view_side**2}; use the root "
                f"of {count}, or 0 where that is not one square view."
            )


def _shown(picture: Image.Image, conditioning: Conditioning) -> list[Image.Image]:
    if conditioning.source == "picture":
        return [picture]
    return [Image.new("RGB", picture.size, BLANK)] if conditioning.view_side else []


def _with_positions(embeddings: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of the position beside what a token is (arXiv 1706.03762, section 3.5), both of one size: the
    connector knows no order."""
    width = embeddings.shape[-1]
    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
    code = get_1d_sincos_pos_embed_from_grid(width, positions.flatten(), output_type="pt")
    code = code.unflatten(0, positions.shape).to(embeddings)
    return functional.rms_norm(embeddings, (width,)) + code * 2**0.5


def _about(prefix: str, pictures: list[Image.Image], instruction: str) -> list[dict]:
    content = [{"type": "text", "text": prefix}] if prefix else []
    content += [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*content, {"type": "text", "text": instruction}]}]


def _tokenize(processor: ProcessorMixin, conversations: list[list[dict]]) -> BatchFeature:
    return processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True},
    )


def _common_head(processor: ProcessorMixin, prefix: str) -> int:
    """Tokens before anything that differs from edit to edit."""
    one, other = _tokenize(processor, [_about(prefix, [], digit) for digit in "12"])["input_ids"]
    return int((one == other).int().cumprod(0).sum())


def pad(
    embeddings: Sequence[torch.Tensor], padded_tokens: int = 0, collapse: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of several lengths as one batch, zeros after each.

    Args:
        padded_tokens: see `Conditioning`.
        collapse: one padding token stands for all of a row's, see `attention_bias`; without, all are there.

    Returns:
        `hidden_states` (batch, tokens, width) and `attention_mask` (batch, tokens), 1 on the embeddings themselves.
    """
    hidden_states = pad_sequence(list(embeddings), batch_first=True)
    missing = max(padded_tokens - hidden_states.shape[1], 0)
    hidden_states = functional.pad(hidden_states, (0, 0, 0, min(missing, 1) if collapse else missing))
    positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)
    lengths = torch.tensor([len(own) for own in embeddings], device=hidden_states.device)
    return hidden_states, (positions < lengths[:, None]).long()


def attention_bias(
    attention_mask: torch.Tensor, image_tokens: int, padded_tokens: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor | None:
    """What is added to the transformer's attention scores so that it sees each text stream `padded_tokens` long.

    The connector makes all padding of a row alike and the transformer keeps it alike, for padding shares one position.
    So n padding tokens weigh as much as one whose score is higher by log n: exactly the released model's result, from
    a stream hardly longer than the instruction. Where padded_tokens is 0 the weight is 0, and padding is not seen.

    Args:
        attention_mask: (batch, tokens) from `pad`.
        image_tokens: how many follow the text in the joint sequence, noisy and reference.

    Returns:
        (batch, 1, 1, tokens + image_tokens) for `joint_attention_kwargs={"attention_mask": …}`, or None where nothing
        changes: no padding, or all of it is there.
    """
    seen = attention_mask.bool()
    present = (~seen).sum(1)
    wanted = (padded_tokens - seen.sum(1)).clamp(min=0)
    if bool((present == wanted).logical_or(present == 0).all()):
        return None
    weight = (wanted / present.clamp(min=1)).log()[:, None].expand(seen.shape)
    text = torch.where(seen, torch.zeros_like(weight), weight)
    return functional.pad(text, (0, image_tokens))[:, None, None].to(dtype)


def text_stream(
    attention_mask: torch.Tensor,
    height: int,
    width: int,
    conditioning: Conditioning,
    packing: int = PACKING,
    dtype: torch.dtype = torch.float32,
) -> tuple[slice, torch.Tensor, torch.Tensor | None]:
    """What of the connector's tokens the transformer is given, beside latents of this height and width.

    Args:
        attention_mask: (batch, tokens) from `pad`.

    Returns:
        which tokens; their `latents.text_ids`; and their `attention_bias`, or None.
    """
    tokens, device = attention_mask.shape[1], attention_mask.device
    ids = text_ids(tokens, height, width, conditioning.view_side, device, packing)
    if conditioning.only_places:
        places = slice(1, 1 + conditioning.view_side**2)
        return places, ids[places], None  # every text has them all, so that there is no padding
    image_tokens = 2 * (height // packing) * (width // packing)
    return slice(None), ids, attention_bias(attention_mask, image_tokens, conditioning.padded_tokens, dtype)
