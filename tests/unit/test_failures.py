"""Failures: what each answer of a provider means, for the call and for the breakers."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tollkeeper import failures
from tollkeeper.errors import BadRequest, Outrun, StoreUnavailable, StreamBroken, TollkeeperError, UpstreamError
from tollkeeper.errors import UpstreamRefused as Refused
from tollkeeper.errors import UpstreamTimeout as Timeout
from tollkeeper.errors import UpstreamUnreachable as Unreachable
from tollkeeper.failures import MAX_BODY, Verdict, verdict_of

NOW_US = 1_780_272_000_000_000  # 2026-06-01 00:00:00 UTC
GOOGLE = "type.googleapis.com/google.rpc."
CALLERS, TOO_MUCH = (False, False, None, "ignore", None), (False, True, None, "ignore", None)
NO_CREDIT, REFUSED = (False, True, "key", "block", 3600), (False, True, "key", "block", 600)
NOT_THERE, OTHER = (False, True, "model", "block", 600), (False, True, "model", "ignore", None)
LIMITED = (False, True, "model", "fail", None)
SICK, CUT = (True, True, "model", "fail", None), (False, False, "model", "fail", None)


def openai(code: str | None, kind: str = "invalid_request_error", message: str = "No.") -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


def anthropic(kind: str, message: str = "No.") -> bytes:
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}, "request_id": "r"}).encode()


def google(code: int, status: str, message: str = "No.", *details: dict[str, Any]) -> bytes:
    return json.dumps({"error": {"code": code, "message": message, "status": status, "details": details}}).encode()


def reason(name: str) -> dict[str, Any]:
    return {"@type": GOOGLE + "ErrorInfo", "reason": name, "domain": "googleapis.com"}


def retry(delay: Any) -> dict[str, Any]:
    return {"@type": GOOGLE + "RetryInfo", "retryDelay": delay}


def judged(status: int, body: bytes = b"", **headers: str) -> Verdict:
    """An answer with this status; `retry_after` stands for retry-after."""
    sent = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    failure = Refused(status if status >= 400 else 502)
    return verdict_of(failure, status, sent, body, now_us=NOW_US)


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (429, openai("insufficient_quota", "insufficient_quota"), NO_CREDIT),
        (429, openai("credit_balance_exhausted", "insufficient_quota"), NO_CREDIT),
        (400, openai("billing_hard_limit_reached"), NO_CREDIT), (429, openai("billing_not_active"), NO_CREDIT),
        (402, openai("invalid_request_error", "unknown_error", "Insufficient Balance"), NO_CREDIT),  # DeepSeek
        (402, b'{"error":{"message":"Insufficient credits. Add more.","code":402}}', NO_CREDIT),  # OpenRouter
        (403, b'{"error":{"message":"Key limit exceeded (total limit).","code":403}}', NO_CREDIT),
        (429, b'{"code":"Some limit","error":"Your team 1-2 has either used all available credits"}', NO_CREDIT),  # xAI
        (401, openai("invalid_api_key"), REFUSED),
        (401, b'{"detail":"Unauthorized"}', REFUSED),  # Mistral
        (400, b'{"code":"Client specified an invalid argument","error":"Incorrect API key provided: xa"}', REFUSED),  # xAI
        (403, openai("unsupported_country_region_territory", "request_forbidden"), REFUSED),
        (403, openai(None, message="You are not allowed to generate embeddings from this model"), OTHER),
        (403, openai(None, message="You are not allowed to sample from this model"), OTHER),
        (403, openai(None, message="Your organization must be verified to use the model `x`. Please"), NOT_THERE),
        (404, openai("model_not_found"), NOT_THERE),
        (403, openai("model_not_found", message="The project has no access to model `x`"), NOT_THERE),
        (404, openai(None, "NotFoundError", "The model `x` does not exist."), NOT_THERE),  # vLLM
        (404, openai(None, "api_error", 'model "x" not found, try pulling it first'), NOT_THERE),  # Ollama
        (404, openai("DeploymentNotFound"), NOT_THERE),  # Azure
        (400, b'{"object":"error","message":"Invalid model: x","type":"invalid_model","code":"1500"}', NOT_THERE),  # Mistral
        (400, openai(None, message="Model Not Exist"), NOT_THERE),  # DeepSeek
        (400, b'{"error":{"message":"a/b is not a valid model ID","code":400}}', NOT_THERE),  # OpenRouter
        (429, openai("rate_limit_exceeded", "requests"), LIMITED),
        (429, openai("RateLimitReached"), LIMITED),  # Azure
        (429, openai("rate_limit_exceeded", "tokens", "Request too large for gpt-4o on tokens per min"), TOO_MUCH),
        (413, openai("rate_limit_exceeded", "tokens", "Request too large for model `x`"), TOO_MUCH),  # Groq
        (402, openai(None, message="This request requires more credits, or fewer max_tokens. You ..."), TOO_MUCH),
        (500, openai(None, "server_error"), SICK), (503, openai("slow_down", "service_unavailable_error"), SICK),
        (429, openai(None, "engine_overloaded_error"), SICK),  # Moonshot: its own trouble, not our rate
        *[(400, openai(code), CALLERS) for code in ("context_length_exceeded", "content_policy_violation", "content_filter")],
        (403, openai(None, message='a/b requires moderation on C. Your input was flagged for "d".'), CALLERS),  # OpenRouter
        (403, b'{"code":"A sentence","error":"Content violates usage guidelines. Team: x"}', CALLERS),  # xAI
        (400, openai("decimal_above_max_value"), CALLERS),
    ],
)  # fmt: skip
def test_openai_and_those_like_it(status: int, body: bytes, verdict: tuple[Any, ...]) -> None:
    """E3, E4: the error's code or type decides before the status does."""
    assert judged(status, body)[:5] == verdict


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (402, anthropic("billing_error"), NO_CREDIT),
        (400, anthropic("invalid_request_error", "You have reached your specified API usage limits. You"), NO_CREDIT),
        (401, anthropic("authentication_error"), REFUSED),
        (403, anthropic("permission_error"), REFUSED),
        (400, anthropic("invalid_request_error", "This organization has been disabled."), REFUSED),
        (404, anthropic("not_found_error", "model: claude-none"), NOT_THERE),
        (404, anthropic("not_found_error", "File not found: file_1"), CALLERS),
        (429, anthropic("rate_limit_error"), LIMITED),
        (529, anthropic("overloaded_error"), SICK),
        (500, anthropic("api_error"), SICK),
        (504, anthropic("timeout_error"), SICK),
        (413, anthropic("request_too_large"), CALLERS),
        (400, anthropic("invalid_request_error", "prompt is too long: 3 tokens > 2 maximum"), CALLERS),
        (400, anthropic("invalid_request_error", "model: String should have at least 1 character"), CALLERS),
    ],
)
def test_anthropic(status: int, body: bytes, verdict: tuple[Any, ...]) -> None:
    """E3, E4: Anthropic's types, and its 400s that are about the account."""
    assert judged(status, body)[:5] == verdict


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (429, google(429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."), NO_CREDIT),
        (403, google(403, "PERMISSION_DENIED", "No.", reason("BILLING_DISABLED")), NO_CREDIT),
        (400, google(400, "FAILED_PRECONDITION", "Not in your country. Please enable billing on it"), NO_CREDIT),
        (400, google(400, "FAILED_PRECONDITION", "The File files/billing is not ACTIVE"), CALLERS),
        (400, google(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key."), REFUSED),
        (400, google(400, "INVALID_ARGUMENT", "No.", reason("API_KEY_INVALID")), REFUSED),
        (401, google(401, "UNAUTHENTICATED"), REFUSED),
        (403, google(403, "PERMISSION_DENIED"), REFUSED),
        (403, google(403, "PERMISSION_DENIED", "You do not have permission to access the File x or it may"), CALLERS),
        (403, google(403, "PERMISSION_DENIED", "CachedContent not found (or permission denied)"), CALLERS),
        (404, google(404, "NOT_FOUND", "models/x is not found for API version v1beta"), NOT_THERE),
        (404, google(404, "NOT_FOUND", "models/x is not found for API version v1, or is not supported for y"), OTHER),
        (404, google(404, "NOT_FOUND", "Requested entity was not found."), CALLERS),
        (429, google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota, please check"), LIMITED),
        (503, google(503, "UNAVAILABLE"), SICK),
        (500, google(500, "INTERNAL"), SICK),
        (504, google(504, "DEADLINE_EXCEEDED"), SICK),
        (400, google(400, "INVALID_ARGUMENT", "The input token count exceeds the maximum"), CALLERS),
        (429, b"[" + google(429, "RESOURCE_EXHAUSTED") + b"\n]", LIMITED),  # of a stream that is an array
        (400, b"[" + google(400, "INVALID_ARGUMENT", "No.", reason("API_KEY_INVALID")) + b"]", REFUSED),
    ],
)
def test_google(status: int, body: bytes, verdict: tuple[Any, ...]) -> None:
    """E3, E4: Google's statuses and reasons; a file that is not there comes as 403."""
    assert judged(status, body)[:5] == verdict


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        *[(status, SICK) for status in (408, 500, 501, 502, 503, 504, 520, 524, 529, 599)],
        *[(status, CALLERS) for status in (400, 405, 409, 413, 415, 422, 451, 499)],
        (401, REFUSED), (402, NO_CREDIT), (403, REFUSED), (404, NOT_THERE), (429, LIMITED), (302, NOT_THERE),
    ],
)  # fmt: skip
@pytest.mark.parametrize("body", [b"", b"<html>No.</html>", b'{"error":', b"null", b"[]", b"\xff"])
def test_status_alone(status: int, verdict: tuple[Any, ...], body: bytes) -> None:
    """E3: without an error that can be read, the status decides."""
    assert judged(status, body)[:5] == verdict


@pytest.mark.parametrize("status", [400, 402, 403, 429])
def test_no_credit_by_any_status(status: int) -> None:
    """E4: no quota or credit opens the key for an hour, whatever the status and the dialect."""
    for body in (
        openai("insufficient_quota", "insufficient_quota"),
        anthropic("billing_error"),
        anthropic("invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
        google(status, "FAILED_PRECONDITION", "This API method requires billing to be enabled."),
    ):
        assert judged(status, body, retry_after="1")[:5] == NO_CREDIT


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        (b"event: error\ndata: " + anthropic("overloaded_error") + b"\n\n", SICK),
        (b"event: error\r\ndata: " + anthropic("rate_limit_error") + b"\r\n\r\n", LIMITED),
        (b"event: error\ndata: " + anthropic("invalid_request_error") + b"\n\n", CALLERS),
        (b": ping\n\ndata: {}\n\ndata: " + openai(None, "server_error") + b"\n\ndata: [DONE]\n\n", SICK),
        (b'data: {"error":{"code":400,"message":"Token limit reached"},"choices":[]}\n\n', CALLERS),  # OpenRouter
        (b'data: {"error":{"code":429,"message":"Provider returned error"}}\n\n', LIMITED),
        (b'data: {"error":{"type":"x","code":"y","status_code":503}}\n\n', SICK),  # Groq
        (b'data: {"type":"error","code":"insufficient_quota","message":"No.","param":null}\n\n', NO_CREDIT),
        (b'data: {"type":"response.failed","response":{"error":{"code":"invalid_image_url"}}}\n\n', CALLERS),
        (b'data: {"type":"response.failed","response":{"error":{"code":"server_error"}}}\n\n', SICK),
        (b"data: " + google(503, "UNAVAILABLE") + b"\n\n", SICK),
        (b"[" + google(429, "RESOURCE_EXHAUSTED"), LIMITED),  # an array that is cut
        (b'[{"candidates":[]},\n' + google(400, "INVALID_ARGUMENT") + b"\n]", CALLERS),
        (b'data: {"error":{"type":"new_here","message":"No."}}\n\n', SICK),  # unknown: not the client's for sure
        (b"data: No.\n\n", SICK),
        (b"", SICK),
    ],
)
def test_errors_in_a_stream(body: bytes, verdict: tuple[Any, ...]) -> None:
    """D5, E4: an error after 200 is judged by its type; after content it counts the same and nobody tries again."""
    assert judged(200, body)[:5] == verdict
    after = verdict_of(Refused(502), 200, [], body, now_us=NOW_US, content=True)
    assert after[:5] == (False, False, *verdict[2:])


