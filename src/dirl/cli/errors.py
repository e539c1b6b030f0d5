"""What the command line says when something ends it: one short message, with the exit code that belongs to it.

A traceback is for errors of this package; of what the user can mend (settings, files, data, memory) it is shown with
`--debug` only.
"""

import errno
import gc
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import NoReturn

from jsonargparse import ArgumentParser

from dirl.cli.signatures import abstract_class
from dirl.cli.text import UsageError
from dirl.cli.threads import wait_asleep
from dirl.errors import ForUserError
from dirl.stopping import Stopped

LAUNCHER = "DIRL_LAUNCHER"
"""Process id of the process of a run that has started the others on its host."""
GRACE_S = 3.0
"""How long the other processes on this host may take to end by themselves, once the first ends."""
CHILD_WAITS_S = 5.0
"""How long a started process that failed alone waits for the first to end and to say so."""
SHOWN_FOLDERS = ("dirl", "callbacks", "lightning", "jsonargparse", "omegaconf")
"""Who raises errors for users on purpose."""
NOISE = (
    *("Does not validate against", "Subtypes:", "Errors:", "Given value type:", "Expected a <class 'NoneType'>"),
    "Expected a path but",  # a value may also be a file that holds it
)


def console() -> NoReturn:
    """What the script `dirl` starts."""
    leave(entry())


def leave(code: int) -> NoReturn:
    """End the process, also where a thread of an engine does not notice the end of its run."""
    sys.stdout.flush()
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(GRACE_S)
            if thread.is_alive():
                os._exit(code)
    gc.freeze()  # before it ends, the interpreter looks for garbage in all that is loaded, which takes most of a second
    sys.exit(code)


def entry(args: Sequence[str] | None = None) -> int:
    """The console command `dirl`: run it and return its exit code; what goes wrong is said in one message."""
    given = list(sys.argv[1:] if args is None else args)
    debug, given = "--debug" in given, [arg for arg in given if arg != "--debug"]
    launched = is_launched()  # before the command sets it for its own
    wait_asleep()
    ended: BaseException
    try:
        from dirl.cli.main import main  # not above: it takes seconds, in which Ctrl-C should not show a traceback

        return main(given) or 0
    except SystemExit as end:  # of a parser, or Stopped
        ended, code = end, end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str) or isinstance(end, Stopped):
            _say_end(str(end), end, given, launched)
        if debug and code not in (0, None):
            traceback.print_exc()
    except KeyboardInterrupt as error:
        ended, code = error, 130
        print("stopped by SIGINT", file=sys.stderr)
    except BaseException as error:
        ended, code = error, 1
        if debug or not is_users(error):
            traceback.print_exc()
        _say_end(f"error: {message_of(error)}", error, given, launched)
    if launched:
        return _end_launched(ended, code)
    _end_others()
    return code


def is_users(error: BaseException) -> bool:
    """Whether a message is enough: the error was raised on purpose, or by the system about a file."""
    if isinstance(error, OSError | ForUserError | ModuleNotFoundError):
        return True
    if _out_of_memory(error) or _lost_process(error) or type(error).__module__.startswith("omegaconf"):
        return True
    if not isinstance(error, ValueError) and not _is_named(error, "MisconfigurationException"):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return not frames or any(f"{os.sep}{name}{os.sep}" in frames[-1].filename for name in SHOWN_FOLDERS)


def _is_named(error: BaseException, name: str) -> bool:
    """Whether it is of such a class, whose module need not be imported to know."""
    return any(kind.__name__ == name for kind in type(error).__mro__)


