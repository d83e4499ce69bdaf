"""Stop a run-away loop: hold each call's most against a hard budget. Runs offline: python examples/hold.py

`call_the_provider` stands for your own client; it gets the output cap that the hold stands on.
"""

from __future__ import annotations

import asyncio

from tollkeeper import BudgetExceeded, CostTracker

SETTINGS = {
    "store": "memory:",
    "budgets": [{"scope": "session", "window": "total", "limit": "0.02"}],
}


async def call_the_provider(prompt: str, max_tokens: int | None) -> tuple[int, int]:
    """Prompt and completion tokens as the provider counted them."""
    return len(prompt) // 4, min(180, max_tokens or 180)


async def main() -> None:
    async with CostTracker(settings=SETTINGS) as tracker:
        prompt = "Improve this plan. " * 100
        for turn in range(1, 100):
            try:
                async with tracker.hold(
                    "shop",
                    "planner",
                    "gpt-4o",
                    prompt_tokens=len(prompt),
                    max_completion_tokens=400,
                    session_id="run-7",
                ) as hold:
                    used, written = await call_the_provider(prompt, hold.max_completion_tokens)
                    told = await hold.settle(prompt_tokens=used, completion_tokens=written)
            except BudgetExceeded as refused:
                print(f"turn {turn}: refused. {refused}")
                break
            print(f"turn {turn}: held ${hold.quote_usd}, cost ${told.amount_usd}")

        session = await tracker.get_session_usage("run-7")
        print(f"\nrun-7: {session.total_requests} calls, ${session.total_cost_usd} of $0.02")


if __name__ == "__main__":
    asyncio.run(main())
