"""Keys: who calls, and for whom."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.errors import BadRequest, NotAuthenticated
from tollkeeper.keys import MAX_SECRET, Key, KeyRing, credential, hash_secret, is_id, mint, scopes_for
from tollkeeper.values import Scopes

SECRET, HASH = mint(bytes(range(32)))
OTHER, OTHER_HASH = mint(bytes(range(1, 33)))
KEY = Key(id="k", hash=HASH, project="p")


def test_mint() -> None:
    """A secret has a prefix and all the random bits; its hash is SHA-256."""
    assert SECRET == "tk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    assert HASH == "sha256:" + hashlib.sha256(SECRET.encode()).hexdigest() == hash_secret(SECRET)
    with pytest.raises(ValueError, match="random_bytes: 31 bytes are too few; give 32 or more"):
        mint(bytes(31))


def test_a_key_is_known_by_its_secret() -> None:
    """Each secret finds its own key."""
    other = Key(id="o", hash=OTHER_HASH, project="q")
    ring = KeyRing([KEY, other])
    assert ring.identify(SECRET, 0) is KEY
    assert ring.identify(OTHER, 0) is other


@pytest.mark.parametrize(
    "bearer",
    [
        None,
        "",
        "canary",
        SECRET[:-1],
        SECRET + "x",
        SECRET.upper(),
        HASH,
        HASH[7:],
        "k",
        "x" * 10**6,
        "\udc80",
        "é",
        "\x00",
    ],
)
def test_nothing_else_is_let_in(bearer: str | None) -> None:
    """H1, H2: whatever is no key's secret is refused alike, by a text that repeats none of it."""
    with pytest.raises(NotAuthenticated) as caught:
        KeyRing([KEY]).identify(bearer, 0)
    assert not bearer or bearer not in str(caught.value) or bearer == "k"
    assert len(str(caught.value)) < 150


def test_a_long_secret_is_known_up_to_the_bound() -> None:
    """A secret of one's own may be as long as the bound, and no longer."""
    for length, known in ((MAX_SECRET, True), (MAX_SECRET + 1, False)):
        ring = KeyRing([Key(id="k", hash=hash_secret("s" * length), project="p")])
        if known:
            assert ring.identify("s" * length, 0) is not None
        else:
            with pytest.raises(NotAuthenticated):
                ring.identify("s" * length, 0)


def test_expiry() -> None:
    """A key is unknown from its expiry on, to the microsecond."""
    ring = KeyRing([Key(id="k", hash=HASH, project="p", expires_us=1000)])
    assert ring.identify(SECRET, 999) is not None
    for now_us in (1000, 1001):
        with pytest.raises(NotAuthenticated):
            ring.identify(SECRET, now_us)


def test_rotation() -> None:
    """C8: while a key is replaced both secrets are known, and both are the same key in the accounts."""
    ring = KeyRing([Key(id="k", hash=HASH, project="p", expires_us=1000), Key(id="k", hash=OTHER_HASH, project="p")])
    scopes = {scopes_for(ring.identify(secret, 1), {}, None, "default") for secret in (SECRET, OTHER)}
    assert scopes == {Scopes(project="p", key="k")}


def test_an_empty_ring_is_open() -> None:
    """Without keys everybody is let in, with or without a credential."""
    ring = KeyRing([])
    assert ring.is_open
    assert ring.identify(None, 0) is None
    assert ring.identify("anything", 0) is None
    assert not KeyRing([KEY]).is_open


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({}, None),
        ({b"authorization": b"Bearer s"}, "s"),
        ({b"authorization": b"bearer  s "}, "s"),
        ({b"authorization": b"Basic s"}, None),
        ({b"authorization": b"Basic s", b"x-api-key": b"a"}, "a"),
        ({b"authorization": b"Bearer "}, None),
        ({b"authorization": b"Bearer ", b"x-api-key": b"a"}, "a"),
        ({b"x-api-key": b"a"}, "a"),
        ({b"x-goog-api-key": b"g"}, "g"),
        ({b"x-api-key": b"a", b"authorization": b"Bearer s"}, "s"),
        ({b"x-api-key": b""}, None),
        ({b"x-api-key": b"\xff"}, "\ufffd"),
    ],
)
def test_credential(headers: dict[bytes, bytes], found: str | None) -> None:
    """A key comes in whichever header the SDK at hand sends it."""
    assert credential(headers) == found


