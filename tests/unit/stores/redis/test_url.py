"""URLs of Redis: what they mean, and one line for each that means nothing."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.errors import ConfigError
from tollkeeper.stores.redis.url import Address, Place, is_redis, parse, shown

NASTY = "p@:/#%+ ?&=[]é,!"
HERE = (Address("h", 6379),)

GOOD: dict[str, tuple[dict[str, Any], str]] = {
    "redis://h": ({"addresses": HERE}, "redis://h:6379/0"),
    "redis://h/": ({"addresses": HERE}, "redis://h:6379/0"),
    "redis://h:1/15": ({"addresses": (Address("h", 1),), "db": 15}, "redis://h:1/15"),
    "redis://:p@h": ({"addresses": HERE, "password": "p"}, "redis://h:6379/0"),
    "redis://u:@h": ({"addresses": HERE, "user": "u", "password": ""}, "redis://h:6379/0"),
    "redis://:@h": ({"addresses": HERE}, "redis://h:6379/0"),
    "redis://u:a:b+c@h": ({"addresses": HERE, "user": "u", "password": "a:b+c"}, "redis://h:6379/0"),
    f"redis://{quote(NASTY, '')}:{quote(NASTY, '')}@h": (
        {"addresses": HERE, "user": NASTY, "password": NASTY},
        "redis://h:6379/0",
    ),
    "redis://[::1]": ({"addresses": (Address("::1", 6379),)}, "redis://[::1]:6379/0"),
    "redis://[FE80::1%25eth0]:7/1": (
        {"addresses": (Address("fe80::1%eth0", 7),), "db": 1},
        "redis://[fe80::1%eth0]:7/1",
    ),
    "redis://redis_1.my-net:6380?timeout=0.25": (
        {"addresses": (Address("redis_1.my-net", 6380),), "timeout_ms": 250},
        "redis://redis_1.my-net:6380/0",
    ),
    "rediss://h?ca_file=/a%20b/ca.pem": (
        {"addresses": HERE, "tls": True, "ca_file": "/a b/ca.pem"},
        "rediss://h:6379/0",
    ),
    "rediss://h/1?cert_file=c&key_file=k": (
        {"addresses": HERE, "tls": True, "db": 1, "cert_file": "c", "key_file": "k"},
        "rediss://h:6379/1",
    ),
    "unix:///run/redis.sock": ({"socket": "/run/redis.sock"}, "unix:///run/redis.sock?db=0"),
    "unix://u:p@/run/r%40%23.sock?db=2&timeout=60": (
        {"socket": "/run/r@#.sock", "db": 2, "user": "u", "password": "p", "timeout_ms": 60_000},
        "unix:///run/r@#.sock?db=2",
    ),
    "redis+sentinel://a,b:1,[::1]/main": (
        {
            "kind": "sentinel",
            "addresses": (Address("a", 26379), Address("b", 1), Address("::1", 26379)),
            "service": "main",
        },
        "redis+sentinel://a:26379,b:1,[::1]:26379/main/0",
    ),
    "rediss+sentinel://u:p@a,a/my%20set/3?sentinel_user=su&sentinel_password=s%26p": (
        {
            "kind": "sentinel",
            "addresses": (Address("a", 26379),),
            "service": "my set",
            "db": 3,
            "user": "u",
            "password": "p",
            "sentinel_user": "su",
            "sentinel_password": "s&p",
            "tls": True,
        },
        "rediss+sentinel://a:26379/my set/3",
    ),
    "redis+cluster://:p@a:1,b": (
        {"kind": "cluster", "addresses": (Address("a", 1), Address("b", 6379)), "password": "p"},
        "redis+cluster://a:1,b:6379",
    ),
    "rediss+cluster://a/0": (
        {"kind": "cluster", "addresses": (Address("a", 6379),), "tls": True},
        "rediss+cluster://a:6379",
    ),
}

#: Each has "canary" where a password may stand, or may be taken for one.
BAD = [
    ("", "expected 'redis://host:6379/0'"),
    ("redis:h", "expected 'redis://host:6379/0'"),
    ("http://:canary@h", "expected 'redis://host:6379/0'"),
    ("REDIS://h", "expected 'redis://host:6379/0'"),
    ("redis+ssl://:canary@h", "expected 'redis://host:6379/0'"),
    ("redis://", "expected 'host' or 'host:port'"),
    ("redis://:canary@", "expected 'host' or 'host:port'"),
    ("redis://:canary@:6379", "expected 'host' or 'host:port'"),
    ("redis://::1:6379", "an IPv6 address in brackets"),
    ("redis://[canary]:6379", "an IPv6 address in brackets"),
    ("redis://[::1", "an IPv6 address in brackets"),
    ("redis://[::1]6379", "an IPv6 address in brackets"),
    ("redis+cluster://:canary@h,:canary@i", "write @ as %40"),
    ("unix:///a%0Ab", "with three slashes"),
    ("redis+sentinel://h/a%0Ab", "names no service"),
    ("redis://a,b", "expected one, or redis+sentinel:// or redis+cluster://"),
    ("redis+cluster://a,,b", "expected 'host' or 'host:port'"),
    ("redis://h:", "expected a port from 1 to 65535"),
    ("redis://h:0", "expected a port from 1 to 65535"),
    ("redis://h:65536", "expected a port from 1 to 65535"),
    ("redis://h:٣", "expected a port from 1 to 65535"),
    ("redis://u:canary", "expected a port from 1 to 65535"),
    ("redis://canary@h", "write ':password@', or 'user:password@'"),
    ("redis://u:can@ary@h", "write @ as %40"),
    ("redis://u:can/ary@h", "/ as %2F"),
    ("redis://u:can?ary@h", "? as %3F"),
    ("redis://u:can#ary@h", "write it as %23"),
    ("redis://u:can%ary@h", "write % as %25"),
    ("redis://u:canary%FF@h", "write ü as %C3%BC"),
    ("redis://u:can ary@h", "write a blank as %20"),
    (" redis://u:canary@h", "expected 'redis://host:6379/0'"),
    ("redis://u:canary@h\n", "a control character"),
    ("redis://:canary@h/x", "expected a database's number"),
    ("redis://:canary@h/-1", "expected a database's number"),
    ("redis://:canary@h/0/1", "expected a database's number"),
    ("redis+cluster://:canary@h/1", "a cluster has no databases; remove what follows the hosts"),
    ("redis+sentinel://:canary@h", "names no service; expected 'redis+sentinel://host:26379/service/0'"),
    ("redis+sentinel://:canary@h//1", "names no service"),
    ("redis+sentinel://:canary@h/main/x", "expected a database's number"),
    ("unix://run/canary.sock", "with three slashes"),
    ("unix:///", "with three slashes"),
    ("unix:///a?db=x", "expected a database's number"),
    ("redis://h?db=1", "write the database behind the host"),
    ("redis://h?canary=1", "option #1 is not known; expected one of timeout, ca_file"),
    ("rediss://:canary@h?ca_file=a&check_hostname=false", "option #2 is not known"),
    ("redis+sentinel://h/main?sentinel_password=p&canary", "write & as %26"),
    ("redis://h?timeout", "option timeout has no value"),
    ("redis://h?timeout=1&timeout=2", "option timeout stands twice"),
    ("redis://h?timeout=0", "expected a timeout from 0.01 to 60 seconds"),
    ("redis://h?timeout=nan", "expected a timeout from 0.01 to 60 seconds"),
    ("redis://h?timeout=-1", "expected a timeout from 0.01 to 60 seconds"),
    ("redis://h?timeout=1e3", "expected a timeout from 0.01 to 60 seconds"),
    ("redis://:canary@h?ca_file=x", "option ca_file is for TLS; write rediss://"),
    ("rediss://:canary@h?cert_file=x", "name both or neither"),
    ("redis://h?sentinel_password=canary", "is for redis+sentinel://"),
    ("redis+sentinel://h/main?sentinel_user=canary", "needs sentinel_password too"),
]


@pytest.mark.parametrize("url", GOOD)
def test_a_good_one_says_all(url: str) -> None:
    """F1: every part arrives decoded, and `shown` has neither user nor password."""
    fields, printed = GOOD[url]
    place = parse(url)
    assert place == Place(**fields)
    assert place.shown == shown(url) == printed
    assert repr(place) == f"Place({printed!r})"


@pytest.mark.parametrize(("url", "right"), BAD)
def test_a_bad_one_is_one_line(url: str, right: str) -> None:
    """F1: one line on `store` that says what would be right, and nothing that could be the password."""
    with pytest.raises(ConfigError) as caught:
        parse(url)
    said = str(caught.value)
    assert said.startswith("store: ")
    assert right in said
    assert said.isprintable()
    assert not any(part in said for part in ("canary", "can@", "can/", "can?", "can#", "can%", "ary"))


@given(user=st.text(min_size=1), password=st.text(min_size=1))
def test_any_user_and_password(user: str, password: str) -> None:
    """F1: whatever they are made of, encoded they arrive as they were and are not shown."""
    secret = "canary" + password
    place = parse(f"redis://{quote(user, safe='')}:{quote(secret, safe='')}@h")
    assert (place.user, place.password) == (user, secret)
    assert "canary" not in place.shown + repr(place) + str(place)


@given(st.sampled_from(["redis://", "rediss://", "unix://", "redis+sentinel://", "redis+cluster://"]), st.text())
def test_any_text(scheme: str, text: str) -> None:
    """F1: any text is a place or one line."""
    try:
        said = parse(scheme + text).shown
    except ConfigError as error:
        said = str(error)
    assert said.isprintable()
    assert said.startswith(("store: ", scheme))


def test_other_stores_are_left_alone() -> None:
    """Only URLs of Redis are read as such; others are shown as they are."""
    assert [is_redis(url) for url in ("memory:", "sqlite:///redis", "redis:", "unix:/x", "rediss+cluster://")] == [
        False, False, True, True, True,
    ]  # fmt: skip
    assert shown("sqlite:///a@b") == "sqlite:///a@b"
