"""The error tree.

    TollkeeperError                  code · http_status · owed
    ├── RequestError                 the caller's: nothing was sent upstream
    │   ├── BadRequest           400 · NotAuthenticated 401 · NotAllowed 403 · UnknownModel 404
    │   ├── RequestTooLarge      413 · UnsupportedEncoding 415
    │   ├── BudgetExceeded       402 (money, tokens a day or more) carries the Refusal
    │   └── RateLimited          429 (requests or tokens a minute) carries the Refusal
    ├── UpstreamError                the provider's side
    │   ├── UpstreamUnreachable  502 · UpstreamTimeout 504
    │   ├── UpstreamRefused      its own 4xx or 5xx, relayed as it came
    │   ├── StreamBroken         502 cut, stalled or unreadable after content
    │   └── Outrun               502 cut for another attempt of its call
    ├── StoreError
    │   ├── StoreUnavailable     503 · StoreOwned (a second process) · StoreCorrupt
    │   ├── Conflict             409 same id, other contents
    │   └── UnknownEntry         404
    ├── HeldOff                  503 every provider of the model failed just now
    ├── Draining                 503 the gateway is stopping
    └── ConfigError              at start only

`owed` says whether the provider may have billed for the call: it decides retry, fail-over and settlement.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from tollkeeper.values import Refusal

Owed = Literal["no", "yes", "unknown"]


class TollkeeperError(Exception):
    """Root of the tree; raised only as one of its leaves. `str(error)` is one line, fit for a client."""

    code: ClassVar[str] = "internal_error"
    http_status: int = 500
    owed: Owed = "no"


class RequestError(TollkeeperError):
    """The caller's fault; nothing was sent to a provider."""


class BadRequest(RequestError):
    """The body, a header or an argument cannot be used as it is."""

    code = "bad_request"
    http_status = 400


class NotAuthenticated(RequestError):
    """No key, or one that is not known."""

    code = "not_authenticated"
    http_status = 401


class NotAllowed(RequestError):
    """A known key that may not do this."""

    code = "not_allowed"
    http_status = 403


class UnknownModel(RequestError):
    """No route leads to this model in this dialect."""

    code = "unknown_model"
    http_status = 404


class RequestTooLarge(RequestError):
    """The body is above the limit, or nested too deep."""

    code = "request_too_large"
    http_status = 413


class UnsupportedEncoding(RequestError):
    """The body is compressed; send it plain."""

    code = "unsupported_encoding"
    http_status = 415


class BudgetExceeded(RequestError):
    """A hard budget cannot pay for this call, or the call cannot be priced under one."""

    code = "budget_exceeded"
    http_status = 402

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message())
        self.refusal = refusal


class RateLimited(RequestError):
    """A budget per minute in requests or tokens is used up; try again after `refusal.resets_at_us`."""

    code = "rate_limited"
    http_status = 429

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message())
        self.refusal = refusal


class UpstreamError(TollkeeperError):
    """The provider's side failed."""


class UpstreamUnreachable(UpstreamError):
    """No connection: the request was not sent."""

    code = "upstream_unreachable"
    http_status = 502


class UpstreamTimeout(UpstreamError):
    """The provider did not answer, or stopped sending, within the limit."""

    code = "upstream_timeout"
    http_status = 504
    owed: Owed = "unknown"


class UpstreamRefused(UpstreamError):
    """The provider answered with an error of its own; its status and body are relayed."""

    code = "upstream_refused"

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(message or f"the provider answered {status}")
        self.http_status = status


class StreamBroken(UpstreamError):
    """The reply ended without its end marker, could not be read, or grew past a bound."""

    code = "stream_broken"
    http_status = 502
    owed: Owed = "yes"


class Outrun(UpstreamError):
    """Another attempt of the call had content first, and this one was cut. No client sees it: it is a note in the ledger."""

    code = "outrun"
    http_status = 502
    owed: Owed = "unknown"


class StoreError(TollkeeperError):
    """The ledger cannot do this now."""


class StoreUnavailable(StoreError):
    """The ledger does not take writes: disk full, I/O error, closed. Nothing acknowledged is lost."""

    code = "store_unavailable"
    http_status = 503


class StoreOwned(StoreError):
    """Another process owns this ledger."""

    code = "store_owned"
    http_status = 503


class StoreCorrupt(StoreError):
    """The ledger's file is not a ledger, is damaged, or was written by a newer version. It was not changed."""

    code = "store_corrupt"
    http_status = 503


class Conflict(StoreError):
    """The same id was used before with other contents, or for a hold that has ended otherwise."""

    code = "conflict"
    http_status = 409


class UnknownEntry(StoreError):
    """No entry of this id is in the ledger, or it has outlived its retention."""

    code = "unknown_entry"
    http_status = 404


class HeldOff(TollkeeperError):
    """Every provider that serves this model failed just now, and none is asked (when_all_open = "refuse")."""

    code = "held_off"
    http_status = 503

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Draining(TollkeeperError):
    """The gateway is stopping and takes no new calls."""

    code = "draining"
    http_status = 503


class ConfigError(TollkeeperError):
    """A setting is wrong; one line names it and says what would be right. Raised at start only."""

    code = "config_error"
