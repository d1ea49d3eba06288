"""One question at a time to a model of this process, thought over in parallel; for callers that are not async."""

import asyncio
from collections.abc import Callable

from pacore.backends import Sampling
from pacore.coordination import solve
from pacore.local_backend import LocalBackend
from pacore.plan import Plan
from vlm.rollout import Rollout


def ask_in_parallel(model, processor, trajectories: int, max_tokens: int = 256) -> Callable[[list[dict]], str]:
    """A function of a conversation that gives its answer: a round of trajectories and a synthesis (arXiv 2601.05593).

    Args:
        max_tokens: of each trajectory.

    Raises:
        PlanError: a number of trajectories that cannot be. The function raises what `solve` raises.
    """
    plan = Plan(rounds=(trajectories,), sampling=Sampling(max_tokens=max_tokens))
    engine = Rollout(model, processor)

    def ask(conversation: list[dict]) -> str:
        return asyncio.run(_asked(conversation))

    async def _asked(conversation: list[dict]) -> str:
        backend = LocalBackend(engine, "model")
        try:
            return (await solve(backend, conversation, plan, stream=False)).answer.text
        finally:
            await backend.close()

    return ask
