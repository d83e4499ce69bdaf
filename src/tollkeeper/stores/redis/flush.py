"""The thread that brings a journal's rows to Redis, and everything back in order after Redis was away.

    away ── connected ──► recovering ── recovered ──► ready
      ▲                      ▲  │ lost                 │ doubted, lost
      └──────────────────────┴──┴──────────────────────┘          (link.LINK_LIFE)

Recovering: read the cursors, apply what they do not cover (also from the journals of this host's dead), assert the live holds
again, and wait until the other gateways have done the same; only then is anything admitted again. Others that were alive and do
not come back within LEARN_MS are given up: what is in their journals counts again when somebody adopts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Condition, Thread
from typing import Final, Protocol

from tollkeeper.errors import StoreError, StoreUnavailable
from tollkeeper.stores.redis.apply import ROWS_MAX, Applier, Doubted, Shared
from tollkeeper.stores.redis.ask import Ask
from tollkeeper.stores.redis.batch import Row
from tollkeeper.stores.redis.layout import bring_up
from tollkeeper.stores.redis.leases import Leases, end_leases
from tollkeeper.stores.redis.link import State
from tollkeeper.stores.sqlite.journal import Journal, neighbours, orphans
from tollkeeper.values import Entry

log = logging.getLogger("tollkeeper")

#: What a gateway says as it recovers: its rows are applied, its holds stand, it admits.
STEPS: Final = ("replayed", "asserted", "ready")
#: What a gateway says while everything is dropped: it applies nothing.
STOPPED: Final = "stopped"

#: Milliseconds that rows wait for others to come, so that they travel together.
FLUSH_MS: Final = 25
#: Milliseconds between two signs of life, and after which a silent gateway is not waited for any more.
BEAT_MS: Final = 500
SILENT_MS: Final = 5000
#: Milliseconds that a recovery waits for the gateways that were alive before.
LEARN_MS: Final = 3000
#: Milliseconds after which every gateway has noticed that Redis was emptied, also one that nobody had heard of before.
HEARD_MS: Final = 2 * BEAT_MS
#: Milliseconds between two looks whether the others are back.
RETRY_MS: Final = 50
#: Milliseconds between two looks for journals of dead processes.
ORPHANS_MS: Final = 5000
#: Rows that wait in memory; beyond it they are read from the journal again.
WAITING_MAX: Final = 20_000


class Holds(Protocol):
    """Live holds, as this thread calls them."""

    def begin(self) -> None:
        """A recovery begins: the journal is not read yet."""
        ...

    def reassert(self) -> None:
        """The journal is applied: make every live hold stand in Redis again, and no other one of this process."""
        ...

    def ready(self, tell: Callable[[], State]) -> None:
        """Everyone is back: the same for what was admitted meanwhile; then `tell` that Redis is ready."""
        ...

    def applied_before(self, entries: Iterable[Entry]) -> None:
        """These were applied before this process heard that they are safe; their holds end."""
        ...

    def extend(self) -> None:
        """Between two batches: have live holds count on new budgets, if there are any."""
        ...


class Flusher:
    """`push` rows as they become safe; `flushed` to wait until they are applied."""

    def __init__(self, shared: Shared, journal: Journal, leases: Leases, *, folder: Path) -> None:
        self._shared, self._journal, self._folder = shared, journal, folder
        self._holds: Holds
        self._leases = leases
        self._applier = Applier(shared, journal, leases)
        self._rows: deque[Row] = deque()
        self._waiting: list[tuple[int, Future[None]]] = []  # row that must be applied, and who waits for it
        self._lock = Condition()
        self._collects = False  # rows come by `push`; else they are read from the journal by the next recovery
        self._closing = False
        self._wants = False  # a lease is to be asked for
        self._drained: set[str] = set()  # journals of the dead whose leases have ended
        # Gateways that were alive, and have not come back since the last recovery began.
        self._awaited: set[str] = set()
        self.peers: dict[str, str] = {}  #: journal → what its gateway said last
        self.done = 0  #: every row up to this one is applied
        self.begun = False  #: Redis has been ready once
        self.epoch = ""  #: in which this process has recovered last
        self._next_beat = self._next_orphans = self._heard_at = 0
        self._thread = Thread(target=self._work, name="tollkeeper-flush", daemon=True)

    def start(self, holds: Holds) -> None:
        self._holds = holds
        self._thread.start()

    # ── for callers ──

    def push(self, rows: list[Row]) -> None:
        """Rows that are safe in the journal, in their order."""
        with self._lock:
            if not self._collects:
                return
            self._rows.extend(rows)
            if len(self._rows) > WAITING_MAX:
                self._collects = False
            if len(self._rows) == len(rows) or len(self._rows) >= ROWS_MAX:
                self._lock.notify_all()

    def flushed(self) -> Future[None]:
        """Done when everything that is safe now is applied; StoreUnavailable where it cannot be just now."""
        told: Future[None] = Future()
        told.set_running_or_notify_cancel()  # a waiter that is cancelled must not change it
        last = self._journal.last  # not under the lock: the journal tells `push` of its rows first
        with self._lock:
            if self._shared.link.state in ("away", "closed") or self._closing:
                told.set_exception(self._shared.link.unavailable())
            else:
                self._waiting.append((last, told))
                self._lock.notify_all()
        return told

    def want(self) -> None:
        """A lease has something to ask of Redis."""
        with self._lock:
            self._wants = True
            self._lock.notify_all()

    def wake(self) -> None:
        """The link's state has changed."""
        with self._lock:
            if self._shared.link.state in ("away", "closed"):
                self._collects = False
                self._rows.clear()
                self._give_up()
            self._lock.notify_all()

    def applied(self, tag: str) -> int:
        """The last row of this journal that a slot is known to have."""
        return self._applier.applied.get(tag, 0)

    def applied_upto(self) -> int:
        """Every row up to this one is applied: it may be pruned."""
        return self.done if self._shared.link.state == "ready" else 0

    def close(self) -> None:
        """Apply what waits, if Redis answers, and end."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        self._thread.join()

    # ── the thread ──

    def _work(self) -> None:
        while True:
            with self._lock:
                state = self._shared.link.state
                if self._closing and (state != "ready" or not self._rows):
                    break
                if state in ("away", "closed"):
                    self._lock.wait()
                    continue
                if state == "ready":
                    self._await()
            try:
                if state == "recovering":
                    self._recover()
                else:
                    self._step()
            except Doubted as error:
                self._shared.link.tell("doubted", str(error))
            except StoreError as error:
                self._refused(error)
            except Exception:  # a mistake of ours must not end the way to Redis for good
                log.exception("store: rows cannot be applied to Redis")
                self._refused(StoreUnavailable("store: a mistake inside Tollkeeper; see the log"))
        if self._shared.link.state == "ready":  # who has left in good order is not waited for
            with contextlib.suppress(StoreError):
                self._leases.recall()
                self._leases.tend(1, look=False)
                self._shared.link.run(Ask(("HDEL", self._shared.keys.members, self._journal.id)))
        with self._lock:
            self._collects = False
            self._give_up()

    def _await(self) -> None:
        """Wait until enough rows are here, or somebody waits for them, or it is time for the next sign of life."""
        if not self._rows and not self._waiting and not self._closing and not self._wants:
            self._lock.wait(max(0, self._next_beat - self._shared.ticks_ms()) / 1000)
        if self._rows and not self._waiting and len(self._rows) < ROWS_MAX and not self._closing and not self._wants:
            self._lock.wait(FLUSH_MS / 1000)

    def _refused(self, error: StoreError) -> None:
        """Redis does not do what it is asked although it answers (full, read-only): look again in a moment."""
        with self._lock:
            self._give_up(error)
            if self._shared.link.state == "ready":
                self._shared.link.reason = str(error)
        self._shared.link.tell("doubted", str(error))
        with self._lock:
            if not self._closing:
                self._lock.wait(BEAT_MS / 1000)

    def _give_up(self, error: Exception | None = None) -> None:
        waiting, self._waiting = self._waiting, []
        for _, told in waiting:
            told.set_exception(error if error is not None else self._shared.link.unavailable())

    def _step(self) -> None:
        with self._lock:
            rows = [self._rows[at] for at in range(min(len(self._rows), ROWS_MAX))]
            if len(rows) == ROWS_MAX and rows[-1][1].sign < 0:  # a reversal goes with what comes after it
                rows.append(self._rows[ROWS_MAX])
            overflowed = not self._collects
        if rows:
            self._shared.register(entry.scopes.project for _, entry in rows)
            if again := self._applier.apply(rows):
                self._holds.applied_before(again)
            with self._lock:
                for _ in rows:
                    if self._rows:
                        self._rows.popleft()
        self._holds.extend()
        last = self._journal.last
        with self._lock:
            if self._rows:
                last = self._rows[0][0] - 1
            elif not self._collects:  # nobody has told of the rows that came since
                last = rows[-1][0] if rows else self.done
            upto = self.done = last
            done = [told for row, told in self._waiting if row <= upto]
            self._waiting = [each for each in self._waiting if each[0] > upto]
        for told in done:
            told.set_result(None)
        if overflowed and not self._rows:
            raise Doubted("store: more rows waited than fit in memory; the rest is read from the journal")
        now = self._shared.ticks_ms()
        with self._lock:
            wants, self._wants = self._wants, False
        if wants or now >= self._next_beat:
            self._leases.tend(len(self.peers), look=now >= self._next_beat)
        if now >= self._next_beat:
            self._next_beat = now + BEAT_MS
            if self._say("ready") != self.epoch:
                raise Doubted("store: Redis has begun again from nothing")
            self._applier.look()
        if now >= self._next_orphans:
            self._adopt_orphans()

    # ── recovery ──

    def _recover(self) -> None:
        shared, runs = self._shared, self._shared.link.runs
        with self._lock:
            self._rows.clear()
            self.done = 0
            self._collects = True  # what comes from now on is behind what the journal is read up to
        shared.forget()
        self._drained.clear()
        known = self.epoch
        self._awaited |= set(self.peers)
        self.epoch = self._say("recovering", begin=True)
        (rebuilt,) = shared.link.run(Ask(("EXISTS", shared.keys.rebuild)))
        if rebuilt:  # asked only now: who drops has seen us, or we see it
            self._say(STOPPED)
            self.epoch = known
            raise StoreUnavailable("store: Redis is being rebuilt; it is there again when that is done")
        bring_up(shared)
        emptied = bool(known) and known != self.epoch
        if emptied:
            log.error("store: Redis was emptied; it is filled again from the journals")
        self._holds.begin()
        self._applier.catch_up()
        if self._applier.forgotten and known in ("", self.epoch):  # the others do not know yet
            self.epoch, emptied = shared.renew(self.epoch), True
        if emptied:
            self._heard_at = shared.ticks_ms() + HEARD_MS
        self._say("recovering")
        drained = self._adopt_orphans()
        self._awaited -= drained
        self._applier.follow_others(self.peers.keys() - drained)
        self._learn("replayed", until_ms := shared.ticks_ms() + LEARN_MS)
        self._holds.reassert()  # now, since balances begin with what everyone has replayed
        self._leases.reassert(shared.projects(), self._applier.applied, self._applier.starred)
        self._applier.go_on()  # what was settled after the journal was read, and before its hold could be asserted
        self._learn("asserted", until_ms)
        self._awaited.clear()
        self._say("ready")
        self._next_beat = shared.ticks_ms() + BEAT_MS
        self.begun = True
        self._holds.ready(lambda: shared.link.tell("recovered", runs=runs))  # lost meanwhile: all of it again

    def _learn(self, step: str, until_ms: int) -> None:
        """Wait until every gateway that was alive has come so far with this very Redis. Raises Doubted."""
        shared, tried = self._shared, set[str]()
        while True:
            if self._say(step) != self.epoch:
                raise Doubted("store: Redis has begun again from nothing")
            missing = self._missing(STEPS[STEPS.index(step) :])
            died = {path.stem for path in orphans(self._folder, self._journal.path)}.intersection(missing) - tried
            if died:
                tried |= died
                self._adopt_orphans()
                continue
            here = f" {self.epoch} {self._where()} "
            if (
                missing
                and shared.ticks_ms() >= until_ms
                and not any(here in self.peers.get(name, "") for name in missing)
            ):
                if step == "replayed":
                    log.warning("store: %d gateways that were alive have not come back yet", len(missing))
                missing = []
            with self._lock:
                if self._closing or (not missing and shared.ticks_ms() >= self._heard_at):
                    break
                self._lock.wait(RETRY_MS / 1000)

    def _missing(self, steps: Sequence[str]) -> list[str]:
        """Gateways that were alive, or are on this host, and have taken none of these steps with this very Redis."""
        here = f" {self.epoch} {self._where()} "
        here_now = set(neighbours(self._folder))
        self._awaited |= here_now
        told = {
            name: self.peers.get(name, "") for name in here_now | ((self._awaited | self.peers.keys()) - self._drained)
        }
        return [
            name
            for name, said in told.items()
            if name != self._journal.id and not (here in said and said.rpartition(" ")[2] in steps)
        ]

    def _where(self) -> str:
        """Which server processes we are connected to."""
        runs = sorted(f"{name}={run}" for name, run in self._shared.link.runs.items())
        return f"{zlib.crc32(' '.join(runs).encode()):08x}"

    def _say(self, state: str, *, begin: bool = False) -> str:
        """Give a sign of life, and hear the others'. The epoch that Redis is in."""
        epoch = secrets.token_hex(8) if begin else ""
        said = f"{self.epoch} {self._where()} {state}"
        found = self._shared.beat(epoch, self._journal.id, said, SILENT_MS)
        if found[0] == self.epoch or begin:  # one that was emptied has forgotten who was there
            self.peers = dict(zip(found[1::2], found[2::2], strict=True))
        return found[0]

    def _adopt_orphans(self) -> set[str]:
        """Drain the journals of this host's dead, and say which. Raises StoreUnavailable where Redis does not answer."""
        self._next_orphans = self._shared.ticks_ms() + ORPHANS_MS
        drained = set()
        for path in orphans(self._folder, self._journal.path):
            try:
                journal = Journal.open(path)
            except StoreError as error:
                log.warning("store: the journal %s is left alone: %s", path.name, error)
                continue
            try:
                Applier(self._shared, journal).catch_up()
                if journal.id not in self._drained:
                    end_leases(self._shared, journal.id, self._shared.projects())
                    self._drained.add(journal.id)
                drained.add(journal.id)
            except StoreError as error:
                if self._shared.link.state not in ("recovering", "ready"):
                    raise
                log.warning("store: the journal %s is left alone: %s", path.name, error)
            finally:
                asyncio.run(journal.close())
        return drained
