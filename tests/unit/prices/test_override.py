"""tollkeeper.prices.override: what an entry does to the prices below it, and which of several count."""

from __future__ import annotations

from decimal import Decimal, localcontext

from tollkeeper.prices.file import parse
from tollkeeper.prices.override import fingerprint, in_force

HEAD = '[[price]]\nmodel = "m"\n'
AT_US = 1_780_000_000_000_000  # a Thursday, 20:26 UTC


def test_fingerprint_is_of_the_prices() -> None:
    """A8: order, spelling and the ambient decimal context change nothing; any price, name, day or tier does."""
    a, b = '[[price]]\nmodel = "a"\ninput = "2.50"\n', '[[price]]\nmodel = "b"\ninput = "1"\n'
    first = fingerprint(parse(a + b))
    with localcontext(prec=1, capitals=0):
        assert fingerprint(parse(b + a.replace("2.50", "2.5"))) == first
    assert len(first) == 12
    changed = [
        a.replace("2.50", "2.51"),
        a.replace('"a"', '"c"'),
        a + "from = 2026-01-01\n",
        a + 'service_tier = "flex"\n',
    ]
    changed += [a + "multiplier = 1\n", a + 'provider = "x"\n', a + "request = 0\n", a + 'geo = "us"\n']
    changed += [a + 'key = "k"\n', a + 'route = "r"\n', a + "until = 2026-01-01\n", a + "token_multiplier = 1\n"]
    changed += [a + 'windows = [{days = "sat"}]\n', a + 'windows = [{days = "sat", tz = "Asia/Tokyo"}]\n']
    assert len({first, *(fingerprint(parse(entry + b)) for entry in changed)}) == len(changed) + 1


def test_whole_lists_replace_and_changes_add() -> None:
    """An entry with input or output replaces the list below; one with neither changes what it names, and multiplies."""
    below = {"input": ((0, Decimal(2)),), "cache_read": ((0, Decimal(1)),)}
    whole, change, factor = parse(
        '[[price]]\nmodel = "a"\ninput = 3\n[[price]]\nmodel = "b"\nweb_search = 10\n[[price]]\nmodel = "c"\nmultiplier = "1.1"'
    )
    assert whole.over(below) == {"input": ((0, Decimal(3)),)}
    assert change.over(below) == {**below, "web_search": ((0, Decimal(10)),)}
    assert factor.over(below) == {"input": ((0, Decimal("2.2")),), "cache_read": ((0, Decimal("1.1")),)}


def test_newest_of_a_scope_general_scopes_first() -> None:
    """Of one scope the newest started one counts; scopes are applied from general to special."""
    old, new, later, tier, mine = parse(
        f"{HEAD}input = 1\n{HEAD}input = 2\nfrom = 2026-01-01\n{HEAD}input = 3\nfrom = 2027-01-01\n"
        f'{HEAD}input = 4\nservice_tier = "flex"\n{HEAD}input = 5\nprovider = "p"\n'
    )
    assert in_force([(2, entry) for entry in (later, tier, new, mine, old)], AT_US) == [new, mine, tier]
    assert in_force([(2, old), (1, new)], AT_US) == [new, old]


def test_layers_have_names_of_their_own() -> None:
    """A8: an entry that moves from one layer to another makes another version; so does the order of windows."""
    (entry,) = parse(f"{HEAD}input = 1")
    assert fingerprint((entry,), ()) != fingerprint((), (entry,))
    one, two = parse(
        f'{HEAD}input = 1\nwindows = [{{days = "sat"}}]\n{HEAD}input = 2\nwindows = [{{days = "sat-sun"}}]'
    )
    assert fingerprint((one, two)) != fingerprint((two, one))


def test_an_entry_ends() -> None:
    """`until` is the first instant at which an entry does not count: then the one before it does again."""
    base, sale = parse(f"{HEAD}input = 2\n{HEAD}input = 1\nfrom = 2026-05-01\nuntil = 2026-05-02")
    found = [
        in_force([(2, base), (2, sale)], at) for at in (sale.start_us - 1, sale.start_us, sale.end_us - 1, sale.end_us)
    ]
    assert found == [[base], [sale], [sale], [base]]


def test_windows_build_on_what_always_holds() -> None:
    """A4: with windows an entry is more special than without; of several the first open one counts, of the newest date."""
    always, weekend, evening, night = parse(
        f"{HEAD}input = 8\n"
        f'{HEAD}multiplier = "0.1"\nwindows = [{{days = "sat-sun"}}]\n'
        f'{HEAD}multiplier = "0.5"\nwindows = [{{from = "20:00", to = "23:00"}}]\n'
        f'{HEAD}multiplier = "0.7"\nwindows = [{{from = "20:00", to = "06:00"}}]\n'
    )
    entries = [(2, entry) for entry in (always, weekend, evening, night)]
    assert in_force(entries, AT_US) == [always, evening]
    assert in_force(entries, AT_US + 4 * 3_600_000_000) == [always, night]
    (newer,) = parse(f'{HEAD}input = 1\nfrom = 2026-05-01\nwindows = [{{days = "mon"}}]')
    assert in_force([*entries, (2, newer)], AT_US) == [always]


def test_by_key_over_by_route_over_by_model() -> None:
    """The order of scopes: any model, a model, its exact name; then by route, then by key."""
    every, model, exact, route, key = parse(
        '[[price]]\nmodels = ["*"]\nprovider = "p"\ninput = 1\n'
        f'{HEAD}input = 2\n[[price]]\nmodel = "m-2026-01-01"\ninput = 3\n'
        '[[price]]\nroute = "r"\ninput = 4\n[[price]]\nmodels = ["*"]\nkey = "k"\ninput = 5'
    )
    entries = [(0, key), (0, route), (2, exact), (1, model), (0, every)]
    assert in_force(entries, AT_US) == [every, model, exact, route, key]


def test_every_model_is_changed_and_none_is_made() -> None:
    """An entry for "*" changes what it names and multiplies the rest; over no price at all it is nothing."""
    (entry,) = parse('[[price]]\nmodels = ["*"]\nprovider = "p"\ninput = 1\nmultiplier = "0.5"')
    assert entry.over({"output": ((0, Decimal(4)),)}) == {"output": ((0, Decimal(2)),), "input": ((0, Decimal("0.5")),)}
    assert entry.over({}) == {}


def test_tokens_alone_can_be_multiplied() -> None:
    """A premium on tokens leaves searches, hours, containers and fees as they are."""
    below = {kind: ((0, Decimal(10)),) for kind in ("input", "output", "web_search", "audio_seconds", "requests")}
    (entry,) = parse(f'{HEAD}token_multiplier = "1.1"')
    assert {kind: str(price[0][1]) for kind, price in entry.over(below).items()} == {
        "input": "11", "output": "11", "web_search": "10", "audio_seconds": "10", "requests": "10",
    }  # fmt: skip
