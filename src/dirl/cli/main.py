"""The command line: `dirl X`, the same as `lightning run X`.

`fit` and `validate` are Lightning's, configured by YAML; the others are functions of `dirl.cli.commands`, whose
signatures are their options.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from jsonargparse import set_parsing_settings

from dirl import __version__
from dirl.cli import commands
from dirl.cli.fit import TRAINER_COMMANDS, DirlCLI
from dirl.cli.parsers import PARSER_MODE, CommandParser
from dirl.cli.serve import serve
from dirl.cli.text import parse_texts, unmark
from dirl.progress import on_terminal, quiet_libraries
from dirl.stopping import request

COMMANDS: dict[str, Callable] = {
    "rollout": commands.rollout,
    "evaluate": commands.evaluate,
    "export": commands.export,
    "demo": commands.demo,
    "configs": commands.configs,
    "serve": serve,
}


def main(args: list[str] | None = None) -> int | None:
    """Run one command; returns an exit code, None meaning success. Errors are raised, signals as Stopped."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(no_advertisement)
    with request.listening():
        return run(sys.argv[1:] if args is None else list(args))


def no_advertisement(record: logging.LogRecord) -> bool:
    """Lightning recommends other products at every start."""
    return "Tip: For seamless" not in record.getMessage()


def run(args: list[str]) -> int | None:
    """`main`, without listening for signals."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a class_path may name a file of the user's; console scripts do not look here
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    if args and args[0] in TRAINER_COMMANDS:
        DirlCLI(args=args)
        return None
    if args and args[0] == "plan":
        from dirl.cli.plan import plan  # not above: its parser is that of `fit`

        return plan(args[1:])
    if args and args[0] in COMMANDS:
        return run_command(args[0], args[1:])
    if args and args[0] in ("-h", "--help"):
        print(overview())
    elif args and args[0] == "--version":
        print(f"dirl {__version__}")
    elif args:
        known = [*TRAINER_COMMANDS, "plan", *COMMANDS]
        nearest = get_close_matches(args[0], known, 1)
        meant = f"Did you mean {nearest[0]}? " if nearest else ""
        print(f"error: {args[0]!r} is no command of dirl. {meant}The commands are {', '.join(known)}", file=sys.stderr)
        return 2
    else:
        print(overview(), file=sys.stderr)
        return 2
    return 0


def overview() -> str:
    """What `dirl --help` prints."""
    lines = ["usage: dirl COMMAND ...   (or: lightning run COMMAND ...)", ""]
    lines += ["  fit        train: SFT or RL, as the config says (--config configs/sft.yaml)"]
    lines += ["  validate   the validation NELBO of an SFT config, without training"]
    lines += ["  plan       what `fit` would cost with a config: memory by part, tokens and FLOPs per step"]
    lines += [f"  {name:<10} {fn.__doc__.splitlines()[0]}" for name, fn in COMMANDS.items()]
    return "\n".join(
        [*lines, "", "dirl COMMAND --help lists the options of a command. --debug shows the traceback of an error."]
    )


def run_command(name: str, args: list[str]) -> int | None:
    """Parse the options of a function of `dirl.cli.commands` and call it."""
    if not on_terminal():
        quiet_libraries()
    return COMMANDS[name](**parse_command(name, args))


def parse_command(name: str, args: list[str]) -> dict[str, Any]:
    """The arguments of a function of `dirl.cli.commands`, instantiated from options and config files."""
    fn = COMMANDS[name]
    parser = CommandParser(prog=f"dirl {name}", description=fn.__doc__.splitlines()[0], parser_mode=PARSER_MODE)
    parser.add_argument("-c", "--config", action="config", help="YAML file with any of the options below.")
    parser.add_function_arguments(fn, fail_untyped=True, sub_configs=True)
    config = parser.instantiate(unmark(parse_texts(parser.parse_args, args)))
    config.pop("config")
    return dict(config)
