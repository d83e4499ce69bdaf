"""Where settings come from: the environment over the file, and the right one blamed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tollkeeper.config.sources import read
from tollkeeper.errors import ConfigError


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_environment_wins() -> None:
    """A variable wins over the file; tables are joined, lists replaced."""
    Path("tollkeeper.toml").write_text(
        'port = 1\nhost = "::1"\nallow_hosts = ["a", "b"]\n[retention]\nhour = "1h"\nday = "2d"\n'
        '[providers.x]\nbase_url = "https://x"\nquirks = ["max_tokens"]\n'
    )
    settings, _ = read(
        None,
        {
            "TOLLKEEPER_PORT": "2",
            "TOLLKEEPER_ALLOW_HOSTS": '["c"]',
            "TOLLKEEPER_RETENTION__HOUR": "3h",
            "TOLLKEEPER_PROVIDERS__X__BASE_URL": "https://y",
            "TOLLKEEPER_COST_ALERT_THRESHOLD": "12.50",
        },
    )
    assert (settings.port, settings.host, settings.allow_hosts) == (2, "::1", ("c",))
    assert (settings.retention.hour, settings.retention.day) == (3 * 3600, 2 * 86400)
    assert (settings.providers["x"].base_url, settings.providers["x"].quirks) == ("https://y", ("max_tokens",))
    assert settings.cost_alert_threshold == 12_500_000_000


def test_only_the_given_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's own environment changes nothing."""
    monkeypatch.setenv("TOLLKEEPER_PORT", "99")
    monkeypatch.setenv("PORT", "98")
    assert read(None, {})[0].port == 4141
    assert read(None, {"PORT": "97"})[0].port == 4141


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"TOLLKEEPER_PORT": "x"}, "TOLLKEEPER_PORT: expected a whole number, got 'x'"),
        ({"TOLLKEEPER_PROT": "1"}, "TOLLKEEPER_PROT: is not known; did you mean TOLLKEEPER_PORT?"),
        ({"TOLLKEEPER_ALERTS": "[]"}, "TOLLKEEPER_ALERTS: comes with a later version; remove it"),
        ({"TOLLKEEPER_KEYS": "k"}, "TOLLKEEPER_KEYS: is not JSON; write lists as [...] and tables as {...}"),
        (
            {"TOLLKEEPER_BUDGETS": '[{"scope": "all", "limit": 1.5}]'},
            'TOLLKEEPER_BUDGETS #1.limit: a limit is never a float; put dollars in quotes: "1.5"',
        ),
        (
            {"TOLLKEEPER_KEYS": '[{"id": "k", "hash": "canary", "project": "p"}]'},
            "TOLLKEEPER_KEYS #1.hash: expected 'sha256:' and 64 hex digits, the hash of the key and not the key itself",
        ),
        ({"TOLLKEEPER_RETENTION__HUOR": "1h"}, "TOLLKEEPER_RETENTION__HUOR: is not known; did you mean hour?"),
        (
            {"TOLLKEEPER_RETENTION__HOUR": "1"},
            "TOLLKEEPER_RETENTION__HOUR: expected a time such as '24h' or '30d' (units s, m, h, d), or 'forever'",
        ),
        (
            {"TOLLKEEPER_PROVIDERS__X__DIALECTS": '["a"]'},
            (
                "TOLLKEEPER_PROVIDERS__X__DIALECTS #1: expected one of "
                "'openai-chat', 'openai-embeddings', 'openai-responses', 'anthropic-messages' or 'google-generate'"
            ),
        ),
    ],
)
def test_a_bad_variable_is_named(environ: dict[str, str], said: str) -> None:
    """I2: one line names the variable, where a file stands beside it or not."""
    for text in (None, 'port = 1\n[providers.x]\nbase_url = "https://x"\n[retention]\nday = "1d"'):
        if text:
            Path("tollkeeper.toml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            read(None, environ)
        assert str(caught.value) == said


def test_the_file_is_blamed_for_its_own() -> None:
    """I2: a mistake in the file is not blamed on a variable of the same table."""
    Path("tollkeeper.toml").write_text('[retention]\nday = "x"')
    with pytest.raises(ConfigError, match=r"^tollkeeper\.toml: retention\.day: "):
        read(None, {"TOLLKEEPER_RETENTION__HOUR": "1h"})


def test_foreign_variables_are_left_alone() -> None:
    """Variables that Kubernetes sets for a service named tollkeeper, and the tests' own, are no settings."""
    environ = {
        "TOLLKEEPER_SERVICE_HOST": "10.0.0.1",
        "TOLLKEEPER_SERVICE_PORT": "4141",
        "TOLLKEEPER_PORT_4141_TCP": "tcp://10.0.0.1:4141",
        "TOLLKEEPER_PORT": "tcp://10.0.0.1:4141",
        "TOLLKEEPER_FIXTURES": "somewhere",
    }
    assert read(None, environ)[0].port == 4141


def test_a_setting_below_a_table() -> None:
    """I2: a setting that was pasted below a table, and so became part of it, is told to stand above."""
    Path("tollkeeper.toml").write_text('[[budgets]]\nscope = "all"\nprices = "prices.toml"\n')
    with pytest.raises(
        ConfigError, match=r"budgets #1\.prices: .*; it is a setting of its own: write it above the first"
    ):
        read(None, {})
