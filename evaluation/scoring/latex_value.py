r"""The number that a piece of LaTeX stands for, as MathVision's official program finds it.

That program turns the text into Python (latex2sympy2 1.9.1) and evaluates it. Here the same grammar is read by hand,
straight into integers and floats. Nothing is evaluated as code; length, depth, digits, exponents and results are
bounded, so that the worst text takes milliseconds and no clock is needed. The quirks decide verdicts, and are kept:

- reading stops, without complaint, where the grammar cannot go on behind a complete expression: "5.apples" is 5, and
  so is "5trees", since "tr" is a word of matrices. Where it can go on, it must: "5," is nothing, "5apples" a product
  with unknown factors, "5%" an unknown sign;
- juxtaposition binds tighter than division: "1/2\pi" is 1/(2π), and "3\frac{1}{2}" is 1.5;
- "2^3^2" is 64, "3:4" is 0.75, "1<2" is 1, "3!" is 6, "2.5.5" is 1.25, "\sin 2\cdot3" the sine of 6;
- \ln, e alone, |x|, \max, \lceil, \sec and every letter print as names that Python does not know: no number. \log has
  base 10, and angles are in radians.

Not kept, as no published answer comes near: matrices, \gcd, assignments, \operatorname, exp(ln x), an index behind a
power that is no number; more than `MAX_DEPTH` levels or `MAX_BITS` bits.
"""

import math
import re
from typing import NamedTuple

from evaluation.scoring.latex_signs import (
    BINOMIALS,
    COMPARISONS,
    CONSTANTS,
    FLOORS,
    FUNCTION_OPERANDS,
    FUNCTIONS,
    GROUPS,
    INVERSES,
    LEFT,
    NUMBER,
    OVER,
    PLAIN_OPERANDS,
    TIMES,
    TRANSPOSED,
    NoValue,
    Number,
    Signs,
)

MAX_CHARACTERS = 20_000  # that are looked at; behind the place where reading stops, any number may follow
MAX_DEPTH = 50  # the official program runs out of stack at about a hundred
MAX_BITS = 14_000  # of an integer; about 4,200 digits
MAX_FACTORIAL = 1_500

_CUT = "\0"  # no sign
_PERMUTATION = re.compile(r"\(([a-z0-9+\-*/\\ ]+?)\)_{([a-z0-9+\-*/\\ ]+?)}")
_SAME = (
    ("\\mathrm{d}", "d"), ("{\\rm d}", "d"), ("\\displaystyle", " "), ("\\quad", " "), ("~", " "), ("\\,", " "),
    ("$", " "), ("\\bigl(", "("), ("\\bigr)", ")"), ("\\left(", "("), ("\\right)", ")"), ("\\dfrac", "\\frac"),
    ("\\tfrac", "\\frac"),
)  # fmt: skip


def latex_value(text: str) -> Number:
    """The value, as Python would have it: an integer where no division, root or function made it a float.

    Args:
        text: in lower case, as the official comparison has it.

    Raises:
        NoValue: the official program finds none, or it is beyond the limits.
    """
    shown = text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + _CUT
    for old, new in _SAME:
        shown = shown.replace(old, new)
    try:
        value = _Reader(_PERMUTATION.sub(r"\\frac{(\1)!}{((\1)-(\2))!}", shown)).relation()
        if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
            raise NoValue("no real number")
    except (ArithmeticError, ValueError, TypeError) as error:
        raise NoValue(f"{text[:40]!r} has no value: {error}") from None
    return value


class _Ratio(NamedTuple):
    r"""A quotient that is not divided yet: 3\frac{67}{200} is 3*67/200, which rounds in another way than 3*0.335."""

    top: Number
    bottom: Number


