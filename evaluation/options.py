"""The options of `python -m evaluation run`: what is asked of whom, and how the answers are had."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from evaluation.judging import JudgeOptions
from evaluation.runs import RunError
from pacore.options import Rounds, Source
from pacore.plan import Plan, parse_rounds


@dataclass
class Answering(Rounds):
    """How an answer is had: single, or by rounds of PaCoRe."""

    rounds: Annotated[str, tyro.conf.arg(name="pacore")] = "single"
    """low (4), medium (16), high (32,4), or widths such as 16 or 32,4; the last round, of one, is implied."""
    temperature: float | None = None
    """Of every trajectory; by default 0 for one single answer (the likeliest tokens), else 1."""

    def plan_for(self, samples: int) -> Plan:
        """Raises RunError, PlanError, or SamplingError for a sampling value."""
        if samples < 1:
            raise RunError(f"{samples} samples are asked for; at least 1.")
        greedy = samples == 1 and not parse_rounds(self.rounds)
        drawn = self.temperature if self.temperature is not None else 0.0 if greedy else 1.0
        return replace(self, temperature=drawn).plan()


@dataclass
class Run:
    """Ask a model a benchmark's questions and judge its answers: `python -m evaluation run world --split held_out`.

    A folder keeps every question, answer and verdict; killed at any point, the run goes on with --resume and pays
    again for the calls in flight alone.
    """

    benchmark: tyro.conf.Positional[str]
    """A name of `python -m evaluation list`."""
    source: tyro.conf.OmitArgPrefixes[Source] = field(default_factory=Source)
    how: tyro.conf.OmitArgPrefixes[Answering] = field(default_factory=Answering)
    judge: tyro.conf.OmitArgPrefixes[JudgeOptions] = field(default_factory=JudgeOptions)
    split: str | None = None
    """Of the benchmark; by default its first one."""
    data: str | None = None
    """A folder in the published layout, or a hub id in place of the benchmark's own; for world, questions a family."""
    prompt_file: Path | None = None
    """A Jinja template in place of the benchmark's prompt."""
    samples: int = 1
    """Independent answers a question; several give pass@k and majority@k."""
    limit: int | None = None
    """The first so many questions alone."""
    shard: str = "1/1"
    """i/n: of the questions every n-th, from the i-th; `report` takes the folders of all shards together."""
    no_pictures: bool = False
    """For a model without eyes: withhold the questions that have pictures, and say which."""
    blind: bool = False
    """For a model without eyes: ask those questions by their text alone, and say which."""
    out: Path | None = None
    """The run's folder; by default one in runs/evaluation/, named after what is run."""
    resume: bool = False
    """Go on with a folder that is there: what is answered is kept, what failed is asked again."""
    at_once: int | None = None
    """Trajectories that are in work or wait for it; by default twice --batch, or with a server twice --calls."""
    json: bool = False
    """End with one JSON line: the summary."""

    def check_sight(self) -> None:
        """Raises RunError where questions with pictures would be withheld and asked at once."""
        if self.no_pictures and self.blind:
            raise RunError("--no-pictures withholds questions and --blind asks them by their text alone; use one.")

    @property
    def shard_of(self) -> tuple[int, int]:
        """(i, n). Raises RunError."""
        if not re.fullmatch(r"\d{1,6}/\d{1,6}", self.shard):
            raise RunError(f"the shard is {self.shard!r}; use i/n, such as 1/4.")
        number, of = self.shard.split("/")
        return int(number), int(of)

    @property
    def room(self) -> int:
        """Of `at_once`. Raises RunError."""
        takes = self.source.calls if self.source.base_url else self.source.batch
        room = 2 * takes if self.at_once is None else self.at_once
        if room < 1:
            raise RunError(f"--at-once is {room}; it must be at least 1.")
        return room

    def folder(self, split: str, model: str) -> Path:
        """`out`, or the name that belongs to these options."""
        if self.out is not None:
            return self.out
        parts = [self.benchmark, split, Path(model).name or model]
        if rounds := parse_rounds(self.how.rounds):
            parts.append("pacore-" + ",".join(map(str, rounds)))
        if self.samples > 1 or not rounds:
            parts.append(f"{self.samples}-samples" if self.samples > 1 else "single")
        if self.shard_of[1] > 1:
            parts.append("{}-of-{}".format(*self.shard_of))
        return Path("runs/evaluation") / re.sub(r"[^\w.,-]+", "_", "-".join(parts))
