"""The base of every settings model: what a user can set, declared once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from lake.errors import Refused

NESTED = "nested"
"""The type of an error of a setting that has settings, and says itself which of them is wrong."""


class WrongSetting(Refused):
    """A value is impossible, or there is no such field; the cause is what pydantic says of it."""

    def __init__(self, message: str, model: type[Settings] | None = None) -> None:
        """`model` is the settings that it was meant for, where that is known."""
        super().__init__(message)
        self.model = model


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
            raise WrongSetting(in_words(error, cls), cls) from error


def in_words(error: ValidationError, model: type[BaseModel], option: Callable[[str], str] = str) -> str:
    """Return the first error as one line. `option` returns how a field of the model is written on a command line."""
    first = error.errors()[0]
    fields = [part for part in first["loc"] if isinstance(part, str)]
    message = first["msg"].removeprefix("Value error, ")
    if not fields:
        return message
    name = option(fields[-1])
    if first["type"] == "extra_forbidden":
        return f"{name} has no place here: use {', '.join(map(option, model.model_fields))}"
    if first["type"] == "union_tag_invalid":
        about = first["ctx"]
        return (
            f"{option(about['discriminator'].strip(chr(39)))}: use {about['expected_tags']} (given: {about['tag']!r})"
        )
    return f"{name}: {message}" if first["type"] == NESTED else f"{name}: {message} (given: {first['input']!r})"
