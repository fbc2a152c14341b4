"""Guesses from the text itself: what followed the last time that it went on like this.

Prompt lookup (github.com/apoorvumang/prompt-lookup-decoding) with the longest suffix instead of a
fixed length, and lengths that grow with the match as in suffix decoding (arXiv 2411.04975). A text
that is repeated with changes departs from its source and comes back to it: where nothing else
matches, guesses go on behind the place in the source that the last ones failed at.
"""

from __future__ import annotations

from collections.abc import Sequence

from .proposer import NO_DRAFT, Draft

SHORTEST = 2  # tokens that must agree: matches of one are noise
CANDIDATES = 16  # latest places with the same last two tokens that are compared
COMPARED = 32  # tokens that a match is followed back
BUCKETS = (8, 4, 3, 2)  # lengths of matches that are counted apart
NEAR = 8  # tokens past a wrong guess in which text and source are looked for together again
RESUMED = 4  # guesses from there
SHIFT = 21  # token ids are below 2^20


class NGramProposer:
    """Continues the longest earlier match of the end of the text, the latest of equal ones.

    shortest: tokens that must agree. Only committed tokens are indexed, each once; a text that does
    not begin with the one before is indexed anew.
    """

    def __init__(self, shortest: int = SHORTEST) -> None:
        self.shortest = max(SHORTEST, shortest)
        self._places: dict[int, list[int]] = {}  # of two tokens: where they were followed
        self._indexed = 1  # pairs that end before this place are in it
        self._last: tuple[int, int] = (0, -1)  # a place and its token, to notice another text
        # where the last guesses were found, where the text ended then, whether it was no match
        self._made = 0, 0, False
        self._failed = 0, 0  # where they failed, and where the text ended with what came instead

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        end = len(tokens)
        self._index(tokens, end)
        if end < self.shortest or limit < 1:
            return NO_DRAFT
        best = at = 0
        places = self._places.get(tokens[-2] << SHIFT | tokens[-1], ())
        for place in reversed(places[-CANDIDATES:]):
            length = _agreed(tokens, place, end)
            if length > best:
                best, at = length, place
                if best == COMPARED:
                    break
        if best < self.shortest:
            return self._resumed(tokens, limit) if self._failed[1] else NO_DRAFT
        self._made = at, end, False
        count = min(limit, 1 + best)
        bucket = next(size for size in BUCKETS if best >= size)
        period = end - at  # what goes round goes on going round
        found = [tokens[at + index % period] for index in range(count)]
        return Draft(found, key=f"ngram-{bucket}")

    def _resumed(self, tokens: Sequence[int], limit: int) -> Draft:
        """Past what was guessed wrong: right behind it, or behind the newest token where the source
        has it soon after."""
        (place, until), end = self._failed, len(tokens)
        if not until <= end <= until + NEAR:
            return NO_DRAFT
        near = range(place, min(place + NEAR, end - 1)) if end > until else (place,)
        for at in near:
            if end == until or tokens[at] == tokens[-1]:
                self._made = at + 1, end, True
                found = list(tokens[at + 1 : at + 1 + min(limit, RESUMED)])
                return Draft(found, key=f"ngram-{int(end > until)}")
        return NO_DRAFT

    def observe(self, proposed: int, accepted: int) -> None:
        """Where the last guesses failed. Their lengths are the controller's affair."""
        at, end, resumed = self._made
        if accepted or not resumed:  # else they did not come back to the source yet
            self._failed = at + accepted, end + accepted + 1

    def _index(self, tokens: Sequence[int], end: int) -> None:
        """Index the pairs that something follows; a pair's place is what follows it."""
        place, token = self._last
        if end <= place or (token >= 0 and tokens[place] != token):
            self._places, self._indexed, self._failed = {}, 1, (0, 0)
        places = self._places
        for at in range(self._indexed + 1, end):
            pair = tokens[at - 2] << SHIFT | tokens[at - 1]
            found = places.get(pair)
            if found is None:
                places[pair] = [at]
            else:
                found.append(at)
                if len(found) > 4 * CANDIDATES:
                    del found[: -2 * CANDIDATES]
        self._indexed = max(self._indexed, end - 1)
        self._last = end - 1, tokens[end - 1] if end else -1


def _agreed(tokens: Sequence[int], place: int, end: int) -> int:
    """Tokens before `place` that equal those before `end`; two are known to."""
    longest = min(COMPARED, place)
    for back in range(SHORTEST + 1, longest + 1):
        if tokens[place - back] != tokens[end - back]:
            return back - 1
    return longest
