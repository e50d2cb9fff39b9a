"""Stop strings are found wherever the text is cut, and no character is held back that need not be."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from mini_infer.text.stop import StopAutomaton, StopChecker

STOPS = st.lists(st.text("ab\n🙂", min_size=1, max_size=5), min_size=1, max_size=4)
TEXTS = st.lists(st.text("abc\n🙂", max_size=6), max_size=12)


def whole_search(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The match that ends first, the longest of those; found the slow way."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text.endswith(stop, 0, end)]
        if ending:
            longest = max(ending, key=len)
            return text[:end if include else end - len(longest)], longest
    return text, None


def run(chunks: list[str], stops: list[str], include: bool = False) -> tuple[list[str], str | None]:
    checker = StopChecker(StopAutomaton(stops), include)
    shown = []
    for chunk in chunks:
        text, stop = checker.push(chunk)
        shown.append(text)
        if stop is not None:
            return shown, stop
    return [*shown, checker.flush()], None


@settings(deadline=None, max_examples=500)
@given(chunks=TEXTS, stops=STOPS, include=st.booleans())
def test_any_chunking_gives_the_search_over_the_whole(chunks: list[str], stops: list[str], include: bool) -> None:
    shown, stop = run(chunks, stops, include)
    assert ("".join(shown), stop) == whole_search("".join(chunks), stops, include)


@settings(deadline=None, max_examples=500)
@given(chunks=TEXTS, stops=STOPS)
def test_holds_back_exactly_what_may_begin_a_stop_string(chunks: list[str], stops: list[str]) -> None:
    checker = StopChecker(StopAutomaton(stops))
    seen = shown = ""
    for chunk in chunks:
        text, stop = checker.push(chunk)
        if stop is not None:
            return
        seen, shown = seen + chunk, shown + text
        begins = [n for n in range(len(seen) + 1) if any(s.startswith(seen[len(seen) - n:]) for s in stops)]
        assert len(seen) - len(shown) == max(begins)


def test_examples() -> None:
    assert run(["Hello wor", "ld.\n", "\nNext"], ["\n\n"]) == (["Hello wor", "ld.", ""], "\n\n")
    assert run(["abcd"], ["bc", "abcd"]) == (["a"], "bc")  # ends first, though it begins later
    assert run(["abc"], ["bc", "abc"]) == ([""], "abc")  # they end together: the longest
    assert run(["x<", "/s", "y"], ["</s>"]) == (["x", "", "</sy", ""], None)
    assert run(["x</s", ">y"], ["</s>"], include=True) == (["x", "</s>"], "</s>")


def test_matches_before_min_tokens_do_not_count() -> None:
    checker = StopChecker(StopAutomaton(["ab"]))
    assert checker.push("xab", may_stop=False) == ("x", None)
    assert checker.push("a") == ("ab", None)  # the earlier match is past; a new one may begin
    assert checker.push("b") == ("", "ab")
    checker = StopChecker(StopAutomaton(["ab"]))
    assert checker.push("xa", may_stop=False) == ("x", None)
    assert checker.push("b") == ("", "ab")  # begun early, complete only now


def test_linear_time_on_the_worst_text() -> None:
    """A long stop string that almost matches everywhere; quadratic work would take minutes."""
    checker = StopChecker(StopAutomaton(["a" * 20_000 + "b"]))
    begin = time.perf_counter()
    shown = "".join(checker.push("aaaa")[0] for _ in range(20_000))
    assert time.perf_counter() - begin < 10
    assert len(shown) + len(checker.flush()) == 80_000
