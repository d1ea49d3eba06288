"""What a run of Parallel Coordinated Reasoning is to do; everything is checked here, before anything is paid for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, inf

from pacore.agreement import Adaptive
from pacore.backends import Sampling
from pacore.messages import load_template, parse_compaction

# The paper's budgets (arXiv 2601.05593); `single` is the baseline, one trajectory and no rounds.
BUDGETS: dict[str, tuple[int, ...]] = {"single": (), "low": (4,), "medium": (16,), "high": (32, 4)}
MAX_WIDTH = 1024
MAX_ROUNDS = 16


class PlanError(ValueError):
    """A plan that cannot be carried out; one line that names the value and the remedy."""


def parse_rounds(value: str | Sequence[int]) -> tuple[int, ...]:
    """`low`, `16,4` or `[16, 4]` to (16, 4): trajectories of each round; the last round, of one, is implied.

    Raises PlanError.
    """
    if isinstance(value, str):
        if value in BUDGETS:
            return BUDGETS[value]
        try:
            bare = value.strip()
            bare = bare[1:-1] if bare[:1] + bare[-1:] == "[]" else bare
            widths = tuple(int(part) for part in bare.split(","))
        except ValueError:
            raise PlanError(
                f"rounds are {value!r}; use one of {', '.join(BUDGETS)}, or widths such as '16' or '32,4'."
            ) from None
    else:
        widths = tuple(value)
    if len(widths) > MAX_ROUNDS:
        raise PlanError(f"{len(widths)} rounds are asked for; use at most {MAX_ROUNDS}.")
    for width in widths:
        if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= MAX_WIDTH:
            raise PlanError(f"a round has {width!r} trajectories; use 1 to {MAX_WIDTH}.")
    return widths


@dataclass(frozen=True)
class Budget:
    """A cap that ends the run with the best synthesis so far; the rounds' compute counts, compaction included.

    Attributes:
        tokens: prompt and completion tokens together. It is looked at whenever a trajectory comes in, so what is in
            flight at that moment may go beyond it.
        seconds: from the start; what is in flight is cancelled at that moment.
        money: in the currency of the prices; looked at as `tokens` is.
        prompt_price, completion_price: of a million tokens.
    """

    tokens: float = inf
    seconds: float = inf
    money: float = inf
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def __post_init__(self):
        for name in ("tokens", "seconds", "money"):
            if not getattr(self, name) > 0:
                raise PlanError(f"the budget's {name} is {getattr(self, name)!r}; it must be above 0.")
        if self.prompt_price < 0 or self.completion_price < 0:
            raise PlanError("a price is below 0; prices are for a million tokens.")
        if self.money < inf and not (self.prompt_price or self.completion_price):
            raise PlanError("a budget in money needs prompt_price and completion_price, for a million tokens.")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """In money."""
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6

    def spent(self, prompt_tokens: int, completion_tokens: int) -> str:
        """Which cap is reached, in words; "" while none is. Seconds are the clock's business."""
        if prompt_tokens + completion_tokens >= self.tokens:
            return f"{prompt_tokens + completion_tokens} of {self.tokens:g} tokens"
        if (cost := self.cost(prompt_tokens, completion_tokens)) >= self.money:
            return f"{cost:.4g} of {self.money:g} in money"
        return ""


@dataclass(frozen=True)
class Plan:
    """The rounds and how they are run.

    Attributes:
        rounds: trajectories of each round; the final one, of one trajectory, is implied.
        sampling: of every trajectory; its seed is replaced by the trajectory's own.
        seed: of the run; a trajectory's seed follows from (seed, problem, round, index).
        compaction: `conclusion` (the paper's), `tail:N` tokens, or `summary`, which costs a call a trajectory.
        template: a Jinja file in place of our synthesis prompt.
        quorum: share of a round, above 0 and at most 1, with which it goes on; the rest is cancelled. None waits for
            all. Either way failed trajectories do not stop a round until the quorum (without one: a single
            trajectory) cannot be had.
        hedge: at least 1. The answer waits for a single call, which no quorum can spare: once it has taken `hedge`
            times as long as the median trajectory of the round before, waiting for a place included, a second one
            with a seed of its own begins, and the first to end gives the answer. Without rounds there is nothing to
            compare with, and None waits for as long as it takes.
        adaptive: start rounds narrow, see `Adaptive`.
        views: every trajectory sees its own view of the pictures, see `pacore.views`.
        budget: see `Budget`.
    """

    rounds: tuple[int, ...] = BUDGETS["low"]
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    compaction: str = "conclusion"
    template: str | None = None
    quorum: float | None = None
    hedge: float | None = None
    adaptive: Adaptive | None = None
    views: bool = False
    budget: Budget | None = None

    def __post_init__(self):
        object.__setattr__(self, "rounds", parse_rounds(self.rounds))
        if self.quorum is not None and not 0 < self.quorum <= 1:
            raise PlanError(f"quorum is {self.quorum!r}; use a share above 0 and at most 1, such as 13/16.")
        if self.hedge is not None and not 1 <= self.hedge < inf:
            raise PlanError(f"hedge is {self.hedge!r}; use at least 1, such as 3: three times the median of a round.")
        try:
            parse_compaction(self.compaction)
            load_template(self.template)
        except ValueError as error:
            raise PlanError(str(error)) from None

    def needed(self, width: int) -> int:
        """Trajectories with which a round of `width` goes on early."""
        return width if self.quorum is None else max(1, ceil(self.quorum * width - 1e-9))

    def least(self, width: int) -> int:
        """Trajectories without which a round of `width` has failed."""
        return 1 if self.quorum is None else self.needed(width)