def message_of(error: BaseException) -> str:
    """An error in words for its user."""
    text = str(error).strip() or type(error).__name__
    if _out_of_memory(error):
        first = text.splitlines()[0]
        return (
            f"{first}\nLower data.token_budget, set activation_checkpointing: full, or use more devices; "
            "`dirl plan` says what a config needs"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{text}: the disk that the command writes to is full, or your share of it; make room, and begin again"
    if _lost_process(error):
        return f"another process of this run has ended, and said why itself ({text.splitlines()[0]})"
    if "nterpolation" in text and type(error).__module__.startswith("omegaconf"):
        return f"{text.splitlines()[0]}; a text that holds ${{ itself is written with \\${{"
    if text.startswith(("Does not validate against", "Parser key")):  # an option's value, refused by its class
        return shorten(text)
    if isinstance(error, ValueError | OSError | RuntimeError) or _is_named(error, "MisconfigurationException"):
        return text
    return f"{type(error).__name__}: {text}"


def resume_line(error: BaseException, args: Sequence[str]) -> str | None:
    """How a run that was ended goes on; None where there is nothing to go on from."""
    from dirl.errors import saved_at

    if not args or args[0] != "fit":
        return None
    path = saved_at(error)
    if path is None:
        return None
    command = shlex.join([*without_option(args, "--ckpt_path"), "--ckpt_path", str(path)])
    return f"go on with: lightning run {command}"


def without_option(args: Sequence[str], name: str) -> list[str]:
    """Arguments without `name VALUE` and `name=VALUE`."""
    kept: list[str] = []
    skip = False
    for arg in args:
        if skip or arg.startswith(f"{name}="):
            skip = False
        elif arg == name:
            skip = True
        else:
            kept.append(arg)
    return kept


class ShortErrors(ArgumentParser):
    """A parser that says what is wrong with an option in one message, without the list of all options."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = with_nearest(message, [name for name in self._option_string_actions if name.startswith("--")])
        if not self.exit_on_error:
            super().error(message, ex)
        raise UsageError(shorten(message), message)


def with_nearest(message: str, options: Sequence[str]) -> str:
    """An unknown option's message with the known one that it may stand for."""
    found = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
    nearest = get_close_matches(found[1], options, 1) if found and "(nearest" not in message else []
    return f"{message} (nearest: {nearest[0]})" if nearest else message


def shorten(message: str) -> str:
    """jsonargparse's report as `KEY: what is wrong`, without the types that the value might have had besides."""
    keys, kept = [], []
    in_class = False
    for line in message.splitlines():
        text = re.sub(r"^[\s-]+", "", line).rstrip() if not line.startswith("unrecognized") else line
        key = re.match(r"Parser key \"([^\"]+)\":\s*(.*)", text)
        if key:
            keys.append(f"init_args.{key[1]}" if in_class else key[1])
            in_class, text = False, key[2]
        given = re.match(r"Given value: (?!NestedArg|Namespace)(.*)", text)
        problem = re.match(r"Problem with given class_path '([^']+)':\s*(.*)", text)
        if given:
            text = f"given: {given[1]}"
        elif problem:
            in_class = True
            text = f"{problem[1]}: {problem[2]}"
        elif abstract := re.match(r"Expected an instantiatable class, but (\S+) is abstract", text):
            text = abstract_class(abstract[1])
        elif nameless := re.match(r"Expected a dot import path string: (\w+)$", text):
            text = f"{nameless[1]} names no class, and these are options of one: name it before them"
        elif text.startswith(("Given value", *NOISE)):
            text = ""
        if text:
            kept.append(re.sub(r"<class '([^']+)'>", r"\1", text).replace("typing.", "").rstrip())
    what = re.sub(r":\s*; ", ": ", "; ".join(dict.fromkeys(kept)))
    if re.search(r"Expected a dict; given: \{\w+:\S", what):
        what += "; YAML wants a blank after each colon"
    where = ".".join(keys)
    return f"{where}: {what}" if where else what


def mark_launcher() -> None:
    """Tell the processes that this one will start on its host who has started them."""
    if "LOCAL_RANK" not in os.environ:
        os.environ[LAUNCHER] = str(os.getpid())


def is_launched() -> bool:
    """Whether another process of the run has started this one."""
    return os.environ.get(LAUNCHER) == str(os.getppid()) and os.environ.get("LOCAL_RANK", "0") != "0"


def tell_processes(processes: Callable[[], Sequence[subprocess.Popen]]) -> Callable[[int], None]:
    """What passes a signal on to the other processes of a run on this host: to those started by this one, or to who
    started this one."""

    def tell(signum: int) -> None:
        for process in processes():
            if process.poll() is None:
                process.send_signal(signum)
        if is_launched():
            os.kill(os.getppid(), signum)

    return tell


def _say_end(text: str, error: BaseException, args: Sequence[str], launched: bool) -> None:
    """The message and, last, how to go on; where all processes end together, the first says it."""
    from dirl.errors import is_together

    if launched and is_together(error):
        return
    line = resume_line(error, args)
    if "dirl.progress_bar" in sys.modules:
        from dirl.progress_bar import end_bars

        end_bars()
    print("\n".join([text, line] if line else [text]), file=sys.stderr, flush=True)


def _end_launched(error: BaseException, code: int) -> int:
    """The exit code of a process that another one has started.

    That one says how the run ended. If all processes end together it is 0: Lightning's observer of started processes
    kills the first one where it sees another.
    """
    from dirl.errors import is_together

    if is_together(error):
        return 0
    _leave_collectives()
    parent, until = os.getppid(), time.monotonic() + CHILD_WAITS_S
    while os.getppid() == parent and time.monotonic() < until:
        time.sleep(0.05)
    return code


def _end_others() -> None:
    """After an error: let the other processes of this host end by themselves, for a while."""
    if "dirl.cli.fit" not in sys.modules:
        return  # nothing was started
    from dirl.cli.fit import started_processes

    processes = started_processes()
    if any(process.poll() is None for process in processes):
        _leave_collectives()
    until = time.monotonic() + GRACE_S
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def _leave_collectives() -> None:
    """Close this process's connections, so that the others do not wait for it; NCCL's own watchdog does that."""
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


def _out_of_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError"


def _lost_process(error: BaseException) -> bool:
    """Whether a collective failed because another process has ended."""
    text = str(error)
    return type(error).__name__ == "DistBackendError" or (
        isinstance(error, RuntimeError) and ("Connection closed by peer" in text or "Connection reset by peer" in text)
    )
