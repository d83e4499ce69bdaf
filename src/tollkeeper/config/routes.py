"""Routes: model names of one's own, each resolved to the targets that it leads to.

    { provider, model }            one target
    { policy, to = [ … ] }         several: a target each, or `{ route }`, which takes in those of another name

What could never serve a call is refused: a name that leads back to itself, the same target twice, and a target that speaks
none of the first one's dialects.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from graphlib import CycleError, TopologicalSorter

from tollkeeper.config.settings import RouteTable, Settings, TargetTable
from tollkeeper.config.sources import Loc, Source, meaning, unknown
from tollkeeper.routing import Candidates
from tollkeeper.values import Provider, Route

Providers = Mapping[str, Provider]


def resolved(settings: Settings, source: Source, providers: Providers) -> dict[str, Candidates]:
    """Every name in [routes] with its targets, in configured order. Raises ConfigError for the first mistake."""
    listed = {name: _targets(name, table, source, providers) for name, table in settings.routes.items()}
    found: dict[str, Candidates] = {}
    for name in _inner_first(listed, source):
        routes: dict[str, Route] = {}
        for loc, target in listed[name]:
            for route in (target,) if isinstance(target, Route) else found[target].routes:
                shown = f"{route.provider.name}/{route.model}"
                if shown in routes:
                    raise source.error(loc, f"{shown} stands in it twice; the second is never reached")
                routes[shown] = route
                dialects = next(iter(routes.values())).provider.dialects
                if not dialects & route.provider.dialects:
                    spoken = ", ".join(sorted(dialects))
                    raise source.error(loc, f"{shown} speaks none of {spoken}: it could never stand in")
        found[name] = Candidates(tuple(routes.values()), settings.routes[name].policy)
    return {name: found[name] for name in settings.routes}


def check_leads(name: str, loc: Loc, source: Source, providers: Providers, names: Collection[str]) -> None:
    """Raises ConfigError unless a model's name is in [routes], or that of a configured provider and its model."""
    provider, slash, model = name.partition("/")
    if name in names or (slash and model and provider in providers):
        return
    near = unknown(provider, providers if slash else names)
    raise source.error(loc, f"expected a name in [routes], or 'provider/model'; {provider!r} {near}")


_Targets = list[tuple[Loc, Route | str]]


def _targets(name: str, table: RouteTable, source: Source, providers: Providers) -> _Targets:
    """What stands in one table, with where it stands: a route, or the name of another table."""
    loc: Loc = ("routes", name)
    if table.to is None:
        return [(loc, _route(table, loc, source, providers))]
    for field in ("provider", "model"):
        if getattr(table, field) is not None:
            raise source.error((*loc, field), "stands beside to; list it there")
    found: _Targets = []
    for number, target in enumerate(table.to):
        place = (*loc, "to", number)
        if "weight" in target.model_fields_set and (table.policy != "weighted" or target.route is not None):
            right = (
                'set policy = "weighted"' if target.route is None else f"the targets of {target.route!r} have their own"
            )
            raise source.error((*place, "weight"), f"has no meaning here; {right}, or remove it")
        if target.route is None:
            found.append((place, _route(target, place, source, providers)))
            continue
        for field in ("provider", "model"):
            if getattr(target, field) is not None:
                raise source.error((*place, field), "stands beside route; keep one of them")
        found.append((place, target.route))
    return found


def _route(table: RouteTable | TargetTable, loc: Loc, source: Source, providers: Providers) -> Route:
    if table.provider is None or table.model is None:
        missing = (*loc, "provider" if table.provider is None else "model")
        raise source.error(missing, f"is required: {meaning(missing)}")
    provider = providers.get(table.provider)
    if provider is None:
        raise source.error((*loc, "provider"), f"{table.provider!r} {unknown(table.provider, providers)}")
    return Route(provider, table.model, weight=table.weight if isinstance(table, TargetTable) else 1)


def _inner_first(listed: Mapping[str, _Targets], source: Source) -> list[str]:
    """The names in an order in which each follows those that it takes in. Raises ConfigError for a cycle or an unknown name."""
    taken: dict[str, list[str]] = {}
    for name, targets in listed.items():
        taken[name] = []
        for loc, target in targets:
            if isinstance(target, str):
                if target not in listed:
                    raise source.error((*loc, "route"), f"{target!r} {unknown(target, listed)}")
                taken[name].append(target)
    try:
        return list(TopologicalSorter(taken).static_order())
    except CycleError as error:
        names = list(reversed(error.args[1]))
        raise source.error(("routes", names[0], "to"), f"leads back to itself: {' → '.join(names)}") from None
