"""A process that has imported everything and forks runs: they begin in a tenth of a second.

It is told by lines of JSON and answers each with the new process's id; a process that has ended leaves its exit code
in a file. When nobody can tell it anything any more, it kills what is left and ends.
"""

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from threading import Lock

MODULES = (
    *("dirl.cli.main", "dirl.callbacks", "dirl.data.sft", "dirl.data.rl", "dirl.rollout", "dirl.cli.plan"),
    *("tests.integration.toy", "transformers.models.qwen3.modeling_qwen3", "torch.utils.tensorboard", "torchmetrics"),
    *("tests.torture.moments", "datasets", "tokenizers", "safetensors.torch", "lightning.pytorch.cli"),
)
POLL_S = 0.02


class Nursery:
    """The side of who wants runs; any thread may ask."""

    def __init__(self, root: Path) -> None:
        self._lock = Lock()
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        env.pop("PYTHONHASHSEED", None)  # each nursery, as each command of a user, has one of its own
        command = [sys.executable, "-m", "tests.torture.nursery"]
        self._process = subprocess.Popen(command, cwd=root, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def start(self, args: list[str], cwd: Path, output: Path, moments: Path, ended: Path) -> int:
        """Fork a run in a process group of its own; returns its id."""
        places = {"cwd": cwd, "output": output, "moments": moments, "ended": ended}
        with self._lock:
            line = json.dumps({"args": args} | {name: str(path) for name, path in places.items()})
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def wait_until_ready(self) -> None:
        """Until everything is imported: what runs beside that is slow."""
        self._process.stdout.readline()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(30)


def serve() -> None:
    """The nursery's own work."""
    for name in MODULES:
        importlib.import_module(name)
    os.write(1, b"ready\n")
    alive: dict[int, Path] = {}
    waiting = b""
    while True:
        if select.select([0], [], [], POLL_S)[0]:
            received = os.read(0, 65536)
            if not received:
                break
            *lines, waiting = (waiting + received).split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = fork(order)
                alive[pid] = Path(order["ended"])
                os.write(1, f"{pid}\n".encode())
        for pid in list(alive):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                leave_code(alive.pop(pid), os.waitstatus_to_exitcode(status))
    for pid in alive:
        os.killpg(pid, signal.SIGKILL)


def leave_code(path: Path, code: int) -> None:
    part = path.with_suffix(".part")
    part.write_text(str(code))
    part.replace(path)


def fork(order: dict) -> int:
    """One run, as its user has it, but for the import."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 1)
        os.dup2(1, 2)
        os.chdir(order["cwd"])
        code = run(order)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(order: dict) -> int:
    from tests.torture.moments import watch

    from dirl.cli.errors import entry, leave

    watch(Path(order["moments"]))
    try:
        leave(entry(order["args"]))
    except SystemExit as end:
        return int(end.code or 0)


if __name__ == "__main__":
    serve()
