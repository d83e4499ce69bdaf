"""Configuration: what is said together, and one line for each mistake."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tollkeeper.config import Config, check_listen, load
from tollkeeper.errors import ConfigError
from tollkeeper.prices.file import entries
from tollkeeper.values import Budget, Credential

HASH = "sha256:" + "ab" * 32
OTHER_HASH = "sha256:" + "cd" * 32
LOCAL = '[providers.local]\nbase_url = "http://127.0.0.1:9/v1"\ndialects = ["openai-chat"]\n'


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def loaded(text: str, **environ: str) -> Config:
    Path("t.toml").write_text(text, "utf-8")
    return load(Path("t.toml"), environ)


def complaint(text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(text, **environ)
    return str(caught.value)


def budget(**fields: str) -> str:
    return "[[budgets]]\n" + "\n".join(f"{name} = {value}" for name, value in fields.items())


def key(**fields: str) -> str:
    given = {"id": '"k"', "hash": f'"{HASH}"', "project": '"p"'} | fields
    return "[[keys]]\n" + "\n".join(f"{name} = {value}" for name, value in given.items()) + "\n"


def provider(**fields: str) -> str:
    given = {"base_url": '"https://api.example.com/v1"', "dialects": '["openai-chat"]'} | fields
    return "[providers.p]\n" + "\n".join(f"{name} = {value}" for name, value in given.items() if value)


BAD = [
    # the file itself
    ("port = ", "t.toml", "is not TOML"),
    ("port = 1\nport = 2", "t.toml", "is not TOML"),
    # names
    ("prot = 4141", "prot", "did you mean port?"),
    ("zzzz = 1", "zzzz", "expected one of"),
    ("alerts = []", "alerts", "later version"),
    ("[retention]\nhuor = '1h'", "retention.huor", "did you mean hour?"),
    (budget(scpe='"all"'), "budgets #1.scpe", "did you mean scope?"),
    (key(modles="[]"), "keys #1.modles", "did you mean models?"),
    (provider(base_ulr='"x"'), "providers.p.base_ulr", "did you mean base_url?"),
    (provider(api_key='"sk-canary"'), "providers.p.api_key", "api_key_env or api_key_file"),
    (key(key='"tk_canary"'), "keys #1.key", "use hash"),
    # types and ranges
    ('port = "http"', "port", "expected a whole number, got 'http'"),
    ("port = 4141.5", "port", "expected a whole number"),
    ("port = 65536", "port", "expected at most 65535"),
    ("port = true", "port", "expected a number"),
    ("host = 1", "host", "expected text"),
    ('host = ""', "host", "at least 1 character"),
    ('idle_timeout_s = "soon"', "idle_timeout_s", "expected a number"),
    ("idle_timeout_s = 0", "idle_timeout_s", "expected more than 0"),
    ("idle_timeout_s = nan", "idle_timeout_s", "expected more than 0"),
    ("hold_ttl_s = 600", "hold_ttl_s", "expected more than total_timeout_s (600 seconds)"),
    ("body_limit = 10", "body_limit", "expected 1024 or more"),
    ("depth_limit = 100000", "depth_limit", "expected at most 512"),
    ('on_disconnect = "ignore"', "on_disconnect", "expected one of 'drain' or 'cancel'"),
    ("drain_limit = -1", "drain_limit", "expected 0 or more"),
    ('expose_cost = "perhaps"', "expose_cost", "expected true or false"),
    ("default_output_cap = 0", "default_output_cap", "expected 1 or more"),
    ('output_caps = "all"', "output_caps", "expected a table"),
    ("[output_caps]\nx = -5", "output_caps.x", "expected 1 or more"),
    ("[output_ceilings]\nx = 0", "output_ceilings.x", "expected 1 or more"),
    ('quote = "guess"', "quote", "expected one of 'bound' or 'typical'"),
    ("quote_quantile = 0.49", "quote_quantile", "expected 0.5 or more"),
    ("quote_quantile = 1.0", "quote_quantile", "expected at most 0.9999"),
    ("quote_quantile = true", "quote_quantile", "expected a number"),
    ("[retention]\nday = '30'", "retention.day", "'24h' or '30d'"),
    ("[retention]\nday = '0d'", "retention.day", "'24h' or '30d'"),
    ('keys = "none"', "keys", "expected a list"),
    ("budgets = [1]", "budgets #1", "expected a table"),
    ('default_project = ""', "default_project", "1 to 128 printable characters"),
    # money
    ("default_budget_limit = 12.5", "default_budget_limit", 'put it in quotes: "12.5"'),
    ('default_budget_limit = "-1"', "default_budget_limit", "0 or more"),
    ('cost_alert_threshold = "1e-10"', "cost_alert_threshold", "more than nine decimals"),
    (budget(scope='"all"', limit="12.5"), "budgets #1.limit", 'in quotes: "12.5"'),
    (budget(scope='"all"', limit='"-1"'), "budgets #1.limit", "0 or more"),
    (budget(scope='"all"', limit="-1"), "budgets #1.limit", "0 or more"),
    (budget(scope='"all"', limit='"nan"'), "budgets #1.limit", "finite"),
    (budget(scope='"all"', limit="true"), "budgets #1.limit", "expected dollars as text"),
    (budget(scope='"all"', limit="[1]"), "budgets #1.limit", "expected dollars as text"),
    (budget(scope='"all"', limit='"99999999999"'), "budgets #1.limit", "above the largest amount"),
    (budget(scope='"all"', measure='"tokens"', limit="-1"), "budgets #1.limit", "whole number of tokens from 0"),
    (budget(scope='"all"', measure='"requests"', limit='"10"'), "budgets #1.limit", "whole number of requests"),
    # budgets
    (budget(limit='"1"'), "budgets #1.scope", "is required: what is limited"),
    (budget(scope='"team"'), "budgets #1.scope", "expected one of 'all', 'project'"),
    (budget(scope='"all"', window='"weekly"'), "budgets #1.window", "expected one of 'minute', 'hour'"),
    (budget(scope='"all"', id='"x"'), "budgets #1.id", "remove it"),
    (budget(scope='"project"', project='"x"'), "budgets #1.project", "name the project by id"),
    (budget(scope='"model"', project='"x"'), "budgets #1.project", "belongs to no project"),
    (budget(scope='"all"', timezone='"Europe/Amsterdm"'), "budgets #1.timezone", "did you mean Europe/Amsterdam?"),
    (budget(scope='"all"', timezone='"../etc/passwd"'), "budgets #1.timezone", "no time zone"),
    (budget(scope='"all"', timezone='"Europe"'), "budgets #1.timezone", "no time zone"),
    (budget(scope='"all"', limit='"1"') + "\n" + budget(scope='"all"', limit='"2"'), "budgets #2", "the same as #1"),
    (
        budget(scope='"all"', limit='"1"') + "\n" + budget(scope='"all"', limit='"1"', when_away='"1"'),
        "budgets #2",
        "the same as #1",
    ),
    (budget(scope='"all"', limit='"1"', when_away="0.5"), "budgets #1.when_away", 'in quotes: "0.5"'),
    (budget(scope='"all"', limit='"1"', when_away='"none"'), "budgets #1.when_away", "expected an amount; 0 denies"),
    (budget(scope='"all"', limit='"1"', when_away='"-1"'), "budgets #1.when_away", "0 or more"),
    (budget(scope='"all"', limit='"1"', when_away='"1.01"'), "budgets #1.when_away", "is above the limit"),
    (budget(scope='"all"', when_away='"1"'), "budgets #1.when_away", "is for hard budgets with a limit"),
    (
        budget(scope='"all"', limit='"1"', when_away='"1"', hard="false"),
        "budgets #1.when_away",
        "is for hard budgets with a limit",
    ),
    (
        budget(scope='"all"', measure='"tokens"', limit="9", when_away='"1"'),
        "budgets #1.when_away",
        "whole number of tokens",
    ),
    (budget(scope='"all"', limit='"1"', lease="0.5"), "budgets #1.lease", 'in quotes: "0.5"'),
    (budget(scope='"all"', limit='"1"', lease='"none"'), "budgets #1.lease", "expected an amount or a part"),
    (budget(scope='"all"', limit='"1"', lease='"100%"'), "budgets #1.lease", "from '1%' to '99%'"),
    (budget(scope='"all"', limit='"1"', lease='"2.5%"'), "budgets #1.lease", "from '1%' to '99%'"),
    (budget(scope='"all"', limit='"1"', lease='"1.01"'), "budgets #1.lease", "is above the limit"),
    (budget(scope='"all"', lease='"5%"'), "budgets #1.lease", "is for hard budgets with a limit"),
    (budget(scope='"all"', limit='"1"', lease='"1"', hard="false"), "budgets #1.lease", "is for hard budgets"),
    (budget(scope='"all"', measure='"tokens"', limit="9", lease='"1"'), "budgets #1.lease", "whole number of tokens"),
    (key() + budget(scope='"key"', id='"kk"'), "budgets #1.id", "did you mean k?"),
    # keys
    (key(hash='"tk_canary"'), "keys #1.hash", "64 hex digits"),
    (key(hash=f'"{HASH}0"'), "keys #1.hash", "64 hex digits"),
    ('[[keys]]\nid = "k"\nhash = "%s"' % HASH, "keys #1.project", "is required"),  # noqa: UP031
    (key(id='"a\\nb"'), "keys #1.id", "printable"),
    (key(project='""'), "keys #1.project", "printable"),
    (key(expires='"soon"'), "keys #1.expires", "expected a date"),
    (key(expires="2027-01-01T00:00:00"), "keys #1.expires", "a time with its zone"),
    (key(models='["gpt", ""]'), "keys #1.models #2", "1 to 256 printable"),
    (key() + key(id='"l"'), "keys #2.hash", "is that of key 'k' too"),
    (key() + key(hash=f'"{OTHER_HASH}"', project='"q"'), "keys #2.id", "stands twice"),
    # providers
    ('[providers."a/b"]', "providers.a/b", "expected a provider's name"),
    ('[providers.x]\npreset = "opnai"', "providers.x.preset", "did you mean openai?"),
    ("[providers.openai]", "providers.openai.api_key_env", "set OPENAI_API_KEY"),
    ('[providers.x]\nbase_url = "https://h/v1"', "providers.x.dialects", "is required without a preset"),
    (provider(base_url=""), "providers.p.base_url", "is required"),
    (provider(dialects="[]"), "providers.p.dialects", "at least 1 item"),
    (provider(dialects='["openai"]'), "providers.p.dialects #1", "expected one of 'openai-chat'"),
    (provider(quirks='["odd"]'), "providers.p.quirks #1", "expected one of 'every_search_item'"),
    (provider(base_url='"http://api.example.com"'), "providers.p.base_url", "use https, or set insecure = true"),
    (provider(base_url='"https://u:canary@h/v1"'), "providers.p.base_url", "user name or password"),
    (provider(base_url='"https://h/v1?key=canary"'), "providers.p.base_url", "query"),
    (provider(base_url='"https://169.254.169.254/v1"'), "providers.p.base_url", "allow_hosts"),
    (provider(base_url='"ftp://h/v1"'), "providers.p.base_url", "expected a URL like"),
    (provider(api_key_env='"sk-canary"'), "providers.p.api_key_env", "not the key itself"),
    (provider(api_key_env='"MY_KEY"'), "providers.p.api_key_env", "MY_KEY is not set"),
    ('providers.openai = "sk-canary"', "providers.openai", "expected a table"),
    ('providers = "sk-canary"', "providers", "expected a table"),
    ('keys = ["tk_canary"]', "keys #1", "expected a table"),
    (provider(api_key_file='"canary"'), "providers.p.api_key_file", "cannot be read"),
    (provider(api_key_file='"none"'), "providers.p.api_key_file", "cannot be read (No such file"),
    (provider(api_key_env='"A"', api_key_file='"b"'), "providers.p.api_key_file", "keep one of them"),
    (provider(credential_header='"x key"'), "providers.p.credential_header", "expected the name of a header"),
    (
        provider(credential_headers='{ openai-chat = "Host" }'),
        "providers.p.credential_headers.openai-chat",
        "expected the name",
    ),
    (provider(credential_headers='{ openai = "x-key" }'), "providers.p.credential_headers.openai", "expected one of"),
    (provider(credential_header='"Host"'), "providers.p.credential_header", "expected the name of a header"),
    (provider(headers='{ "a b" = "c" }'), "providers.p.headers", "expected header names"),
    (provider(headers='{ Host = "c" }'), "providers.p.headers.host", "set by the gateway itself"),
    (provider(headers='{ x = "a\\r\\nb: c" }'), "providers.p.headers.x", "printable ASCII"),
    (provider(paths='{ openai-chat = "chat" }'), "providers.p.paths.openai-chat", "begins with '/'"),
    # routes
    (LOCAL + '[routes]\nm = "x/y"', "routes.m.provider", "'x' is not known; expected one of local"),
    (LOCAL + '[routes]\nm = "loca/y"', "routes.m.provider", "did you mean local?"),
    (LOCAL + '[routes]\nm = "local"', "routes.m", "expected 'provider/model'"),
    (LOCAL + '[routes]\nm = ["local/x"]', "routes.m", "several targets stand in its list"),
    (LOCAL + '[routes]\nm = { provider = "local" }', "routes.m.model", "is required"),
    (LOCAL + "[routes]\nm = 1", "routes.m", "expected a table"),
    # store
    ('store = "postgres://h"', "store", "expected 'sqlite:///path/of/the/file', 'memory:' or 'redis://host:6379/0'"),
    ('store = "redis://:canary@h:canary"', "store", "expected a port from 1 to 65535"),
    ('redis_url = "redis://canary@h"', "redis_url", "write ':password@', or 'user:password@'"),
    ('redis_url = "http://:canary@h"', "redis_url", "expected 'redis://host:6379/0'"),
    ('redis_url = "memory:"', "redis_url", "expected 'redis://host:6379/0'"),
    ('redis_url = ["redis://:canary@h"]', "redis_url", "expected text"),
    ('redis_url = "redis://h"\nstore = "memory:"', "redis_url", "another name of store, and store is set too"),
    ('redis_prefix = "a{b}"', "redis_prefix", "1 to 64 letters, digits"),
    ('redis_prefix = ""', "redis_prefix", "1 to 64 letters, digits"),
    ("redis_dedupe_s = 0", "redis_dedupe_s", "expected 1 or more"),
    ("redis_dedupe_s = 1.5", "redis_dedupe_s", "expected a whole number"),
    ("journal = 1", "journal", "expected a path as text"),
    ('store = "sqlite:///"', "store", "expected 'sqlite:///path"),
    ('store = "sqlite://x"', "store", "expected 'sqlite:///path"),
]


@pytest.mark.parametrize(("text", "setting", "right"), BAD)
def test_bad_configuration_is_one_line(text: str, setting: str, right: str) -> None:
    """I2: a mistake is one line that names the file, the setting and what would be right, and tells no secret."""
    said = complaint(text)
    assert said.startswith("t.toml: "), said
    assert f"{setting}: " in said
    assert right in said
    assert "\n" not in said
    assert "canary" not in said


def test_unreadable_files(tmp_path: Path) -> None:
    """I2: a file that is missing, a folder or no text is one line with its name."""
    Path("bytes.toml").write_bytes(b"\xff\xfe")
    Path("folder.toml").mkdir()
    for name, right in [("absent.toml", "No such file"), ("folder.toml", "directory"), ("bytes.toml", "not UTF-8")]:
        with pytest.raises(ConfigError, match=right) as caught:
            load(Path(name), {})
        assert str(caught.value).startswith(name)
    with pytest.raises(ConfigError, match=r"^elsewhere\.toml: cannot be read"):
        load(None, {"TOLLKEEPER_CONFIG": "elsewhere.toml"})


def test_defaults() -> None:
    """Without file and variables every setting has its default."""
    config = load(None, {})
    assert (config.host, config.port, config.store) == ("127.0.0.1", 4141, "sqlite:///tollkeeper.sqlite")
    assert (config.providers, config.routes, config.keys, config.budgets) == ({}, {}, (), ())
    assert config.body_limit == 32 * 1024 * 1024
    assert config.default_budget_limit_nanos is None
    assert (config.retention.hour_s, config.retention.entries_s) == (86_400, 90 * 86_400)


def test_file_is_found() -> None:
    """The file is the one given, else the variable's, else tollkeeper.toml in the working folder."""
    for number, name in enumerate(["tollkeeper.toml", "named.toml", "given.toml"], start=1):
        Path(name).write_text(f"port = {number}")
    assert load(None, {}).port == 1
    assert load(None, {"TOLLKEEPER_CONFIG": "named.toml"}).port == 2
    assert load(Path("given.toml"), {"TOLLKEEPER_CONFIG": "named.toml"}).port == 3


