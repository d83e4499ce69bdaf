"""What the suite must catch: a counter in Redis as many have it. Acknowledged at once, counted in the background, tried again."""

from __future__ import annotations

import asyncio
from collections import deque

import redis.asyncio
from redis.exceptions import RedisError

from tollkeeper.values import Entry, Hold

COUNTED = "naive:counted"  #: hash: id → how often it was counted
SPENT = "naive:spent"


class NaiveStore:
    """One pipeline of increments for each record; nothing is safe before it has gone out, nothing says what was counted."""

    def __init__(self, url: str) -> None:
        self._client = redis.asyncio.Redis.from_url(url.partition("?")[0], socket_timeout=1)
        self._waiting: deque[Entry] = deque()
        self._task = asyncio.get_running_loop().create_task(self._send())
        self._closing = False

    async def reserve(self, hold: Hold) -> None:
        """Everything is admitted."""

    async def void(self, id: str) -> None:
        """Nothing is held."""

    async def expire(self, now_us: int) -> None:
        """Nothing is held."""

    async def settle(self, entry: Entry) -> None:
        self._waiting.append(entry)
        await asyncio.sleep(0.1 if len(self._waiting) > 200 else 0)

    async def close(self) -> None:
        self._closing = True
        await self._task
        await self._client.aclose()

    async def _send(self) -> None:
        while self._waiting or not self._closing:
            if not self._waiting:
                await asyncio.sleep(0.001)
                continue
            entry = self._waiting[0]
            pipeline = self._client.pipeline()
            pipeline.hincrby(COUNTED, entry.id, 1)
            pipeline.incrby(SPENT, entry.charge.amount_nanos or 0)
            try:
                await pipeline.execute()
            except redis.exceptions.ResponseError:
                pass  # it cannot be counted
            except (RedisError, OSError):
                await asyncio.sleep(0.01)
                continue
            self._waiting.popleft()
