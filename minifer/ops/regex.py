"""Regular expressions in RE2 syntax, matched against whole strings in linear time.

Python's `re` reads another syntax (it has look-around and back-references, lacks `\\z`, `\\pN`, `\\Q..\\E` and
`[[:alpha:]]`) and backtracks: a pattern such as `(a*)*b` can keep it busy for years, which a model from elsewhere
must not be able to do. So a pattern is read here and becomes a small program of four instructions with relative
jumps (Thompson's construction; K. Thompson, "Regular expression search algorithm", CACM 1968), and the program is
run over sets of positions, which are remembered: a deterministic automaton made as it is needed. The work for a
string grows with its length times the size of the program at most, whatever the pattern.

Greediness and captures do not matter to the question "does the whole string match", so they are read and dropped.
Not supported: `\\C` (a byte), and scripts as in `\\p{Greek}` (Python has no table of them).
Limits are RE2's own: repetitions to 1000 (also multiplied, where nested), and a bounded program.
"""

from __future__ import annotations

import functools
import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable
from typing import NoReturn

from minifer.errors import ModelError, UnsupportedError

Ranges = tuple[tuple[int, int], ...]  # inclusive code point ranges, sorted and apart
Instruction = tuple[str, object, object]  # (operation, first, second); jumps are relative
Program = list[Instruction]

_LAST = sys.maxunicode
_MOST_REPEATS = 1000
_MOST_INSTRUCTIONS = 20_000
_MOST_REMEMBERED = 500_000  # positions in all remembered states together


# ---------------------------------------------------------------------------------------------- character classes


