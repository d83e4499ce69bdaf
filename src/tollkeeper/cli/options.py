"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="Configuration file; default: ./tollkeeper.toml if there is one.")
]
StoreUrl = Annotated[
    str | None, typer.Option("--store", help="The ledger: sqlite:///path or redis://…; default: the configured.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, amounts as exact decimal text.")]
