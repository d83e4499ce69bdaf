"""Which model a name means: exactly, by a declared alias, or by a declared pattern plus a recognised decoration.

A name is never matched by substring. Price data declares aliases (`equals`) and patterns (`starts_with`, `contains`,
…); a pattern counts only where all that is left of the name around it is a decoration: a date, a version, `-latest`,
`-preview`, a region or vendor in front, the organisation behind a fine-tuned model's name. So `gpt-4o-audio-new` is not
`gpt-4o-audio`, and `llama3:8b` and `vendor/model:free` are names like any other.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, Final

#: How people and gateways call a vendor → its id in the price data, where the two differ.
VENDORS: Final = {
    "azure_ai": "azure", "azure-openai": "azure", "amazon": "aws", "bedrock": "aws", "fireworks_ai": "fireworks",
    "fireworks-ai": "fireworks", "gemini": "google", "grok": "x-ai", "meta-llama": "meta", "mistralai": "mistral",
    "moonshot": "moonshotai", "together_ai": "together", "togetherai": "together", "vertex": "google",
    "vertex_ai": "google", "vertex-ai": "google", "voyage": "voyageai", "xai": "x-ai", "z-ai": "zai",
}  # fmt: skip
#: Whom a bare name is looked up at first; after them comes everybody else, in the data's order.
PREFERRED: Final = (
    "openai", "anthropic", "google", "mistral", "deepseek", "x-ai", "groq", "cohere", "perplexity", "moonshotai", "zai",
    "minimax", "meta", "voyageai", "cerebras", "together", "fireworks", "azure", "aws",
)  # fmt: skip

_SNAPSHOT: Final = r"""
      [-@]20\d\d(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])   # -20250929 @20250929
    | -20\d\d-\d\d-\d\d                              # -2024-08-06
    | -\d\d-(?:20)?\d\d                              # -05-20 -09-2025
    | -\d{3,4}                                       # -001 -0613
    | -v\d{1,2}(?::\d{1,2})? | :\d{1,2}              # -v1:0 :0
"""
_SNAPSHOTS: Final = re.compile(f"(?:{_SNAPSHOT})*", re.VERBOSE)
_DECORATIONS: Final = re.compile(f"(?:{_SNAPSHOT}|[-@](?:latest|preview|exp|experimental|beta|default))*", re.VERBOSE)
_FINE_TUNED: Final = re.compile(r":[^:/]*:[^:/]*:[^:/]*$")  # ft:gpt-4o-2024-08-06:organisation:suffix:id
#: A pattern that ends inside a date or version: what it cut in two may be decoration as a whole.
_UNFINISHED: Final = re.compile(r"(?:[-@](?:20\d\d-?)?|-0)$")
_IN_FRONT: Final = re.compile(
    r"(?:arn:aws[\w-]*:bedrock:[\w-]*:\d*:[\w-]+/)?"
    r"(?:(?:af|apac|au|ca|eu|global|in|jp|me|sa|us|us-gov)\.)?"
    r"(?:(?:ai21|amazon|anthropic|cohere|deepseek|google|meta|minimax|mistral|moonshotai|nvidia|openai|qwen|writer|zai)\.)?"
)
_PATH: Final = re.compile(r"(?:projects/[^/]+/locations/[^/]+/)?publishers/[\w-]+/models/|models/")
_COMPACT_DATE: Final = re.compile(r"-(20\d\d)(0[1-9]|1[0-2])([0-2]\d|3[01])(?=-|:|$)")


def vendor(name: str) -> str:
    """The price data's id of a vendor by any of its usual names."""
    return VENDORS.get(name.lower(), name.lower())


def spellings(name: str, vendors: Collection[str]) -> Iterator[str]:
    """The ways to look a name up, in lower case: as it is, without a resource path, without a vendor in front."""
    name = name.lower()
    yield name
    if path := _PATH.match(name):
        yield name[path.end() :]
    front, slash, rest = name.partition("/")
    if slash and rest and vendor(front) in vendors:
        yield rest