def _normal(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Sorted ranges with the touching ones joined."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(high, out[-1][1]))
        else:
            out.append((low, high))
    return tuple(out)


def _inverse(ranges: Ranges) -> Ranges:
    out, start = [], 0
    for low, high in ranges:
        if low > start:
            out.append((start, low - 1))
        start = high + 1
    return (*out, (start, _LAST)) if start <= _LAST else tuple(out)


def _span(*pairs: str) -> Ranges:
    """Ranges from strings of two characters, as in `_span("az", "AZ")`."""
    return _normal((ord(p[0]), ord(p[1])) for p in pairs)


_DIGIT, _ALPHA = _span("09"), _span("AZ", "az")
_WORD = _span("09", "AZ", "az", "__")
_PERL = {"d": _DIGIT, "w": _WORD, "s": _span("\t\n", "\f\r", "  ")}
_POSIX = {
    "alnum": _span("09", "AZ", "az"), "alpha": _ALPHA, "ascii": _span("\0\x7f"), "blank": _span("\t\t", "  "),
    "cntrl": _span("\0\x1f", "\x7f\x7f"), "digit": _DIGIT, "graph": _span("!~"), "lower": _span("az"),
    "print": _span(" ~"), "punct": _span("!/", ":@", "[`", "{~"), "space": _span("\t\r", "  "), "upper": _span("AZ"),
    "word": _WORD, "xdigit": _span("09", "AF", "af"),
}  # fmt: skip
_CATEGORIES = {"C": "cfos", "L": "lmotu", "M": "cen", "N": "dlo", "P": "cdefios", "S": "ckmo", "Z": "lps"}


@functools.cache
def _category(name: str) -> Ranges:
    """Code points of a Unicode general category ("Lu") or a group of them ("L"). Unassigned ones are in none."""
    codes = (c for c in range(_LAST + 1) if (kind := unicodedata.category(chr(c))).startswith(name) and kind != "Cn")
    return _normal((c, c) for c in codes)


@functools.cache
def _orbits() -> dict[int, frozenset[int]]:
    """Code points that simple case folding takes for the same, e.g. K, k and the Kelvin sign."""
    groups: dict[str, set[int]] = {}
    for code in range(0x1F000):  # no cased letters beyond
        char = chr(code)
        lower, upper = char.lower(), char.upper()
        if lower != char or upper != char:
            key = upper.lower() if len(upper) == 1 else lower
            groups.setdefault(key, set()).add(code)
    return {code: frozenset(group) for group in groups.values() if len(group) > 1 for code in group}


def _folded(ranges: Ranges) -> Ranges:
    """The ranges with every case variant of their members."""
    more = [(v, v) for code, group in _orbits().items() if _contains(ranges, code) for v in group]
    return _normal([*ranges, *more])


def _contains(ranges: Ranges, code: int) -> bool:
    at = bisect_right(ranges, (code, _LAST)) - 1
    return at >= 0 and ranges[at][0] <= code <= ranges[at][1]


# --------------------------------------------------------------------------------------------------- the programs
# ("set", ranges, None)   one character of a class          ("split", a, b)   go on at +a and at +b
# ("jump", a, None)       go on at +a                       ("assert", what, None)   hold between two characters


def _either(a: Program, b: Program) -> Program:
    return [("split", 1, len(a) + 2), *a, ("jump", len(b) + 1, None), *b]


def _repeated(part: Program, low: int, high: int | None) -> Program:
    """`part` from `low` to `high` times; without end where `high` is None."""
    if high is None:
        if low == 0:
            return [("split", 1, len(part) + 2), *part, ("jump", -len(part) - 1, None)]
        return [*part * low, ("split", -len(part), 1)]
    out = part * low
    size = len(part) + 1
    for left in range(high - low, 0, -1):  # each further one may be skipped with all that follow
        out += [("split", 1, left * size), *part]
    return out


class _Group:
    """An open bracket while reading: flags to return to, finished alternatives, pieces of the present one."""

    def __init__(self, flags: frozenset[str]):
        self.flags = flags
        self.alternatives: list[Program] = []
        self.pieces: list[Program] = []
        self.repeats: list[int] = []  # how often each piece repeats something inside, at most
        self.most = 1  # the largest of those in finished alternatives
        self.can_repeat = False  # whether the last piece may take a repetition operator

    def add(self, piece: Program, repeats: int = 1) -> None:
        self.pieces.append(piece)
        self.repeats.append(repeats)
        self.can_repeat = True

    def close_alternative(self) -> None:
        self.alternatives.append([instruction for piece in self.pieces for instruction in piece])
        self.most = max(self.most, *self.repeats, 1)
        self.pieces, self.repeats, self.can_repeat = [], [], False

    def program(self) -> Program:
        self.close_alternative()
        out = self.alternatives.pop()
        while self.alternatives:
            out = _either(self.alternatives.pop(), out)
        return out


class _Reader:
    """Reads a pattern into a program. Brackets are kept on a list, so that nesting costs no recursion."""

    def __init__(self, pattern: str):
        self.text = pattern
        self.at = 0
        self.groups = [_Group(frozenset())]
        self.flags: frozenset[str] = frozenset()
        self.names: set[str] = set()

    def fail(self, why: str) -> NoReturn:
        raise ModelError(f"the pattern {self.text!r} is not valid RE2 syntax at character {self.at}: {why}")

    def take(self, text: str) -> bool:
        """Step over `text` where it stands next."""
        if self.text.startswith(text, self.at):
            self.at += len(text)
            return True
        return False

    def next(self, what: str) -> str:
        if self.at >= len(self.text):
            self.fail(f"{what} is missing at the end")
        self.at += 1
        return self.text[self.at - 1]

    def program(self) -> Program:
        while self.at < len(self.text):
            self.piece()
        if len(self.groups) > 1:
            self.fail("a closing bracket ) is missing")
        program = self.groups[0].program()
        self.limit(len(program))
        return program

    def limit(self, size: int) -> None:
        if size > _MOST_INSTRUCTIONS:
            self.fail(f"the pattern is too large: over {_MOST_INSTRUCTIONS} instructions")

    def piece(self) -> None:
        """Read one piece: a character, class, assertion, bracket, or the repetition of the piece before."""
        group = self.groups[-1]
        char = self.next("a character")
        if char == "|":
            group.close_alternative()
        elif char == "(":
            self.open()
        elif char == ")":
            self.close()
        elif char in "*+?":
            self.repeat({"*": (0, None), "+": (1, None), "?": (0, 1)}[char], char)
        elif char == "{" and (bounds := self.bounds()):
            self.repeat(bounds, "{}")
        elif char == ".":
            group.add([("set", ((0, _LAST),) if "s" in self.flags else _inverse(_span("\n\n")), None)])
        elif char == "[":
            group.add([("set", self.char_class(), None)])
        elif char in "^$":
            names = {"^": ("line begin", "begin"), "$": ("line end", "end")}[char]
            group.add([("assert", names[0 if "m" in self.flags else 1], None)])
        elif char == "\\":
            self.escape()
        else:
            group.add([("set", self.literal(ord(char)), None)])

    def literal(self, code: int) -> Ranges:
        return self.cased(((code, code),))

    def cased(self, ranges: Ranges) -> Ranges:
        return _folded(ranges) if "i" in self.flags else ranges

    # -- brackets

    def open(self) -> None:
        outer = self.flags
        if self.take("?"):
            if self.take("P<") or (self.text[self.at : self.at + 2] not in ("<=", "<!") and self.take("<")):
                self.name()
            elif not self.set_flags():
                return  # (?i) alone: the flags hold to the end of the bracket around it
        self.groups.append(_Group(outer))

    def name(self) -> None:
        end = self.text.find(">", self.at)
        name = self.text[self.at : end] if end >= 0 else ""
        if not name.replace("_", "a").isalnum():
            self.fail("a group needs a name of letters, digits and _ between < and >")
        if name in self.names:
            self.fail(f"the group name {name} is used twice")
        self.names.add(name)
        self.at = end + 1

    def set_flags(self) -> bool:
        """Read the flags of `(?i-s:` or `(?i)`. True where a bracket with content follows."""
        flags, on, any_flag = set(self.flags), True, True
        while True:
            char = self.next("the end of the flags")
            if char in "imsU":
                flags.add(char) if on else flags.discard(char)
                any_flag = True
            elif char == "-" and on:
                on, any_flag = False, False
            elif char in ":)" and any_flag:
                self.flags = frozenset(flags)
                self.groups[-1].can_repeat = True
                return char == ":"
            else:
                self.fail(f"(?{char} is no bracket that RE2 knows (it has no look-around and no conditions)")

    def close(self) -> None:
        if len(self.groups) == 1:
            self.fail("there is a closing bracket ) too many")
        group = self.groups.pop()
        program = group.program()
        self.limit(len(program))
        self.flags = group.flags
        self.groups[-1].add(program, group.most)

    # -- repetition

    def bounds(self) -> tuple[int, int | None] | None:
        """The numbers of {2}, {2,} or {2,5}; None (nothing read) where the brace is just a character."""
        end = self.text.find("}", self.at)
        low, comma, high = self.text[self.at : max(end, self.at)].partition(",")
        if end < 0 or not _number(low) or (high and not _number(high)):
            return None
        self.at = end + 1
        if len(low) > 4 or len(high) > 4 or int(low) > _MOST_REPEATS or (high and int(high) > _MOST_REPEATS):
            self.fail(f"a repetition goes to {_MOST_REPEATS} at most")
        if high and int(high) < int(low):
            self.fail(f"the repetition {{{low},{high}}} ends before it begins")
        return int(low), int(high) if high else None if comma else int(low)

    def repeat(self, bounds: tuple[int, int | None], name: str) -> None:
        group = self.groups[-1]
        if not group.pieces or not group.can_repeat:
            self.fail(f"there is nothing for {name} to repeat, or it is repeated already")
        self.take("?")  # a lazy repetition matches the same whole strings
        low, high = bounds
        piece, inside = group.pieces.pop(), group.repeats.pop()
        if name == "{}":
            inside *= max(low, high or 0, 1)
            if inside > _MOST_REPEATS:
                self.fail(f"nested repetitions multiply to {inside}, and {_MOST_REPEATS} is the most")
        self.limit((len(piece) + 1) * max(low, high or 0))
        group.add(_repeated(piece, low, high), inside)
        group.can_repeat = False

    # -- classes and escapes

    def escape(self) -> None:
        group = self.groups[-1]
        if self.take("Q"):
            end = self.text.find("\\E", self.at)
            quoted = self.text[self.at :] if end < 0 else self.text[self.at : end]
            self.at = len(self.text) if end < 0 else end + 2
            for char in quoted:
                group.add([("set", self.literal(ord(char)), None)])
            return
        for letter, what in (("A", "begin"), ("z", "end"), ("b", "edge"), ("B", "no edge")):
            if self.take(letter):
                group.add([("assert", what, None)])
                return
        if self.text[self.at : self.at + 1] == "C":
            raise UnsupportedError(f"the pattern {self.text!r} uses \\C (a single byte), which is not supported")
        ranges = self.named_class()
        group.add([("set", self.literal(self.code()) if ranges is None else ranges, None)])

    def named_class(self) -> Ranges | None:
        """The class of an escape such as \\d or \\p{Lu} (its backslash is read); None where it is a character."""
        char = self.text[self.at : self.at + 1]
        if char and char in "dDsSwW":
            self.at += 1
            ranges = self.cased(_PERL[char.lower()])
            return _inverse(ranges) if char.isupper() else ranges
        if char and char in "pP":
            self.at += 1
            return self.category(char == "P")
        return None

    def category(self, negative: bool) -> Ranges:
        name = self.next("the name of a category")
        if name == "{":
            end = self.text.find("}", self.at)
            if end < 0:
                self.fail("the closing brace of a category is missing")
            name = self.text[self.at : end]
            self.at = end + 1
        if name.startswith("^"):
            name, negative = name[1:], not negative
        if name == "Any":
            ranges: Ranges = ((0, _LAST),)
        elif name and name[0] in _CATEGORIES and (name[1:] == "" or name[1:] in tuple(_CATEGORIES[name[0]])):
            ranges = self.cased(_category(name))
        else:
            raise UnsupportedError(
                f"the pattern {self.text!r} uses \\p{{{name}}}; only Unicode's general categories are supported"
            )
        return _inverse(ranges) if negative else ranges

    def code(self) -> int:
        """The code point of an escaped character (its backslash is read)."""
        char = self.next("the character after a backslash")
        if char in "01234567":
            digits = char
            while len(digits) < 3 and self.text[self.at : self.at + 1] in tuple("01234567"):
                digits += self.next("a digit")
            if char != "0" and len(digits) == 1:
                self.fail(f"\\{char} would refer back to a group, which RE2 does not do")
            return int(digits, 8)
        if char == "x":
            return self.hex_code()
        simple = dict(zip("afnrtv", "\a\f\n\r\t\v")).get(char)
        if simple is None and (ord(char) >= 0x80 or char.isalnum()):
            self.fail(f"\\{char} has no meaning")
        return ord(simple or char)

    def hex_code(self) -> int:
        if self.take("{"):
            end = self.text.find("}", self.at)
            digits = self.text[self.at : max(end, self.at)]
            self.at = max(end + 1, self.at)
        else:
            digits = self.text[self.at : self.at + 2]
            self.at += 2
            digits = digits if len(digits) == 2 else ""
        if not digits or any(d not in "0123456789abcdefABCDEF" for d in digits) or int(digits, 16) > _LAST:
            self.fail("\\x needs two hexadecimal digits, or a code point in braces")
        return int(digits, 16)

    def char_class(self) -> Ranges:
        """Read `[...]` (its opening bracket is read)."""
        negative = self.take("^")
        parts: list[tuple[int, int]] = []
        first = True
        while first or not self.take("]"):
            first = False
            posix_end = self.text.find(":]", self.at + 2) if self.text.startswith("[:", self.at) else -1
            if posix_end >= 0:
                parts += self.posix(posix_end)
                continue
            if self.text.startswith("\\", self.at):
                self.at += 1
                named = self.named_class()
                if named is not None:
                    parts += named
                    continue
                self.at -= 1
            low = high = self.class_character()
            if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
                self.at += 1
                high = self.class_character()
                if high < low:
                    self.fail(f"the range {chr(low)!r} to {chr(high)!r} runs backwards")
            parts += self.cased(((low, high),))
        ranges = _normal(parts)
        return _inverse(ranges) if negative else ranges

    def posix(self, end: int) -> Ranges:
        name = self.text[self.at + 2 : end]
        ranges = _POSIX.get(name.removeprefix("^"))
        if ranges is None:
            self.fail(f"[:{name}:] is no class")
        self.at = end + 2
        ranges = self.cased(ranges)
        return _inverse(ranges) if name.startswith("^") else ranges

    def class_character(self) -> int:
        char = self.next("the closing ] of a class")
        return self.code() if char == "\\" else ord(char)


def _number(text: str) -> bool:
    """A decimal number as RE2 writes it: ASCII digits without leading zeros."""
    return text.isascii() and text.isdigit() and (text == "0" or not text.startswith("0"))


# ---------------------------------------------------------------------------------------------------- the matcher


class _State:
    """Positions in the program between two characters, and the states that each class of character leads to."""

    __slots__ = ("before", "next", "positions")

    def __init__(self, positions: frozenset[int], before: str):
        self.positions = positions
        self.before = before  # what stands before: "edge" of the text, "newline", "word" or "other"
        self.next: dict[int, _State] = {}


class Matcher:
    """A compiled pattern; `matches(text)` tells whether the whole text matches. Safe to use from many threads."""

    def __init__(self, pattern: str):
        self._program = _Reader(pattern).program()
        self._asserts = any(op == "assert" for op, _, _ in self._program)
        sets = {ranges for op, ranges, _ in self._program if op == "set"}
        if self._asserts:
            sets |= {_WORD, _span("\n\n")}
        edges = {0} | {edge for ranges in sets for low, high in ranges for edge in (low, high + 1)}  # type: ignore[attr-defined]
        self._edges = sorted(edges)  # characters between two edges are in the same classes
        self._classes: dict[str, int] = {}
        self._forget()

    def _forget(self) -> None:
        self._remembered = 0
        self._states: dict[tuple[frozenset[int], str], _State] = {}
        self._start = self._state(frozenset((0,)), "edge")

    def _state(self, positions: frozenset[int], before: str) -> _State:
        state = self._states.get((positions, before))
        if state is None:
            self._remembered += len(positions) + 8
            state = self._states.setdefault((positions, before), _State(positions, before))
        return state

    def matches(self, text: str) -> bool:
        """True where all of `text` matches the pattern."""
        state, classes = self._start, self._classes
        for char in text:
            kind = classes.get(char)
            if kind is None:
                kind = classes[char] = bisect_right(self._edges, ord(char)) - 1
            following = state.next.get(kind)
            if following is None:
                if self._remembered > _MOST_REMEMBERED:
                    self._forget()
                following = state.next[kind] = self._step(state, kind)
            state = following
            if not state.positions:
                return False
        return len(self._program) in self._reach(state, "edge")

    def _step(self, state: _State, kind: int) -> _State:
        code = self._edges[kind]
        here = "other"
        if self._asserts:
            here = "newline" if code == 10 else "word" if _contains(_WORD, code) else "other"
        targets = set()
        for at in self._reach(state, here):
            if at < len(self._program) and _contains(self._program[at][1], code):  # type: ignore[arg-type]
                targets.add(at + 1)
        return self._state(frozenset(targets), here)

    def _reach(self, state: _State, after: str) -> set[int]:
        """Positions of character instructions, and the end, that are reached without reading a character."""
        seen, todo, out = set(state.positions), list(state.positions), set()
        while todo:
            at = todo.pop()
            if at == len(self._program):
                out.add(at)
                continue
            op, first, second = self._program[at]
            jumps: list[object] = []
            if op == "set":
                out.add(at)
            elif op == "assert":
                jumps = [1] if _holds(str(first), state.before, after) else []
            else:
                jumps = [first] if op == "jump" else [first, second]
            for jump in jumps:
                target = at + jump  # type: ignore[operator]
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        return out


def _holds(what: str, before: str, after: str) -> bool:
    """Whether an assertion holds between what stands before and after it."""
    if what == "begin":
        return before == "edge"
    if what == "end":
        return after == "edge"
    if what == "line begin":
        return before in ("edge", "newline")
    if what == "line end":
        return after in ("edge", "newline")
    return ((before == "word") != (after == "word")) == (what == "edge")


@functools.lru_cache(maxsize=64)
def compiled(pattern: str) -> Matcher:
    """The matcher of a pattern, kept for the next call. ModelError where the pattern is not valid."""
    return Matcher(pattern)
