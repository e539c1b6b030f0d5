"""What a look at the arguments and their files finds, before anything large is imported."""

import re
import sys
from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

import yaml

from dirl.cli import help as texts
from dirl.cli.short_names import HARNESS, HARNESS_TASK
from dirl.cli.signatures import MissingError, parameters, takers
from dirl.cli.text import UsageError

RENAMED = {
    ("model", "dirl.modules.DiPOModule"): "dirl.modules.RLModule",
    ("model.class_path", "dirl.modules.DiPOModule"): "dirl.modules.RLModule",
    ("rollout.advantage", "zscore"): "{class_path: dirl.advantages.ZScore}",
    ("rollout.advantage", "mean"): "{class_path: dirl.advantages.Mean}",
    ("engine.init_args.transport", "gloo"): "http",
    ("engine.transport", "gloo"): "http",
}
"""Values that have another name now: key and value as they were, value as it is."""
MOVED_OPTIONS = {"model.init_args.loss": "objective.init_args", "model.loss": "objective.init_args"}
"""Options that have another place now, with all below them."""

OF_CLASS = ("model", "data", "task", "engine", "objective", "source")
"""Options that are the path of a class."""


def check_arguments(args: Sequence[str]) -> None:
    """Raise ValueError for what the parser would take wrongly, or refuse without saying what to write.

    That is a config file with both a key and `key+`, of which the parser would take one alone, and renamed values.
    """
    for name, value in _pairs(args):
        _check_value(name.removeprefix("--"), value, name)
        if name in ("-c", "--config") and Path(value).is_file():
            try:
                _check_node(yaml.compose(Path(value).read_text(encoding="utf-8"), Loader=yaml.SafeLoader), (), value)
            except (yaml.YAMLError, UnicodeDecodeError):
                continue  # the parser says what is wrong with it


def _pairs(args: Sequence[str]) -> list[tuple[str, str]]:
    """Each argument with its value, be it behind `=` or the next argument."""
    return [
        (arg.split("=", 1)[0], arg.split("=", 1)[1]) if "=" in arg else (arg, after)
        for arg, after in zip(args, [*args[1:], ""], strict=False)  # of no arguments there is none to come
    ]


def _check_value(key: str, value: str, where: str) -> None:
    for old, new in MOVED_OPTIONS.items():
        if key == old or key.startswith(f"{old}."):
            raise ValueError(f"{where}: has another place now: write {key.replace(old, new)}")
    if key == "task" and value.startswith(HARNESS):
        names = value.removeprefix(HARNESS)
        raise ValueError(
            f"{where}: {value!r} is short for the command line (--task {value}); in a config write "
            f"{{class_path: {HARNESS_TASK}, init_args: {{names: [{names}]}}}}"
        )
    if (key, value) in RENAMED:
        raise ValueError(f"{where}: {value!r} has another name now: write {RENAMED[key, value]}")


def _check_node(node: yaml.Node | None, place: tuple[str, ...], path: str) -> None:
    if isinstance(node, yaml.ScalarNode):
        _check_value(".".join(place), node.value, f"{path}: {'.'.join(place)}")
    if not isinstance(node, yaml.MappingNode):
        return
    names = {key.value for key, _ in node.value}
    for key, value in node.value:
        if f"{key.value}+" in names:
            name = ".".join((*place, key.value))
            raise ValueError(
                f"{path}: has both {name} and {name}+, of which one would be lost; write all of it under {name}, or "
                "the addition into a further config"
            )
        if (name := ".".join((*place, key.value))) in MOVED_OPTIONS:
            _check_value(name, "", f"{path}: {name}")
        _check_node(value, (*place, key.value), path)


def check_names(command: str, args: Sequence[str]) -> None:
    """UsageError for a config file that is not there or no YAML, and for options that the command does not have.

    Which it has is read off its shipped help; where that is of other versions, and below an option that takes a class,
    the parser finds out.
    """
    known, classes = option_names(command), _Classes()
    if any(arg.startswith("--print_config") or arg.partition("=")[0].endswith((".help", "--help")) for arg in args):
        return  # these come first for the parser
    for arg, (name, value) in zip(args, _pairs(args), strict=True):
        if name in ("-c", "--config"):
            _check_file(value, known, classes)
        elif re.fullmatch(r"--[a-z_][\w.+]*", name) and known and not is_known(name[2:].removesuffix("+"), known):
            given = arg if "=" in arg or value.startswith("--") else f"{arg} {value}"
            raise usage_error(f"unrecognized arguments: {given.strip()}{_nearest(name[2:], known, '--')}")
        elif known and name.startswith("--"):
            classes.option(name.removeprefix("--").removesuffix("+"), value)


def option_names(command: str) -> frozenset[str]:
    """Of a command, without dashes; empty where its help is not known. Nothing is known below those without a dot."""
    of_fit = [topic for topic in texts.TOPICS if topic.startswith("fit.")]
    found = [texts.text_of(topic) for topic in [command, *(of_fit if command in ("fit", "validate", "plan") else [])]]
    names = (re.findall(r"^  (?:-\w(?: CONFIG)?, )?--([\w.]+)", text or "", re.MULTILINE) for text in found)
    return frozenset() if None in found else frozenset(name for each in names for name in each)


