"""Attention of many rows over few prompts: a prompt's keys and values are stored once, whatever samples from it.

A row attends to its prompt's part and to its own part; both go through one softmax, so the result is that of attention
over the two joined. transformers' decoders reach this through their attention interface (`ATTENTION`), with the cache
as an argument of the forward pass, so every decoder that uses the interface works, sliding windows included.
"""

import copy

import torch
from torch import nn
from transformers import DynamicCache
from transformers.modeling_utils import AttentionInterface

ATTENTION = "shared_prefix"


def clone_with_shared_weights(decoder: nn.Module) -> nn.Module:
    """A decoder with the same tensors whose attention is this file's; the one given stays as it is."""
    tensors = [*decoder.parameters(), *decoder.buffers()]
    clone = copy.deepcopy(decoder, {id(tensor): tensor for tensor in tensors})
    for module in clone.modules():  # some decoders give their layers configs of their own
        if hasattr(module, "config"):
            module.config._attn_implementation = ATTENTION
    return clone.eval()


class _Layer:
    """One layer's stores. Shapes: prompts (slots, heads, tokens, width), rows (rows, heads, tokens, width)."""

    def __init__(self):
        self.prompt_keys = self.prompt_values = self.row_keys = self.row_values = None


class SharedPrefixCache:
    """Keys and values of prompts (by slot) and of the rows that continue them (always the first `rows` of the store).

    `lengths` (rows,) is how many tokens of its own a row has, `slots` (rows,) which prompt it continues.
    """

    GROWTH = 64  # tokens by which the stores grow

    def __init__(self, device: torch.device):
        self.layers: dict[int, _Layer] = {}
        self.device = device
        self.slots = torch.zeros(0, dtype=torch.long, device=device)
        self.lengths = torch.zeros(0, dtype=torch.long, device=device)
        self.prompt_lengths = torch.zeros(0, dtype=torch.long, device=device)
        self.longest = 0  # of `lengths`, known without asking the device
        self._masks: dict[int | None, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def rows(self) -> int:
        return len(self.slots)

    def nbytes(self) -> int:
        """Of all stores, spare room included."""
        stores = [s for layer in self.layers.values() for s in vars(layer).values() if s is not None]
        return sum(store.nbytes for store in stores)

    def put_prompt(self, slot: int, cache: DynamicCache) -> None:
        """Stores what a prompt's forward pass left in `cache` (one row) under `slot`."""
        length = cache.layers[0].keys.shape[2]
        for index, filled in enumerate(cache.layers):
            layer = self.layers.setdefault(index, _Layer())
            for name, new in (("prompt_keys", filled.keys), ("prompt_values", filled.values)):
                store = _with_room(getattr(layer, name), new, slot + 1, length, self.GROWTH)
                store[slot, :, :length] = new[0]
                setattr(layer, name, store)
        if slot >= len(self.prompt_lengths):
            room = torch.zeros(slot + 1 - len(self.prompt_lengths), dtype=torch.long, device=self.device)
            self.prompt_lengths = torch.cat([self.prompt_lengths, room])
        self.prompt_lengths[slot] = length

    def add_rows(self, slots: list[int]) -> None:
        """New rows, after those that are there."""
        new = torch.tensor(slots, dtype=torch.long, device=self.device)
        self.slots = torch.cat([self.slots, new])
        self.lengths = torch.cat([self.lengths, torch.zeros_like(new)])

    def keep_rows(self, kept: list[int]) -> None:
        """Drops all rows but `kept`, which become rows 0, 1, ... in the order given.

        At most as many rows move as leave: `kept` is expected to name most rows in their place.
        """
        moves = [(to, source) for to, source in enumerate(kept) if to != source]
        if moves:
            to, source = (torch.tensor(side, device=self.device) for side in zip(*moves, strict=True))
            for layer in self.layers.values():
                if layer.row_keys is not None:
                    layer.row_keys[to, :, : self.longest] = layer.row_keys[source, :, : self.longest]
                    layer.row_values[to, :, : self.longest] = layer.row_values[source, :, : self.longest]
        index = torch.tensor(kept, dtype=torch.long, device=self.device)
        self.slots, self.lengths = self.slots[index], self.lengths[index]
        self.longest = int(self.lengths.max()) if kept else 0
        if not kept:
            for layer in self.layers.values():
                layer.row_keys = layer.row_values = None

    def begin_step(self) -> None:
        """Before a forward pass of one token a row: counts it, and lays the rows out by prompt."""
        self.lengths = self.lengths + 1
        self.longest += 1
        self._masks.clear()
        # Rows of one prompt side by side: table[prompt, lane] is a row, or row 0 where a prompt has fewer.
        present, group = torch.unique(self.slots, return_inverse=True)
        order = torch.argsort(group, stable=True)
        counts = torch.bincount(group)
        starts = torch.cumsum(counts, 0) - counts
        lane = torch.empty_like(order)
        lane[order] = torch.arange(self.rows, device=self.device) - starts[group[order]]
        table = torch.zeros(len(present), int(counts.max()), dtype=torch.long, device=self.device)
        table[group, lane] = torch.arange(self.rows, device=self.device)
        self._present, self._group, self._lane, self._table = present, group, lane, table
        self._all_slots = len(present) == len(self.prompt_lengths)

    # What a decoder calls.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.longest

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args, **kwargs):
        """Stores the step's (rows, heads, 1, width); gives each row's own part, (rows, heads, longest, width)."""
        layer = self.layers[layer_idx]
        at = self.lengths - 1
        rows = torch.arange(self.rows, device=self.device)
        views = []
        for name, new in (("row_keys", keys), ("row_values", values)):
            store = _with_room(getattr(layer, name), new, self.rows, self.longest, self.GROWTH)
            store[rows, :, at] = new[:, :, 0]
            setattr(layer, name, store)
            views.append(store[: self.rows, :, : self.longest])
        return tuple(views)

    def _mask(self, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Additive masks, 0 or -inf: over prompts (prompts, lanes, tokens), over rows' own parts (rows, tokens)."""
        if window not in self._masks:
            prompts = self.prompt_lengths[self._present]
            size = self.layers[0].prompt_keys.shape[2]
            key = torch.arange(size, device=self.device)
            hidden = (key >= prompts[:, None])[:, None, :]
            own = torch.arange(self.longest, device=self.device)
            own_hidden = own >= self.lengths[:, None]
            if window is not None:
                query = prompts[:, None] + self.lengths[self._table] - 1
                hidden = hidden | (query[..., None] - key >= window)
                own_hidden = own_hidden | (self.lengths[:, None] - 1 - own >= window)
            self._masks[window] = tuple(
                torch.zeros(m.shape, device=self.device).masked_fill_(m, -torch.inf) for m in (hidden, own_hidden)
            )
        return self._masks[window]

    def attend(
        self, layer_idx: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float,
        window: int | None, softcap: float | None = None, sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """(rows, 1, heads, width) from the step's queries (rows, heads, 1, width) and the rows' own parts."""
        layer = self.layers[layer_idx]
        rows, heads, _, width = query.shape
        kv_heads = keys.shape[1]
        share = heads // kv_heads
        prompts, lanes = self._table.shape
        prompt_mask, own_mask = self._mask(window)
        prompt_keys, prompt_values = layer.prompt_keys, layer.prompt_values
        if not self._all_slots:
            prompt_keys, prompt_values = prompt_keys[self._present], prompt_values[self._present]

        query = (query * scaling).view(rows, kv_heads, share, width)
        # (prompts, kv heads, lanes x share, width): one product a prompt for all its rows.
        grouped = query[self._table].transpose(1, 2).reshape(prompts, kv_heads, lanes * share, width)
        over_prompt = _capped(grouped @ prompt_keys.mT, softcap).float()
        over_prompt = over_prompt.view(prompts, kv_heads, lanes, share, -1) + prompt_mask[:, None, :, None, :]
        over_own = _capped(query @ keys.mT, softcap).float() + own_mask[:, None, None, :]

        # One softmax over both parts: the common maximum, then sums.
        top = over_own.amax(-1, keepdim=True)
        prompt_top = over_prompt.amax(-1, keepdim=True)
        top = torch.maximum(top, prompt_top.transpose(1, 2)[self._group, self._lane])
        if sinks is not None:
            sinks = sinks.float().view(1, kv_heads, share, 1)
            top = torch.maximum(top, sinks)
        over_own = torch.exp(over_own - top)
        over_prompt = torch.exp(over_prompt - top[self._table].transpose(1, 2))
        total = over_own.sum(-1, keepdim=True)
        total = total + over_prompt.sum(-1, keepdim=True).transpose(1, 2)[self._group, self._lane]
        if sinks is not None:
            total = total + torch.exp(sinks - top)
        from_prompt = over_prompt.to(values.dtype).view(prompts, kv_heads, lanes * share, -1) @ prompt_values
        from_prompt = from_prompt.view(prompts, kv_heads, lanes, share, width).transpose(1, 2)[self._group, self._lane]
        out = (over_own.to(values.dtype) @ values + from_prompt) / total.to(values.dtype)
        return out.reshape(rows, 1, heads, width)


def _capped(scores: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def _with_room(store: torch.Tensor | None, new: torch.Tensor, rows: int, tokens: int, growth: int) -> torch.Tensor:
    """`store` itself, or a larger copy where `rows` or `tokens` do not fit."""
    have = (0, 0) if store is None else (store.shape[0], store.shape[2])
    if rows <= have[0] and tokens <= have[1]:
        return store
    size = (max(rows, have[0]), new.shape[1], max(-(-tokens // growth) * growth, have[1]), new.shape[3])
    # Zeros, not what memory held: a masked place is multiplied by a weight of 0, and 0 x NaN is NaN.
    larger = new.new_zeros(size)
    if store is not None:
        larger[: have[0], :, : have[1]] = store
    return larger


def _attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, sliding_window=None,
               softcap=None, s_aux=None, *, shared_prefix: SharedPrefixCache, **kwargs):  # fmt: skip
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = shared_prefix.attend(module.layer_idx, query, key, value, scaling, sliding_window, softcap, s_aux)
    return out, None


AttentionInterface.register(ATTENTION, _attention)
