"""Many samples from few prompts: the engine of parallel reasoning and of reinforcement learning.

Each distinct picture is encoded once and each distinct prompt is read once, whatever samples from it (see
`vlm.prefix_attention`). A step gives every row one token; rows that end leave, waiting ones take their place
(continuous batching) as far as the token budget allows. A sample's draws come from its own seed, so it does not
depend on what is in the batch beside it.
"""

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from transformers import BatchFeature, DynamicCache

from vlm.answering import ModelError, TokenText, end_ids
from vlm.draws import BatchDraw, Uniforms
from vlm.modeling import Step3VLForConditionalGeneration
from vlm.prefix_attention import SharedPrefixCache, clone_with_shared_weights
from vlm.processing import Step3VLProcessor
from vlm.reasoning import OPEN_TAG
from vlm.sampling import Sampling, derive_seed

PLAIN = Sampling()
PICTURES_KEPT = 64  # encoded pictures that wait for another prompt to show them


@dataclass(frozen=True)
class Sample:
    """One completion.

    Attributes:
        tokens: as drawn, with the one that ended it.
        logprobs: of each token under the model itself, that is at temperature 1 and before top-k and top-p.
        text: `<think>` marks included, without the end-of-turn token or the stop string.
        finish: `stop`, `length` (max_tokens, or the model's context) or `cancelled`.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: str
    prompt_tokens: int
    seed: int


@dataclass(eq=False)
class Row:
    """A sample in the making; what `Rollout.submit` gives out. `sample` is there when it is done."""

    prompt: "_Prompt"
    sampling: Sampling
    max_tokens: int
    on_text: Callable[[str], None] | None
    on_done: Callable[[Sample], None] | None
    uniforms: "Uniforms"
    writer: "_Writer"
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    cancelled: bool = False
    sample: Sample | None = None

    def cancel(self) -> None:
        """Ends the row at the engine's next step; may be called from any thread."""
        self.cancelled = True


@dataclass(eq=False)
class _Prompt:
    """A distinct prompt. `slot` and `logits` (vocabulary,) while it is in the cache."""

    key: bytes
    inputs: BatchFeature
    pictures: list[bytes]  # their keys
    users: int = 0
    slot: int | None = None
    logits: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        return self.inputs["input_ids"].shape[1]


