"""Parallel Coordinated Reasoning (arXiv 2601.05593, algorithm 1): rounds of trajectories, messages, a synthesis.

Round r runs K_r trajectories on P(x, M); their messages, shuffled, are the next round's M; a last round of one gives
the answer. Only the last user turn is ever rewritten, so that pictures, earlier turns and the system's stay.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from math import ceil
from statistics import median

from pacore.agreement import plurality
from pacore.backends import Backend, BackendError, Completion, Sampling
from pacore.hedging import first_of_two
from pacore.journal import Journal, conversation_digest, trajectory_key
from pacore.messages import (
    SUMMARY_PROMPT,
    MessageError,
    conclusion,
    fit,
    last_user_turn,
    load_template,
    parse_compaction,
    problem_of,
    shuffled,
    tail,
    with_messages,
)
from pacore.outcome import Event, Outcome, PacoreError, Trajectory
from pacore.plan import BUDGETS, Budget, Plan, PlanError, parse_rounds
from pacore.views import with_views
from vlm.pictures import PictureError
from vlm.sampling import derive_seed

__all__ = ["BUDGETS", "Budget", "Event", "Outcome", "PacoreError", "Plan", "PlanError", "Trajectory", "parse_rounds",
           "solve"]  # fmt: skip

# Where a model says nothing about its completion's length, the context guard leaves it this share of the context.
COMPLETION_SHARE = 0.5


async def solve(
    backend: Backend,
    conversation: list[dict],
    plan: Plan,
    *,
    problem: str = "",
    journal: Journal | None = None,
    on_event: Callable[[Event], None] | None = None,
    stream: bool = True,
) -> Outcome:
    """Answers the conversation's last turn.

    Args:
        problem: what the journal calls it, and what the seeds follow from; "" takes a digest of the conversation.
        journal: finished trajectories are recorded there first, and those already there are not paid for again.
        stream: whether `on_event` is told the final round's text. Some servers count tokens only where they need not
            stream.

    Raises:
        PacoreError: no answer could be had.
        BackendError: nor would any other question have one; its `fatal` is set.
        PlanError: the conversation, or its messages, do not fit the plan.
        Cancelling the task cancels every trajectory.
    """
    try:
        last_user_turn(conversation)
    except MessageError as error:
        raise PlanError(str(error)) from None
    problem = problem or (await asyncio.to_thread(conversation_digest, conversation))[:16]
    tell = on_event or (lambda event: None)
    return await _Run(backend, conversation, plan, problem, journal, tell, stream and on_event is not None).outcome()


@dataclass
class _Run:
    """One question on its way; what it has cost so far."""

    backend: Backend
    conversation: list[dict]
    plan: Plan
    problem: str
    journal: Journal | None
    tell: Callable[[Event], None]
    stream: bool
    rounds: list[list[Trajectory]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    typical: float | None = None  # seconds that the last round's median trajectory took
    speaker: int | None = None  # of two final calls, the one whose text is told

    async def outcome(self) -> Outcome:
        template = load_template(self.plan.template)
        messages: list[str] = []
        answer: Completion | None = None
        for round, width in enumerate((*self.plan.rounds, 1)):
            if reached := self._over():
                break
            prompt = await self._prompt(template, messages, round)
            self.tell(Event("round", round, width=width))
            trajectories = await self._round(round, width, prompt, final=round == len(self.plan.rounds))
            self.rounds.append(trajectories)
            reached = self._over()
            finished = [t for t in trajectories if t.completion is not None]
            if not finished and reached:
                break
            order = derive_seed(self.plan.seed, self.problem, round, "order")
            messages = shuffled([t.message for t in finished], order)
            if round == len(self.plan.rounds):
                answer = finished[0].completion
        if answer is None:
            answer = self._best_so_far(reached)
        result = Outcome(
            answer=answer,
            rounds=tuple(map(tuple, self.rounds)),
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            seconds=time.monotonic() - self.started,
            failures=sum(bool(t.error) for trajectories in self.rounds for t in trajectories),
            notes=tuple(self.notes),
        )
        self.tell(Event("outcome", outcome=result))
        return result

    def _over(self) -> str:
        """Which cap of the budget is reached, in words."""
        budget = self.plan.budget
        if budget is None:
            return ""
        seconds = time.monotonic() - self.started
        if seconds >= budget.seconds:
            return f"{seconds:.1f} of {budget.seconds:g} seconds"
        return budget.spent(self.prompt_tokens, self.completion_tokens)

    def _best_so_far(self, reached: str) -> Completion:
        """Of the latest round that has any, the trajectory whose answer most others share."""
        for trajectories in reversed(self.rounds):
            finished = [t for t in trajectories if t.completion is not None]
            if finished:
                best = finished[plurality([t.message for t in finished])]
                self.notes.append(
                    f"the budget ended the run ({reached}); the answer is the commonest of round {best.round + 1}."
                )
                return best.completion
        raise PacoreError(f"the budget ended the run ({reached}) before any trajectory was in; raise it.")

    async def _prompt(self, template: str, messages: list[str], round: int) -> list[dict]:
        """The conversation with the last round's messages, trimmed to what the context holds. Raises PlanError."""
        try:
            return await self._with_messages(template, messages, round)
        except MessageError as error:
            raise PlanError(f"round {round + 1}: {error}") from None

    async def _with_messages(self, template: str, messages: list[str], round: int) -> list[dict]:
        context = self.backend.context
        if not messages or context is None:
            return with_messages(self.conversation, template, messages)
        count = await asyncio.to_thread(self._counter)
        wanted = self.plan.sampling.max_tokens or int(context * COMPLETION_SHARE)
        # A finished trajectory says how long the turns are with their pictures and marks; the template is what its
        # rendering adds to empty messages, a few tokens a message to spare.
        turns = max(t.completion.prompt_tokens for t in self.rounds[0] if t.completion is not None)
        frame = count(problem_of(with_messages(self.conversation, template, ["x"] * len(messages))))
        frame = max(0, frame - count(problem_of(self.conversation))) + 4 * len(messages)
        fitting, trimmed = await asyncio.to_thread(fit, messages, context - wanted - turns - frame, count)
        if trimmed:
            self.notes.append(f"round {round + 1}: {trimmed} of {len(messages)} messages were trimmed to fit.")
        return with_messages(self.conversation, template, fitting)

    def _counter(self) -> Callable[[str], int]:
        """Tokens of a text: the backend's count, raised where it fell short of what the last round really took."""
        count = self.backend.count_tokens
        said = [t.completion for t in self.rounds[-1] if t.completion is not None]
        short = sum(c.completion_tokens for c in said) / max(1, sum(count(c.reasoning + c.text) for c in said))
        # An estimate is of four bytes a token; what goes beyond that is reasoning that a server keeps to itself.
        short = min(4.0, max(1.0, short))
        return lambda text: ceil(short * count(text))

    async def _round(self, round: int, width: int, prompt: list[dict], final: bool) -> list[Trajectory]:
        """All trajectories of a round, by index; those that nobody waited for are marked cancelled."""
        plan = self.plan
        digest = None if plan.views else await asyncio.to_thread(conversation_digest, prompt)
        adaptive = None if final else plan.adaptive
        tasks: dict[asyncio.Task, int] = {}
        ended: dict[int, Trajectory] = {}
        begun, took = time.monotonic(), []

        def start(count: int) -> None:
            for index in range(len(tasks), min(width, len(tasks) + count)):
                tasks[asyncio.create_task(self._trajectory(round, index, prompt, digest, final))] = index
                self.tell(Event("start", round, index))

        try:
            start(width if adaptive is None else adaptive.start)
            while pending := {task for task, index in tasks.items() if index not in ended}:
                done, _ = await asyncio.wait(pending, timeout=self._left(), return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=tasks.get):
                    trajectory = ended[tasks[task]] = self._count(task.result())
                    if trajectory.completion is not None:  # one from the journal took its time when it was made
                        took.append(max(time.monotonic() - begun, trajectory.completion.seconds))
                finished = [t.message for t in ended.values() if t.completion is not None]
                lost = sum(bool(t.error) for t in ended.values())
                hopeless = width - lost < plan.least(width) or any(t.fatal for t in ended.values())
                if hopeless or self._over():
                    break
                if len(finished) >= plan.needed(width) and len(ended) < len(tasks):
                    self.notes.append(f"round {round + 1}: went on with {len(finished)} of {width}.")
                    break
                if adaptive is not None and len(tasks) < width:
                    if adaptive.settled(finished):
                        self.notes.append(f"round {round + 1}: {len(finished)} of {width} agreed.")
                        break
                    if len(ended) == len(tasks):
                        start(adaptive.step)
        finally:
            left = [task for task, index in tasks.items() if index not in ended]
            for task in left:
                task.cancel()
            # Their ends are waited for: a cancelled call frees its place at the backend before the next round begins.
            results = await asyncio.gather(*left, return_exceptions=True)
        for task, result in zip(left, results, strict=True):
            # One may have come in at the very moment of its cancellation: it is paid for, so it counts.
            late = result if isinstance(result, Trajectory) else self._lost(round, tasks[task])
            ended[tasks[task]] = self._count(late)
        self._check(round, width, ended.values())
        self.typical = median(took) if took else None
        return [ended[index] for index in sorted(ended)]

    def _left(self) -> float | None:
        """Seconds of the budget that are left; None without one."""
        if self.plan.budget is None or self.plan.budget.seconds == float("inf"):
            return None
        return max(0.0, self.started + self.plan.budget.seconds - time.monotonic())

    def _lost(self, round: int, index: int) -> Trajectory:
        return Trajectory(round, index, self._seed(round, index), None, cancelled=True)

    def _seed(self, round: int, index: int) -> int:
        # 31 bits: not every server takes more.
        return derive_seed(self.plan.seed, self.problem, round, index) % 2**31

    def _count(self, trajectory: Trajectory) -> Trajectory:
        """Adds up what it took, and tells of it."""
        for call in (trajectory.completion, trajectory.compaction):
            if call is not None:
                self.prompt_tokens += call.prompt_tokens
                self.completion_tokens += call.completion_tokens
        self.tell(Event("trajectory", trajectory.round, trajectory.index, trajectory=trajectory))
        return trajectory

    def _check(self, round: int, width: int, trajectories) -> None:
        """Raises PacoreError where the round has fewer trajectories than it needs, unless the budget ended it.

        BackendError where that is not a matter of this question.
        """
        finished = sum(t.completion is not None for t in trajectories)
        errors = [t.error for t in trajectories if t.error]
        if errors:
            self.notes.append(f"round {round + 1}: {len(errors)} of {width} failed, the first: {errors[0]}")
        if finished < self.plan.least(width) and errors and not self._over():
            if fatal := next((t.error for t in trajectories if t.fatal), ""):
                raise BackendError(fatal, fatal=True)
            raise PacoreError(
                f"round {round + 1} has {finished} of the {self.plan.least(width)} trajectories it needs; "
                f"{len(errors)} of {width} failed, the first: {errors[0]}"
            )

    async def _trajectory(
        self, round: int, index: int, prompt: list[dict], digest: str | None, final: bool
    ) -> Trajectory:
        """Runs one. A backend's error makes a failed trajectory; anything else is a defect and goes up."""
        seed = self._seed(round, index)
        try:
            if final:
                seed, completion = await self._answer(prompt, digest, round)
            else:
                if self.plan.views:
                    prompt = await asyncio.to_thread(with_views, prompt, index, seed)
                completion = await self._call(prompt, digest, self._sampling(seed), round, index, self.problem)
            message, compaction = await self._compacted(completion, self._sampling(seed), round, index, final)
        except (BackendError, PictureError) as error:
            fatal = isinstance(error, BackendError) and error.fatal
            return Trajectory(round, index, seed, None, error=str(error), fatal=fatal)
        return Trajectory(round, index, seed, completion, message, compaction=compaction)

    async def _answer(self, prompt: list[dict], digest: str | None, round: int) -> tuple[int, Completion]:
        """(seed, completion) of the final call, or of the second one beside it, see `Plan.hedge`."""

        async def call(which: int) -> tuple[int, Completion]:
            def on_text(channel: str, piece: str) -> None:
                self.speaker = which if self.speaker is None else self.speaker
                if which == self.speaker:
                    self.tell(Event("text", round, piece=piece, channel=channel))

            seed = self._seed(round, which)
            said = await self._call(
                prompt, digest, self._sampling(seed), round, which, self.problem, on_text if self.stream else None
            )
            return seed, said

        if self.plan.hedge is None or self.typical is None:
            return await call(0)
        if self.journal is not None:
            digest = digest or await asyncio.to_thread(conversation_digest, prompt)
            first, second = (
                self._key(digest, self._sampling(self._seed(round, i)), round, i, self.problem) for i in (0, 1)
            )
            if self.journal.has(second) and not self.journal.has(first):
                return await call(1)  # it was the first to end, in a run that was killed or is asked again
        patience = self.plan.hedge * self.typical

        def tell_of_it() -> None:
            self.notes.append(f"round {round + 1}: a second call began after {patience:.1f} s.")

        had = await first_of_two(lambda: call(0), lambda: call(1), patience, tell_of_it)
        for _, unneeded in had[1:]:  # paid for all the same
            self.prompt_tokens += unneeded.prompt_tokens
            self.completion_tokens += unneeded.completion_tokens
        return had[0]

    async def _compacted(
        self, completion: Completion, sampling: Sampling, round: int, index: int, final: bool
    ) -> tuple[str, Completion | None]:
        """The message, and the call it took, if any."""
        how, tokens = parse_compaction(self.plan.compaction)
        if how == "tail" and not final:
            return await asyncio.to_thread(tail, completion, tokens, self.backend.count_tokens), None
        if how == "summary" and not final:
            whole = "\n".join(part for part in (completion.reasoning, completion.text) if part)
            text = [{"type": "text", "text": SUMMARY_PROMPT.format(text=whole)}]
            prompt = [{"role": "user", "content": text}]
            called = await self._call(prompt, None, sampling, round, index, f"{self.problem} summary")
            return conclusion(called), called
        return conclusion(completion), None

    async def _call(
        self, prompt: list[dict], digest: str | None, sampling: Sampling, round: int, index: int, problem: str,
        on_text: Callable[[str, str], None] | None = None,
    ) -> Completion:  # fmt: skip
        """One call, through the journal where there is one."""

        def work() -> Awaitable[Completion]:
            return self.backend.complete(prompt, sampling, on_text)

        if self.journal is None:
            return await work()
        digest = digest or await asyncio.to_thread(conversation_digest, prompt)
        key = self._key(digest, sampling, round, index, problem)
        return await self.journal.once(key, problem=problem, round=round, index=index, work=work)

    def _key(self, digest: str, sampling: Sampling, round: int, index: int, problem: str) -> str:
        return trajectory_key(digest, sampling, backend=self.backend.name, problem=problem, round=round, index=index)

    def _sampling(self, seed: int) -> Sampling:
        return replace(self.plan.sampling, seed=seed)
