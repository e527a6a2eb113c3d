"""The pieces from which the embedded tasks are made: what is said in English, and the Python that does it.

`@` stands for what an operation is applied to, `#` for a drawn constant, `~` for a drawn letter.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field

SMALL = range(2, 5)
FEW = range(2, 4)  # less than the length of the shortest list that is drawn
CONSTANTS = range(2, 50)
LETTERS = "abcdeghilmnoprst"


class Phrase(str):
    """English with a hole `@`; `f"{phrase:each number}"` fills it."""

    __slots__ = ()

    def __format__(self, filling: str) -> str:
        """The phrase with `filling` for `@`."""
        return self.replace("@", filling)


class Expression(str):
    """Python with a hole `@`; `f"{expression:a + b}"` fills it, in brackets where precedence asks for them."""

    __slots__ = ()

    def __format__(self, filling: str) -> str:
        """The expression with the expression `filling` for `@`."""
        if "@" not in self or re.search(r"\(@|@ [<>=!]", self):
            return self.replace("@", filling)
        operator = isinstance(ast.parse(filling, mode="eval").body, ast.BinOp | ast.UnaryOp)
        return self.replace("@", f"({filling})" if operator else filling)


@dataclass(frozen=True, slots=True)
class Piece:
    """One operation or condition.

    Attributes:
        text: how a person says it.
        code: the Python expression.
        tags: words that a function's name uses for it.
        constants: what `#` may be.
    """

    text: str
    code: str
    tags: str
    constants: range = field(default=CONSTANTS)


@dataclass(frozen=True, slots=True)
class Filled:
    """A piece with its constants and one of its tags chosen."""

    text: Phrase
    code: Expression
    tag: str


CONDITIONS = (
    Piece("even", "@ % 2 == 0", "even evens"),
    Piece("odd", "@ % 2 == 1", "odd odds"),
    Piece("positive", "@ > 0", "positive"),
    Piece("negative", "@ < 0", "negative"),
    Piece("greater than #", "@ > #", "greater above over"),
    Piece("less than #", "@ < #", "less below under"),
    Piece("at least #", "@ >= #", "least from"),
    Piece("at most #", "@ <= #", "most upto"),
    Piece("divisible by #", "@ % # == 0", "divisible multiple", range(3, 20)),
    Piece("not divisible by #", "@ % # != 0", "not_divisible indivisible", range(3, 20)),
    Piece("not equal to #", "@ != #", "not_equal other"),
)
"""Of a number."""

CHANGES = (
    Piece("add # to @", "@ + #", "add plus increase"),
    Piece("subtract # from @", "@ - #", "subtract minus decrease"),
    Piece("multiply @ by #", "@ * #", "multiply times scale"),
    Piece("divide @ by # rounding down", "@ // #", "divide floor", range(2, 20)),
    Piece("find the remainder of @ divided by #", "@ % #", "remainder mod", range(3, 20)),
    Piece("limit @ to at most #", "min(@, #)", "limit cap"),
    Piece("raise @ to at least #", "max(@, #)", "raise lift"),
    Piece("square @", "@ ** 2", "square"),
    Piece("cube @", "@ ** 3", "cube"),
    Piece("negate @", "-@", "negate flip"),
)
"""Number to number."""

REDUCTIONS = (
    Piece("sum", "sum(@)", "sum total"),
    Piece("largest", "max(@)", "max largest"),
    Piece("smallest", "min(@)", "min smallest"),
)
"""Numbers to a number."""

PARTS = (
    Piece("the first # @", "nums[:#]", "first head", FEW),
    Piece("the last # @", "nums[-#:]", "last tail", FEW),
    Piece("all but the first # @", "nums[#:]", "skip after", FEW),
    Piece("all but the last # @", "nums[:-#]", "cut before", FEW),
    Piece("the # largest @", "sorted(nums)[-#:]", "largest top", FEW),
    Piece("the # smallest @", "sorted(nums)[:#]", "smallest bottom", FEW),
    Piece("every second one of the @", "nums[::2]", "second alternate"),
)
"""Of a list of numbers."""

REORDERINGS = (
    Piece("append # to @", "@ + [#]", "append"),
    Piece("put # in front of @", "[#] + @", "prepend front"),
    Piece("sort @", "sorted(@)", "sort sorted"),
    Piece("reverse @", "@[::-1]", "reverse backwards"),
    Piece("repeat @ # times", "@ * #", "repeat", SMALL),
    Piece("remove the first # numbers of @", "@[#:]", "drop", SMALL),
    Piece("keep the first # numbers of @", "@[:#]", "take", SMALL),
)
"""List to list."""

PAIRINGS = (
    Piece("sum", "a + b", "sum"),
    Piece("difference", "a - b", "difference"),
    Piece("product", "a * b", "product"),
    Piece("larger", "max(a, b)", "larger"),
    Piece("smaller", "min(a, b)", "smaller"),
)
"""Two numbers to one."""

EDITS = (
    Piece("reverse @", "@[::-1]", "reverse backwards"),
    Piece("change @ to upper case", "@.upper()", "upper"),
    Piece("capitalize @", "@.capitalize()", "capitalize"),
    Piece("keep the first # letters of @", "@[:#]", "first head", SMALL),
    Piece("keep the last # letters of @", "@[-#:]", "last tail", SMALL),
    Piece("remove the first # letters of @", "@[#:]", "drop skip", SMALL),
    Piece("remove the last # letters of @", "@[:-#]", "cut trim", SMALL),
    Piece("repeat @ # times", "@ * #", "repeat", SMALL),
    Piece("remove the letter ~ from @", '@.replace("~", "")', "remove without"),
    Piece("add the letter ~ to the end of @", '@ + "~"', "add append"),
    Piece("put the letter ~ in front of @", '"~" + @', "prepend front"),
)
"""String to string."""

TRAITS = (
    Piece("start@ with the letter ~", '@.startswith("~")', "start starting"),
    Piece("end@ with the letter ~", '@.endswith("~")', "end ending"),
    Piece("contain@ the letter ~", '"~" in @', "contain with"),
    Piece("contain@ more than # letters", "len(@) > #", "long longer", range(3, 7)),
    Piece("contain@ less than # letters", "len(@) < #", "short shorter", range(4, 8)),
)
"""Of a string; in the text `@` is the verb's ending ("s" or "")."""

_SOME_WORDS = """
apple banana bread bridge candle carrot castle circle cloud copper dance desert dragon eagle engine forest garden ghost
globe grape hammer honey horse island jacket jungle ladder lemon lion lobster magnet marble melon metal mirror monkey
moon mountain needle night ocean olive orange paper parrot pencil people piano planet potato rabbit ribbon river rocket
saddle salad sand shadow silver spring stone summer table tiger tomato train tree tunnel valley violin water window
winter
"""
WORDS = _SOME_WORDS.split()
"""What strings in tests are drawn from."""