def is_form(name: str, of: str) -> bool:
    """Whether `name` is `of`, or that with a date or version behind it, whoever is in front: gpt-4o-2024-08-06 of gpt-4o."""
    name, of = name.lower().rpartition("/")[2], of.lower().rpartition("/")[2]
    return name.startswith(of) and _SNAPSHOTS.fullmatch(name, len(of)) is not None


def is_placed(name: str, of: str) -> bool:
    """Whether `name` is `of` with its place in front, and perhaps a version behind: us.anthropic.claude-x-v1:0 of claude-x."""
    name, of = name.lower(), of.lower()
    at = name.find(of)
    return at > 0 and _IN_FRONT.fullmatch(name[:at]) is not None and is_form(name[at:], of)


def dashed_date(name: str) -> str:
    """gpt-5.2-20251211 in the way that aliases are written: gpt-5.2-2025-12-11."""
    return _COMPACT_DATE.sub(r"-\1-\2-\3", name)


def equal_names(clause: Any) -> Iterator[str]:
    """The names that a match clause of the price data declares in full."""
    if hasattr(clause, "equals"):
        yield clause.equals.lower()
    for inner in getattr(clause, "or_", ()):
        yield from equal_names(inner)


def has_pattern(clause: Any) -> bool:
    """Whether a match clause declares more than names in full."""
    inner = getattr(clause, "or_", None)
    return not hasattr(clause, "equals") if inner is None else any(has_pattern(each) for each in inner)


def accepts(clause: Any, name: str) -> bool:
    """Whether a match clause (equals, starts_with, ends_with, contains, regex, or, and) means this lower-case name.

    A clause of a kind that is not known here means no name at all: better unpriced than wrong.
    """
    for attribute, test in _TESTS:
        literal = getattr(clause, attribute, None)
        if literal is not None:
            return test(literal, name)
    return False


def _starts_with(literal: str, name: str) -> bool:
    return name.startswith(literal.lower()) and _is_decoration(literal.lower(), name)


def _ends_with(literal: str, name: str) -> bool:
    literal = literal.lower()
    return name.endswith(literal) and _IN_FRONT.fullmatch(name[: -len(literal)]) is not None


def _contains(literal: str, name: str) -> bool:
    literal = literal.lower()
    at = name.find(literal)
    return at >= 0 and _IN_FRONT.fullmatch(name[:at]) is not None and _is_decoration(literal, name[at:])


def _regex(pattern: str, name: str) -> bool:
    found = re.search(pattern, name)
    if found is None or not pattern.startswith("^") or not found.group():
        return False
    return pattern.endswith("$") or _is_decoration(found.group().rstrip("0123456789"), name)


def _and(clauses: list[Any], name: str) -> bool:
    return all(clause.is_match(name) for clause in clauses) and any(accepts(clause, name) for clause in clauses)


_TESTS: Final = (
    ("equals", lambda literal, name: name == literal.lower()),
    ("starts_with", _starts_with),
    ("ends_with", _ends_with),
    ("contains", _contains),
    ("regex", _regex),
    ("or_", lambda clauses, name: any(accepts(clause, name) for clause in clauses)),
    ("and_", _and),
)


def _is_decoration(literal: str, name: str) -> bool:
    """Whether what follows `literal` at the start of `name` is decoration only."""
    if ".ft-" in literal:  # Azure's fine-tuned models: gpt-4o-mini-2024-07-18.ft-<id>
        return re.fullmatch(r"[0-9a-z-]+", name[len(literal) :]) is not None
    if name.startswith("ft:"):
        name = _FINE_TUNED.sub("", name)
    unfinished = _UNFINISHED.search(literal)
    starts = {len(literal), unfinished.start() if unfinished else len(literal)}
    return any(_DECORATIONS.fullmatch(name, start) for start in starts)