@pytest.mark.parametrize(
    ("failure", "status", "verdict"),
    [
        (Unreachable(), None, (True, True, "provider", "fail", None)),
        (Timeout(), None, (False, True, "model", "fail", None)),
        (Timeout(), 200, (False, True, "model", "fail", None)),
        (StreamBroken(), None, SICK),
        (StreamBroken(), 200, SICK),
        (StreamBroken(), 429, LIMITED),  # the answer is known, though its body is cut
        (Refused(503), None, SICK),
        (None, 503, SICK),
        (None, 200, CALLERS),
        (None, None, CALLERS),
    ],
)
def test_failures_without_an_error(
    failure: TollkeeperError | None, status: int | None, verdict: tuple[Any, ...]
) -> None:
    """D5: no connection is the provider's, silence and a cut are the model's; after content nobody tries again."""
    assert verdict_of(failure, status, [], b"", now_us=NOW_US)[:5] == verdict
    after = verdict_of(failure, status, [], b"", now_us=NOW_US, content=True)
    assert after[:5] == (False, False, *verdict[2:])


def test_an_error_after_content_without_a_failure() -> None:
    """D5: a stream that ends properly after an in-band error is a failure of the model, and only that."""
    body = b"event: error\ndata: " + anthropic("overloaded_error") + b"\n\n"
    assert verdict_of(None, 200, [], body, now_us=NOW_US, content=True)[:5] == CUT
    good = b'data: {"type":"response.created","response":{"error":null},"message":"x"}\n\n'
    assert verdict_of(None, 200, [], good, now_us=NOW_US, content=True)[:5] == CALLERS


