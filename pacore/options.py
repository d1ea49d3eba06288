"""What the commands have in common: where trajectories come from, and the plan."""

import os
from dataclasses import dataclass

from pacore.agreement import Adaptive
from pacore.backends import Backend, Sampling
from pacore.coordination import Budget, Plan, PlanError, parse_rounds
from pacore.openai_backend import OpenAIBackend


@dataclass
class Source:
    """Where trajectories come from."""

    model: str | None = None
    """mini (the default), a folder or a hub id; with --base-url the server's name for it, by default the one it has."""
    base_url: str | None = None
    """Of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1, in place of a model in this process."""
    api_key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the server's key; a server without keys needs none."""
    header: tuple[str, ...] = ()
    """Sent with every call, as NAME:VALUE."""
    calls: int = 16
    """Calls to the server in flight at most."""
    retries: int = 5
    """Further tries of a call that failed in passing."""
    timeout: float = 600.0
    """Seconds that one try of a call may take."""
    context: int | None = None
    """Tokens that prompt and completion may have together at a server that does not say; messages are cut to fit."""
    batch: int = 256
    """Samples the local model draws from at once."""

    async def open(self) -> Backend:
        """Raises BackendError (no such model, nobody there) or PlanError (an option)."""
        if self.base_url is None:
            # Torch takes seconds to load, which a distant model does not need.
            from transformers.utils import logging

            from pacore.local_backend import LocalBackend

            logging.disable_progress_bar()
            logging.set_verbosity_error()
            return LocalBackend.load(self.model or "mini", max_rows=self.batch)
        headers = {}
        for header in self.header:
            name, colon, value = header.partition(":")
            if not colon or not name.strip():
                raise PlanError(f"the header {header!r} is not NAME:VALUE.")
            headers[name.strip()] = value.strip()
        return await OpenAIBackend.connect(
            self.base_url, self.model, api_key=os.environ.get(self.api_key_variable) or None, headers=headers,
            concurrency=self.calls, retries=self.retries, timeout=self.timeout,
            context=self.context,
        )  # fmt: skip


@dataclass
class Rounds:
    """How the rounds are run."""

    rounds: str = "low"
    """single, low (4), medium (16), high (32,4), or widths such as 16,4; the last round, of one, is implied."""
    quorum: str | None = None
    """Share of a round with which it goes on, cancelling the rest, such as 13/16 or 0.8125; by default all."""
    hedge: float | None = None
    """Ask for the answer a second time once it takes so many times as long as a trajectory before it, such as 3."""
    adaptive: bool = False
    """Start with four trajectories and widen only while their answers do not agree."""
    views: bool = False
    """Each trajectory sees its own crop, scale and contrast of the pictures."""
    budget: str = ""
    """tokens=N, seconds=N, money=N or several, with commas: ends with the best synthesis so far."""
    prompt_price: float = 0.0
    """Of a million tokens, for a budget in money."""
    completion_price: float = 0.0
    """Of a million tokens, for a budget in money."""
    compaction: str = "conclusion"
    """conclusion, tail:N (tokens) or summary (written by the model)."""
    template: str | None = None
    """A Jinja file in place of the synthesis prompt."""
    temperature: float = 1.0
    """Of every trajectory."""
    top_p: float = 1.0
    """Of every trajectory."""
    top_k: int = 0
    """Of every trajectory; 0 leaves every token in."""
    max_tokens: int | None = None
    """Of a trajectory, reasoning included."""
    seed: int = 0
    """Of the run: every trajectory's own follows from it."""

    def plan(self) -> Plan:
        """Raises PlanError, or SamplingError for a sampling value."""
        return Plan(
            rounds=parse_rounds(self.rounds),
            sampling=Sampling(self.temperature, self.top_p, self.top_k, self.max_tokens),
            seed=self.seed,
            compaction=self.compaction,
            template=self.template,
            quorum=None if self.quorum is None else parse_share(self.quorum),
            hedge=self.hedge,
            adaptive=Adaptive() if self.adaptive else None,
            views=self.views,
            budget=parse_budget(self.budget, self.prompt_price, self.completion_price),
        )


def parse_share(text: str) -> float:
    """`13/16` or `0.8125` to 0.8125. Raises PlanError."""
    try:
        part, _, whole = text.partition("/")
        return float(part) / float(whole or 1)
    except (ValueError, ZeroDivisionError):
        raise PlanError(f"the quorum {text!r} is not a share such as 13/16 or 0.8125.") from None


def parse_budget(text: str, prompt_price: float = 0.0, completion_price: float = 0.0) -> Budget | None:
    """`tokens=20000,seconds=60` to a `Budget`; None for nothing. Raises PlanError."""
    if not text.strip():
        return None
    caps = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            if name.strip() not in ("tokens", "seconds", "money"):
                raise ValueError(name)
            caps[name.strip()] = float(value)
        except ValueError:
            raise PlanError(f"the budget {part!r} is not tokens=N, seconds=N or money=N.") from None
    return Budget(**caps, prompt_price=prompt_price, completion_price=completion_price)
