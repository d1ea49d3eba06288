"""What the server counts, as Prometheus reads it."""

from collections import Counter

from pacore.coordination import Event

SECONDS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)  # upper bounds of the histogram


class Metrics:
    """The counters of one server.

    Attributes:
        requests: chat completions by status; 499 is a client that went away. One that failed while it was streamed has
            the status that it would have had.
        trajectories: by outcome: finished, failed, cancelled.
        tokens: of finished trajectories, by kind: prompt, completion.
        in_flight: requests that are worked on or wait.
    """

    def __init__(self):
        self.requests = Counter({"200": 0})
        self.trajectories = Counter(finished=0, failed=0, cancelled=0)
        self.tokens = Counter(prompt=0, completion=0)
        self.in_flight = 0
        self._within = [0] * len(SECONDS)
        self._seconds, self._count = 0.0, 0

    def finished(self, status: int, seconds: float) -> None:
        """Counts a request that has ended."""
        self.requests[str(status)] += 1
        self._seconds, self._count = self._seconds + seconds, self._count + 1
        for number, bound in enumerate(SECONDS):
            self._within[number] += seconds <= bound

    def text(self, waiting: int) -> str:
        """Everything in the text format, version 0.0.4; `waiting` are the requests whose turn has not come."""
        lines = []

        def add(name: str, kind: str, about: str, samples: dict[str, float]) -> None:
            lines.extend((f"# HELP pacore_{name} {about}", f"# TYPE pacore_{name} {kind}"))
            lines.extend(f"pacore_{name}{suffix} {value}" for suffix, value in samples.items())

        def by(label: str, counter: Counter) -> dict[str, float]:
            return {f'{{{label}="{value}"}}': count for value, count in sorted(counter.items())}

        add(
            "requests_total",
            "counter",
            "Chat completions by status; 499: the client went away.",
            by("status", self.requests),
        )
        add("requests_in_flight", "gauge", "Chat completions worked on or waiting.", {"": self.in_flight})
        add("requests_waiting", "gauge", "Chat completions that wait for their turn.", {"": waiting})
        add("trajectories_total", "counter", "Trajectories by outcome.", by("outcome", self.trajectories))
        add("tokens_total", "counter", "Tokens of finished trajectories.", by("kind", self.tokens))
        buckets = {f'_bucket{{le="{bound:g}"}}': count for bound, count in zip(SECONDS, self._within, strict=True)}
        buckets |= {'_bucket{le="+Inf"}': self._count, "_sum": round(self._seconds, 6), "_count": self._count}
        add("request_seconds", "histogram", "From a request's first byte to its answer's last.", buckets)
        return "\n".join(lines) + "\n"


class Tally:
    """Counts the trajectories of one request from its events."""

    def __init__(self, metrics: Metrics):
        self._metrics, self._running = metrics, 0

    def take(self, event: Event) -> None:
        if event.kind == "round":
            self._running = event.width
        elif event.kind == "trajectory":
            self._running -= 1
            trajectory, metrics = event.trajectory, self._metrics
            outcome = "finished" if trajectory.completion else "cancelled" if trajectory.cancelled else "failed"
            metrics.trajectories[outcome] += 1
            for call in filter(None, (trajectory.completion, trajectory.compaction)):
                metrics.tokens["prompt"] += call.prompt_tokens
                metrics.tokens["completion"] += call.completion_tokens

    def abandon(self) -> None:
        """Counts what still runs, in a round that began narrow also what would have, as cancelled with its request."""
        self._metrics.trajectories["cancelled"] += self._running
        self._running = 0
