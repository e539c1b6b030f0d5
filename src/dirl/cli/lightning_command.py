"""The `lightning` console command: `lightning run X` is `dirl X`, the rest belongs to lightning-sdk."""

import sys
from importlib import metadata
from typing import NoReturn

SDK = "lightning-sdk"


def console() -> NoReturn:
    """What the script `lightning` starts."""
    code = main()
    if sys.argv[1:2] == ["run"]:
        from dirl.cli.errors import leave

        leave(code or 0)
    sys.exit(code)


def main(args: list[str] | None = None) -> int | None:
    """Run `dirl` or lightning-sdk's own command; returns an exit code, None meaning success.

    Both packages install a script named `lightning`, so that the last one installed has the name. This one
    passes on what it does not know, and nothing is lost if it comes last.
    """
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["run"]:
        from dirl.cli.errors import entry  # not above: lightning-sdk's commands need none of it

        return entry(args[1:])
    return _run_sdk(args)


def _run_sdk(args: list[str]) -> int | None:
    command = _sdk_command()
    if command is None:
        asked = " ".join(["lightning", *args])
        print(
            f"`{asked}` is no command of dirl. Use `lightning run ...` (the same as `dirl ...`, see "
            f"`lightning run --help`), or `pip install {SDK}` for the commands of Lightning AI's platform.",
            file=sys.stderr,
        )
        return 2
    sys.argv = ["lightning", *args]  # where console scripts, this one included, look for their arguments
    return command.load()()


def _sdk_command() -> metadata.EntryPoint | None:
    """The script `lightning` as lightning-sdk declares it; None if it is not installed."""
    try:
        scripts = metadata.distribution(SDK).entry_points.select(group="console_scripts", name="lightning")
    except metadata.PackageNotFoundError:
        return None
    return next(iter(scripts), None)
