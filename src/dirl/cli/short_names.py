"""Options that may be written short: `--task lm_eval:NAME,NAME` and `--source FOLDER` are a class and its options."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

HARNESS = "lm_eval:"
HARNESS_TASK = "dirl.tasks.LMEval"
PRETRAINED = "dirl.models.PretrainedModel"
SOURCES = ("PretrainedModel", "NewModel", "AutoregressiveModel", "null")
"""What `--source` may be without a dot or a slash, beside what lies here."""


def long_names(args: Sequence[str]) -> list[str]:
    """The same arguments as the parser knows them; ValueError for a short form without a name."""
    found: list[str] = []
    rest = list(args)
    while rest:
        given = [rest.pop(0)]
        option, equals, value = given[0].partition("=")
        if option in ("--task", "--source") and not equals and rest and not rest[0].startswith("--"):
            given.append(value := rest.pop(0))
        if option == "--task" and value.startswith(HARNESS):
            found += _harness(value)
        elif option == "--source" and _is_model(value):
            found += [f"--source={PRETRAINED}", f"--source.path={value}"]
        elif option == "--source" and re.fullmatch(r"[\w-]+", value) and value not in SOURCES:
            raise ValueError(
                f"--source {value}: there is no such folder or checkpoint here (relative to {Path.cwd()}); correct the "
                "path, or write OWNER/NAME of the hub, or --source.path NAME"
            )
        else:
            found += given
    return _with_class(found)


def _harness(value: str) -> list[str]:
    names = [name.strip() for name in value.removeprefix(HARNESS).split(",") if name.strip()]
    if not names:
        raise ValueError(f"--task {value}: no task is named; write e.g. --task lm_eval:gsm8k,drop")
    return [f"--task={HARNESS_TASK}", f"--task.names={json.dumps(names)}"]


def _is_model(value: str) -> bool:
    """Whether it is a folder, a file or a hub name, and neither the path of a class nor a mapping."""
    return bool(value) and not value.startswith("{") and ("/" in value or Path(value).exists())


def _with_class(args: list[str]) -> list[str]:
    """A source of which only the path is said, by no config either, is a stored model."""
    options = [arg.partition("=")[0] for arg in args]
    paths = [place for place, name in enumerate(options) if name in ("--source.path", "--source.init_args.path")]
    if not paths or {"--source", "--source.class_path", "--config", "-c"} & set(options):
        return args
    return [*args[: paths[0]], f"--source={PRETRAINED}", *args[paths[0] :]]
