"""Where a call may go. Pure.

A model's name is looked up in this order, and the first rule that knows it decides:

    1. a name in [routes]                    my-model        → its routes and their policy as configured
    2. "<provider>/<model>"                  groq/llama-3    → that provider, if one of this name is configured
    3. the provider that owns the model      claude-opus-4   → anthropic, if configured (the price data say who owns it)
    4. the only provider of this dialect     anything        → that provider, under the name as it came

A name is split at its first "/" only, and only behind a configured provider: `llama3:8b` and `vendor/model:free` stay
whole. A route must speak the caller's dialect, and stands once for each credential of its provider. `ordered` says which is
tried first. The second half of the module says which base URLs a provider may have: nothing that a client sends has a part
in an outbound URL.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import groupby
from typing import Final, Literal
from urllib.parse import SplitResult, urlsplit

import msgspec
from msgspec import structs

from tollkeeper.errors import BadRequest, NotAllowed, UnknownModel
from tollkeeper.values import MAX_MODEL, Provider, Route

Policy = Literal["order", "weighted", "cheapest", "fastest"]

_CACHED: Final = 1024
_SHOWN: Final = 12


def check_allowed(models: Iterable[str], allowed_models: frozenset[str] | None) -> None:
    """Raises NotAllowed for the first model that is not among those that a key may use; None: it may use any."""
    for model in models:
        if allowed_models is not None and model not in allowed_models:
            raise NotAllowed(f"This key may not use model {_shown(model)}; it may use {_listed(allowed_models)}.")


class Candidates(msgspec.Struct, frozen=True):
    """Where a call may go, as configured, and by what the order is decided. The credentials of one target are neighbours."""

    routes: tuple[Route, ...]
    policy: Policy = "order"
    targets: tuple[tuple[Route, ...], ...] = ()  #: the routes by provider and model, found by itself

    def __post_init__(self) -> None:
        structs.force_setattr(self, "targets", _targets(self.routes))


def ordered(
    candidates: Candidates,
    *,
    draw: Callable[[], float],
    turn: int,
    cost: Callable[[Route], int | None],
    latency: Callable[[Route], float | None],
) -> list[Route]:
    """The routes as they are to be tried, once each.

    `order` as configured; `weighted` drawn without replacement; `cheapest` by cost, unknown last; `fastest` by latency,
    not measured yet first; ties as configured. `draw` gives numbers from 0 up to 1. A target's credentials stay
    together, and another one begins each `turn`.
    """
    if len(candidates.routes) == 1:
        return [candidates.routes[0]]
    targets = [_turned(routes, turn) for routes in candidates.targets]
    match candidates.policy:
        case "weighted":
            targets = _drawn(targets, draw)
        case "cheapest":
            targets.sort(key=lambda routes: _ranked(cost(routes[0]), unknown_first=False))
        case "fastest":
            targets.sort(key=lambda routes: _ranked(latency(routes[0]), unknown_first=True))
    return [route for routes in targets for route in routes]


def _targets(routes: Iterable[Route]) -> tuple[tuple[Route, ...], ...]:
    """What differs in its credential alone stays together."""
    return tuple(tuple(same) for _, same in groupby(routes, lambda route: (id(route.provider), route.model)))


def _turned(routes: tuple[Route, ...], turn: int) -> tuple[Route, ...]:
    if len(routes) == 1:
        return routes
    first = turn % len(routes)
    return routes[first:] + routes[:first]


def _ranked(value: float | None, *, unknown_first: bool) -> tuple[bool, float]:
    """A sort key: small values first."""
    return (value is None) != unknown_first, 0 if value is None else value


def _drawn(targets: list[tuple[Route, ...]], draw: Callable[[], float]) -> list[tuple[Route, ...]]:
    """The targets in an order drawn by their weights: each place goes to one that is left, by its share of what is left."""
    left, drawn = list(targets), []
    while len(left) > 1:
        at = draw() * sum(routes[0].weight for routes in left)
        chosen = 0
        while chosen < len(left) - 1 and at >= left[chosen][0].weight:
            at -= left[chosen][0].weight
            chosen += 1
        drawn.append(left.pop(chosen))
    return drawn + left


class Table:
    """Model names → routes, over the configured providers.

    `routes` has each target once, without a credential.

    `owner` names the configured provider that owns a model by the price data, None where it knows none.
    """

    def __init__(
        self,
        providers: Mapping[str, Provider],
        routes: Mapping[str, Candidates],
        owner: Callable[[str], str | None],
    ) -> None:
        self._providers = dict(providers)
        self._routes = dict(routes)
        self._owner = owner
        self._found: dict[tuple[str, str], Candidates] = {}  # bounded: clients choose the names

    def candidates(
        self, model: str, dialect: str, allowed_models: frozenset[str] | None = None
    ) -> Candidates:  # fmt: skip
        """The routes for a model in a dialect as configured, each once for each credential of its provider; never none.

        Raises NotAllowed where the key's list does not name the model just as it was asked for, UnknownModel where no
        route leads there, BadRequest for a name of more than MAX_MODEL characters.
        """
        check_allowed((model,), allowed_models)
        found = self._found.get((model, dialect))
        if found is None:
            found = self._find(model, dialect)
            if len(self._found) >= _CACHED:
                self._found.clear()
            self._found[model, dialect] = found
        return found

    def models(
        self, allowed_models: frozenset[str] | None = None, catalogue: Mapping[str, Iterable[str]] | None = None
    ) -> tuple[str, ...]:
        """Names that a client can ask for, sorted: the configured ones, and "<provider>/<model>" for the models that
        `catalogue` (provider name → its models) knows of configured providers. A key's own list is taken as it is.
        """
        if allowed_models is not None:
            return tuple(sorted(allowed_models))
        names = set(self._routes)
        for provider, models in (catalogue or {}).items():
            if provider in self._providers:
                names.update(f"{provider}/{model}" for model in models)
        return tuple(sorted(names))

    @property
    def providers(self) -> tuple[Provider, ...]:
        """Those that are configured."""
        return tuple(self._providers.values())

    def has(self, provider: str, key: str) -> bool:
        """Whether a provider is configured, and with a credential of this name; "": with any."""
        found = self._providers.get(provider)
        return found is not None and (not key or any(each.name == key for each in found.credentials))

    def targets(self, names: Iterable[str]) -> set[tuple[str, str]]:
        """(provider, its name of the model) of all that names may lead to, in any dialect."""
        found: set[tuple[str, str]] = set()
        for name in names:
            provider, _, rest = name.partition("/")
            if rest and provider in self._providers and name not in self._routes:  # most of a catalogue's thousands
                found.add((provider, rest))
                continue
            named = self._named(name)
            routes = [Route(each, name) for each in self.providers] if named is None else named.routes
            found.update((route.provider.name, route.model) for route in routes)
        return found

    def _named(self, model: str) -> Candidates | None:
        return self._routes.get(model) or self._prefixed(model) or self._owned(model)

    def _find(self, model: str, dialect: str) -> Candidates:
        if not model or len(model) > MAX_MODEL:
            raise BadRequest(f"model: expected a name of 1 to {MAX_MODEL} characters.")
        named = self._named(model)
        if named is not None:
            speaking = [route for route in named.routes if dialect in route.provider.dialects]
            if speaking:
                return Candidates(_with_credentials(speaking), named.policy)
            spoken = sorted({spoken for route in named.routes for spoken in route.provider.dialects})
            names = _listed({route.provider.name for route in named.routes})
            raise UnknownModel(
                f"Model {_shown(model)} goes to {names}, which does not speak {dialect} but {_listed(spoken)}."
            )
        speakers = [provider for provider in self._providers.values() if dialect in provider.dialects]
        if len(speakers) == 1:
            return Candidates(_with_credentials([Route(speakers[0], model)]))
        raise UnknownModel(self._unknown(model, dialect, speakers))

    def _prefixed(self, model: str) -> Candidates | None:
        name, slash, rest = model.partition("/")
        provider = self._providers.get(name) if slash and rest else None
        return None if provider is None else Candidates((Route(provider, rest),))

    def _owned(self, model: str) -> Candidates | None:
        name = self._owner(model)
        provider = None if name is None else self._providers.get(name)
        return None if provider is None else Candidates((Route(provider, model),))

    def _unknown(self, model: str, dialect: str, speakers: list[Provider]) -> str:
        head = f"No route leads to model {_shown(model)} in {dialect}"
        if not self._providers:
            return f"{head}: no provider is configured; set a key variable such as OPENAI_API_KEY, or add [providers]."
        if not speakers:
            return f"{head}: no configured provider ({_listed(self._providers)}) speaks it."
        first = speakers[0].name
        names = f", or one of the configured names {_listed(self._routes)}" if self._routes else ""
        return (
            f"{head}: ask for 'provider/model', such as {_shown(f'{first}/{model}')}, with one of the providers "
            f"{_listed(provider.name for provider in speakers)}{names}."
        )


def _with_credentials(routes: Iterable[Route]) -> tuple[Route, ...]:
    """Each route once for each credential of its provider; as it is where that needs none."""
    return tuple(
        Route(route.provider, route.model, credential, route.weight)
        for route in routes
        for credential in route.provider.credentials or (None,)
    )


def _shown(model: str) -> str:
    return repr(_clipped(model))


def _clipped(text: str) -> str:
    return text if len(text) <= 64 else text[:61] + "..."


def _listed(names: Iterable[str]) -> str:
    """At most a dozen names in order, then how many more."""
    known = sorted(names)
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return (", ".join(map(_clipped, known[:_SHOWN])) or "none") + more


# ---- where a provider may live --------------------------------------------------------------------------------------

_METADATA_NAMES: Final = frozenset({"metadata.google.internal", "metadata.goog", "metadata"})
_METADATA_ADDRESSES: Final = frozenset({
    "fd00:ec2::254",  # AWS
    "fd20:ce::254",  # Google Cloud
    "100.100.100.200",  # Alibaba Cloud
})  # fmt: skip


def check_base_url(url: str, *, insecure: bool = False, allow_hosts: Collection[str] = ()) -> str:
    """A provider's base URL without its last "/".

    Raises ValueError saying what would be right; the text never repeats the URL, which may hold a password by mistake.
    """
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ValueError("expected a URL like 'https://api.example.com/v1' in plain characters")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is not a URL; expected one like 'https://api.example.com/v1'") from None
    if not host or parts.scheme not in ("https", "http"):
        raise ValueError("is not a web address; expected a URL like 'https://api.example.com/v1'")
    if "@" in parts.netloc:
        raise ValueError("holds a user name or password; give the secret by api_key_env or api_key_file")
    if "?" in url or "#" in url:
        raise ValueError("has a query or a fragment; a base URL ends with its path")
    if port == 0:
        raise ValueError("has port 0; expected a port from 1 to 65535")
    _check_host(host, allow_hosts)
    if parts.scheme == "http" and not insecure and not is_loopback(host):
        raise ValueError(f"sends the key to {host} in the clear; use https, or set insecure = true on this provider")
    return _without_slash(parts)


def _without_slash(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")


def _check_host(host: str, allow_hosts: Collection[str]) -> None:
    if host in map(str.lower, allow_hosts):
        return
    if host.rstrip(".").rpartition(".")[2][:1].isdigit() and _address(host) is None:
        raise ValueError("has a number for a host that is no address in its usual form, such as '192.0.2.1'")
    if is_metadata(host):
        raise ValueError(
            f"leads to {host}, a link-local or cloud metadata address; if it is meant, list it in allow_hosts"
        )


def is_metadata(host: str) -> bool:
    """Whether a host name or address is link-local or a cloud's metadata service: no request may go there."""
    name = host.rstrip(".").lower()
    if name in _METADATA_NAMES:
        return True
    address = _address(name)
    return address is not None and (address.is_link_local or str(address) in _METADATA_ADDRESSES)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own loopback."""
    name = host.rstrip(".").lower()
    if name == "localhost":
        return True
    address = _address(name)
    return address is not None and address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is, an IPv4 one taken out of the IPv6 forms that carry it."""
    try:
        address = ipaddress.ip_address(host.rstrip(".").partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