class Rollout:
    """The engine. One thread drives it: `generate`, or `submit` and then `step` until it returns False.

    Args:
        max_rows: samples drawn from at once.
        token_budget: tokens the cache may hold, each prompt counted once and each row with all it may yet say; a
            waiting sample starts when it fits. None for no limit.

    The model's weights are used in place: after an optimizer's step the next `generate` samples from the new ones,
    when `forget` has been called (what was computed with the old ones is then dropped).
    """

    def __init__(
        self,
        model: Step3VLForConditionalGeneration,
        processor: Step3VLProcessor,
        max_rows: int = 256,
        token_budget: int | None = None,
    ):
        if max_rows < 1:
            raise ValueError(f"max_rows is {max_rows}; it must be at least 1.")
        self.model, self.processor = model, processor
        self.max_rows, self.token_budget = max_rows, token_budget
        self.context = model.config.text_config.max_position_embeddings
        self._decoder = clone_with_shared_weights(model.model.language_model)
        self._ends = end_ids(model, processor)
        self._pictures: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self.forget()

    def forget(self) -> None:
        """Drops everything computed: prompts, pictures, and rows that are not done."""
        self._cache = SharedPrefixCache(self.model.device)
        self._pictures.clear()
        self._prompts: dict[bytes, _Prompt] = {}
        self._active: list[Row] = []
        self._waiting: deque[Row] = deque()
        self._free_slots: list[int] = []
        self._draw: BatchDraw | None = None

    @property
    def cache_bytes(self) -> int:
        """Memory the keys and values take now."""
        return self._cache.nbytes()

    def generate(
        self, conversations: Sequence[list[dict]], sampling: Sampling = PLAIN, n: int = 1,
        seeds: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Sample]]:  # fmt: skip
        """`n` samples of each conversation, in order.

        Args:
            seeds: one a sample, `n` for each conversation; else they follow from `sampling.seed` (0 if None) and the
                sample's place.

        Raises:
            ModelError: a prompt that leaves no room in the model's context or in the token budget.
            PictureError: a picture cannot be read.
        """
        if seeds is None:
            first = sampling.seed or 0
            seeds = [[derive_seed(first, i, j) for j in range(n)] for i in range(len(conversations))]
        if len(seeds) != len(conversations) or any(len(row) != n for row in seeds):
            raise ValueError(f"seeds must hold {n} for each of the {len(conversations)} conversations.")
        rows = []
        for conversation, own in zip(conversations, seeds, strict=True):
            prompt = self._read(conversation)  # once for its n samples
            rows.append([self._submit(prompt, replace(sampling, seed=seed)) for seed in own])
        while self.step():
            pass
        return [[row.sample for row in own] for own in rows]

    def submit(
        self, conversation: list[dict], sampling: Sampling,
        on_text: Callable[[str], None] | None = None, on_done: Callable[[Sample], None] | None = None,
    ) -> Row:  # fmt: skip
        """Adds one sample to those waiting; see `generate` for what is raised.

        `on_text` gets the pieces of text, `on_done` the sample, both in the thread that calls `step`.
        """
        return self._submit(self._read(conversation), sampling, on_text, on_done)

    def _submit(self, prompt: _Prompt, sampling: Sampling, on_text=None, on_done=None) -> Row:
        room = self.context - prompt.tokens
        wanted = min(room, sampling.max_tokens or room)
        if self.token_budget is not None and prompt.tokens + wanted > self.token_budget:
            raise ModelError(
                f"the prompt of {prompt.tokens} tokens and max_tokens {wanted} need more than the token budget of "
                f"{self.token_budget}; lower max_tokens or raise the budget."
            )
        prefix = ""
        # Some chat templates open the reasoning themselves; then the text would close what it never opened.
        if self.processor.tokenizer.decode(prompt.inputs["input_ids"][0, -8:]).rstrip().endswith(OPEN_TAG):
            prefix = OPEN_TAG + "\n"
        seed = (sampling.seed or 0) % 2**64
        row = Row(prompt, replace(sampling, seed=seed), wanted, on_text, on_done, Uniforms(seed),
                  _Writer(TokenText(self.processor.tokenizer), sampling.stop, prefix, on_text is not None))  # fmt: skip
        prompt.users += 1
        self._prompts[prompt.key] = prompt
        self._waiting.append(row)
        return row

    @torch.inference_mode()
    def step(self) -> bool:
        """Every row one token further. Returns whether anything is left to do."""
        self._drop_cancelled()
        self._admit()
        if self._active:
            logits = self._decode()
            self._take(self._active, logits)
            self._retire()
        return bool(self._active or self._waiting)

    # Reading prompts.

    def _read(self, conversation: list[dict]) -> _Prompt:
        inputs = self.processor.apply_chat_template(
            conversation, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        tokens = inputs["input_ids"].shape[1]
        if tokens >= self.context:
            raise ModelError(
                f"the prompt takes {tokens} tokens, the model reads at most {self.context}; shorten it or give fewer "
                f"pictures."
            )
        pictures = [_digest(*views) for views in _views(inputs)]
        key = _digest(inputs["input_ids"], *pictures)
        return self._prompts.get(key) or _Prompt(key, inputs, pictures)

    def _features(self, prompt: _Prompt) -> list[torch.Tensor]:
        """One (tokens, width) tensor a picture; each distinct picture goes through the encoder once."""
        for key, (view, crops) in zip(prompt.pictures, _views(prompt.inputs), strict=True):
            if key not in self._pictures:
                place = {"device": self.model.device, "dtype": self.model.dtype}
                encoded = self.model.get_image_features(
                    view.to(**place), crops.to(**place) if len(crops) else None, [len(crops)], return_dict=True
                )
                self._pictures[key] = encoded.pooler_output[0]
            self._pictures.move_to_end(key)
        found = [self._pictures[key] for key in prompt.pictures]
        while len(self._pictures) > PICTURES_KEPT:
            self._pictures.popitem(last=False)
        return found

    def _prefill(self, prompt: _Prompt) -> None:
        """Runs the prompt through the model and keeps its keys, values and last logits."""
        features = self._features(prompt)
        embeddings = self.model.get_input_embeddings()(prompt.inputs["input_ids"].to(self.model.device))
        if features:
            placeholders = prompt.inputs["input_ids"].to(self.model.device) == self.model.config.image_token_id
            embeddings = embeddings.masked_scatter(placeholders.unsqueeze(-1), torch.cat(features).to(embeddings))
        # Without a config it keeps all of a sliding layer too: rows need what lies in *their* windows.
        cache = DynamicCache()
        hidden = self.model.model.language_model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True)
        prompt.logits = self.model.lm_head(hidden.last_hidden_state[:, -1])[0].float()
        prompt.slot = self._free_slots.pop() if self._free_slots else len(self._cache.prompt_lengths)
        self._cache.put_prompt(prompt.slot, cache)

    # Rows coming and going.

    def _resident(self) -> int:
        """Tokens the cache holds or has promised."""
        prompts = sum(p.tokens for p in self._prompts.values() if p.slot is not None)
        return prompts + sum(row.max_tokens for row in self._active)

    def _admit(self) -> None:
        """Waiting rows in their order, while there is room; each starts with a token drawn from its prompt's logits."""
        held = self._resident()
        new: list[Row] = []
        while self._waiting and len(self._active) + len(new) < self.max_rows:
            row = self._waiting[0]
            cost = row.max_tokens + (row.prompt.tokens if row.prompt.slot is None else 0)
            if self.token_budget is not None and held + cost > self.token_budget:
                break
            held += cost
            self._waiting.popleft()
            if row.prompt.slot is None:
                self._prefill(row.prompt)
            new.append(row)
        if not new:
            return
        self._take(new, torch.stack([row.prompt.logits for row in new]))
        going = [row for row in new if row.sample is None]
        self._release([row for row in new if row.sample is not None])
        self._active += going
        self._cache.add_rows([row.prompt.slot for row in going])
        self._draw = None

    def _decode(self) -> torch.Tensor:
        """(rows, vocabulary) logits after every row's last token."""
        self._cache.begin_step()
        tokens = torch.tensor([[row.tokens[-1]] for row in self._active], device=self.model.device)
        positions = (self._cache.prompt_lengths[self._cache.slots] + self._cache.lengths - 1)[:, None]
        hidden = self._decoder(
            inputs_embeds=self.model.get_input_embeddings()(tokens),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            shared_prefix=self._cache,
        ).last_hidden_state
        return self.model.lm_head(hidden[:, -1]).float()

    def _take(self, rows: list[Row], logits: torch.Tensor) -> None:
        """Draws every row's next token and ends the rows that are done."""
        draw = self._draw if rows is self._active else None
        if draw is None:
            draw = BatchDraw([row.sampling for row in rows], logits.device)
            if rows is self._active:
                self._draw = draw
        uniforms = [row.uniforms.next() for row in rows]
        tokens, logprobs = draw.tokens(logits, uniforms)
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            row.tokens.append(token)
            row.logprobs.append(logprob)
            ended = token in self._ends or token in row.sampling.stop_token_ids
            piece = "" if ended else row.writer.add(token)
            if ended or row.writer.stopped:
                self._finish(row, "stop", piece)
            elif len(row.tokens) == row.max_tokens:
                self._finish(row, "length", piece)
            elif piece and row.on_text:
                row.on_text(piece)

    def _finish(self, row: Row, reason: str, piece: str = "") -> None:
        piece += row.writer.rest()
        if piece and row.on_text:
            row.on_text(piece)
        row.sample = Sample(
            tuple(row.tokens), tuple(row.logprobs), row.writer.text, reason, row.prompt.tokens, row.sampling.seed
        )
        if row.on_done:
            row.on_done(row.sample)

    def _drop_cancelled(self) -> None:
        gone = [row for row in (*self._active, *self._waiting) if row.cancelled]
        if not gone:
            return
        for row in gone:
            self._finish(row, "cancelled")
        waiting = [row for row in self._waiting if row.sample is not None]
        self._waiting = deque(row for row in self._waiting if row.sample is None)
        self._release(waiting)
        self._retire()

    def _retire(self) -> None:
        """Takes rows that are done out of the batch: the last ones move into the places that are left."""
        going = [i for i, row in enumerate(self._active) if row.sample is None]
        if len(going) == len(self._active):
            return
        done = [row for row in self._active if row.sample is not None]
        kept = list(range(len(going)))
        late = [i for i in going if i >= len(going)]
        for place in (i for i in range(len(going)) if self._active[i].sample is not None):
            kept[place] = late.pop()
        self._cache.keep_rows(kept)
        self._active = [self._active[i] for i in kept]
        self._draw = None
        self._release(done)

    def _release(self, rows: list[Row]) -> None:
        """Prompts that nobody continues any more leave the cache."""
        for row in rows:
            prompt = row.prompt
            prompt.users -= 1
            if prompt.users == 0:
                self._prompts.pop(prompt.key, None)
                if prompt.slot is not None:
                    self._free_slots.append(prompt.slot)
                    prompt.slot = prompt.logits = None


