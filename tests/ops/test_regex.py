"""The RE2 matcher: against Python's `re` where both agree on the syntax, what RE2 has of its own, hostile patterns."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minifer.errors import ModelError, UnsupportedError
from minifer.ops.regex import Matcher, compiled

ATOMS = st.sampled_from(["a", "b", "ab", ".", "[ab]", "[^a]", r"\d", r"\w", r"\W", r"\b", "^", "", "(?:)"])


def patterns(inner):
    repeats = st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}", "*?", "+?"])
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda p: f"(?:{p[0]}|{p[1]})"),
        st.tuples(inner, repeats).map(lambda p: f"(?:{p[0]}){p[1]}"),
    )


@settings(max_examples=150, deadline=None)
@given(st.recursive(ATOMS, patterns, max_leaves=8), st.text("ab1 \n", max_size=7))
def test_agrees_with_python_where_the_syntax_is_the_same(pattern, text):
    expected = re.compile(pattern, re.ASCII).fullmatch(text) is not None
    assert compiled(pattern).matches(text) == expected


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"a\z", ["a"], ["a\n", "az"]),
        ("a$", ["a"], ["a\n"]),
        ("(?m)a$\nb", ["a\nb"], ["ab"]),
        (".", ["x", "é", "😀"], ["\n", "", "xx"]),
        ("(?s:.)", ["\n"], [""]),
        (r"\Qa.b*\E+", ["a.b*", "a.b**"], ["aab"]),
        (r"[[:alpha:]_]+", ["ab_c"], ["a1"]),
        (r"[[:^digit:]]", ["a", "é"], ["1"]),
        (r"\pL+", ["aéж"], ["a1"]),
        (r"\p{Lu}\P{Lu}", ["Éa"], ["aÉ"]),
        (r"\p{^Lu}", ["a"], ["A"]),
        (r"\d", ["1"], ["٣"]),  # Perl classes are ASCII
        (r"\s", [" ", "\t"], ["\v", "\u00a0"]),
        ("(?i)k", ["k", "K", "\u212a"], ["x"]),
        ("(?i:STRASSE)e", ["ſtraſſEe"], ["straßee", "strasseE"]),
        ("(?i)[^k]", ["x"], ["K", "\u212a"]),
        ("(a(?i)b|c)d", ["aBd", "Cd"], ["Abd", "aBD"]),
        (r"\x41\x{e9}\101", ["AéA"], ["A"]),
        ("a{,2}", ["a{,2}"], ["aa"]),
        ("a{2", ["a{2"], ["aa"]),
        ("[]a]", ["]", "a"], ["b"]),
        ("[a-]", ["-", "a"], ["b"]),
        ("(?P<x>a)(?<y>b)", ["ab"], ["a"]),
        ("a|", ["a", ""], ["b"]),
        ("(|a)*b", ["b", "aab"], ["a"]),
        (r"\bab\b.*", ["ab", "ab c"], ["abc"]),
        ("a{0}b", ["b"], ["ab"]),
    ],
)
def test_what_re2_means(pattern, yes, no):
    assert [t for t in yes if not Matcher(pattern).matches(t)] == []
    assert [t for t in no if Matcher(pattern).matches(t)] == []


@pytest.mark.parametrize(
    "pattern",
    [
        "(", ")", "[a", "*", "a**", "a{2}{3}", "(?=a)", "(?!a)", "(?<=a)", r"(a)\1", r"\8", r"\q", "\\", "[b-a]",
        "[[:nope:]]", "a{1001}", "a{3,2}", "((a{100}){100}){100}", r"\Z", "(?P<n>a)(?P<n>b)", "(?P<n", "(?x)a",
        r"\x{110000}", r"\p{L", "[a-\\d]", "(?P=n)", "(?",
    ],
)  # fmt: skip
def test_invalid_patterns(pattern):
    with pytest.raises(ModelError, match="not valid RE2"):
        Matcher(pattern)


@pytest.mark.parametrize("pattern", [r"\C", r"\p{Greek}"])
def test_unsupported_patterns(pattern):
    with pytest.raises(UnsupportedError, match="supported"):
        Matcher(pattern)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("(a*)*b", "a" * 3000),
        ("(a|aa)+$x", "a" * 3000),
        ("(x+x+)+y", "x" * 3000),
        ("(?:a?){200}a{200}", "a" * 199),
        ("(" * 3000 + "a" + ")" * 3000, "b"),
        ("(.*)" * 50 + "x", "a" * 500),
    ],
)
def test_no_pattern_takes_for_ever(pattern, text):
    start = time.monotonic()
    assert not Matcher(pattern).matches(text)
    assert time.monotonic() - start < 20


def test_memory_stays_bounded():
    matcher = Matcher("(?:[ab]*a[ab]{12})")  # 2^12 states if all were kept
    for k in range(300):
        matcher.matches(f"{k * 7919:020b}".replace("0", "a").replace("1", "b") * 10)
    assert matcher._remembered < 600_000


def test_large_programs_are_refused():
    with pytest.raises(ModelError, match="too large"):
        Matcher("(?:" + "a" * 30 + "){1000}")
