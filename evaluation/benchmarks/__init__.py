"""The benchmarks by name. Each is a module of this folder with a `BENCHMARK`, loaded when it is asked for."""

from importlib import import_module

from evaluation.benchmark import Benchmark, BenchmarkError
from evaluation.edit_benchmark import EditBenchmark

BENCHMARKS = {
    "aime2025": "evaluation.benchmarks.aime2025",
    "hmmt2025": "evaluation.benchmarks.hmmt2025",
    "mathvision": "evaluation.benchmarks.mathvision",
    "mathvista": "evaluation.benchmarks.mathvista",
    "mmbench": "evaluation.benchmarks.mmbench",
    "mmmu": "evaluation.benchmarks.mmmu",
    "mmmu-pro": "evaluation.benchmarks.mmmu_pro",
    "mmstar": "evaluation.benchmarks.mmstar",
    "ocrbench": "evaluation.benchmarks.ocrbench",
    "world": "evaluation.benchmarks.world",
}

# Those whose answers are pictures, for `edits` and `judge`.
EDIT_BENCHMARKS = {
    "gedit": "evaluation.benchmarks.gedit",
    "world-edits": "evaluation.benchmarks.world_edits",
}


def benchmark_named(name: str) -> Benchmark:
    """Raises BenchmarkError, which lists the names there are."""
    if name in EDIT_BENCHMARKS:
        raise BenchmarkError(f"the answers to {name} are pictures; paint them with `edits`, score them with `judge`.")
    if name not in BENCHMARKS:
        raise BenchmarkError(f"there is no benchmark {name!r}; there are {', '.join(sorted(BENCHMARKS))}.")
    return import_module(BENCHMARKS[name]).BENCHMARK


def edit_benchmark_named(name: str) -> EditBenchmark:
    """Raises BenchmarkError, which lists the names there are."""
    if name not in EDIT_BENCHMARKS:
        known = ", ".join(sorted(EDIT_BENCHMARKS))
        raise BenchmarkError(f"there is no benchmark of edits {name!r}; there are {known}.")
    return import_module(EDIT_BENCHMARKS[name]).BENCHMARK