def test_budgets() -> None:
    """C5: absent and "none" are no limit, 0 blocks, dollars are exact; tokens and requests are counts."""
    text = "\n".join(
        [
            budget(scope='"all"'),
            budget(scope='"project"', limit='"none"', window='"day"'),
            budget(scope='"project"', id='"a"', limit='"12.50"', timezone='"Asia/Kolkata"', hard="false"),
            budget(scope='"user"', project='"a"', limit="0"),
            budget(scope='"model"', id='"gpt"', measure='"tokens"', window='"minute"', limit="1_000", when_away="50"),
            budget(scope='"all"', window='"day"', limit='"9"', when_away='"0.25"', lease='"0.5"'),
            budget(scope='"all"', window='"week"', limit='"9"', lease='"5%"'),
        ]
    )
    assert loaded(text).budgets == (
        Budget(scope="all", limit=None),
        Budget(scope="project", limit=None, window="day"),
        Budget(scope="project", id="a", limit=12_500_000_000, timezone="Asia/Kolkata", hard=False),
        Budget(scope="user", project="a", limit=0),
        Budget(scope="model", id="gpt", limit=1000, measure="tokens", window="minute", when_away=50),
        Budget(scope="all", limit=9 * 10**9, window="day", when_away=250_000_000, lease=500_000_000),
        Budget(scope="all", limit=9 * 10**9, window="week", lease=450_000_000),
    )


