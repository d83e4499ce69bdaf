"""How the places that calls go to are: their breakers, and how soon each answers. Pure: the clock is passed in.

A place is a provider, one of its keys and a model. It has a breaker on each of three levels, which it shares with others:

    level     of which                 fails by
    provider  provider                 no connection
    key       provider, key            a key that is refused, or has no quota left
    model     provider, key, model     anything else

A call needs leave on all three. How it went is told once, and each level learns what it can know of it:

    failed      provider  key     model
    None        ok        ok      ok
    model       ok        ok      fail       it was reached, and the key was good
    key         ok        fail    ignore
    provider    fail      ignore  ignore
    (ignored)   ignore    ignore  ignore

Providers and their keys come from configuration, models from clients as well: of these the last MODELS_MAX are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Literal, NamedTuple

import msgspec

from tollkeeper.breaker import LATE, Bounds, Breaker, Outcome, Permit, Phase, Turn
from tollkeeper.values import Place

Level = Literal["provider", "key", "model"]
LEVELS: Final[tuple[Level, ...]] = ("provider", "key", "model")
#: What failed → how it went on each level.
OUTCOMES: Final[dict[Level | None, tuple[Outcome, Outcome, Outcome]]] = {
    None: ("ok", "ok", "ok"),
    "model": ("ok", "ok", "fail"),
    "key": ("ok", "fail", "ignore"),
    "provider": ("fail", "ignore", "ignore"),
}
IGNORED: Final[tuple[Outcome, Outcome, Outcome]] = ("ignore", "ignore", "ignore")
#: Breakers of models that are kept at most: a further one takes the place of the one that was made first.
MODELS_MAX: Final = 1000
#: How much the newest call weighs in the moving average of latencies.
WEIGHT: Final = 0.2


#: Of a breaker: level, provider, key, model; empty above its level.
Name = tuple[Level, str, str, str]
#: Seconds by which another gateway's word must be later than what holds here, to be more than clocks that differ.
HEED_S: Final = 1.0


class Change(NamedTuple):
    """A breaker changed its phase. `key` and `model` are empty above their level; `until_s`: 0 unless it opens."""

    level: Level
    provider: str
    key: str
    model: str
    before: Phase
    after: Phase
    until_s: float
    reason: str


class State(msgspec.Struct, frozen=True, kw_only=True):
    """How one breaker stands; counts are the window's, seconds the clock's of the registry."""

    level: Level
    provider: str
    key: str
    model: str
    state: Phase = "closed"
    open_until_s: float = 0  #: 0 unless it is open
    calls: int = 0
    failures: int = 0
    slow: int = 0
    last_error: str = ""
    latency_s: float | None = None  #: of a model's level alone
    calls_total: int = 0  #: since it was made, as the next one
    failures_total: int = 0


class Pass(NamedTuple):
    """Leave on all levels for one call; `report` takes it back."""

    levels: _Levels
    provider: Permit
    key: Permit
    model: Permit


class Health:
    """All breakers, each made on first use. `told` hears of each change of phase once, outside of any lock."""

    def __init__(self, bounds: Bounds, now_s: Callable[[], float], told: Callable[[Change], None]) -> None:
        self.blocked: Callable[[Name, float], None] = lambda name, until_s: None  #: hears of each block, and until when
        self._bounds = bounds
        self._now_s = now_s
        self._told = told
        self._places: dict[Place, _Levels] = {}
        self._breakers: dict[Name, Breaker] = {}

    # ── for calls ──

    def admit(self, place: Place) -> Pass | None:
        """Leave for one call, or None: a level refuses, and what others gave is given back."""
        levels, now_s = self._levels(place), self._now_s()
        provider = levels.provider.admit(now_s)
        if provider is None:
            return None
        key = levels.key.admit(now_s)
        if key is None:
            levels.provider.report(provider, "ignore", now_s)
            return None
        model = levels.model.admit(now_s)
        if model is None:
            levels.provider.report(provider, "ignore", now_s)
            levels.key.report(key, "ignore", now_s)
            return None
        return Pass(levels, provider, key, model)

    def allows(self, place: Place) -> bool:
        """What `admit` would say; nothing is taken."""
        provider, key, model = self._levels(place).breakers
        now_s = self._now_s()
        return provider.allows(now_s) and key.allows(now_s) and model.allows(now_s)

    def force(self, place: Place) -> Pass:
        """Leave for one call whatever the breakers say, for when no place is left.

        Where a level refuses, the call tells it nothing: a forced call that goes well closes no breaker.
        """
        levels, now_s = self._levels(place), self._now_s()
        return Pass(levels, *(breaker.admit(now_s) or Permit(LATE) for breaker in levels.breakers))

    def report(
        self,
        pass_: Pass,
        *,
        failed: Level | None,
        ignore: bool = False,
        first_byte_s: float | None = None,
        reason: str = "",
    ) -> None:
        """How a call went: which level failed, or none; `ignore`: it says nothing about the place.

        `first_byte_s`: how long the first byte took. Only a call that went well counts in the latency.
        """
        levels, now_s = pass_.levels, self._now_s()
        provider, key, model = IGNORED if ignore else OUTCOMES[failed]
        slow_s = self._bounds.slow_s
        slow = slow_s is not None and first_byte_s is not None and first_byte_s >= slow_s
        if model == "ok" and first_byte_s is not None:
            before_s = levels.latency_s
            # two threads at once may lose one of their calls: an average bears it
            levels.latency_s = first_byte_s if before_s is None else before_s + WEIGHT * (first_byte_s - before_s)
        levels.provider.report(pass_.provider, provider, now_s, reason=reason)
        levels.key.report(pass_.key, key, now_s, reason=reason)
        levels.model.report(pass_.model, model, now_s, slow=slow, reason=reason)

    def block(self, place: Place, level: Level, until_s: float, reason: str) -> None:
        """A level of a place serves nobody until then: Retry-After, a key without quota. The later instant holds."""
        at = LEVELS.index(level)
        self._levels(place).breakers[at].block(until_s, self._now_s(), reason)
        provider, key, model = (*place[: at + 1], *("",) * (2 - at))
        self.blocked((level, provider, key, model), until_s)

    def heed(self, name: Name, until_s: float) -> None:
        """Another gateway was told that a place serves nobody until then: this one need not ask. It is not told on."""
        breaker = self._breaker(*name)
        if until_s > breaker.open_until_s + HEED_S:
            breaker.block(until_s, self._now_s(), "another gateway was told")

    # ── for who chooses or looks ──

    def open_until_s(self, place: Place) -> float:
        """When the last of its levels that are open may be tried again; 0 if none is open."""
        until_s = max(breaker.open_until_s for breaker in self._levels(place).breakers)
        return until_s if until_s > self._now_s() else 0.0

    def first_back(self, places: Iterable[Place]) -> Place:
        """The one that may be tried again first, the first of them where several may; raises ValueError if there is none."""
        return min(places, key=self.open_until_s)

    def latency_s(self, place: Place) -> float | None:
        """The moving average of the time to the first byte; None: no call went well yet. Asking makes no breakers."""
        levels = self._places.get(place)
        return None if levels is None else levels.latency_s

    def states(self) -> list[State]:
        """Of every breaker used so far: providers first, then keys, then models, each by name."""
        now_s = self._now_s()
        found = []
        breakers = sorted(self._breakers.copy().items(), key=lambda each: (LEVELS.index(each[0][0]), each[0]))
        for (level, provider, key, model), breaker in breakers:
            phase = breaker.phase(now_s)
            calls, failures, slow = breaker.counts(now_s)
            found.append(
                State(
                    level=level, provider=provider, key=key, model=model, state=phase,
                    open_until_s=breaker.open_until_s, calls=calls, failures=failures, slow=slow,
                    last_error=breaker.last_error,
                    latency_s=self.latency_s(Place(provider, key, model)),
                    calls_total=breaker.calls_total, failures_total=breaker.failures_total,
                )
            )  # fmt: skip
        return found

    def _levels(self, place: Place) -> _Levels:
        levels = self._places.get(place)
        if levels is None:
            provider, key, model = place
            levels = _Levels(
                self._breaker("provider", provider, "", ""),
                self._breaker("key", provider, key, ""),
                self._breaker("model", provider, key, model),
            )
            levels = self._places.setdefault(place, levels)  # another thread's, if it was first
        return levels

    def _breaker(self, level: Level, provider: str, key: str, model: str) -> Breaker:
        name = level, provider, key, model
        found = self._breakers.get(name)
        if found is None:
            if level == "model":
                self._make_room()
            found = self._breakers.setdefault(name, Breaker(self._bounds, partial(self._turned, name)))
        return found

    def _make_room(self) -> None:
        models = [name for name in self._breakers.copy() if name[0] == "model"]
        for name in models[: max(0, len(models) - MODELS_MAX + 1)]:
            self._breakers.pop(name, None)
            self._places.pop(Place(*name[1:]), None)

    def _turned(self, name: Name, turn: Turn) -> None:
        self._told(Change(*name, *turn))


class _Levels:
    """What one place has: breakers that it shares with others, and its latency."""

    __slots__ = ("breakers", "key", "latency_s", "model", "provider")

    def __init__(self, provider: Breaker, key: Breaker, model: Breaker) -> None:
        self.provider, self.key, self.model = provider, key, model
        self.breakers = provider, key, model  #: in the order of LEVELS
        self.latency_s: float | None = None
