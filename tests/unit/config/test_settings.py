"""The settings as written."""

from __future__ import annotations

import inspect

from tollkeeper.config import Config
from tollkeeper.config.settings import TABLES, Settings, describe
from tollkeeper.config.written import DIALECTS, QUIRKS
from tollkeeper.dialects import DIALECTS as SPOKEN
from tollkeeper.dialects import openai_chat, openai_responses


def test_every_setting_is_described() -> None:
    """Each setting, also those of tables, has a meaning, and `describe` lists it once."""
    rows = describe()
    names = [name for name, _, _ in rows]
    assert len(set(names)) == len(names)
    assert all(meaning for _, _, meaning in rows)
    assert set(Settings.model_fields) <= set(names)
    assert {f"{table}.{name}" for table, model in TABLES.items() for name in model.model_fields} <= set(names)
    assert ("retention.hour", "24h", 'how long hours are kept after their end, or "forever"') in rows
    assert ("port", "4141", "port to listen on; 0: a free one") in rows
    assert ("keys.project", "required", "the project of all its calls") in rows


def test_every_setting_reaches_the_config() -> None:
    """No setting is read and then forgotten; `redis_url` is another name of `store`."""
    resolved = {name.removesuffix("_nanos") for name in Config.__struct_fields__}
    assert set(Settings.model_fields) - {"redis_url"} == resolved


def test_dialects_are_those_that_are_spoken() -> None:
    """A provider can be configured for exactly the dialects that the gateway has."""
    assert set(DIALECTS) == set(SPOKEN)


def test_quirks_are_those_that_are_known() -> None:
    """Each quirk that can be configured is one that a dialect acts on."""
    source = inspect.getsource(openai_chat) + inspect.getsource(openai_responses)
    assert [quirk for quirk in QUIRKS if f'"{quirk}"' in source] == list(QUIRKS)
