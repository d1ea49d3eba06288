"""The signs of LaTeX that `latex_value` knows, and a lexer that reads one at a time.

They are those of latex2sympy2 1.9.1, in lower case. Of two that begin alike, the longer one is read.
"""

import math
import operator
import re
from collections.abc import Callable
from fractions import Fraction

MAX_SIGNS = 1_000
MAX_DIGITS = 1_000  # of a number as it is written

Number = int | float

FUNCTIONS: dict[str, Callable[[Number], Number]] = {
    "\\sin": math.sin, "\\cos": math.cos, "\\tan": math.tan,
    "\\arcsin": math.asin, "\\arccos": math.acos, "\\arctan": math.atan,
    "\\sinh": math.sinh, "\\cosh": math.cosh, "\\tanh": math.tanh,
    "\\arsinh": math.asinh, "\\arcosh": math.acosh, "\\artanh": math.atanh,
    "\\arcsinh": math.asinh, "\\arccosh": math.acosh, "\\arctanh": math.atanh,
    "\\floor": math.floor,
}  # fmt: skip
INVERSES = {"\\sin": math.asin, "\\cos": math.acos, "\\tan": math.atan,
            "\\sinh": math.asinh, "\\cosh": math.acosh, "\\tanh": math.atanh}  # fmt: skip
GROUPS = {"(": ")", "{": "}", "[": "]", "\\{": "\\}", "\\lbrace": "\\rbrace", "\\lbrack": "\\rbrack",
          "\\lgroup": "\\rgroup"}  # fmt: skip
FLOORS = {"\\lfloor": "\\rfloor", "\\llcorner": "\\lrcorner"}
COMPARISONS = {"<": operator.lt, "\\le": operator.le, "\\leq": operator.le, "\\leqslant": operator.le,
               ">": operator.gt, "\\ge": operator.ge, "\\geq": operator.ge, "\\geqslant": operator.ge}  # fmt: skip
BINOMIALS = ("\\binom", "\\tbinom", "\\dbinom")
TIMES = ("*", "\\times", "\\cdot")
OVER = ("/", ":", "\\over", "\\div")
LEFT = ("\\left", "\\mleft")
TRANSPOSED = ("'", "^{\\top}")  # of a number it is the number
CONSTANTS = {"\\pi": math.pi, "\\tau": math.tau}
NUMBER = "number"
END = ""

PLAIN_OPERANDS = frozenset((NUMBER, *CONSTANTS, *GROUPS, *FLOORS, *BINOMIALS, *LEFT, "\\frac"))
FUNCTION_OPERANDS = frozenset((*FUNCTIONS, "\\exp", "\\log", "\\sqrt", "e"))

# What may stand behind a complete expression without being part of it: there reading stops.
_CLOSING = (*GROUPS.values(), *FLOORS.values(), "\\rvert", "\\rceil", "\\urcorner", "\\right", "\\mright")
_ELSEWHERE = (".", "&", "\\\\", "\\choose", "\\to", "\\rightarrow", "\\longrightarrow", "\\xrightarrow",
              "\\leftrightarrow", "<->", "<=>")  # fmt: skip
_OF_MATRICES = (
    "arsinh", "arcsinh", "arcosh", "arccosh", "artanh", "arctanh", "gcd", "lcm", "floor", "ceil", "eye", "zeros",
    "ones", "cols", "rows", "diag", "norm", "rank", "trace", "tr", "rref", "hstack", "vstack", "orth", "ortho",
    "orthogonal", "orthogonalize", "nullspace", "eig", "eigen", "diagonalize", "eigenvals", "eigenvalues",
    "eigenvects", "eigenvectors", "svd", "matrix", "pmatrix", "bmatrix", "vmatrix",
)  # fmt: skip

_SIGNS = {
    *(PLAIN_OPERANDS - {NUMBER}), *FUNCTION_OPERANDS, *COMPARISONS, *TIMES, *OVER, *TRANSPOSED, *_CLOSING, *_ELSEWHERE,
    *_OF_MATRICES, "+", "-", "^", "_", "!",
}  # fmt: skip
_LEXER = re.compile(
    r"[ \t\r\n]*(?:(?P<number>[0-9]*(?:,[0-9]{3})*\.[0-9]+|[0-9]+(?:,[0-9]{3})*)(?P<percent>\\%)?|(?P<sign>"
    + "|".join(map(re.escape, sorted(_SIGNS, key=len, reverse=True)))
    + r")|(?P<end>\Z))"
)


class NoValue(ValueError):
    """The text has no value, or none within the limits."""


class Signs:
    """The signs of a text, one at a time: what stands behind the last one that was asked for may be anything.

    Attributes:
        sign: the current one; `NUMBER` for a number, `END` behind the last.
        number: where it is a number, the number.
    """

    def __init__(self, text: str):
        self._text = text
        self._place = self._count = 0
        self.sign, self.number = END, 0
        self.next()

    def next(self) -> None:
        """Raises NoValue for a letter and for any other sign that never has a number as its value."""
        found = _LEXER.match(self._text, self._place)
        self._count += 1
        if found is None or self._count > MAX_SIGNS:
            raise NoValue("a sign without a value, or too many signs")
        self._place = found.end()
        if found["number"] is None:
            self.sign = found["sign"] or END
        else:
            self.sign, self.number = NUMBER, _number(found["number"], bool(found["percent"]))


def _number(digits: str, percent: bool) -> Number:
    """An integer where it is one, however it is written."""
    if len(digits) > MAX_DIGITS:
        raise NoValue(f"a number of more than {MAX_DIGITS} digits")
    exact = Fraction(digits.replace(",", "")) / (100 if percent else 1)
    return exact.numerator if exact.denominator == 1 else exact.numerator / exact.denominator
