"""Who calls, and for whom: virtual keys and the scopes of a call. Pure.

A key is known by the SHA-256 of its secret alone: a secret has 256 random bits, so a fast hash is the right one. What a
key fixes (its project always, perhaps agent, session and user) wins over what the request's headers say. An empty ring
is open: only a gateway that listens on loopback may have one (`config.check_listen`).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from tollkeeper.errors import BadRequest, NotAuthenticated
from tollkeeper.values import MAX_ID, Scopes

KEY_PREFIX: Final = "tk_"
HASH_PREFIX: Final = "sha256:"
MAX_SECRET: Final = 1024
"""Bytes of a credential that are looked at; a longer one is unknown without being hashed."""
MAX_TAGS: Final = 16
"""Tags of one call: each is a scope that is counted."""
_SECRET_BYTES: Final = 32

_MISSING: Final = "No key: send your Tollkeeper key as 'Authorization: Bearer …', 'x-api-key' or 'x-goog-api-key'."
_UNKNOWN: Final = "The key is not known here, or has expired: use one that this gateway's configuration names."


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A virtual API key. Two keys may share an id while one replaces the other: spend is counted by id."""

    id: str
    hash: str  #: "sha256:" and 64 lower-case hex digits of the secret
    project: str
    agent: str | None = None
    session: str | None = None
    user: str | None = None
    models: frozenset[str] | None = None  #: the model names it may ask for, None: every one
    expires_us: int | None = None  #: from this instant on it is not known any more


class KeyRing:
    """All keys, found by the digest of their secret."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._by_digest = {bytes.fromhex(key.hash.removeprefix(HASH_PREFIX)): key for key in keys}

    @property
    def is_open(self) -> bool:
        """Whether there are no keys, so that everybody is let in."""
        return not self._by_digest

    def identify(self, bearer: str | None, now_us: int) -> Key | None:
        """The key whose secret is `bearer`; None if the ring is open.

        Raises NotAuthenticated, whose text never repeats what was sent.
        """
        if not self._by_digest:
            return None
        if not bearer:
            raise NotAuthenticated(_MISSING)
        secret = bearer.encode(errors="surrogatepass")
        if len(secret) > MAX_SECRET:
            raise NotAuthenticated(_UNKNOWN)
        key = self._by_digest.get(hashlib.sha256(secret).digest())  # how long that takes says nothing of the secret
        if key is None or (key.expires_us is not None and now_us >= key.expires_us):
            raise NotAuthenticated(_UNKNOWN)
        return key


def mint(random_bytes: bytes) -> tuple[str, str]:
    """A new secret from 32 or more random bytes, and its hash: the secret is shown once, the hash is kept."""
    if len(random_bytes) < _SECRET_BYTES:
        raise ValueError(f"random_bytes: {len(random_bytes)} bytes are too few; give {_SECRET_BYTES} or more")
    secret = KEY_PREFIX + base64.urlsafe_b64encode(random_bytes).rstrip(b"=").decode()
    return secret, hash_secret(secret)


def hash_secret(secret: str) -> str:
    """How a secret is kept: "sha256:" and 64 hex digits."""
    return HASH_PREFIX + hashlib.sha256(secret.encode()).hexdigest()


def credential(headers: Mapping[bytes, bytes]) -> str | None:
    """The caller's key, from the header in which an SDK sends it; `headers` have lower-case names."""
    scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer" or not value.strip():
        value = headers.get(b"x-api-key") or headers.get(b"x-goog-api-key") or b""
    return value.strip().decode("utf-8", "replace") or None


def scopes_for(key: Key | None, headers: Mapping[bytes, bytes], user: str | None, default_project: str) -> Scopes:
    """For whom a call is made: the key's fixed scopes, then the headers (lower-case names), then the body's `user`.

    A body's user that is no id (some clients send JSON or 160 characters) is counted under a digest of it.
    Raises BadRequest naming the header whose value is not an id.
    """
    if key is None:
        project = (
            _header(headers, b"x-tollkeeper-project") or _header(headers, b"openai-project") or default_project
        )  # fmt: skip
        agent = session = named_user = key_id = None
    else:
        project, agent, session, named_user, key_id = key.project, key.agent, key.session, key.user, key.id
    if agent is None:
        agent = _header(headers, b"x-tollkeeper-agent")
    if session is None:
        session = _header(headers, b"x-tollkeeper-session")
    if named_user is None:
        named_user = _header(headers, b"x-tollkeeper-user")
        if named_user is None and user:
            named_user = user if is_id(user) else _digest_id(user)
    tags = _tags(headers) if b"x-tollkeeper-tags" in headers else ()
    return Scopes(project=project, agent=agent, session=session, user=named_user, key=key_id, tags=tags)


def is_id(value: str) -> bool:
    """Whether `value` can name a project, agent, session, user, key or tag: 1 to 128 printable characters."""
    return 0 < len(value) <= MAX_ID and value.isprintable()


def _header(headers: Mapping[bytes, bytes], name: bytes) -> str | None:
    raw = headers.get(name)
    if raw is None:
        return None
    try:
        value = raw.decode()
    except UnicodeDecodeError:
        value = ""
    if not is_id(value):
        raise BadRequest(f"Header {name.decode()}: expected 1 to {MAX_ID} printable characters in UTF-8.")
    return value


def _tags(headers: Mapping[bytes, bytes]) -> tuple[str, ...]:
    try:
        tags = tuple(dict.fromkeys(tag.strip() for tag in headers[b"x-tollkeeper-tags"].decode().split(",")))
    except UnicodeDecodeError:
        tags = ()
    if not tags or len(tags) > MAX_TAGS or not all(map(is_id, tags)):
        raise BadRequest(
            f"Header x-tollkeeper-tags: expected 1 to {MAX_TAGS} tags with commas between them, "
            f"each of 1 to {MAX_ID} printable characters in UTF-8."
        )
    return tags


def _digest_id(value: str) -> str:
    return HASH_PREFIX + hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()[:32]
