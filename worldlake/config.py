"""`--config`, and the words for what is wrong with a command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from cyclopts import App, ArgumentCollection, CycloptsError, MissingArgumentError, Parameter
from cyclopts.config import Dict
from pydantic import ValidationError

from lake import settings
from lake.errors import Contradiction, Refused
from lake.settings import Settings, WrongSetting


class _Loader(yaml.BaseLoader):
    """YAML whose scalars are text, as on a command line: `no`, `0123` and `1e5` stay what was written.

    Refuses what YAML would silently forget: all but the last value of a key.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_config(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Take the keys of `--config` for options that were not given.

    Raises:
        Refused: the file cannot be read, or is not `key: value` lines of YAML.
    """
    given = next((one for one in arguments if "--config" in one.names and one.tokens), None)
    if given is None:
        return
    path = Path(given.tokens[0].value)
    values: dict[str, Any] = {}
    for key, value in _read_yaml(path).items():
        name = str(key).replace("_", "-")
        if name in values:
            raise Refused(f"--config {path}: {name} is given twice")
        # What is left empty is not given.
        if value not in ("", "null", "~"):
            values[name] = _as_typed(value)
    Dict(values, source=f"--config {path}", use_commands_as_keys=False)(app, commands, arguments)


def _read_yaml(path: Path) -> dict[Any, Any]:
    try:
        values = yaml.load(path.read_text(), _Loader)  # noqa: S506 - it makes nothing but text, lists and mappings
    except OSError as error:
        raise Refused(f"--config {path}: {error.strerror}: give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused(f"--config {path} is not YAML: {error}") from None
    if values in (None, ""):
        return {}
    if not isinstance(values, dict):
        raise Refused(f"--config {path}: write `key: value` lines")
    return values


def _as_typed(value: Any) -> Any:
    """A mapping is text in braces on the command line."""
    if isinstance(value, list):
        return [_as_typed(one) for one in value]
    return json.dumps(value) if isinstance(value, dict) else value


def in_words(error: Exception, command: str) -> str:
    """Return what is wrong with a command line as one line with the remedy."""
    if isinstance(error, MissingArgumentError) and (missing := error.argument):
        text = f"{missing.name if missing.index is None else missing.name.lstrip('-').upper()} is missing"
    elif isinstance(error, Contradiction):
        text = re.sub(r"`(\w+)`", lambda field: _option(Settings, field[1]), str(error))
    elif isinstance(error, WrongSetting) and isinstance(invalid := error.__cause__, ValidationError):
        model = error.model or Settings
        text = settings.in_words(invalid, model, lambda field: _option(model, field))
    else:
        text = str(error)
    return f"{text} (see `{command} --help`)" if isinstance(error, CycloptsError) else text


def _option(model: type[Settings], field: str) -> str:
    """Return what a command line calls a field of a settings model, which may rename it: see `worldlake.options`."""
    about = model.model_fields[field].metadata if field in model.model_fields else []
    names = [name for one in about if isinstance(one, Parameter) for name in one.name or ()]
    return names[0] if names and names[0] != "*" else f"--{field.replace('_', '-')}"
