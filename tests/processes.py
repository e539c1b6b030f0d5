"""Processes that begin with everything imported, in a tenth of a second: one that has loaded it all is forked.

For runs of several processes whose start is not what is tested; `integration.one_run` starts them as a user does.
"""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

PRELOADED = [
    *(
        "dirl.cli.main",
        "dirl.cli.fit",
        "dirl.callbacks",
        "dirl.data.sft",
        "dirl.data.rl",
        "dirl.rollout",
        "dirl.strategy",
    ),
    *("transformers.models.qwen3.modeling_qwen3", "torch.utils.tensorboard", "torchmetrics", "datasets", "peft"),
]
"""What is not installed is left out."""
GRACE_S = 20


def forking() -> ForkServerContext:
    """One loaded process for all of this one's tests."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def together(work: Callable[..., None], *args: Any, count: int, folder: Path, patience_s: float = 600) -> list[str]:
    """What each of `count` processes has said while it did `work(*args)`, a function of a module; all must succeed.

    They find one another by `torch.distributed`'s and Lightning's variables; one that fails ends all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outputs = [folder / f"process-{rank}.txt" for rank in range(count)]
    variables = (
        {} if count == 1 else {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    )
    made = [
        forking().Process(target=member, args=(work, args, variables, rank, outputs[rank])) for rank in range(count)
    ]
    for process in made:
        process.start()
    until = time.monotonic() + patience_s
    while any(process.is_alive() for process in made) and time.monotonic() < until:
        wait([process.sentinel for process in made if process.is_alive()], until - time.monotonic())
        if any(process.exitcode for process in made):
            until = min(until, time.monotonic() + GRACE_S)
    for process in made:
        process.kill()
        process.join()
    said = [output.read_text(encoding="utf-8") for output in outputs]
    codes = [process.exitcode for process in made]
    assert codes == [0] * count, f"exit codes {codes}\n" + "\n".join(text[-5000:] for text in said)
    return said


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def member(work: Callable[..., None], args: tuple, variables: dict[str, str], rank: int, output: Path) -> None:
    """One of the processes."""
    os.environ.update(variables)
    if variables:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    rank_zero_only.rank = rank  # Lightning has read it when it was imported, of a process without a rank
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    work(*args)
