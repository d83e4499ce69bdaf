"""Tollkeeper: an LLM gateway that keeps exact accounts, and the same ledger as a library."""

__version__ = "0.1.0"
