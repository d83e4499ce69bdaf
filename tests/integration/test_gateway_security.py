"""Who is let in, what is never told, and where no request goes."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tests.gateway import ASKS, CHAT, CREDENTIAL, PROVIDERS, budget, gateway, until

from tollkeeper.api import CALLS, OPEN, PAGES, QUESTIONS
from tollkeeper.keys import hash_secret
from tollkeeper.testing.provider import Cut, ErrorEvent, FakeProvider, Refuse, Replay

KEY = "tk_canary-key-5b1d"
KEYS = f'[[keys]]\nid = "k"\nproject = "alpha"\nhash = "{hash_secret(KEY)}"\n'
EXPIRED = f'[[keys]]\nid = "old"\nproject = "alpha"\nhash = "{hash_secret("tk_old")}"\nexpires = 2020-01-01\n'

#: What SDKs and people send that is not the key.
STRANGERS: dict[str, dict[str, str]] = {
    "nothing": {},
    "empty bearer": {"authorization": "Bearer "},
    "another key": {"authorization": "Bearer tk_other"},
    "its hash": {"x-api-key": hash_secret(KEY)},
    "basic": {"authorization": "Basic dDp0"},
    "the key without its scheme": {"authorization": KEY},
    "a longer one": {"x-api-key": KEY + "x"},
    "a very long one": {"x-goog-api-key": "x" * 5000},
    "expired": {"x-api-key": "tk_old"},
    "the provider's": {"authorization": f"Bearer {CREDENTIAL}"},
    "in a cookie": {"cookie": f"authorization=Bearer {KEY}"},
}


@pytest.mark.parametrize("headers", STRANGERS.values(), ids=STRANGERS.keys())
async def test_every_route_needs_a_key(tmp_path: Path, headers: dict[str, str]) -> None:
    """H1: every path but the open ones refuses without a known key, in every list that api has; nothing is sent."""
    assert {"/healthz", "/readyz"} == OPEN
    async with gateway(tmp_path, settings=KEYS + EXPIRED) as gw:
        for path, body in [*ASKS, *((path, CHAT) for path in QUESTIONS)]:
            async with gw.post(path, body, headers) as response:
                assert response.status == 401, path
                assert response.headers["x-should-retry"] == "false"
                assert KEY not in await response.text()
        for path in PAGES:
            async with gw.session.get(gw.url + path, headers=headers) as response:
                assert response.status == (200 if path in OPEN else 401), path
                assert "gpt" not in await response.text()
        assert await gw.untouched()


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "x-goog-api-key"])
async def test_every_sdks_header_carries_the_key(tmp_path: Path, header: str) -> None:
    """H1: with the key each route answers, in whichever header an SDK sends it."""
    headers = {header: f"Bearer {KEY}" if header == "authorization" else KEY}
    async with gateway(tmp_path, settings=KEYS) as gw:
        for path, body in ASKS:
            async with gw.post(path, body, headers) as response:
                assert response.status == 200, path
        for path in QUESTIONS:
            async with gw.post(path, CHAT, headers) as response:
                assert response.status == 200, path
        async with gw.session.get(gw.url + "/v1/models", headers=headers) as response:
            assert response.status == 200
        await until(lambda: gw.booked(len(ASKS)))
        assert {entry.scopes.key for entry in await gw.entries()} == {"k"}


async def test_two_keys_in_one_request(tmp_path: Path) -> None:
    """H1: a good key beside a bad one in another header never lets a bad one through alone."""
    async with gateway(tmp_path, settings=KEYS) as gw:
        async with gw.post(*ASKS[0], {"authorization": "Bearer tk_other", "x-api-key": KEY}) as response:
            assert response.status == 401
        assert await gw.untouched()


# ---- canaries -------------------------------------------------------------------------------------------------------

CANARY = "canary-8d2f"
FAULTS: list[Any] = [
    None, Refuse(400, message="no"), Refuse(401, message=CREDENTIAL), Refuse(500), Cut(3), Cut(headers=False),
    ErrorEvent(), Replay(b"not json"), Replay(b"", 302, (("location", "http://x/" + CREDENTIAL),)),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
async def test_canaries_are_never_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    """H2: secrets of keys, prompts, headers and providers stand 0 times in logs, errors and the ledger's files."""
    caplog.set_level(logging.DEBUG)
    headers = {"authorization": f"Bearer {KEY}", "cookie": f"s={CANARY}", "x-secret": CANARY, "user-agent": CANARY}
    strangers = {"authorization": f"Bearer {CANARY}"}
    errors: list[str] = []
    async with gateway(
        tmp_path, settings=KEYS + budget("project", "1000"), store=f"sqlite:///{tmp_path}/ledger.sqlite"
    ) as gw:
        for path, body in ASKS:
            ask = json.loads(json.dumps(body).replace("toll", CANARY)) | ({"stream": True} if stream else {})
            bad = {**ask, "max_tokens": CANARY}, {**ask, "model": f"unknown/{CANARY}"}, {**ask, "stream": CANARY}
            for fault in FAULTS:
                gw.fake.next(fault)
                async with gw.post(path, ask, headers) as response:
                    text = await response.text()
                    errors += [text] if response.status != 200 else []
            async with gw.post(path, ask, strangers) as response:
                errors.append(await response.text())
            for wrong in bad[:1] + bad[2:]:
                async with gw.post(path, wrong, headers) as response:
                    errors.append(await response.text())
            async with gw.post(path, json.dumps(ask)[:-1] + CANARY, headers) as response:
                errors.append(await response.text())
        await until(lambda: not gw.app.gate.draining)
        assert len(await gw.entries()) >= 3 * len(FAULTS) - 3
        files = ledger_files(tmp_path)
    assert "ledger.sqlite" in files
    written = "\n".join(record.getMessage() + str(record.exc_info or "") for record in caplog.records)
    for secret in (KEY, CANARY, CREDENTIAL, KEY.removeprefix("tk_")):
        assert secret not in written
        assert not [text for text in errors if secret in text]
        assert [name for name, data in files.items() if secret.encode() in data] == []


