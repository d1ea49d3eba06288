"""The draw of the next tokens of a batch, each row by its own sampling values and its own stream of numbers."""

import numpy as np
import torch

from vlm.sampling import Sampling


class BatchDraw:
    """The sampling values of a batch as tensors, and the draw itself."""

    def __init__(self, samplings: list[Sampling], device: torch.device):
        self.greedy = torch.tensor([s.temperature == 0 for s in samplings], device=device)
        self.all_greedy = bool(self.greedy.all())
        self.temperature = torch.tensor([[s.temperature or 1.0] for s in samplings], device=device)
        self.top_p = torch.tensor([[s.top_p] for s in samplings], device=device) if any(
            s.top_p < 1 for s in samplings) else None  # fmt: skip
        self.top_k = torch.tensor([[s.top_k or 2**31 - 1] for s in samplings], device=device) if any(
            s.top_k for s in samplings) else None  # fmt: skip

    def tokens(self, logits: torch.Tensor, uniforms: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows,) tokens, and (rows,) log-probabilities of the model's own distribution.

        A token is where the cumulated probabilities pass the row's uniform number: one number a token, and a small
        difference in the logits (products of other sizes round differently) moves a border by as little.
        """
        logprobs = torch.log_softmax(logits, -1)
        tokens = logits.argmax(-1)
        if not self.all_greedy:
            probabilities = torch.softmax(self._filtered(logits / self.temperature), -1)
            cumulated = probabilities.double().cumsum(-1)
            place = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * cumulated[:, -1:]
            drawn = torch.searchsorted(cumulated, place, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)
            tokens = torch.where(self.greedy, tokens, drawn)
        return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)

    def _filtered(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits with what top-k, and then top-p of what is left, exclude at -inf."""
        if self.top_k is None and self.top_p is None:
            return logits
        ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            rank = torch.arange(logits.shape[-1], device=logits.device)
            ordered = ordered.masked_fill(rank >= self.top_k, -torch.inf)
        if self.top_p is not None:
            probabilities = torch.softmax(ordered, -1)
            # What comes before a token decides: the one that passes the border stays.
            before = probabilities.cumsum(-1) - probabilities
            ordered = ordered.masked_fill(before >= self.top_p, -torch.inf)
        return torch.empty_like(logits).scatter_(-1, order, ordered)


class Uniforms:
    """A row's own stream of numbers in [0, 1): the same on every machine, drawn ahead in blocks."""

    BLOCK = 256

    def __init__(self, seed: int):
        self._generator = np.random.Generator(np.random.Philox(seed))
        self._block: list[float] = []

    def next(self) -> float:
        if not self._block:
            self._block = self._generator.random(self.BLOCK).tolist()[::-1]
        return self._block.pop()
