"""Record calls and ask what they cost. Runs offline: python examples/track_costs.py

Nothing is sent anywhere. With `CostTracker()` the ledger would be the file tollkeeper.sqlite, or what the settings say.
"""

from __future__ import annotations

import asyncio

from tollkeeper import CostTracker, Usage


async def main() -> None:
    async with CostTracker(store="memory:", settings={"default_budget_limit": "5.00"}) as tracker:
        await tracker.record_usage(
            "shop", "writer", "gpt-4o-mini", 25_978, 400, cached_tokens=24_540, session_id="run-1"
        )
        await tracker.record_usage(
            "shop", "reviewer", "claude-haiku-4-5", usage=Usage(input=56_322, cache_read=72_960, output=87)
        )
        for _ in range(2):  # the same request twice counts once
            told = await tracker.record_usage("shop", "writer", "gpt-4o", 1200, 300, request_id="req-42")
            print(f"req-42: ${told.amount_usd}, {told.status}, {told.booked}")
        await tracker.record_usage("shop", "writer", "our-own-model", 800, 200)  # no price: counted, never as $0

        day = await tracker.get_project_usage("shop")
        print(f"\nshop on {day.period_start:%Y-%m-%d}: {day.total_requests} requests, {day.total_tokens} tokens")
        for model, used in day.by_model.items():
            cost = "unknown" if used.unpriced_requests else f"${used.total_cost_usd}"
            print(f"  {model:20} {used.total_tokens:>8} tokens  {cost}")
        print(f"  in all ${day.total_cost_usd}, and {day.unpriced_requests} request without a price")

        within, current, limit = await tracker.check_budget("shop")
        print(f"\nthis month ${current} of ${limit}: {'within' if within else 'spent'}")
        print(f"the next call costs at most ${await tracker.estimate_request_cost('gpt-4o', 1000, 500)}")


if __name__ == "__main__":
    asyncio.run(main())