def ledger_files(folder: Path) -> dict[str, bytes]:
    """Every file of the ledger, also those that SQLite keeps beside it."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.startswith("ledger")}


# ---- where requests go ----------------------------------------------------------------------------------------------

#: Headers by which other gateways and proxies are told where to go, or that only concern one connection.
LURES = {
    "host": "evil.example", "x-forwarded-host": "evil.example", "forwarded": "host=evil.example", "x-base-url": "URL",
    "x-original-url": "URL", "x-rewrite-url": "URL", "x-tollkeeper-provider": "anthropic", "helicone-target-url": "URL",
    "x-portkey-custom-host": "URL", "openai-organization": "org-evil", "referer": "URL", "destination": "URL",
    "proxy-authorization": "Basic x", "cookie": "a=b", "te": "trailers", "via": "1.1 evil", "x-real-ip": "10.0.0.1",
    "authorization": "Bearer tk_client", "x-api-key": "tk_client", "x-goog-api-key": "tk_client", "api-key": "tk_client",
    "x-tollkeeper-project": "alpha", "x-tollkeeper-agent": "a", "x-tollkeeper-session": "s", "x-tollkeeper-user": "u",
    "x-tollkeeper-tags": "t", "openai-project": "p", "range": "bytes=0-1", "x-http-method-override": "DELETE",
    "user-agent": "evil/1", "accept-encoding": "gzip, br",
}  # fmt: skip
FIELDS = ("base_url", "api_base", "url", "api_key", "provider", "target", "webhook", "callback_url", "extra_headers")
PASSED = {
    "accept", "anthropic-beta", "anthropic-version", "openai-beta", "idempotency-key", "x-client-request-id",
}  # fmt: skip
CREDENTIALS = {"authorization", "x-api-key", "x-goog-api-key"}
OWN = {"host", "content-type", "content-length", "user-agent", "accept-encoding"} | CREDENTIALS


@pytest.mark.parametrize(("path", "body"), ASKS, ids=list(CALLS))
async def test_no_input_chooses_a_target(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """H3: no header or body field of a client changes where a call goes or whose credential it carries."""
    lure = FakeProvider()
    async with gateway(tmp_path / "lure", lure) as trap, gateway(tmp_path) as gw:
        evil = trap.fake_url
        headers = {name: value.replace("URL", evil) for name, value in LURES.items()}
        good = {name: f"v-{name}" for name in PASSED}
        ask = body | dict.fromkeys(FIELDS, evil)
        async with gw.post(path, ask, headers | good) as response:
            assert response.status == 200
        absolute = b"POST %b%b HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
        raw = json.dumps(ask).encode()
        assert (await gw.raw(absolute % (evil.encode(), path.encode(), len(raw), raw)))[0] == 200
        for model in (f"{evil}/gpt-4o", f"@{evil}", "../../evil", "openai/../../evil", f"openai/{evil}"):
            async with gw.post(path, ask | {"model": model}) as response:
                assert response.status in (200, 404), model
        await until(lambda: gw.booked(2))
        sent = gw.fake.requests
    assert lure.requests == []
    for request in sent:
        assert request.path == (path.replace("/v1/", "/v1beta/") if "models" in path else path)
        carried = [value for name, value in request.headers.items() if name in CREDENTIALS]
        assert carried in ([f"Bearer {CREDENTIAL}"], [CREDENTIAL])
        assert set(request.headers) <= PASSED | OWN
        assert request.headers["host"] != "evil.example"
        assert request.headers["user-agent"] == "tollkeeper"
        assert request.headers["accept-encoding"] == "identity"
        assert "tk_client" not in str(request.headers)
    assert {name: sent[0].headers[name] for name in PASSED} == good


@pytest.mark.parametrize("model", ["..", "../../x", "a/../b", "a/./b", "a//b", "a/"])
async def test_no_model_leads_to_another_path(tmp_path: Path, model: str) -> None:
    """H3: where a provider's path names the model, a client's name for it is no way out: it is refused before a budget is asked."""
    paths = '[providers.openai.paths]\nopenai-chat = "/deployments/{{model}}/chat/completions"\n'
    settings = budget("all", 0, measure="requests", window="total")
    async with gateway(tmp_path, settings=settings, providers=PROVIDERS + paths) as gw:
        async with gw.post("/v1/chat/completions", CHAT | {"model": f"openai/{model}"}) as response:
            assert (response.status, response.headers["x-should-retry"]) == (400, "false")
            assert "model" in (await response.json())["error"]["message"]
        assert await gw.untouched()


async def test_provider_headers_that_pass(tmp_path: Path) -> None:
    """H3: of a provider's headers the client sees rate limits and request ids, and nothing of its connection or cookies."""
    shown = {
        "x-request-id": "r", "retry-after": "3", "x-ratelimit-remaining-tokens": "9", "openai-processing-ms": "5",
        "anthropic-ratelimit-requests-limit": "4", "content-type": "application/json",
    }  # fmt: skip
    hidden = {
        "set-cookie": "a=b", "server": "cloudflare", "x-tollkeeper-cost": "0", "x-tollkeeper-budget-limit": "0",
        "openai-organization": "org-ours", "access-control-allow-origin": "*", "strict-transport-security": "x",
        "proxy-authenticate": "Basic", "location": "http://evil.example", "cf-ray": "x",
    }  # fmt: skip
    fake = FakeProvider(always=Replay(b'{"error":{}}', 400, tuple((shown | hidden).items())))
    async with gateway(tmp_path, fake) as gw:
        async with gw.post(*ASKS[0]) as response:
            told = {name.lower(): value for name, value in response.headers.items()}
        await gw.entry()
    own = {"x-tollkeeper-request-id", "x-tollkeeper-provider", "x-tollkeeper-model", "x-tollkeeper-attempts"}
    own |= {"x-tollkeeper-cost", "x-tollkeeper-cost-status", "content-length"}
    assert set(told) == set(shown) | own
    assert {name: told[name] for name in shown} == shown
    assert told["x-tollkeeper-cost-status"] == "priced"


async def test_metadata_addresses_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H3: a provider's name that leads to a link-local address is not asked, whatever the configuration's text looks like."""
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo

    async def lying(host: Any, port: Any, **more: Any) -> Any:
        if host == "provider.example":
            return [(2, 1, 6, "", ("169.254.169.254", port))]
        return await resolve(host, port, **more)

    monkeypatch.setattr(loop, "getaddrinfo", lying)
    providers = PROVIDERS.replace('"{url}/v1"', '"https://provider.example/v1"', 1)
    async with gateway(tmp_path, providers=providers) as gw:
        async with gw.post("/v1/chat/completions", CHAT) as response:
            assert response.status == 502
            assert "169.254" not in await response.text()
        assert await gw.untouched()
