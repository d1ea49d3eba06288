"""The process in which `modern` has math-verify at work: a line of JSON in, a line of JSON out.

Model text makes sympy, on which math-verify stands, take hours and gigabytes. So this process, once it is warm, forks a
child for every answer and ends it when its time is over, which costs the next answer nothing. Where there is no fork it
works itself, and `modern` ends it and begins another.

It reads {"response", "values", "letters", "seconds"} and writes {"right"}; once, when it is ready, {"ready": true}.
"""

import json
import os
import select
import signal
import sys

MEMORY = 4 << 30  # bytes of address space, of each child

# A first answer of each kind takes a second or more, and would be taken for an endless one.
_FIRST = (
    (r"So $\frac{1}{2}+\sqrt{3}$. The answer is \boxed{-2\pi^{2}-\frac{\sqrt{3}}{2}}", [r"\frac{\sqrt{3}}{2}-2"], []),
    (r"Therefore, the final answer is (3, 4.5) or $\{1, 2\}$.", ["(3,4.5)"], []),
    ("the answer is (B).", [r"12 \mathrm{~cm}^{2}"], ["B"]),
)


def main() -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no answer

    def answer(**said) -> None:
        print(json.dumps(said), file=answers, flush=True)

    for first in _FIRST:
        _right(*first)
    answer(ready=True)
    for line in sys.stdin:
        asked = json.loads(line)
        question = asked["response"], asked["values"], asked["letters"]
        answer(right=_right_in_child(*question, asked["seconds"]) if hasattr(os, "fork") else _right(*question))


def _right(response: str, values: list[str], letters: list[str]) -> bool:
    """Whether math-verify finds one of the true values or letters in the response."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse, verify

    numbers, options = (LatexExtractionConfig(), ExprExtractionConfig()), (StringExtractionConfig(tuple("ABCDE")),)
    try:
        # Without its own alarms: who asks has a clock.
        found = parse(response, numbers + options if letters else numbers, parsing_timeout=None)
        golden = [parse(letter, options, parsing_timeout=None) for letter in letters]
        golden += [parse(f"${value}$", numbers, parsing_timeout=None) for value in values]
        return any(verify(gold, found, timeout_seconds=None) for gold in golden if gold)
    except Exception:  # whatever a parser of others raises on a text: the text is not verified
        return False


def _right_in_child(response: str, values: list[str], letters: list[str], seconds: float) -> bool:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _limit_memory()
            os.write(writing, b"1" if _right(response, values, letters) else b"0")
        finally:
            os._exit(0)
    os.close(writing)
    ended, _, _ = select.select([reading], [], [], seconds)
    said = os.read(reading, 1) if ended else b""
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return said == b"1"


def _limit_memory() -> None:
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))


if __name__ == "__main__":
    main()
