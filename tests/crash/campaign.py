"""A campaign: gateways work, faults strike one after the other, and when all is quiet the accounts are audited."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

from tests.crash.audit import Verdict, audit, audit_naive
from tests.crash.kinds import Kind
from tests.crash.rig import Gateways, Watcher, redis_of

GATEWAYS = 2


def campaign(kind: Kind, folder: Path, executable: str, faults: int, seed: int, *options: str) -> Verdict:
    """So many faults of a kind on one ledger. `options` are the gateways'."""
    random = Random(seed)
    folder.mkdir()
    with kind(folder / "ground", executable) as ground:
        gateways = Gateways(ground.url, folder / "gateways", *options, env=ground.env, journals=ground.journals)
        watcher = Watcher(gateways, ground.direct)
        try:
            for name in [gateways.start() for _ in range(GATEWAYS)]:
                gateways.up(name)
            with watcher.watching():
                for number in range(faults):
                    gateways.more(random.randint(50, 250))
                    ground.strikes[number % len(ground.strikes)](gateways, random)
                gateways.more(50)
                gateways.stop()
        finally:
            gateways.end()
        if "--naive" in options:
            with redis_of(ground.url) as client:
                verdict = audit_naive(client, gateways.notes)
        else:
            verdict = asyncio.run(audit(ground.url, gateways.journals, gateways.notes))
            assert watcher.samples > 0
    verdict.over += watcher.over(gateways.recovering(), verdict.back)
    verdict.faults = faults
    verdict.slowest_s = max((to - since for since, to in gateways.recovering("store: Redis is checked")), default=0.0)
    return verdict