def is_known(name: str, known: frozenset[str]) -> bool:
    """Whether it is an option, begins one, or lies below one of which no more is known."""
    if name in known or any(other.startswith(f"{name}.") for other in known):
        return True
    above = name.rpartition(".")[0]
    while above:
        if above in known:
            return not any(o.startswith(f"{above}.") and o != f"{above}.help" for o in known)
        above = above.rpartition(".")[0]
    return False


def usage_error(message: str) -> UsageError:
    """Said now, for nobody else does."""
    print(f"error: {message}", file=sys.stderr)
    return UsageError(message, message)


def _check_file(value: str, known: frozenset[str], classes: "_Classes") -> None:
    path = Path(value)
    if path.exists() and not path.is_file():
        return  # a pipe, which can be read once
    if not path.is_file():
        if re.search(r"[:{\n]", value):
            return  # YAML on the command line itself
        raise usage_error(f"config: File does not exist: {str(path.absolute())!r}")
    try:
        tree = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where is not None else ""
        raise usage_error(f"{path}{line}: no YAML: {getattr(error, 'problem', None) or error}") from error
    for name in _names(tree) if known else ():
        if not is_known(name, known):
            raise usage_error(f"{path}: unknown option {name}{_nearest(name, known, '')}")
    if known:
        classes.config(tree, str(path))


def _names(node: yaml.Node | None, above: str = "") -> Iterator[str]:
    """Of the keys of nested mappings."""
    for key, value in _items(node):
        name = f"{above}{key.removesuffix('+')}"
        yield name
        yield from _names(value, f"{name}.")


class _Classes:
    """Classes of this package that are chosen in options and configs, one after the other, and what they are given."""

    def __init__(self) -> None:
        self.chosen: dict[str, str] = {}
        """Option -> class path, by what was read until now."""

    def option(self, name: str, value: str) -> None:
        """`--engine PATH`, or `--engine.NAME VALUE`, or `--engine.init_args.NAME VALUE`."""
        chosen = name.removesuffix(".class_path")
        if chosen in OF_CLASS or chosen in self.chosen:
            self._choose(chosen, value, f"{name}: ")
        of = ""
        for word in name.replace(".init_args.", ".").split("."):
            if of in self.chosen and word != "class_path":
                self._check(of, [word], "")
                of += ".init_args"
            of = f"{of}.{word}".removeprefix(".")

    def config(self, node: yaml.Node | None, file: str, name: str = "") -> None:
        """All classes in it, however deep."""
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.config(item, file, f"{name}[{index}]")
        if isinstance(node, yaml.ScalarNode) and (name in OF_CLASS or name in self.chosen):
            self._choose(name, node.value, f"{file}: {name}: ")
        given = dict(_items(node))
        path = given.get("class_path")
        if isinstance(path, yaml.ScalarNode):
            self._choose(name, path.value, f"{file}: {name}: ")
        self._check(name, [key for key, _ in _items(given.get("init_args"))], f"{file}: ")
        for key, value in given.items():
            if key != "class_path":
                self.config(value, file, f"{name}.{key.removesuffix('+')}" if name else key)

    def _choose(self, name: str, path: str, where: str) -> None:
        for other in [other for other in self.chosen if other == name or other.startswith((f"{name}.", f"{name}["))]:
            del self.chosen[other]
        if re.fullmatch(r"dirl(\.\w+)+", path):
            self.chosen[name] = path
            try:
                parameters(path)
            except MissingError as error:
                raise usage_error(f"{where}{path}: {error}") from None

    def _check(self, name: str, options: Sequence[str], where: str) -> None:
        known = parameters(self.chosen[name]) if name in self.chosen else None
        for option in (option.removesuffix("+") for option in options):
            if known is not None and option not in known and re.fullmatch(r"\w+", option):
                nearest = _nearest(option, known, "") or _takers(self.chosen[name], option)
                raise usage_error(f"{where}{name}: {self.chosen[name]} takes no {option!r}{nearest}")


def _items(node: yaml.Node | None) -> list[tuple[str, yaml.Node]]:
    """Of a mapping, what it takes in by `<<` first."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    found = [(key.value, value) for key, value in pairs if isinstance(key, yaml.ScalarNode)]
    merged = [value for key, value in found if key == "<<"]
    parts = [part for value in merged for part in (value.value if isinstance(value, yaml.SequenceNode) else [value])]
    return [*(item for part in parts for item in _items(part)), *(item for item in found if item[0] != "<<")]


def _takers(path: str, option: str) -> str:
    """An objective's own options are no other's."""
    names = takers(path, option)
    return f"; it is an option of {', '.join(names)}" if names else ""


def _nearest(name: str, known: Collection[str], dashes: str) -> str:
    nearest = get_close_matches(name, known, 1)
    return f" (nearest: {dashes}{nearest[0]})" if nearest else ""
