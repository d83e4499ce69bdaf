"""tollkeeper.prices.file: entries from TOML and from plain tables, and one line per mistake."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from tollkeeper.errors import ConfigError
from tollkeeper.prices.file import KINDS, entries, parse, read, shipped
from tollkeeper.prices.windows import Window
from tollkeeper.values import MAX_TOKENS

GOOD = """
[[price]]
provider = "openai"
models = ["My-Model", "alias"]
key = "ci"
route = "Smart"
from = 2026-01-01
until = 2026-02-01T12:00:00+02:00
windows = [{days = "sat-sun", tz = "Asia/Shanghai"}, {from = "16:30", to = "00:30"}]
input = "2.50"
output = 10
cache_read = "0.250"
web_search = "10"
request = "0.001"
multiplier = "1.10"
token_multiplier = "0.5"
tiers = [{above = 200000, input = "4", output = "12"}, {from_tokens = 100000, input = "3"}]
service_tier = "PRIORITY"
geo = "us"
"""
PRICED = '[[price]]\nmodel = "m"\n'


def test_reads_every_field() -> None:
    """Prices become steps per kind: `above` is exclusive, `from_tokens` inclusive; fees are per thousand requests."""
    (entry,) = parse(GOOD)
    assert entry.models == ("my-model", "alias")
    assert (entry.provider, entry.key, entry.route) == ("openai", "ci", "smart")
    assert (entry.from_us, entry.until_us) == (1_767_225_600_000_000, 1_769_940_000_000_000)
    assert entry.windows == (Window(days=(5, 6), zone="Asia/Shanghai"), Window(start=990, end=30))
    assert entry.context == (("geo", "us"), ("service_tier", "priority"))
    assert (entry.multiplier, entry.token_multiplier) == (Decimal("1.1"), Decimal("0.5"))
    assert dict(entry.prices) == {
        "input": ((0, Decimal("2.5")), (100_000, Decimal(3)), (200_001, Decimal(4))),
        "output": ((0, Decimal(10)), (200_001, Decimal(12))),
        "cache_read": ((0, Decimal("0.25")),),
        "web_search": ((0, Decimal(10)),),
        "requests": ((0, Decimal(1)),),
    }


def test_three_lines_price_a_model() -> None:
    """A model name, an input and an output price are enough, at 0 too; no entries are no overrides."""
    (entry,) = parse('[[price]]\nmodel = "llama3:8b"\ninput = "0"\noutput = "0"')
    assert entry.models == ("llama3:8b",)
    assert dict(entry.prices) == {"input": ((0, Decimal(0)),), "output": ((0, Decimal(0)),)}
    assert parse("") == ()


def test_three_lines_make_a_model_free() -> None:
    """A5: the head, a name and `free` price every kind at 0, however it was served."""
    (entry,) = parse('[[price]]\nmodel = "llama3:8b"\nfree = true')
    assert entry.free
    assert entry.whole
    assert {kind for kind, _ in entry.prices} == set(KINDS) - {"reasoning"}
    assert {usd for _, price in entry.prices for _, usd in price} == {0}


def test_a_route_needs_no_model() -> None:
    """An entry for what a client asks for is for whatever serves it; "*" is for every model that has a price."""
    route, every = parse('[[price]]\nroute = "smart"\ninput = 1\n[[price]]\nprovider = "p"\nmodels = ["*"]\ninput = 1')
    assert (route.models, route.whole) == ((), True)
    assert (every.models, every.every, every.whole) == (("*",), True, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("input = 2.50", 'prices: price 1 (m): input: 2.50 is a float; money is exact, quote it: input = "2.50"'),
        ("input = nan", 'prices: price 1 (m): input: nan is a float; money is exact, quote it: input = "nan"'),
        ('input = "-1"', "prices: price 1 (m): input: '-1' is negative; expected 0 or more"),
        ("output = -1", "prices: price 1 (m): output: -1 is negative; expected 0 or more"),
        ("request = true", 'prices: price 1 (m): request: True is not an amount; expected for example "2.50"'),
        ('input = "1e400"', "prices: price 1 (m): input: '1e400' is not an amount; expected for example \"2.50\""),
        ('input = "NaN"', "prices: price 1 (m): input: 'NaN' is not an amount; expected for example \"2.50\""),
        ('input = "1,5"', "prices: price 1 (m): input: '1,5' is not an amount; expected for example \"2.50\""),
        ('input = "٣"', "prices: price 1 (m): input: '٣' is not an amount; expected for example \"2.50\""),
        ("input = 10001", "prices: price 1 (m): input: 10001 is above 10000, the most that is taken for an amount"),
        (
            "multiplier = 1001",
            "prices: price 1 (m): multiplier: 1001 is above 1000, the most that is taken for an amount",
        ),
        ('inptu = "1"', "prices: price 1 (m): inptu: unknown field; did you mean input?"),
        ('models = ["x"]\ninput = 1', 'prices: price 1 (m): model: expected model = "name", or models = ["name", …]'),
        (
            'from = "soon"\ninput = 1',
            "prices: price 1 (m): from: expected a UTC day such as 2026-01-31, or a time with its ",
        ),
        (
            "until = 2026-01-01T00:00:00\ninput = 1",
            "or a time with its zone such as 2026-01-31T12:00:00Z, got '2026-01-01 00",
        ),
        ("from = 1.5\ninput = 1", "from: expected a UTC day"),
        ("from = 2026-01-02\nuntil = 2026-01-02\ninput = 1", "until: is not after from, so the entry never counts"),
        ("key = 7\ninput = 1", "prices: price 1 (m): key: expected a name in quotes, got 7"),
        ('route = ""\ninput = 1', "prices: price 1 (m): route: expected a name in quotes, got ''"),
        ("free = false", "free: expected true, got False; leave it out where the model has a price"),
        ('free = "yes"', "free: expected true, got 'yes'"),
        ("free = true\ninput = 1\ntiers = []", "prices: price 1 (m): free: stands alone; remove input, tiers"),
        ("token_multiplier = 1001", "token_multiplier: 1001 is above 1000, the most that is taken for an amount"),
        ("windows = []\ninput = 1", 'windows: expected [{days = "sat-sun"}], or with from = "16:30" and to = "00:30"'),
        ('windows = "sat"\ninput = 1', 'windows: expected [{days = "sat-sun"}]'),
        ('windows = [{tz = "UTC"}]\ninput = 1', 'windows: expected [{days = "sat-sun"}]'),
        ('windows = [{days = "sat", dys = 1}]\ninput = 1', "windows: dys: unknown field; did you mean days?"),
        (
            'windows = [{days = "sat-son"}]\ninput = 1',
            'windows: days: expected days such as "sat-sun" or "mon,wed", got',
        ),
        (
            'windows = [{from = "24:00", to = "01:00"}]\ninput = 1',
            'windows: from: expected a time such as "16:30", got \'24',
        ),
        ('windows = [{from = "16:30"}]\ninput = 1', 'windows: to: expected a time such as "16:30", got None'),
        ('windows = [{from = "16:30", to = "16:30"}]\ninput = 1', "from and to are the same time; leave both out"),
        ('windows = [{days = "sat", tz = "Asia/Shangai"}]\ninput = 1', "no time zone; did you mean Asia/Shanghai?"),
        (
            'windows = [{days = "sat", tz = "?"}]\ninput = 1',
            "tz: '?' is no time zone; expected a name such as 'Asia/Sh",
        ),
        ("provider = 7\ninput = 1", "prices: price 1 (m): provider: expected a name in quotes, got 7"),
        ('service_tier = ""\ninput = 1', "prices: price 1 (m): service_tier: expected a name in quotes, got ''"),
        (
            "tiers = 5\ninput = 1",
            'tiers: expected [{above = 200000, input = "4"}], or from_tokens for an inclusive bound',
        ),
        ('tiers = [{above = "1", input = 1}]\ninput = 1', "tiers: expected [{above = 200000"),
        ("tiers = [{above = 1, from_tokens = 2, input = 1}]\ninput = 1", "tiers: expected [{above = 200000"),
        (f"tiers = [{{above = {MAX_TOKENS + 1}, input = 1}}]\ninput = 1", "tiers: expected [{above = 200000"),
        ("tiers = [{above = 1, inputs = 1}]\ninput = 1", "prices: price 1 (m): tiers: inputs: not a kind of usage"),
        ("tiers = [{above = 1, output = 1}]\ninput = 1", "output has a price in a tier and none below it; add output"),
        (
            "tiers = [{above = 1, input = 1}, {from_tokens = 2, input = 1}]\ninput = 1",
            "two tiers start at the same prompt",
        ),
        (
            "tiers = [{above = 1, input = 1.5}]\ninput = 1",
            'input: 1.5 is a float; money is exact, quote it: input = "1.5"',
        ),
        (
            "",
            'prices: price 1 (m): input: no price; write for example input = "2.50" and output = "10", or free = true',
        ),
        (
            'input = 1\n[[price]]\nmodels = ["n", "M"]\ninput = 2',
            "prices: price 2: model: 'm' already has a price of this scope",
        ),
    ],
)
def test_each_mistake_is_one_line(text: str, expected: str) -> None:
    """A5, I2: a mistake names file, entry, field and what would be right, in one line; nothing negative is taken."""
    with pytest.raises(ConfigError) as caught:
        parse(PRICED + text)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("prices: price ")
    assert expected in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[price]", "prices: not TOML: "),
        ("price = 1", "prices: price: expected entries that start with [[price]]"),
        ("price = [1]", "prices: price: expected entries that start with [[price]]"),
        ("[prices]", "prices: prices: unknown; prices stand in [[price]]"),
        ("[[price]]\ninput = 1", 'prices: price 1: model: expected model = "name", or models = ["name", …]'),
        ("[[price]]\nmodels = []\ninput = 1", 'prices: price 1: model: expected model = "name"'),
        (
            '[[price]]\nmodel = ""\ninput = 1',
            "prices: price 1 (): model: expected names of 1 to 256 characters in quotes",
        ),
        ("[[price]]\nmodel = 4.5\ninput = 1", "model: expected names of 1 to 256 characters in quotes"),
        ("[[price]]\nmodels = 4\ninput = 1", 'model: expected model = "name", or models = ["name", …]'),
        ('[[price]]\nkey = "k"\ninput = 1', 'prices: price 1: model: expected model = "name", or models = ["name", …]'),
        ('[[price]]\nmodels = ["*"]\ninput = 1', 'models: "*" needs a provider, a key or a route beside it'),
        ('[[price]]\nprovider = "p"\nmodels = ["*", "m"]\ninput = 1', '"*" is every model; remove it, or the names'),
        (
            '[[price]]\nprovider = "p"\nmodels = ["*"]\nfree = true',
            'free: needs the names of the models; "*" prices none',
        ),
    ],
)
def test_what_is_no_price_file_is_told(text: str, expected: str) -> None:
    """I2: broken TOML, other tables and nameless entries are one line too."""
    with pytest.raises(ConfigError) as caught:
        parse(text)
    (line,) = str(caught.value).splitlines()
    assert expected in line


def test_all_mistakes_at_once() -> None:
    """Three mistakes are three lines."""
    with pytest.raises(ConfigError) as caught:
        parse('[[price]]\nmodel = "a"\ninput = 1.5\noutput = "-2"\n[[price]]\nmodel = "b"\ninputs = "1"')
    assert len(str(caught.value).splitlines()) == 3


def test_read_names_the_file(tmp_path: Path) -> None:
    """A file that is absent or wrong is named."""
    path = tmp_path / "prices.toml"
    with pytest.raises(ConfigError, match=r"prices\.toml: cannot read the price file: No such file or directory$"):
        read(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"prices\.toml: is not UTF-8 text"):
        read(path)
    path.write_text('[[price]]\nmodel = "m"\ninput = "-1"')
    with pytest.raises(ConfigError, match=r"prices\.toml: price 1 \(m\): input"):
        read(path)
    path.write_text(GOOD)
    assert read(path) == parse(GOOD)


def test_tables_are_entries_too() -> None:
    """What a program or the settings hand over as plain tables is checked like a file, with days and prices as text."""
    table = {"model": "m", "input": "2.50", "from": "2026-01-01", "until": "2026-02-01T12:00:00+02:00"}
    written = parse(PRICED + 'input = "2.50"\nfrom = 2026-01-01\nuntil = 2026-02-01T12:00:00+02:00')
    assert entries([table]) == written
    with pytest.raises(ConfigError) as caught:
        entries([{"model": "m", "input": 2.5}, {"model": "n", "ouput": "1"}], "settings: prices")
    assert str(caught.value).splitlines() == [
        'settings: prices: price 1 (m): input: 2.5 is a float; money is exact, quote it: input = "2.5"',
        "settings: prices: price 2 (n): ouput: unknown field; did you mean output?",
    ]


def test_shipped_entries_are_good() -> None:
    """The data that come with the package pass the same checks, name a provider each, and are read once."""
    assert shipped() is shipped()
    assert all(entry.provider is not None and entry.key is entry.route is None for entry in shipped())


def test_every_kind_can_be_priced() -> None:
    """Each usage kind, reasoning too, is a field of the file."""
    (entry,) = parse(PRICED + "".join(f"{kind} = 1\n" for kind in KINDS))
    assert [kind for kind, _ in entry.prices] == list(KINDS)
