"""How many tokens a prompt has for its bytes, learned from calls whose usage the provider stated. Pure, bounded, in integers.

    settled call ─→ learn ─→ a histogram of tokens ÷ bound ─→ at_most: what a share of such calls stayed within
                                                           └→ about: what half of them did

Calls are alike if they go to one model of one provider in one dialect, and their bounds have as many bits: a short prompt is
mostly the envelope around it, a long one mostly text, so lengths are learned apart. Nothing is said before there are enough.

The quantile q is that of conformal prediction: of n calls fewer than (n + 1)(1 - q) may lie above it. Then the next one, if
it is like those, lies above it with a probability of 1 - q at most; for q = 0.99 that takes 99 calls. A full histogram is
halved, so that what is old counts ever less. Prompts that are not text alone are neither learned from nor told about.
"""

from __future__ import annotations

from typing import Final

from tollkeeper.values import Ask, Route

ENOUGH: Final = 50
"""Calls of one kind before anything is said about the next one."""
KINDS_MAX: Final = 1024
"""Kinds of calls kept, of about 3 KB each; the one that came first goes."""
MEDIAN_BP: Final = 5_000
_WHOLE: Final = 10_000  # basis points
_SCALE: Final = 16  # a ratio has so many binary places
_ALL: Final = 1 << _SCALE
_BUCKETS: Final = 385

_Kind = tuple[str, str, str, int]


class Densities:
    """Tokens per byte of every kind of call. `quantile_bp` in basis points: 9,900 is 0.99."""

    def __init__(self, quantile_bp: int = 9_900) -> None:
        if not 0 < quantile_bp < _WHOLE:
            raise ValueError(f"quantile_bp: {quantile_bp} is no share; expected basis points from 1 to 9999")
        self._spare_bp = _WHOLE - quantile_bp
        self._full = max(1_024, 64 * _WHOLE // self._spare_bp)  # halved, it has more than the quantile needs
        self._spreads: dict[_Kind, _Spread] = {}

    def learn(self, route: Route, ask: Ask, prompt_tokens: int) -> None:
        """A call had so many prompt tokens, by the provider's own last word."""
        bound = ask.prompt_bound
        if not ask.plain or bound <= 0:
            return
        kind = _kind(route, ask)
        spread = self._spreads.get(kind)
        if spread is None:
            if len(self._spreads) >= KINDS_MAX:
                del self._spreads[next(iter(self._spreads))]
            spread = self._spreads[kind] = _Spread()
        ratio = _ALL if prompt_tokens >= bound else (prompt_tokens << _SCALE) // bound
        spread.add(_bucket(ratio), self._spare_bp, self._full)

    def at_most(self, route: Route, ask: Ask) -> int | None:
        """Prompt tokens that the quantile's share of such calls stay within, never above the bound; None: not known."""
        spread = self._spreads.get(_kind(route, ask)) if ask.plain else None
        return None if spread is None or not spread.known else _within(ask.prompt_bound, spread.behind)

    def about(self, route: Route, ask: Ask) -> int | None:
        """Prompt tokens that half of such calls stay within; None: not known."""
        spread = self._spreads.get(_kind(route, ask)) if ask.plain else None
        if spread is None or spread.total < ENOUGH:
            return None
        return _within(ask.prompt_bound, _behind(spread.bucket_at(MEDIAN_BP)))


def _kind(route: Route, ask: Ask) -> _Kind:
    return route.provider.name, route.model, ask.dialect, ask.prompt_bound.bit_length()


def _within(bound: int, ratio: int) -> int:
    """Tokens of a prompt at a ratio to its bound, rounded up and never above it."""
    return min(bound, -(-bound * ratio >> _SCALE))


class _Spread:
    """A histogram that keeps its quantile as it grows: the lowest bucket with few enough calls above it."""

    __slots__ = ("above", "at", "behind", "counts", "known", "total")

    def __init__(self) -> None:
        self.counts = [0] * _BUCKETS
        self.total = 0
        self.at = _BUCKETS - 1
        self.above = 0  #: calls in the buckets above `at`
        self.behind = _behind(self.at)  #: the first ratio above the quantile
        self.known = False  #: there are enough calls for the quantile

    def add(self, bucket: int, spare_bp: int, full: int) -> None:
        self.counts[bucket] += 1
        self.total += 1
        if bucket > self.at:
            self.above += 1
        if self.total >= full:
            self._halve()
        counts, at, above = self.counts, self.at, self.above
        allowed = (self.total + 1) * spare_bp // _WHOLE - 1
        self.known = allowed >= 0 and self.total >= ENOUGH
        if allowed < 0:
            allowed = 0
        while above > allowed:
            at += 1
            above -= counts[at]
        while at and above + counts[at] <= allowed:
            above += counts[at]
            at -= 1
        if at != self.at:
            self.at, self.behind = at, _behind(at)
        self.above = above

    def bucket_at(self, share_bp: int) -> int:
        """The lowest bucket up to which this share of the calls lies."""
        below = 0
        for bucket, count in enumerate(self.counts):
            below += count
            if below * _WHOLE >= self.total * share_bp:
                return bucket
        return _BUCKETS - 1

    def _halve(self) -> None:
        """Each count by half; what is odd goes on to the next bucket, so that no tail is rounded away."""
        odd = 0
        for bucket, count in enumerate(self.counts):
            self.counts[bucket], odd = divmod(count + odd, 2)
        self.total = sum(self.counts)
        self.above = sum(self.counts[self.at + 1 :])


def _bucket(ratio: int) -> int:
    """Buckets of one ratio each up to 64, then 32 for each doubling: 3 % wide at most."""
    shift = ratio.bit_length() - 6
    return ratio if shift <= 0 else (shift << 5) + (ratio >> shift)


def _behind(bucket: int) -> int:
    """The first ratio behind a bucket."""
    shift = max(0, (bucket >> 5) - 1)
    return (bucket - (shift << 5) + 1) << shift