def test_soft_budget_beside_a_hard_one() -> None:
    """A soft budget may stand beside a hard one on the same scope and window."""
    assert (
        len(
            loaded(
                budget(scope='"all"', limit='"9"', hard="false") + "\n" + budget(scope='"all"', limit='"10"')
            ).budgets
        )
        == 2
    )


def test_keys() -> None:
    """A key's fields arrive whole; dates are UTC midnights; a key may stand twice while its secret changes (C8)."""
    text = key(hash=f'"{HASH.replace("ab", "AB")}"', agent='"a"', models='["m"]', expires="2027-01-01") + key(
        hash=f'"{OTHER_HASH}"', agent='"a"', models='["m"]', expires='"2027-01-01T01:00:00+01:00"'
    )
    first, second = loaded(text).keys
    assert (first.id, first.hash, first.project, first.agent, first.models) == ("k", HASH, "p", "a", frozenset({"m"}))
    assert first.expires_us == second.expires_us == int(datetime(2027, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000


def test_routes() -> None:
    """A route is text or a table, and splits at the first slash only."""
    config = loaded(LOCAL + '[routes]\na = "local/v/m:free"\nb = { provider = "local", model = "n" }')
    assert [
        (name, len(found.routes), found.routes[0].provider.name, found.routes[0].model)
        for name, found in config.routes.items()
    ] == [
        ("a", 1, "local", "v/m:free"),
        ("b", 1, "local", "n"),
    ]


def test_settings_for_the_library() -> None:
    """Dollars become nanos; "none" and 0 differ; "forever" is None."""
    config = loaded(
        'default_budget_limit = "0"\ncost_alert_threshold = 5\n[retention]\nentries = "forever"\nhour = "90m"'
    )
    assert (config.default_budget_limit_nanos, config.cost_alert_threshold_nanos) == (0, 5_000_000_000)
    assert (config.retention.entries_s, config.retention.hour_s) == (None, 5400)
    assert loaded('default_budget_limit = "none"\ndefault_output_cap = "none"').default_output_cap is None


def test_paths() -> None:
    """The ledger lies in data_dir; files that the configuration names lie beside it."""
    Path("etc").mkdir()
    Path("etc/t.toml").write_text('data_dir = "var"\nprices = "prices.toml"')
    config = load(Path("etc/t.toml"), {})
    assert (config.store, config.prices) == ("sqlite:///var/tollkeeper.sqlite", Path("etc/prices.toml"))
    assert config.store_path == Path("var/tollkeeper.sqlite")
    assert loaded('store = "sqlite:////srv/x.db"\ndata_dir = "var"').store_path == Path("/srv/x.db")
    assert loaded('store = "memory:"').store_path is None


def test_prices_may_stand_in_the_settings() -> None:
    """Tables in the place of a file are the same entries, from the file, a dict or the environment."""
    written = loaded('[[prices]]\nmodel = "m"\ninput = "2"\nfrom = 2026-01-01').prices
    assert written == entries([{"model": "m", "input": "2", "from": "2026-01-01"}])
    assert load({"prices": [{"model": "m", "input": "2", "from": "2026-01-01"}]}, {}).prices == written
    assert loaded("", TOLLKEEPER_PRICES='[{"model": "m", "input": "2", "from": "2026-01-01"}]').prices == written
    assert loaded("", TOLLKEEPER_PRICES="own.toml").prices == Path("own.toml")


def test_mistakes_in_price_tables_are_a_line_each() -> None:
    """I2: each names where it stands, the entry, the field and what would be right; other types are one line."""
    assert complaint('[[prices]]\nmodel = "m"\ninput = 2.5\noutput = -1').splitlines() == [
        't.toml: prices: price 1 (m): input: 2.5 is a float; money is exact, quote it: input = "2.5"',
        "t.toml: prices: price 1 (m): output: -1 is negative; expected 0 or more",
    ]
    assert complaint("", TOLLKEEPER_PRICES='[{"model": "m"}]').startswith("TOLLKEEPER_PRICES: price 1 (m): input: no")
    for wrong in ("7", '["x"]', "true"):
        assert complaint(f"prices = {wrong}").startswith("t.toml: prices: expected the path of a price file, or a list")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gateway.example.com"])
def test_listening_beyond_loopback_needs_keys(host: str) -> None:
    """H1: the gateway refuses to listen beyond loopback while everybody would be let in."""
    with pytest.raises(ConfigError, match=r"^host: .*add a key, or listen on 127\.0\.0\.1$"):
        check_listen(loaded(f'host = "{host}"'))
    check_listen(loaded(f'host = "{host}"\n' + key()))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_listening_on_loopback_needs_none(host: str) -> None:
    """Zero configuration listens on loopback."""
    check_listen(loaded(f'host = "{host}"'))


def test_a_redis_is_named_by_either_setting() -> None:
    """Store and redis_url name a Redis alike, the environment's one wins; the journal is below data_dir."""
    url = "rediss://me:pass%40word@h:1/2"
    for config in (loaded(f"store = '{url}'"), loaded(f"redis_url = '{url}'"), loaded("", TOLLKEEPER_REDIS_URL=url)):
        assert (config.store, config.store_path, config.store_shown) == (url, None, "rediss://h:1/2")
    assert loaded('store = "memory:"', TOLLKEEPER_REDIS_URL=url).store == url
    assert loaded(f"redis_url = '{url}'", TOLLKEEPER_STORE="memory:").store == "memory:"
    with pytest.raises(ConfigError, match=r"^TOLLKEEPER_REDIS_URL: .*keep one of them$"):
        load(None, {"TOLLKEEPER_REDIS_URL": url, "TOLLKEEPER_STORE": "memory:"})
    config = load(None, {"TOLLKEEPER_REDIS_PREFIX": "a-b", "TOLLKEEPER_DATA_DIR": "d", "TOLLKEEPER_JOURNAL": "j"})
    assert (config.redis_prefix, config.redis_dedupe_s, config.journal) == ("a-b", 86_400, Path("d/j"))
    assert load(None, {}).journal == Path("journal")


def test_no_secret_in_a_repr() -> None:
    """H2, F1: neither a provider's key nor Redis' password is found in the configuration's repr or in its providers'."""
    config = load(
        None,
        {
            "OPENAI_API_KEY": "sk-canary",
            "TOLLKEEPER_KEYS": json.dumps([]),
            "TOLLKEEPER_REDIS_URL": "redis://:canary@h?timeout=2",
        },
    )
    assert "redis://h:6379/0" in repr(config)
    assert config.providers["openai"].credentials == (Credential("OPENAI_API_KEY", "sk-canary"),)
    assert "canary" not in repr(config)
