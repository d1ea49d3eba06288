"""How a completion is drawn: what the rollout engine and every backend of `pacore/` understand."""

import hashlib
from dataclasses import dataclass


class SamplingError(ValueError):
    """A value out of range; the message names it and the range."""


@dataclass(frozen=True)
class Sampling:
    """The defaults are PaCoRe's (arXiv 2601.05593): plain sampling.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: the smallest set of tokens that holds this probability stays, 1 leaves every token in.
        top_k: so many of the likeliest tokens stay, 0 leaves every token in.
        max_tokens: of the completion, reasoning included; None lets the model's context end it.
        stop: strings that end the completion; they are not part of its text.
        stop_token_ids: as well as the model's own end-of-turn tokens.
        seed: of this completion; None where the caller does not care.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None

    def __post_init__(self):
        for name, fits, range_ in (
            ("temperature", 0 <= self.temperature < float("inf"), "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1"),
            ("stop", not isinstance(self.stop, str) and all(self.stop), "a tuple of strings, none of them empty"),
        ):
            if not fits:
                raise SamplingError(f"{name} is {getattr(self, name)!r}; it must be {range_}.")


def derive_seed(*parts: object) -> int:
    """A seed of 63 bits from (run seed, problem, round, index) or the like; the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