ALL_HEADERS = {
    b"x-tollkeeper-project": b"hp",
    b"openai-project": b"op",
    b"x-tollkeeper-agent": b"ha",
    b"x-tollkeeper-session": b"hs",
    b"x-tollkeeper-user": b"hu",
    b"x-tollkeeper-tags": b"a, b,a",
}


@pytest.mark.parametrize(
    ("key", "headers", "user", "scopes"),
    [
        (None, {}, None, Scopes(project="default")),
        (None, {b"openai-project": b"op"}, None, Scopes(project="op")),
        (None, ALL_HEADERS, "bu", Scopes(project="hp", agent="ha", session="hs", user="hu", tags=("a", "b"))),
        (None, {}, "bu", Scopes(project="default", user="bu")),
        (None, {}, "", Scopes(project="default")),
        (KEY, {}, None, Scopes(project="p", key="k")),
        (KEY, ALL_HEADERS, "bu", Scopes(project="p", agent="ha", session="hs", user="hu", key="k", tags=("a", "b"))),
        (
            Key(id="k", hash=HASH, project="p", agent="ka", session="ks", user="ku"),
            ALL_HEADERS,
            "bu",
            Scopes(project="p", agent="ka", session="ks", user="ku", key="k", tags=("a", "b")),
        ),
        (None, {b"x-tollkeeper-agent": "wörker : {1}".encode()}, None, Scopes(project="default", agent="wörker : {1}")),
        (None, {b"x-tollkeeper-agent": b"a" * 128}, None, Scopes(project="default", agent="a" * 128)),
    ],
)
def test_scopes(key: Key | None, headers: dict[bytes, bytes], user: str | None, scopes: Scopes) -> None:
    """What a key fixes wins over headers, and headers over the body's user."""
    assert scopes_for(key, headers, user, "default") == scopes


@pytest.mark.parametrize(
    "value", [b"", b"a" * 129, b"a\nb", b"a\x00", b"\xff\xfe", b"\x7f", "\u2028".encode(), "\x85".encode()]
)
@pytest.mark.parametrize("name", sorted(ALL_HEADERS))
def test_a_header_that_is_no_id(name: bytes, value: bytes) -> None:
    """A scope header that cannot name anything is the caller's mistake, and the text names the header."""
    with pytest.raises(BadRequest, match=f"Header {name.decode()}: expected 1 to") as caught:
        scopes_for(None, {name: value}, None, "default")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "value", [b"a,,b", b",", b"a," + b"b" * 129, b",".join(b"t%d" % number for number in range(17))]
)
def test_bad_tags(value: bytes) -> None:
    """Tags are bounded in number, and each is an id."""
    with pytest.raises(BadRequest, match="x-tollkeeper-tags: expected 1 to 16 tags"):
        scopes_for(None, {b"x-tollkeeper-tags": value}, None, "default")


@pytest.mark.parametrize("user", ["u" * 129, '{"device_id":\n1}', "\udc80"])
def test_a_users_field_that_is_no_id(user: str) -> None:
    """An SDK's own user field of any form does not fail the call: it is counted under a digest, the same each time."""
    first, second = (scopes_for(None, {}, user, "default").user for _ in range(2))
    assert first == second
    assert first is not None
    assert first.startswith("sha256:")
    assert len(first) == 39


@given(st.text(max_size=140))
def test_ids(value: str) -> None:
    """An id has 1 to 128 characters, and none that a terminal or a log would act on."""
    assert is_id(value) == (0 < len(value) <= 128 and all(character.isprintable() for character in value))
