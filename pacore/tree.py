"""The rounds of a run as HTML: what its events say, and nothing else. `tree.jinja` has the markup, escaped throughout.

A page shows `tree_html` with `CSS`, and redraws the whole as events come in; `KEEP_OPEN` is for one by Gradio.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template

from pacore.coordination import Event, Outcome, Trajectory
from pacore.messages import answer_key

SHORT = 120  # characters of a conclusion that are shown before it is opened

# Class names begin with "pacore", since the page around has its own.
CSS = """
.pacore { --ink: #1e293b; --faint: #5b6779; --line: #d5dce5; --card: #ffffff; --good: #0f766e; --bad: #b42318;
  --tint: #ecf8f5; color: var(--ink); font-size: 14px; line-height: 1.45; }
.dark .pacore { --ink: #e2e8f0; --faint: #9aa7b8; --line: #3a475a; --card: #1b2534; --good: #5eead4; --bad: #fca5a5;
  --tint: #14302f; }
.pacore ol { list-style: none; margin: 0; padding: 0; }
.pacore-round { position: relative; margin: 0; padding: 0 0 1.1rem 1.35rem; }
.pacore-round::before { content: ""; position: absolute; left: 5px; top: 0.7rem; bottom: -0.7rem; width: 2px;
  background: var(--line); }
.pacore-round:last-child::before { display: none; }
.pacore-round::after { content: ""; position: absolute; left: 0; top: 0.3rem; width: 12px; height: 12px;
  border-radius: 50%; background: var(--card); border: 2px solid var(--line); box-sizing: border-box; }
.pacore-round[data-state=running]::after { border-color: var(--good); animation: pacore-pulse 1.2s infinite; }
.pacore-round[data-state=done]::after { border-color: var(--good); background: var(--good); }
.pacore-round[data-state=failed]::after { border-color: var(--bad); background: var(--bad); }
.pacore-round > header { display: flex; flex-wrap: wrap; gap: 0 0.9rem; align-items: baseline; margin-bottom: 0.45rem; }
.pacore-round h3 { margin: 0; font-size: 15px; font-weight: 600; color: inherit; }
.pacore-faint { color: var(--faint); font-size: 13px; }
.pacore-agree { color: var(--good); font-size: 13px; font-weight: 600; overflow-wrap: anywhere; }
.pacore-row { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(7rem, 100%), 1fr)); gap: 0.4rem;
  grid-auto-flow: dense; }
