"""The families of embedded tasks, one row each, filled with pieces from `builtin_phrases`.

A row is arguments, text (after "Write a function to"), name, body. In them `{m}`, `{c}`, .. are pieces of the tables in
`SLOTS`: `{c.text}` is the text, `{c.code:x}` the code applied to `x`, `{c.tag}` the word in the function's name. A
digit after the letter is another draw from the same table. A body without `return` is the expression to be returned.
"""

from __future__ import annotations

from typing import NamedTuple

from wmtp.data.builtin_phrases import (
    CHANGES,
    CONDITIONS,
    CONSTANTS,
    EDITS,
    LETTERS,
    PAIRINGS,
    PARTS,
    REDUCTIONS,
    REORDERINGS,
    SMALL,
    TRAITS,
    Piece,
)

SLOTS: dict[str, tuple[Piece, ...] | range | str] = {
    "c": CONDITIONS,
    "m": CHANGES,
    "r": REDUCTIONS,
    "p": PARTS,
    "o": REORDERINGS,
    "b": PAIRINGS,
    "e": EDITS,
    "t": TRAITS,
    "k": CONSTANTS,
    "j": SMALL,
    "d": range(10),
    "l": LETTERS,
}
"""Letter of a field in a template -> what may be drawn for it."""


class Family(NamedTuple):
    """Tasks of one form: the function's arguments, its description, its name, its body."""

    args: str
    text: str
    name: str
    body: str


_LOOP_TOTAL = """total = {start}
    for x in nums:
        {step}
    return {result}"""

NUMBERS = (
    Family("n", "{m.text:a number}", "{m.tag}", "{m.code:n}"),
    Family("n", "{m.text:a number} and then {m2.text:it}", "{m.tag}_{m2.tag}", "{m2.code:{m.code:n}}"),
    Family("n", "check if a number is {c.text}", "is_{c.tag}", "{c.code:n}"),
    Family("n", "check if a number is {c.text} and {c2.text}", "{c.tag}_{c2.tag}", "{c.code:n} and {c2.code:n}"),
    Family("n", "check if a number is {c.text} or {c2.text}", "{c.tag}_or_{c2.tag}", "{c.code:n} or {c2.code:n}"),
    Family("n", "{m.text:a number} and check if the result is {c.text}", "{m.tag}_is_{c.tag}", "{c.code:{m.code:n}}"),
    Family("n", "return {k} if a number is {c.text} and {k2} if not", "if_{c.tag}", "{k} if {c.code:n} else {k2}"),
    Family(
        "n",
        "{m.text:a number} if it is {c.text} and {m2.text:it} if not",
        "{m.tag}_or_{m2.tag}",
        "if {c.code:n}:\n        return {m.code:n}\n    return {m2.code:n}",
    ),
    Family(
        "whole", "{m.text:the sum of the digits of a number}", "digits_{m.tag}", "{m.code:sum(int(d) for d in str(n))}"
    ),
    Family(
        "whole",
        "check if the sum of the digits of a number is {c.text}",
        "digits_{c.tag}",
        "{c.code:sum(int(d) for d in str(n))}",
    ),
    Family("whole", "{m.text:each digit of a number}", "{m.tag}_digits", "[{m.code:int(d)} for d in str(n)]"),
    Family(
        "upto",
        "list the numbers from 1 to n that are {c.text}",
        "list_{c.tag}",
        "[i for i in range(1, n + 1) if {c.code:i}]",
    ),
    Family(
        "upto",
        "sum the numbers from 1 to n that are {c.text}",
        "sum_{c.tag}",
        "sum(i for i in range(1, n + 1) if {c.code:i})",
    ),
    Family("upto", "{m.text:each number from 1 to n}", "{m.tag}_range", "[{m.code:i} for i in range(1, n + 1)]"),
    Family(
        "upto",
        "{m.text:each number from 1 to n} and find the {r.text}",
        "{r.tag}_{m.tag}",
        "{r.code:{m.code:i} for i in range(1, n + 1)}",
    ),
    Family("upto", "count down from n in steps of {k}", "count_down", "list(range(n, 0, -{k}))"),
    Family("upto", "list the first n multiples of {k}", "multiples_of", "[{k} * i for i in range(1, n + 1)]"),
    Family("a, b", "find the {b.text} of two numbers and {m.text:it}", "{b.tag}_{m.tag}", "{m.code:{b.code}}"),
    Family("a, b", "check if the {b.text} of two numbers is {c.text}", "{b.tag}_{c.tag}", "{c.code:{b.code}}"),
    Family("a, b", "{m.text:the first number} and add the second", "{m.tag}_then_add", "{m.code:a} + b"),
    Family("a, b", "check if both of two numbers are {c.text}", "both_{c.tag}", "{c.code:a} and {c.code:b}"),
    Family("a, b", "check if one of two numbers is {c.text}", "either_{c.tag}", "{c.code:a} or {c.code:b}"),
)

