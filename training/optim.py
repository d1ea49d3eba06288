"""Optimizers: AdamW as the papers use it, and Muon for the matrices of a model that has minutes instead of weeks.

Muon (K. Jordan, 2024) replaces a matrix's momentum by its nearest orthogonal matrix. `torch.optim.Muon` computes that
in bfloat16, which a CPU without bfloat16 instructions does a hundred times slower than float32, and one matrix at a
time; here it is float32 off accelerators and one batched product for all matrices of a shape.
"""

from collections import defaultdict

import torch
from torch import nn

from training.schedule import Optimizer

# Coefficients of the quintic Newton-Schulz iteration: they trade exact singular values for speed near zero.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrices: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values end in about 0.7 to 1.2.

    Args:
        matrices: (count, rows, columns).
    """
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    iterate = _iterated if x.is_cuda else _iterated_on_gram
    x = iterate(x, iterations)
    return (x if wide else x.mT).to(matrices.dtype)


def _iterated(x: torch.Tensor, iterations: int) -> torch.Tensor:
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _iterated_on_gram(x: torch.Tensor, iterations: int) -> torch.Tensor:
    """The same by its factors alone, which are polynomials of the Gram matrix and commute: a fraction of the products
    where x is wide. It squares the condition, which bfloat16 has no room for."""
    a, b, c = COEFFICIENTS
    gram, total = x @ x.mT, None
    one = torch.eye(gram.shape[-1], device=x.device)
    for _ in range(iterations):
        factor = a * one + b * gram + c * gram @ gram
        total = factor if total is None else factor @ total
        gram = factor @ gram @ factor
    return total @ x


class MuonAdamW(torch.optim.Optimizer):
    """Muon on groups with `muon: True`, AdamW on the others."""

    def __init__(self, groups: list[dict], betas: tuple[float, float], momentum: float = 0.95):
        super().__init__(groups, {"lr": 1e-3, "betas": betas, "momentum": momentum, "weight_decay": 0.0, "muon": False})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            (self._muon if group["muon"] else self._adamw)(group)
        return loss

    def _muon(self, group: dict) -> None:
        by_shape = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                by_shape[(p.shape[0], p[0].numel())].append(p)
        for (rows, columns), params in by_shape.items():
            grads = torch.stack([p.grad.reshape(rows, columns) for p in params])
            buffers = []
            for p in params:
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros(rows, columns, dtype=p.dtype, device=p.device)
                buffers.append(state["momentum"])
            momentum = torch.stack(buffers).lerp_(grads, 1 - group["momentum"])
            for buffer, value in zip(buffers, momentum, strict=True):
                buffer.copy_(value)
            update = orthogonalised(grads.lerp(momentum, group["momentum"]))  # Nesterov's look-ahead
            scale = group["lr"] * max(1.0, rows / columns) ** 0.5
            for p, u in zip(params, update, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(u.reshape(p.shape), alpha=-scale)

    def _adamw(self, group: dict) -> None:
        beta1, beta2 = group["betas"]
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        for p in params:
            state = self.state[p]
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["first"], state["second"] = torch.zeros_like(p), torch.zeros_like(p)
            state["step"] += 1
        grads = [p.grad for p in params]
        first, second = ([self.state[p][k] for p in params] for k in ("first", "second"))
        step = float(self.state[params[0]]["step"])
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        denominator = torch._foreach_sqrt(second)
        torch._foreach_div_(denominator, (1 - beta2**step) ** 0.5)
        torch._foreach_add_(denominator, 1e-8)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_addcdiv_(params, first, denominator, -group["lr"] / (1 - beta1**step))


def build_optimizer(model: nn.Module, config: Optimizer) -> torch.optim.Optimizer:
    """Weight decay on matrices alone; with Muon, everything but embeddings, head and vectors goes to it."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.ndim >= 2 and not any(k in name for k in ("embed", "lm_head"))]
    chosen = {id(p) for p in matrices}
    vectors = [p for _, p in named if id(p) not in chosen]
    if config.name == "adamw":
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
    return MuonAdamW(
        [
            {"params": matrices, "lr": config.matrix_learning_rate, "weight_decay": config.weight_decay, "muon": True},
            {"params": vectors, "lr": config.learning_rate},
        ],
        betas=config.betas,
    )
