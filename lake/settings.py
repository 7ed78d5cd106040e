"""The base of every settings model: what a user can set, declared once."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from lake.errors import Refused


class Settings(BaseModel):
    """Fields become options, keys of `--config` and lines of the reference; each has a description of one sentence.

    Raises:
        Refused: a value is impossible, or there is no such field.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="wrap")
    @classmethod
    def _refuse(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            raise Refused(in_words(error)) from error


def in_words(error: ValidationError, option: str = "{}") -> str:
    """Return the first error as one line. `option` says how a field is written, such as ``--{}`` on a command line."""
    first = error.errors()[0]
    fields = [part for part in first["loc"] if isinstance(part, str)]
    message = first["msg"].removeprefix("Value error, ")
    if not fields:
        return message
    name = option.format(fields[-1] if option == "{}" else fields[-1].replace("_", "-"))
    if first["type"] == "extra_forbidden":
        return f"{name} has no place beside the other settings given: leave it out"
    if first["type"].startswith("union_tag"):
        return f"method {first['ctx'].get('tag', '')!r}: use {first['ctx'].get('expected_tags', '')}"
    return f"{name}: {message} (given: {first['input']!r})"