LISTS = (
    Family("nums", "keep the numbers in a list that are {c.text}", "keep_{c.tag}", "[x for x in nums if {c.code:x}]"),
    Family(
        "nums",
        "remove the numbers in a list that are {c.text}",
        "remove_{c.tag}",
        "[x for x in nums if not {c.code:x}]",
    ),
    Family("nums", "{m.text:each number in a list}", "{m.tag}_each", "[{m.code:x} for x in nums]"),
    Family(
        "nums",
        "{m.text:each number in a list that is {c.text}}",
        "{m.tag}_{c.tag}",
        "[{m.code:x} for x in nums if {c.code:x}]",
    ),
    Family(
        "nums",
        "{m.text:each number in a list} and then {m2.text:it}",
        "{m.tag}_{m2.tag}",
        "[{m2.code:{m.code:x}} for x in nums]",
    ),
    Family(
        "nums",
        "find the sum of the numbers in a list that are {c.text}",
        "sum_{c.tag}",
        "sum(x for x in nums if {c.code:x})",
    ),
    Family(
        "nums", "count the numbers in a list that are {c.text}", "count_{c.tag}", "len([x for x in nums if {c.code:x}])"
    ),
    Family(
        "nums",
        "{m.text:each number in a list} and find the {r.text}",
        "{r.tag}_{m.tag}",
        "{r.code:{m.code:x} for x in nums}",
    ),
    Family("nums", "find the {r.text} of a list and {m.text:it}", "{m.tag}_{r.tag}", "{m.code:{r.code:nums}}"),
    Family("nums", "check if the {r.text} of a list is {c.text}", "{r.tag}_is_{c.tag}", "{c.code:{r.code:nums}}"),
    Family("nums", "check if any number in a list is {c.text}", "any_{c.tag}", "any({c.code:x} for x in nums)"),
    Family("nums", "check if all numbers in a list are {c.text}", "all_{c.tag}", "all({c.code:x} for x in nums)"),
    Family(
        "nums",
        "find the first number in a list that is {c.text}",
        "first_{c.tag}",
        "next((x for x in nums if {c.code:x}), None)",
    ),
    Family(
        "nums",
        "find the positions of the numbers in a list that are {c.text}",
        "where_{c.tag}",
        "[i for i, x in enumerate(nums) if {c.code:x}]",
    ),
    Family("nums", "find the {r.text} of {p.text:numbers} in a list", "{r.tag}_{p.tag}", "{r.code:{p.code}}"),
    Family(
        "nums", "take {p.text:numbers} in a list and {m.text:each}", "{m.tag}_{p.tag}", "[{m.code:x} for x in {p.code}]"
    ),
    Family(
        "nums",
        "take {p.text:numbers} in a list and keep those that are {c.text}",
        "{c.tag}_{p.tag}",
        "[x for x in {p.code} if {c.code:x}]",
    ),
    Family("nums", "{o.text:a list} and then {o2.text:it}", "{o.tag}_{o2.tag}", "{o2.code:{o.code:nums}}"),
    Family("nums", "count how often {k} occurs in a list", "count_value", "nums.count({k})"),
    Family("nums", "check if {k} or {k2} is in a list", "has_either", "{k} in nums or {k2} in nums"),
    Family("nums", "replace {k} by {k2} in a list", "replace_value", "[{k2} if x == {k} else x for x in nums]"),
    Family(
        "nums",
        "{m.text:the numbers in a list that are {c.text}} and keep the others",
        "{m.tag}_if_{c.tag}",
        "[{m.code:x} if {c.code:x} else x for x in nums]",
    ),
    Family("nums", "sort a list by the distance to {k}", "sort_distance", "sorted(nums, key=lambda x: abs(x - {k}))"),
    Family(
        "nums",
        "sort a list by the remainder after division by {k}",
        "sort_remainder",
        "sorted(nums, key=lambda x: x % {k})",
    ),
    Family(
        "nums",
        "pair each number in a list with the result if you {m.text:it}",
        "pair_{m.tag}",
        "[(x, {m.code:x}) for x in nums]",
    ),
    Family(
        "nums",
        "make a dictionary from each number in a list to whether it is {c.text}",
        "map_{c.tag}",
        "{{x: {c.code:x} for x in nums}}",
    ),
    Family(
        "nums",
        "multiply all numbers in a list and {m.text:the result}",
        "product_{m.tag}",
        _LOOP_TOTAL.format(start="1", step="total *= x", result="{m.code:total}"),
    ),
    Family(
        "nums",
        "add up the numbers in a list until one is {c.text}",
        "sum_until_{c.tag}",
        _LOOP_TOTAL.format(start="0", step="if {c.code:x}:\n            break\n        total += x", result="total"),
    ),
    Family(
        "nums",
        "add up a list and start again at 0 when the total is {c.text}",
        "reset_{c.tag}",
        _LOOP_TOTAL.format(
            start="0", step="total += x\n        if {c.code:total}:\n            total = 0", result="total"
        ),
    ),
)