class _Writer:
    """A row's text as it grows; holds back what may turn out to be the beginning of a stop string.

    Where nobody reads along and no string stops the row, its tokens become text all at once, at the end.
    """

    def __init__(self, tokens: TokenText, stop: tuple[str, ...], prefix: str, read_along: bool):
        self.text = ""
        self.stopped = False
        self._tokens, self._stop, self._held = tokens, stop, prefix
        self._at_once = not stop and not read_along

    def add(self, token: int) -> str:
        """The text that is certain now and was not before."""
        if self._at_once:
            self._tokens.tokens.append(token)
            return ""
        return self._say(self._tokens.add(token))

    def rest(self) -> str:
        """What is left at the end."""
        if self.stopped:
            return ""
        said = self._say(self._tokens.rest())
        if not self.stopped:
            self.text += self._held
            said, self._held = said + self._held, ""
        return said

    def _say(self, piece: str) -> str:
        self._held += piece
        found = min((at for s in self._stop if (at := self._held.find(s)) >= 0), default=-1)
        if found >= 0:
            self.stopped, said, self._held = True, self._held[:found], ""
        else:
            keep = max((n for s in self._stop for n in range(1, len(s)) if self._held.endswith(s[:n])), default=0)
            cut = len(self._held) - keep
            said, self._held = self._held[:cut], self._held[cut:]
        self.text += said
        return said


def _views(inputs: BatchFeature) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each picture: (1, 3, height, width), the global view, and (crops, 3, height, width)."""
    if "pixel_values" not in inputs:
        return []
    counts = [int(n) for n in inputs["num_local_patches"]]
    views = inputs["pixel_values"].split(1)
    crops = [views[0][:0]] * len(views)
    if "pixel_values_local" in inputs:
        crops = inputs["pixel_values_local"].split(counts)
    return list(zip(views, crops, strict=True))


def _digest(*parts: torch.Tensor | bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.contiguous().numpy().tobytes()
        shape = b"" if isinstance(part, bytes) else str(tuple(part.shape)).encode()
        digest.update(len(data).to_bytes(8, "big") + shape + data)
    return digest.digest()
