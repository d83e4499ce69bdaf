"""tollkeeper.prices.file: overrides from TOML, and one line per mistake."""

from __future__ import annotations

from decimal import Decimal, localcontext
from pathlib import Path

import pytest

from tollkeeper.errors import ConfigError
from tollkeeper.prices.file import KINDS, fingerprint, in_force, parse, read
from tollkeeper.values import MAX_TOKENS

GOOD = """
[[price]]
provider = "openai"
models = ["My-Model", "alias"]
from = 2026-01-01
input = "2.50"
output = 10
cache_read = "0.250"
web_search = "10"
request = "0.001"
multiplier = "1.10"
tiers = [{above = 200000, input = "4", output = "12"}, {from_tokens = 100000, input = "3"}]
service_tier = "PRIORITY"
geo = "us"
"""
PRICED = '[[price]]\nmodel = "m"\n'


def test_reads_every_field() -> None:
    """Prices become steps per kind: `above` is exclusive, `from_tokens` inclusive; fees are per thousand requests."""
    (entry,) = parse(GOOD)
    assert entry.models == ("my-model", "alias")
    assert (entry.provider, entry.from_us) == ("openai", 1_767_225_600_000_000)
    assert entry.context == (("geo", "us"), ("service_tier", "priority"))
    assert entry.multiplier == Decimal("1.1")
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
        ('from = "2026-01-01"\ninput = 1', "from: expected a day such as 2026-01-01 without quotes, got '2026-01-01'"),
        ("from = 2026-01-01T00:00:00Z\ninput = 1", "from: expected a day such as 2026-01-01 without quotes"),
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
        ("", 'prices: price 1 (m): input: no price; write for example input = "2.50" and output = "10"'),
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
    with pytest.raises(ConfigError, match=r"prices\.toml: cannot read the price file"):
        read(path)
    path.write_text('[[price]]\nmodel = "m"\ninput = "-1"')
    with pytest.raises(ConfigError, match=r"prices\.toml: price 1 \(m\): input"):
        read(path)
    path.write_text(GOOD)
    assert read(path) == parse(GOOD)


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
    head = '[[price]]\nmodel = "m"\n'
    old, new, later, tier, mine = parse(
        f"{head}input = 1\n{head}input = 2\nfrom = 2026-01-01\n{head}input = 3\nfrom = 2027-01-01\n"
        f'{head}input = 4\nservice_tier = "flex"\n{head}input = 5\nprovider = "p"\n'
    )
    at_us = 1_780_000_000_000_000
    assert in_force([(True, entry) for entry in (later, tier, new, mine, old)], at_us) == [new, mine, tier]
    assert in_force([(True, old), (False, new)], at_us) == [new, old]


def test_every_kind_can_be_priced() -> None:
    """Each usage kind, reasoning too, is a field of the file."""
    (entry,) = parse(PRICED + "".join(f"{kind} = 1\n" for kind in KINDS))
    assert [kind for kind, _ in entry.prices] == list(KINDS)
