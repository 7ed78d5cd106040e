"""The command line: `worldlake COMMAND`.

Exit codes: 0 done, 1 crashed and worth retrying, 2 refused, 3 failures recorded and `--strict`, or damage found.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from itertools import takewhile

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnknownCommandError

from lake.errors import WorldlakeError, one_line
from worldlake import console
from worldlake.config import in_words, read_config
from worldlake.extras import EXTRAS, missing

# A flag is given or not.
_DEFAULTS = Parameter(negative=(), show_default=lambda value: value or None)

app = App(
    "worldlake",
    help="Label video lakes: unlabeled video in, verified (obs, action, next_obs) triples in Delta tables out.",
    help_epilogue="Exit codes: 0 done (failures are reported, not fatal), 1 crashed and worth retrying, 2 refused (one "
    "line says why and what to do), 3 failures recorded and --strict given, or damage found by repair --check.",
    help_format="plaintext",
    version=lambda: f"worldlake {version('worldlake')}",
    config=read_config,
    default_parameter=_DEFAULTS,
)

# Commands by group, with the sentence that `worldlake --help` shows: a module is imported when its command runs.
_COMMANDS = {
    "ingest": "Catalog videos, and take in pairs that people labeled.",
    "label": "Label every pending video.",
    "status": "Show what a lake holds, what is pending, and whether the sums balance.",
    "sql": "Query a lake with one read-only SELECT.",
    "serve": "Answer over HTTP: label, predict, read the lake.",
    "demo": "Run the whole loop on this machine, and write a report.",
    "doctor": "Check this machine for problems that would stop a run, and print fixes.",
    "maintain": "Compact the tables and delete files that are no longer needed.",
    "forget": "Delete a video or a data set from every table and version.",
    "repair": "Find damage in a lake, and repair it.",
}
_GROUPS = {
    "train": (
        "Train a model on the triples of a lake.",
        {
            "dynamics": "Fine-tune a vision-language model to name the action between two frames.",
            "world": "Train an Emu3 model to draw what an action leads to.",
        },
    ),
    "evaluate": (
        "Evaluate a model on pairs whose action is known, with intervals and a report of pictures.",
        {
            "dynamics": "Evaluate the actions that a dynamics model names.",
            "world": "Evaluate the images that a world model predicts.",
        },
    ),
    "keys": (
        "Manage API keys.",
        {
            "create": "Make a key and print it, once.",
            "revoke": "Revoke a key for good.",
            "list": "Show the keys of a lake, without their secrets.",
        },
    ),
}


def command_lines() -> list[list[str]]:
    """Return the words that call each command."""
    return [[name] for name in _COMMANDS] + [[group, name] for group, (_, names) in _GROUPS.items() for name in names]


for _name, _help in _COMMANDS.items():
    app.command(f"worldlake.commands.{_name}:{_name}", name=_name, help=_help)
for _group, (_help, _commands) in _GROUPS.items():
    _app = App(_group, help=_help, default_parameter=_DEFAULTS)
    for _name, _about in _commands.items():
        _app.command(f"worldlake.commands.{_group}:{_name}{'_' if _name == 'list' else ''}", name=_name, help=_about)
    app.command(_app)


def main() -> None:
    """Run the command; every expected error is one line on standard error."""
    console.setup()
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run a command line; returns the exit code."""
    try:
        explain(words)
        code: int | None = app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _wrong_usage(error, words)
    except WorldlakeError as error:
        return _say(in_words(error, "worldlake"), error.exit_code)
    except KeyboardInterrupt:
        return _say("interrupted; committed work is kept. Run the same command to resume", 1)
    except SystemExit:
        raise
    except BaseException as error:  # a panic in a Rust library is not an Exception
        return _unexpected(error, words)
    # Help was asked for, or there was nothing else to show.
    return code or 0


def explain(words: Sequence[str]) -> None:
    """Give a command its docstring for help: lists show a sentence of it, so that they import no command."""
    names = takewhile(lambda word: not word.startswith("-"), words)
    for one in app.parse_commands(list(names))[1]:
        if one.default_command:
            one.help = None


def _wrong_usage(error: CycloptsError, words: Sequence[str]) -> int:
    commands, *_ = app.parse_commands(words)
    command = " ".join(["worldlake", *commands])
    if isinstance(error, MissingArgumentError) and len(commands) == len(words):
        app.help_print(commands, console=console.err)
    first = next(iter(words[len(commands) :]), "")
    if isinstance(error, UnknownCommandError) and first.startswith("-") and (missing := _missing_command(commands)):
        return _say(f"{missing} (see `{command} --help`)", 2)
    return _say(in_words(error, command), 2)


def _missing_command(commands: Sequence[str]) -> str | None:
    """Return what to say where an option stands in the place of a command; None where no command is missing."""
    if not commands:
        return "say what to do before any option: `worldlake COMMAND [OPTIONS]`"
    if commands[0] not in _GROUPS:
        return None
    *most, last = (f"`worldlake {commands[0]} {name}`" for name in _GROUPS[commands[0]][1])
    return f"say what to {'do' if commands[0] == 'keys' else commands[0]}: {', '.join(most)} or {last}"


def _unexpected(error: BaseException, words: Sequence[str]) -> int:
    # cyclopts imports a command's module, and wraps what that raises.
    absent = error.__cause__ or error
    if isinstance(absent, ModuleNotFoundError) and next(iter(words), "") in EXTRAS:
        refusal = missing(absent, words[0])
        return _say(str(refusal), refusal.exit_code)
    from lake.store_errors import damage, final_error

    if why := final_error(error) or damage(error):
        return _say(str(why), why.exit_code)
    if not isinstance(error, Exception):
        # It has written where it was by itself.
        return _say(f"crashed ({type(error).__name__}: {error}); please report the command", 1)
    console.log.error("crashed", exc_info=error)
    return _say(f"crashed ({type(error).__name__}); run the same command to resume", 1)


def _say(message: str, code: int) -> int:
    console.err.print(f"worldlake: {one_line(message)}", markup=False)
    return code


if __name__ == "__main__":
    main()
