"""Tollkeeper: an LLM gateway that keeps exact accounts, and the same ledger as a library.

    from tollkeeper import CostTracker

`import tollkeeper` alone is cheap: each name below is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tollkeeper.config import Config as Config
    from tollkeeper.errors import BudgetExceeded as BudgetExceeded
    from tollkeeper.errors import ConfigError as ConfigError
    from tollkeeper.errors import Conflict as Conflict
    from tollkeeper.errors import RateLimited as RateLimited
    from tollkeeper.errors import StoreError as StoreError
    from tollkeeper.errors import StoreUnavailable as StoreUnavailable
    from tollkeeper.errors import TollkeeperError as TollkeeperError
    from tollkeeper.repricing import Repricing as Repricing
    from tollkeeper.tracker import CostTracker as CostTracker
    from tollkeeper.tracker.accounts import Recorded as Recorded
    from tollkeeper.tracker.holding import CallHold as CallHold
    from tollkeeper.tracker.process import close_cost_tracker as close_cost_tracker
    from tollkeeper.tracker.process import get_cost_tracker as get_cost_tracker
    from tollkeeper.tracker.process import reset_cost_tracker as reset_cost_tracker
    from tollkeeper.tracker.streaming import RecordedStream as RecordedStream
    from tollkeeper.tracker.usage_report import ModelUsage as ModelUsage
    from tollkeeper.tracker.usage_report import UsageReport as UsageReport
    from tollkeeper.values import Budget as Budget
    from tollkeeper.values import Entry as Entry
    from tollkeeper.values import Usage as Usage

_MODULES = {
    "config": ("Config",),
    "errors": (
        "BudgetExceeded", "ConfigError", "Conflict", "RateLimited", "StoreError", "StoreUnavailable", "TollkeeperError",
    ),
    "repricing": ("Repricing",),
    "tracker": ("CostTracker",),
    "tracker.accounts": ("Recorded",),
    "tracker.holding": ("CallHold",),
    "tracker.process": ("close_cost_tracker", "get_cost_tracker", "reset_cost_tracker"),
    "tracker.streaming": ("RecordedStream",),
    "tracker.usage_report": ("ModelUsage", "UsageReport"),
    "values": ("Budget", "Entry", "Usage"),
}  # fmt: skip
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
