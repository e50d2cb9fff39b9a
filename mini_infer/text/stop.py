"""Stop strings in a stream of text, wherever the pieces of text happen to be cut.

An Aho-Corasick automaton (Aho and Corasick 1975, "Efficient string matching") reads each character once. Its state is
the longest end of the text so far that begins a stop string: exactly the characters that must be held back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class StopAutomaton:
    """The immutable part, shared by all sequences with the same stop strings.

    States are numbered by node of the trie of stop strings; 0 is the root.
    `goto[s]`: next state by character, for the trie's own edges. `fail[s]`: the state of the longest proper suffix.
    `depth[s]`: how many characters s stands for. `match[s]`: the longest stop string that ends here, or None.
    """

    def __init__(self, stops: Sequence[str]):
        self.goto: list[dict[str, int]] = [{}]
        self.depth = [0]
        self.match: list[str | None] = [None]
        for stop in stops:
            self._insert(stop)
        self.fail = [0] * len(self.goto)
        self._link()
        self.starts = frozenset(self.goto[0])

    def _insert(self, stop: str) -> None:
        state = 0
        for char in stop:
            following = self.goto[state].get(char)
            if following is None:
                following = self.goto[state][char] = len(self.goto)
                self.goto.append({})
                self.depth.append(self.depth[state] + 1)
                self.match.append(None)
            state = following
        self.match[state] = stop

    def _link(self) -> None:
        queue = deque(self.goto[0].values())
        while queue:  # breadth first: a state's failure is less deep, so already linked
            state = queue.popleft()
            for char, following in self.goto[state].items():
                self.fail[following] = self.step(self.fail[state], char)
                queue.append(following)
            if self.match[state] is None:
                self.match[state] = self.match[self.fail[state]]

    def step(self, state: int, char: str) -> int:
        """The state after one more character. Amortised O(1): each failure undoes an earlier step deeper."""
        goto = self.goto
        while char not in goto[state]:
            if state == 0:
                return 0
            state = self.fail[state]
        return goto[state][char]


class StopChecker:
    """Watches one sequence's text. Stops at the match that ends first; of those ending together, the longest."""

    __slots__ = ("_automaton", "_held", "_include", "_state")

    def __init__(self, automaton: StopAutomaton, include_stop_str_in_output: bool = False):
        self._automaton = automaton
        self._include = include_stop_str_in_output
        self._state = 0
        self._held = ""

    def push(self, text: str, may_stop: bool = True) -> tuple[str, str | None]:
        """Returns the text that can be shown now and the stop string that ended it, if one did.

        With may_stop=False a match that ends in this text does not count (min_tokens is not reached yet).
        After a match the rest of the text is dropped, and nothing more may be pushed.
        """
        automaton = self._automaton
        state = self._state
        if state == 0 and automaton.starts.isdisjoint(text):  # the usual case, at the speed of C
            return text, None
        for i, char in enumerate(text):
            state = automaton.step(state, char)
            if may_stop and (stop := automaton.match[state]) is not None:
                seen = self._held + text[:i + 1]
                self._held = ""
                return (seen if self._include else seen[:-len(stop)]), stop
        self._state = state
        seen = self._held + text
        free = len(seen) - automaton.depth[state]
        self._held = seen[free:]
        return seen[:free], None

    def flush(self) -> str:
        """The held-back text, when the sequence ends without a match."""
        held, self._held, self._state = self._held, "", 0
        return held


__all__ = ["StopAutomaton", "StopChecker"]