STRINGS = (
    Family("s", "{e.text:a string} and then {e2.text:it}", "{e.tag}_{e2.tag}", "{e2.code:{e.code:s}}"),
    Family("s", "{e.text:a string} if it {t.text:s}", "{e.tag}_if_{t.tag}", "{e.code:s} if {t.code:s} else s"),
    Family(
        "s",
        "{e.text:a string} if it {t.text:s} and {e2.text:it} if not",
        "{e.tag}_or_{e2.tag}",
        "if {t.code:s}:\n        return {e.code:s}\n    return {e2.code:s}",
    ),
    Family("s", "check if a string {t.text:s} and {t2.text:s}", "{t.tag}_{t2.tag}", "{t.code:s} and {t2.code:s}"),
    Family("s", "check if a string {t.text:s} or {t2.text:s}", "{t.tag}_or_{t2.tag}", "{t.code:s} or {t2.code:s}"),
    Family("s", "{m.text:the length of a string}", "length_{m.tag}", "{m.code:len(s)}"),
    Family("s", "count the letter {l} in a string and {m.text:the count}", "count_{m.tag}", '{m.code:s.count("{l}")}'),
    Family("s", "replace the letter {l} by {l2} in a string", "replace_letter", 's.replace("{l}", "{l2}")'),
    Family(
        "s",
        "find the positions of the letters {l} and {l2} in a string",
        "find_letters",
        '[i for i, c in enumerate(s) if c in "{l}{l2}"]',
    ),
    Family(
        "s",
        "remove the letters {l} and {l2} from a string",
        "remove_letters",
        '"".join(c for c in s if c not in "{l}{l2}")',
    ),
    Family(
        "s",
        "put the letter {l} between the letters of a string and {e.text:it}",
        "join_{e.tag}",
        '{e.code:"{l}".join(s)}',
    ),
    Family("s", "pad a string on the left with the letter {l} to length {k}", "pad_left", 's.rjust({k}, "{l}")'),
    Family("words", "keep the words in a list that {t.text:}", "keep_{t.tag}", "[w for w in words if {t.code:w}]"),
    Family(
        "words", "remove the words in a list that {t.text:}", "remove_{t.tag}", "[w for w in words if not {t.code:w}]"
    ),
    Family("words", "{e.text:each word in a list}", "{e.tag}_each", "[{e.code:w} for w in words]"),
    Family(
        "words",
        "{e.text:each word in a list that {t.text:s}}",
        "{e.tag}_{t.tag}",
        "[{e.code:w} for w in words if {t.code:w}]",
    ),
    Family(
        "words", "count the words in a list that {t.text:}", "count_{t.tag}", "len([w for w in words if {t.code:w}])"
    ),
    Family("words", "check if any word in a list {t.text:s}", "any_{t.tag}", "any({t.code:w} for w in words)"),
    Family("words", "check if all words in a list {t.text:}", "all_{t.tag}", "all({t.code:w} for w in words)"),
    Family(
        "words", "join the words in a list that {t.text:}", "join_{t.tag}", '" ".join(w for w in words if {t.code:w})'
    ),
    Family(
        "words",
        "find the lengths of the words in a list and {m.text:each}",
        "lengths_{m.tag}",
        "[{m.code:len(w)} for w in words]",
    ),
    Family(
        "words", "find the longest word in a list and {e.text:it}", "longest_{e.tag}", "{e.code:max(words, key=len)}"
    ),
    Family(
        "words", "sort the words in a list and {e.text:each}", "sort_{e.tag}", "[{e.code:w} for w in sorted(words)]"
    ),
    Family(
        "words",
        "make a dictionary from each word in a list to the count of the letter {l}",
        "letter_counts",
        '{{w: w.count("{l}") for w in words}}',
    ),
)

FAMILIES = NUMBERS + LISTS + STRINGS
