"""The command line: `dirl X`, the same as `lightning run X`.

`fit` and `validate` are Lightning's, configured by YAML; the others are functions whose signatures are their options.
What needs torch is imported when a command is run: help, and errors that a look at the arguments finds, take a moment.
"""

import logging
import os
import sys
import warnings
from difflib import get_close_matches
from typing import Any

from dirl import __version__
from dirl.cli.early import check_arguments, check_names
from dirl.cli.help import shipped
from dirl.cli.short_names import long_names
from dirl.cli.table import FUNCTIONS, NAMES, TRAINER_COMMANDS, function, no_collection, overview
from dirl.stopping import request


def main(args: list[str] | None = None) -> int | None:
    """Run one command; returns an exit code, None meaning success. Errors are raised, signals as Stopped."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(no_advertisement)
    with request.listening():
        return run(sys.argv[1:] if args is None else list(args))


def no_advertisement(record: logging.LogRecord) -> bool:
    """A filter for what Lightning recommends at every start, which is other products."""
    return "Tip: For seamless" not in record.getMessage()


def run(args: list[str]) -> int | None:
    """Run one command as `main` does, without listening for signals."""
    if not args:
        print(overview(), file=sys.stderr)
        return 2
    name, *options = args
    if name in ("-h", "--help"):
        say(overview())
    elif name == "--version":
        print(f"dirl {__version__}")
    elif name not in NAMES:
        nearest = get_close_matches(name, NAMES, 1)
        meant = f"Did you mean {nearest[0]}? " if nearest else ""
        print(f"error: {name!r} is no command of dirl. {meant}The commands are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    elif (text := shipped(args)) is not None:
        say(text.removesuffix("\n"))
    else:
        return run_command(name, options)
    return 0


def say(text: str) -> None:
    """Print, also to one who reads the first lines only (`| head`)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter's own flush complains


def run_command(name: str, options: list[str]) -> int | None:
    """Look at the options, then import what the command needs, parse them and run it."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a class_path may name a file of the user's; console scripts do not look here
    options = long_names(options)
    check_arguments(options)
    check_names(name, options)
    from jsonargparse import set_parsing_settings

    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    if name in TRAINER_COMMANDS:
        with no_collection("dirl.cli.fit"):
            from dirl.cli.fit import DirlCLI

        DirlCLI(args=[name, *options])
        return None
    if name == "plan":
        with no_collection("dirl.cli.plan"):
            from dirl.cli.plan import plan

        plan(options)
        return None
    from dirl.progress_bar import on_terminal, quiet_libraries

    values = parse_command(name, options)
    if not on_terminal():
        quiet_libraries()
    return function(name)(**values)


def parse_command(name: str, args: list[str]) -> dict[str, Any]:
    """The arguments of the function of a command, instantiated from options and config files."""
    from dirl.cli.parsers import PARSER_MODE, CommandParser
    from dirl.cli.text import parse_texts, unmark

    run_it, command = function(name), FUNCTIONS[name]
    parser = CommandParser(prog=f"dirl {name}", description=command.about, parser_mode=PARSER_MODE)
    parser.add_argument("-c", "--config", action="config", help="YAML file with any of the options below.")
    own: set[str | int] = set()
    if command.several is not None:
        name, about = command.several
        own = {name}
        parser.add_argument(name, nargs="+", type=str, help=about)
    options: dict[str, Any] = {"as_positional": command.positional, "fail_untyped": True, "sub_configs": True}
    parser.add_function_arguments(run_it, skip=own, **options)
    config = parser.instantiate(unmark(parse_texts(parser.parse_args, args)))
    config.pop("config")
    return dict(config)
