"""A prompt of the user's in place of a benchmark's own: a Jinja template, checked before anything is asked."""

from collections.abc import Callable, Sequence

from jinja2 import StrictUndefined, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from evaluation.benchmark import BenchmarkError


def prompt_from(template: str, fields: Sequence[str]) -> Callable[..., str]:
    """A function of the fields, by name, that writes the prompt.

    Args:
        template: such as `{{ question }}\\nPut the answer in \\boxed{}.`
        fields: what it may use; the first one, the question itself, it must use.

    Raises:
        BenchmarkError: it is no template, uses what is not there, or does not show the question. The function raises
            it too, where an expression of the template fails on a question.
    """
    # Sandboxed: a template may come from anybody, and a benchmark's texts always do.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    there_are = "there are {{ " + " }}, {{ ".join(fields) + " }}"
    try:
        used = meta.find_undeclared_variables(environment.parse(template))
        compiled = environment.from_string(template)
    except TemplateSyntaxError as error:
        raise BenchmarkError(f"the prompt is no template ({error}); {there_are}.") from None
    if unknown := sorted(used - set(fields)):
        raise BenchmarkError(f"the prompt uses {unknown[0]!r}, which is not there; {there_are}.")
    if fields[0] not in used:
        raise BenchmarkError(f"the prompt does not show the question; write {{{{ {fields[0]} }}}} where it belongs.")

    def write(**values: object) -> str:
        try:
            return compiled.render(**values).strip()
        except Exception as error:  # a template raises whatever its expressions do
            raise BenchmarkError(f"the prompt does not work ({error}); {there_are}.") from None

    return write