# ---- Retry-After ----------------------------------------------------------------------------------------------------

JUNK = ("", " ", "-1", "nan", "inf", "1e3", "soon", "0x10", "1,5", "\xb2", "9" * 5000, "Mon", "Mon, 99 Foo 2026")
JUNK += ("Sun, 31 May 2026 23:59:59 GMT", "Thu, 01 Jan 1970 00:00:00 GMT", "Mon, 01 Jun 0000 00:00:00 +9999")


@pytest.mark.parametrize(
    ("headers", "for_s"),
    [
        ({"retry_after": "30"}, 30), ({"Retry_After": " 1.5 "}, 1.5), ({"retry_after_ms": "250"}, 0.25),
        ({"retry_after": "0"}, 0.1), ({"retry_after": "86400"}, 3600), ({"retry_after": "9" * 300}, 3600),
        ({"retry_after": "Mon, 01 Jun 2026 00:01:30 GMT"}, 90), ({"retry_after": "Mon, 01 Jun 2026 02:01:30 +0200"}, 90),
        ({"retry_after": "Mon, 01 Jun 2026 00:01:30 -0000"}, 90), ({"retry_after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 3600),
        ({"retry_after": "1", "retry_after_ms": "0"}, 1),  # Azure's: the longest counts
        *[({name: junk}, None) for name, junk in product(("retry_after", "retry_after_ms"), JUNK)],
    ],
)  # fmt: skip
def test_retry_after(headers: dict[str, str], for_s: float | None) -> None:
    """E3: 429, 503 and 529 block the model as long as they ask, within a tenth of a second and an hour; junk is absent."""
    for status, plain in ((429, LIMITED), (503, SICK), (529, SICK)):
        verdict = judged(status, **headers)
        assert verdict[:4] == (plain[:4] if for_s is None else (False, True, "model", "block"))
        assert verdict.for_s == (None if for_s is None else pytest.approx(for_s))
    assert judged(500, **headers)[:5] == SICK  # it is not asked to wait by what is broken
    assert judged(401, **headers)[:5] == REFUSED


@pytest.mark.parametrize(
    ("details", "for_s"),
    [
        ([retry("34.4s")], 34.4), ([{"@type": GOOGLE + "Help"}, retry("37s")], 37), ([retry("0s")], 0.1),
        ([retry("1000000s")], 3600), ([retry("-3s")], None), ([retry("3")], None), ([retry(3)], None), (["3s"], None),
    ],
)  # fmt: skip
def test_retry_info(details: list[Any], for_s: float | None) -> None:
    """E3: Google says in the body how long to wait."""
    verdict = judged(429, google(429, "RESOURCE_EXHAUSTED", "No.", *details))
    assert verdict[2:5] == ("model", "fail" if for_s is None else "block", for_s)


# ---- what went wrong in other gateways ------------------------------------------------------------------------------


def test_the_longest_retry_after_counts() -> None:
    """E3: a longer pause beside a shorter one is not lost, whichever comes first."""
    body = google(429, "RESOURCE_EXHAUSTED", "No.", retry("20s"))
    assert judged(429, body, retry_after="5").for_s == 20
    assert judged(429, body, retry_after="50").for_s == 50


@pytest.mark.parametrize("failure", [Timeout(), StreamBroken(), Refused(503), None])
def test_a_clients_own_limit_is_nobodys_failure(failure: TollkeeperError | None) -> None:
    """E3: a client that gives up early, or does not read, opens no breaker."""
    for status in (None, 200, 429, 503):
        verdict = verdict_of(failure, status, [(b"retry-after", b"9")], b"", now_us=NOW_US, client_left=True)
        assert verdict[:5] == CALLERS


@pytest.mark.parametrize(
    "body",
    [
        openai("previous_response_not_found", message="Previous response with id 'resp_1' not found."),
        openai(None, message="No such File object: model-file"),
        openai("not_found", message="There is nothing at this path."),
        anthropic("not_found_error", "Container not found"),
        google(404, "NOT_FOUND", "Cached content models/x not found"),
    ],
)
@pytest.mark.parametrize("status", [400, 404])
def test_a_wrong_id_does_not_run_through_the_chain(body: bytes, status: int) -> None:
    """E3: what a client names and is not there blocks no model and is not looked for elsewhere."""
    assert judged(status, body)[:5] == CALLERS


def test_too_little_credit_comes_as_400() -> None:
    """E4: Anthropic's 400 for an empty account opens the key, though its type is that of a bad request."""
    body = anthropic("invalid_request_error", "Your credit balance is too low to access the Anthropic API. Please go")
    verdict = judged(400, body)
    assert verdict[:5] == NO_CREDIT
    assert verdict.reason == "no credit: 400 invalid_request_error"


@pytest.mark.parametrize("failure", [TollkeeperError(), BadRequest(), StoreUnavailable()])
def test_an_error_of_our_own_is_nobodys_failure(failure: TollkeeperError) -> None:
    """E3: a refused budget, a body that cannot be read, a ledger that is away: no provider is to blame."""
    for status in (None, 200, 500):
        assert verdict_of(failure, status, [], openai(None, "server_error"), now_us=NOW_US)[:5] == CALLERS


@pytest.mark.parametrize("words", ["Your credit balance is too low", "API key not valid", "Insufficient credits", "x"])
def test_a_client_cannot_close_a_key(words: str) -> None:
    """E3: words that a client had repeated in a provider's message, even at its beginning, close nothing for others."""
    for body in (
        openai("invalid_value", message=f"Invalid value: '{words}'"),
        openai(None, "x", f"{words} is not a valid model ID"),  # OpenRouter, whose errors have no type
        anthropic("invalid_request_error", f"{words}\n: Extra inputs are not permitted"),  # the name of a member
    ):
        assert {judged(status, body).level for status in (400, 404, 422)} <= {None, "model"}


# ---- bounds ---------------------------------------------------------------------------------------------------------


def test_only_the_beginning_of_a_body_is_read() -> None:
    """A large body is not parsed: what is beyond its first 64 KiB changes nothing, and its status decides."""
    body = openai("insufficient_quota")
    assert judged(400, body + b" " * (MAX_BODY - len(body)))[:5] == NO_CREDIT
    assert judged(400, b" " * MAX_BODY + body)[:5] == CALLERS
    assert judged(400, b'{"a":"' + b"x" * MAX_BODY + b'"}' + body)[:5] == CALLERS
    assert judged(400, b"[" * 10_000_000)[:5] == CALLERS


def test_reasons_hold_nothing_of_a_client() -> None:
    """H: a reason is made of our words, the status and types that we know."""
    secret = "sk-secret"
    for status, body in product((200, 400, 404, 429), (openai(secret, secret, secret), anthropic(secret, secret))):
        assert secret not in judged(status, body).reason
    assert judged(429, openai("rate_limit_exceeded", "requests")).reason == "rate limited: 429 rate_limit_exceeded"
    assert judged(200, openai("insufficient_quota")).reason == "no credit: 200 insufficient_quota"
    assert verdict_of(Unreachable(secret), None, [], b"", now_us=NOW_US).reason == "unreachable"
    assert verdict_of(BadRequest(secret), None, [], b"", now_us=NOW_US).reason == "not the provider's: bad_request"


def test_every_failure_of_a_provider_has_a_row() -> None:
    """Each leaf of UpstreamError is an answer, or in the table, or says nothing of the provider that was cut for another one."""
    leaves = set(UpstreamError.__subclasses__())
    assert leaves == set(failures._FAILURES) | {Refused, Outrun}
    assert verdict_of(Outrun("cut"), None, [], b"", now_us=NOW_US, client_left=True).effect == "ignore"


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
WORDS = st.sampled_from([*failures._TYPES, *failures._STATUS_OF, "error", "34s", "-1s", "models/x"])
NAMES = st.sampled_from(
    ["error", "type", "code", "status", "message", "details", "reason", "retryDelay", "response", "object"]
)
VALUES = st.recursive(SCALARS | WORDS, lambda one: st.lists(one, max_size=3) | st.dictionaries(NAMES, one, max_size=5))
BODIES = st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode())
FRAMES = st.sampled_from([(b"", b""), (b"data: ", b"\n\n"), (b"[", b"]"), (b"[{},", b""), (b"\xef\xbb\xbf", b"\r\n")])
PAUSES = st.sampled_from(JUNK).map(lambda text: text.encode("latin-1")) | st.binary(max_size=40)
HEADERS = st.lists(st.tuples(st.sampled_from([b"retry-after", b"Retry-After-Ms", b"x"]), PAUSES), max_size=3)
LEAVES = st.sampled_from([None, *failures._FAILURES, Refused])


@given(LEAVES, st.none() | st.integers(-1, 1000), HEADERS, BODIES, FRAMES, st.integers(0, 2**53), st.booleans())
@example(
    None, 200, [(b"retry-after", b"Mon, 01 Jan 0001 00:00:00 +2359")], b'{"error":"\\ud800"}', (b"", b""), 0, False
)
def test_nothing_makes_it_raise(
    leaf: type[TollkeeperError] | None, status: int | None, headers: list[tuple[bytes, bytes]], body: bytes,
    frame: tuple[bytes, bytes], now_us: int, content: bool,
) -> None:  # fmt: skip
    """E3: whatever a provider sends there is a verdict, and its parts agree with each other."""
    failure = None if leaf is None else Refused(502) if leaf is Refused else leaf()
    verdict = verdict_of(failure, status, headers, frame[0] + body + frame[1], now_us=now_us, content=content)
    assert (verdict.for_s is not None) == (verdict.effect == "block")
    assert verdict.for_s is None or 0.1 <= verdict.for_s <= 3600
    assert verdict.level is not None or verdict.effect == "ignore"
    assert not (verdict.again and (content or verdict.effect != "fail"))
    assert not (verdict.elsewhere and content)
    assert verdict.elsewhere or not verdict.again
    assert len(verdict.reason) < 100
    assert verdict.reason.isascii()