.pacore-final .pacore-row { grid-template-columns: minmax(0, 1fr); }
.pacore-one { min-width: 0; margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.pacore-one:has(details[open]) { grid-column: 1 / -1; }
.pacore-one[data-agrees] { border-color: var(--good); background: var(--tint); }
.pacore-one[data-state=running] { border-style: dashed; }
.pacore-one[data-state=running] .pacore-said { color: var(--faint); }
.pacore-one[data-state=waiting], .pacore-one[data-state=cancelled] { border-style: dotted; background: none; }
.pacore-one[data-state=failed] { border-color: var(--bad); }
.pacore-one[data-state=failed] .pacore-said { color: var(--bad); }
.pacore-head { display: flex; gap: 0.4rem; align-items: baseline; padding: 0.35rem 0.5rem; min-width: 0; }
summary.pacore-head { cursor: pointer; list-style: none; border-radius: 7px; }
summary.pacore-head::-webkit-details-marker { display: none; }
summary.pacore-head::after { content: "▸"; margin-left: auto; color: var(--faint); font-size: 11px; }
details[open] > summary.pacore-head::after { content: "▾"; }
summary.pacore-head:hover { background: color-mix(in srgb, var(--faint) 12%, transparent); }
summary.pacore-head:focus-visible { outline: 2px solid var(--good); outline-offset: 1px; }
.pacore-number { color: var(--faint); font-size: 12px; font-variant-numeric: tabular-nums; }
.pacore-said { min-width: 0; overflow: hidden; overflow-wrap: anywhere; display: -webkit-box;
  -webkit-box-orient: vertical; -webkit-line-clamp: 3; }
.pacore-whole { padding: 0 0.6rem 0.6rem; }
.pacore-whole h4 { margin: 0.5rem 0 0.15rem; font-size: 12px; font-weight: 600; color: var(--faint); }
.pacore-whole pre { margin: 0; padding: 0; border: 0; background: none; color: inherit; max-height: 20rem;
  overflow-y: auto; white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, monospace; }
.pacore-cost { border-top: 1px solid var(--line); padding-top: 0.6rem; font-variant-numeric: tabular-nums; }
.pacore-cost ul { margin: 0.3rem 0 0; padding-left: 1.1rem; list-style: disc; overflow-wrap: anywhere; }
@keyframes pacore-pulse { 50% { opacity: 0.4; } }
@media (prefers-reduced-motion: reduce) { .pacore-round::after { animation: none !important; } }
"""
# The `js_on_load` of a `gr.HTML`: Gradio gives every element the attributes that the server knows of, so it would close
# what the reader opened; it is opened again before that is painted.
KEEP_OPEN = """
const open = new Set();
element.addEventListener("toggle", ({target}) => open[target.open ? "add" : "delete"](target.id), true);
watch("value", () => {
  for (const id of open) {
    const details = element.querySelector("#" + CSS.escape(id));
    if (details) details.open = true; else open.delete(id);
  }
});
"""


def tree_html(events: Sequence[Event], rounds: Sequence[int], seconds: float, over: bool = False) -> str:
    """The tree as far as it has grown.

    Args:
        events: all of the run so far, in their order.
        rounds: of the plan; the final one, of one trajectory, is implied.
        seconds: since the run began; its outcome, once there, knows better.
        over: it ended without an outcome, stopped or failed: what was still running then no longer is.
    """
    outcome = next((event.outcome for event in events if event.kind == "outcome"), None)
    over = over or outcome is not None
    return _template().render(
        rounds=_rounds(events, rounds, over),
        final=len(rounds),
        cost=_cost(events, outcome, seconds),
        notes=outcome.notes if outcome else (),
    )


def headline(events: Sequence[Event], rounds: Sequence[int]) -> str:
    """Where the run is, in a few words."""
    began = [event for event in events if event.kind == "round"]
    if not began:
        return "Beginning"
    round, width = began[-1].round, began[-1].width
    if round == len(rounds):
        return "Writing the answer"
    finished = sum(_finished(event.trajectory) for event in events if event.round == round and event.trajectory)
    return f"Round {round + 1} of {len(rounds)}: {finished} of {width} conclusions are in"


def answer_so_far(events: Sequence[Event]) -> tuple[str, str]:
    """(reasoning, text) of the final round, as streamed until now."""
    pieces = [event for event in events if event.kind == "text"]
    reasoning = "".join(event.piece for event in pieces if event.channel == "reasoning")
    return reasoning.strip(), "".join(event.piece for event in pieces if event.channel == "text").strip()


@dataclass
class _Node:
    """A trajectory on the page."""

    index: int
    state: str  # waiting, running, done, failed or cancelled
    trajectory: Trajectory | None = None
    agrees: bool = False

    @property
    def short(self) -> str:
        """What stands on its card: of a conclusion its last line with any words, which has the answer."""
        if self.state == "failed":
            return f"failed: {_clip(self.trajectory.error)}"
        if self.state != "done":
            return self.state
        lines = [line for line in self.trajectory.message.splitlines() if any(map(str.isalnum, line))]
        return _clip(lines[-1] if lines else self.trajectory.message) or "(nothing)"

    @property
    def facts(self) -> str:
        completion = self.trajectory.completion
        facts = [f"{completion.completion_tokens:,} tokens", f"seed {self.trajectory.seed}"]
        if completion.finish == "length":
            facts.append("cut off at its limit")
        return ", ".join(facts)


@dataclass
class _Round:
    """A round on the page."""

    width: int
    state: str = "waiting"
    nodes: list[_Node] = field(default_factory=list)
    agreement: str = ""
    differ: bool = False

    @property
    def progress(self) -> str:
        """How many came to what end."""
        if self.state == "waiting":
            return f"{self.width} to come"
        states = Counter(node.state for node in self.nodes)
        parts = [f"{states['done']} of {self.width} in"]
        parts += [f"{states[state]} {state}" for state in ("failed", "cancelled") if states[state]]
        return ", ".join(parts + ["all differ"] * self.differ)


def _rounds(events: Sequence[Event], rounds: Sequence[int], over: bool) -> list[_Round]:
    began = [event.round for event in events if event.kind == "round"]
    made = []
    for number, width in enumerate((*rounds, 1)):
        own = [event for event in events if event.round == number]
        started = {event.index for event in own if event.kind == "start"}
        ended = {event.index: event.trajectory for event in own if event.trajectory}
        running = number == began[-1] and not over if began else False
        shown = _Round(width)
        if number in began:
            shown.nodes = [_node(i, i in started, ended.get(i), running) for i in range(width)]
            # Adaptive breadth may end a round before all have begun.
            shown.nodes = [node for node in shown.nodes if running or node.state != "waiting"]
            _mark_agreement(shown)
            finished = any(node.state == "done" for node in shown.nodes)
            shown.state = "running" if running else "done" if finished else "failed"
        made.append(shown)
    return made


def _node(index: int, started: bool, trajectory: Trajectory | None, running: bool) -> _Node:
    if trajectory is None:
        state = "waiting" if not started else "running" if running else "cancelled"
    else:
        state = "done" if _finished(trajectory) else "cancelled" if trajectory.cancelled else "failed"
    return _Node(index, state, trajectory)


def _mark_agreement(shown: _Round) -> None:
    """Marks the conclusions with the commonest answer, where there is more than one."""
    keys = {node.index: answer_key(node.trajectory.message) for node in shown.nodes if node.state == "done"}
    if len(keys) < 2:
        return
    answer, votes = Counter(keys.values()).most_common(1)[0]
    shown.differ = votes == 1
    if shown.differ:
        return
    for node in shown.nodes:
        node.agrees = keys.get(node.index) == answer
    shown.agreement = f"{votes} of {len(keys)} agree: {_clip(answer, 60)}"


def _finished(trajectory: Trajectory) -> bool:
    return trajectory.completion is not None


def _cost(events: Sequence[Event], outcome: Outcome | None, seconds: float) -> str:
    ended = [event.trajectory for event in events if event.trajectory]
    calls = [call for t in ended for call in (t.completion, t.compaction) if call is not None]
    # An outcome also counts calls that no trajectory was made of.
    prompt = outcome.prompt_tokens if outcome else sum(call.prompt_tokens for call in calls)
    completion = outcome.completion_tokens if outcome else sum(call.completion_tokens for call in calls)
    trajectories = "1 trajectory" if len(ended) == 1 else f"{len(ended):,} trajectories"
    # Whole seconds while they run: a page that has not changed is not sent again.
    time = f"{outcome.seconds:.1f} s" if outcome else f"{seconds:.0f} s"
    return f"{trajectories}, {prompt:,} prompt and {completion:,} completion tokens, {time}"


def _clip(text: str, limit: int = SHORT) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


@lru_cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(Path(__file__).with_name("tree.jinja").read_text(encoding="utf-8"))
