"""Imports what `tests.forked` calls; a process that has done so is forked."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from worldlake import commands

for _module in (
    *(f"worldlake.commands.{module.name}" for module in iter_modules(commands.__path__)),
    "peft", "ray.data", "transformers", "worldlake.service", "training.run",
):  # fmt: skip
    import_module(_module)
