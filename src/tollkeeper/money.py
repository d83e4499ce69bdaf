"""Money as integers: nano-dollars, and the one rounding.

An amount is an `int` number of nano-dollars (1 USD = 1,000,000,000 nanos) in a name that ends in `_nanos`. `None` is
"unknown" or "no limit", `0` is zero: always test with `is None`. Prices are `Decimal` dollars per million units; a cost is
summed exactly as `Decimal` dollars and rounded once, half to even, by `to_nanos`. All decimal arithmetic runs in CONTEXT,
so the caller's ambient decimal context changes nothing.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation, Overflow
from typing import Final

NANOS_PER_USD: Final = 1_000_000_000
#: The largest amount that any counter holds: exact as a double, so that Redis scripts can compare it. About 9 million USD.
MAX_NANOS: Final = 2**53 - 1
#: 50 digits hold any sum of products of token counts (9 digits) and prices (at most 20 digits) exactly.
CONTEXT: Final = Context(prec=50, rounding=ROUND_HALF_EVEN)
_ONE: Final = Decimal(1)
_NANO: Final = Decimal(NANOS_PER_USD)


def to_nanos(usd: Decimal) -> int:
    """Exact dollars to nanos, half to even: the only place where money is rounded."""
    return int(usd.scaleb(9, CONTEXT).quantize(_ONE, None, CONTEXT))


def to_usd(nanos: int) -> Decimal:
    """Nanos to exact dollars."""
    return CONTEXT.divide(Decimal(nanos), _NANO)


def parse_usd(value: object, name: str) -> int:
    """A user's amount in dollars (`int`, `Decimal` or decimal text such as "12.50") as nanos.

    Raises ValueError naming `name` for a float, a NaN or infinity, a negative amount, more than nine decimals, or more than
    MAX_NANOS.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str, Decimal)):
        raise ValueError(f"{name}: expected dollars as a whole number, a Decimal or text like '12.50', got {value!r}")
    try:
        usd = CONTEXT.create_decimal(value)
    except (InvalidOperation, Overflow):
        raise ValueError(f"{name}: {value!r} is not an amount in dollars; write it like '12.50'") from None
    if not usd.is_finite() or usd < 0:
        raise ValueError(f"{name}: {value!r} is not a finite amount of 0 or more")
    if usd > MAX_NANOS:  # bounds the digits before the exact product
        raise ValueError(f"{name}: {value!r} is above the largest amount, ${format_nanos(MAX_NANOS)}")
    exact = CONTEXT.multiply(usd, _NANO)
    nanos = int(exact)
    if exact != nanos:
        raise ValueError(f"{name}: {value!r} has more than nine decimals; the smallest amount is 0.000000001")
    if nanos > MAX_NANOS:
        raise ValueError(f"{name}: {value!r} is above the largest amount, ${format_nanos(MAX_NANOS)}")
    return nanos


def format_nanos(nanos: int) -> str:
    """Nanos as plain decimal dollars without exponent or needless zeros: 5_955_000 → '0.005955'."""
    whole, rest = divmod(abs(nanos), NANOS_PER_USD)
    sign = "-" if nanos < 0 else ""
    return f"{sign}{whole}.{rest:09d}".rstrip("0").rstrip(".")