class _Reader:
    """One method for each rule of the grammar; each begins at its first sign, and ends at the one behind it."""

    def __init__(self, text: str):
        self._signs = Signs(text)
        self._depth = 0

    @property
    def _sign(self) -> str:
        return self._signs.sign

    def relation(self) -> Number:
        value = _plain(self._sum())
        while compare := COMPARISONS.get(self._sign):
            self._signs.next()
            value = int(compare(value, _plain(self._sum())))
        return value

    def _sum(self) -> Number | _Ratio:
        value = self._product()
        while self._sign in ("+", "-"):
            sign = 1 if self._sign == "+" else -1
            self._signs.next()
            value = _bounded(_plain(value) + sign * _plain(self._product()))
        return value

    def _product(self, functions: bool = True) -> Number | _Ratio:
        r"""Factors with signs between them.

        Args:
            functions: whether a function may stand right beside another factor; in a function's argument it may not:
                \sin 2\cos 3 is a product of two.
        """
        value = self._factors(functions)
        while self._sign in TIMES or self._sign in OVER:
            times = self._sign in TIMES
            self._signs.next()
            other = self._factors(functions)
            value = _times(value, other) if times else _Ratio(_plain(value), _plain(other))
        return value

    def _factors(self, functions: bool) -> Number | _Ratio:
        negative = False
        while self._sign in ("+", "-"):
            negative ^= self._sign == "-"
            self._signs.next()
        value = self._power()
        while self._sign in PLAIN_OPERANDS or (functions and self._sign in FUNCTION_OPERANDS):
            value = _times(value, self._power())
        return _times(-1, value) if negative else value

    def _power(self) -> Number | _Ratio:
        value = self._operand()
        while self._sign == "^":
            value = _raised(_plain(value), self._script())
            if self._sign == "_":  # the official program reads it and forgets it
                self._script()
        while self._sign == "!" or self._sign in TRANSPOSED:
            value = _factorial(_plain(value)) if self._sign == "!" else value
            self._signs.next()
        return value

    def _operand(self) -> Number | _Ratio:
        sign = self._sign
        if sign == NUMBER or sign in CONSTANTS:
            return self._constant()
        if sign in GROUPS or sign in FLOORS or sign in LEFT:
            return self._group()
        if sign == "\\frac":
            self._signs.next()
            return _Ratio(self._braced(), self._braced())
        if sign in BINOMIALS:
            self._signs.next()
            return _binomial(self._braced(), self._braced())
        if sign == "\\sqrt":
            self._signs.next()
            degree = _plain(self._inner("]")) if self._sign == "[" else None
            value = self._braced()
            return math.sqrt(value) if degree is None else _raised(value, 1 / degree)
        if sign == "e":
            self._signs.next()
            return _exponential(self._script() if self._sign == "^" else 1)
        if sign in FUNCTION_OPERANDS:
            return self._function()
        raise NoValue("an operand is missing")

    def _constant(self) -> Number:
        sign = self._sign
        value = self._signs.number if sign == NUMBER else CONSTANTS[sign]
        self._signs.next()
        if sign == "\\tau" and self._sign == "_":
            raise NoValue("an index makes another letter of it")
        return value

    def _group(self) -> Number | _Ratio:
        right = ""
        if self._sign in LEFT:
            right = self._sign.replace("left", "right")
            self._signs.next()
        opening = self._sign
        if opening in FLOORS:
            return math.floor(_plain(self._inner(FLOORS[opening], right)))
        if opening not in GROUPS:
            raise NoValue("a group is missing")
        return self._inner(GROUPS[opening], right)

    def _inner(self, closing: str, right: str = "") -> Number | _Ratio:
        """From an opening sign to its closing one, which may have a `right` before it."""
        self._enter()
        self._signs.next()
        value = self._sum()
        if self._sign == "\\choose" and closing == "}" and not right:
            self._signs.next()
            value = _binomial(_plain(value), _plain(self._sum()))
        for sign in (right, closing):
            if sign and self._sign != sign:
                raise NoValue(f"{sign} is missing")
            if sign:
                self._signs.next()
        self._depth -= 1
        return value

    def _braced(self) -> Number:
        if self._sign != "{":
            raise NoValue("{ is missing")
        return _plain(self._inner("}"))

    def _script(self) -> Number:
        """Behind "^" or "_": one number, or what is in braces."""
        self._signs.next()
        if self._sign == NUMBER or self._sign in CONSTANTS:
            return self._constant()
        return self._braced()

    def _function(self) -> Number:
        name, scripts = self._sign, {}
        self._signs.next()
        while self._sign in ("^", "_") and self._sign not in scripts:
            sign = self._sign
            scripts[sign] = self._script()
        if self._sign == "(":
            argument = _plain(self._inner(")"))
        else:
            self._enter()
            argument = _plain(self._product(functions=False))
            self._depth -= 1
        power = scripts.get("^", 0)
        if power == -1 and name in INVERSES:
            return INVERSES[name](argument)
        if name == "\\log":
            value = math.log(argument, scripts.get("_", 10))
        elif name == "\\exp":
            value = _exponential(argument)
        else:
            value = FUNCTIONS[name](argument)
        return _raised(value, power) if power else value

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NoValue(f"deeper than {MAX_DEPTH} levels")


def _plain(value: Number | _Ratio) -> Number:
    return value.top / value.bottom if isinstance(value, _Ratio) else value


def _times(one: Number | _Ratio, other: Number | _Ratio) -> Number | _Ratio:
    if not isinstance(one, _Ratio) and not isinstance(other, _Ratio):
        return _bounded(one * other)
    one, other = (x if isinstance(x, _Ratio) else _Ratio(x, 1) for x in (one, other))
    return _Ratio(_bounded(one.top * other.top), _bounded(one.bottom * other.bottom))


def _raised(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > MAX_BITS:
        raise NoValue(f"a power of more than {MAX_BITS} bits")
    return base**exponent


def _bounded(value: Number) -> Number:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise NoValue(f"a number of more than {MAX_BITS} bits")
    return value


def _factorial(n: Number) -> int:
    if not isinstance(n, int) or not 0 <= n <= MAX_FACTORIAL:
        raise NoValue(f"the factorial of {n!r:.40}")
    return math.factorial(n)


def _binomial(n: Number, k: Number) -> int:
    if not isinstance(n, int) or not isinstance(k, int) or not 0 <= n <= MAX_FACTORIAL:
        raise NoValue("a binomial coefficient of no small integers")
    return math.comb(n, k) if k >= 0 else 0


def _exponential(exponent: Number) -> Number:
    """The official program prints exp(1) as E, which is no name of Python's, and exp(0) as 1."""
    if isinstance(exponent, int) and exponent in (0, 1):
        if exponent:
            raise NoValue("e alone")
        return 1
    return math.exp(exponent)
