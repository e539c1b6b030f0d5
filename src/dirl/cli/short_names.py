"""Options that may be written short: `--task lm_eval:NAME,NAME` is a class and its names."""

import json
from collections.abc import Sequence

HARNESS = "lm_eval:"
HARNESS_TASK = "dirl.tasks.LMEval"


def long_names(args: Sequence[str]) -> list[str]:
    """The same arguments as the parser knows them; ValueError for a short form without a name."""
    found: list[str] = []
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        option, equals, value = arg.partition("=")
        if option == "--task" and not equals and rest and rest[0].startswith(HARNESS):
            value = rest.pop(0)
        if option != "--task" or not value.startswith(HARNESS):
            found.append(arg)
            continue
        names = [name.strip() for name in value.removeprefix(HARNESS).split(",") if name.strip()]
        if not names:
            raise ValueError(f"--task {value}: no task is named; write e.g. --task lm_eval:gsm8k,drop")
        found += [f"--task={HARNESS_TASK}", f"--task.names={json.dumps(names)}"]
    return found
