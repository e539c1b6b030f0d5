"""Code in the sandbox tries to get out, to stay, to use up the host, and to pass without being right."""

import os
import platform
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dirl.rewards.sandbox import Limits, Trial, run_tests, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no sandbox here: {why_not()}")

QUICK = Limits(seconds=1)
CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine())
ATTEMPT = """
import ctypes, os, resource, signal, socket, subprocess, sys, threading, time

def attempt(code):
    try:
        return repr(eval(code))
    except BaseException as error:
        return type(error).__name__
"""


def outcome(code: str) -> str:
    """What an expression gives inside, or the name of what it raises."""
    trial = run_tests(ATTEMPT, f"raise Exception(attempt({code!r}))")
    assert trial.reason.startswith("Exception: "), trial
    return trial.reason.removeprefix("Exception: ")


ADDS = "assert add(1, 2) == 3\nassert add(5, 5) == 10"


def passes(program: str, tests: str = ADDS, limits: Limits | None = None) -> bool:
    return run_tests(program, tests, limits=limits).passed


def named(name: str) -> list[int]:
    """Processes of the host that gave themselves this name."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "comm").read_text().strip() == name:
                found.append(int(folder.name))
        except OSError:
            continue  # it ended meanwhile
    return found


def named_code(name: str, then: str) -> str:
    """A program that names its process, so that the host can find it, and does something."""
    return f"import ctypes, os, time\nctypes.CDLL(None).prctl(15, {name.encode()!r}, 0, 0, 0)\n{then}"


# ------------------------------------------------------------------------------------------- network and files


@pytest.mark.parametrize(
    "code",
    [
        "socket.socket()",
        "socket.socket(socket.AF_INET6)",
        "socket.socket(socket.AF_UNIX)",
        "socket.socket(socket.AF_VSOCK)",
        "socket.create_connection(('127.0.0.1', 22), 1)",
        "socket.getaddrinfo('example.org', 80)",
        "__import__('urllib.request').request.urlopen('http://127.0.0.1/')",
    ],
)
def test_there_is_no_network(code: str) -> None:
    assert outcome(code) in ("PermissionError", "gaierror", "URLError")


def test_nothing_of_the_host_is_seen_but_what_python_needs(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a sibling's")
    for path in ("/proc", "/sys", "/home", "/var", "/opt", "/etc/passwd", "/etc/shadow", str(tmp_path), "/bin/sh"):
        assert outcome(f"os.stat({path!r})") == "FileNotFoundError", path
    for path in ("~/.ssh", "~/.cache/huggingface"):
        assert outcome(f"os.listdir({str(Path(path).expanduser())!r})") in ("FileNotFoundError", "PermissionError")
    assert outcome("os.listdir('/etc')") in ("['ld.so.cache']", "FileNotFoundError")


def test_secrets_of_the_environment_stay_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert outcome("sorted(os.environ)") in (
        "['LANG', 'PATH', 'PYTHONHASHSEED']",
        "['LANG', 'LC_CTYPE', 'PATH', 'PYTHONHASHSEED']",
    )
    assert outcome("[n for n in range(64) if not attempt(f'os.fstat({n})').startswith('OSError')]") == "[0, 1, 2, 3]"


@pytest.mark.parametrize("path", ["/etc/passwd", "/x", "/usr/lib/x", os.__file__, "/dev/x", "/etc/ld.so.cache"])
def test_nothing_can_be_written_but_its_own_folder(path: str) -> None:
    assert outcome(f"open({path!r}, 'w')") in ("OSError", "PermissionError", "FileNotFoundError")
    assert outcome(f"os.remove({path!r})") in ("OSError", "PermissionError", "FileNotFoundError")


@pytest.mark.parametrize("path", ["/", os.__file__, os.path.dirname(os.__file__), "/usr/lib", "/dev/null"])
def test_what_can_be_seen_is_mounted_read_only(path: str) -> None:
    """And not only another user's: where the sandbox is an ordinary user's, so is the Python in their home."""
    assert outcome(f"os.statvfs({path!r}).f_flag & os.ST_RDONLY") == "1"


def test_its_folder_is_empty_and_gone_afterwards() -> None:
    name = f"left-{secrets.token_hex(4)}"
    write = f"(os.listdir('/tmp'), open('/tmp/{name}', 'w').write('x'), os.listdir('.'))"
    assert outcome(write) == f"([], 1, ['{name}'])"
    assert outcome("os.listdir('/tmp')") == "[]"
    assert not Path("/tmp", name).exists()


@pytest.mark.parametrize(
    "code",
    [
        "os.setuid(0)",
        "os.setgid(0)",
        "os.chroot('/tmp')",
        "os.mknod('/tmp/sda', 0o60666, os.makedev(8, 0))",
        "os.setns(0, 0) if hasattr(os, 'setns') else os.setuid(0)",
        "resource.setrlimit(resource.RLIMIT_NPROC, (1000, 1000))",
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    ],
)
def test_no_right_can_be_gained(code: str) -> None:
    assert outcome(code) in ("PermissionError", "ValueError")


@pytest.mark.parametrize(
    "call",
    [
        "unshare(0x10000000)",
        f"syscall({CLONE}, 0x10000011, 0, 0, 0, 0)",  # a child in a user namespace of its own
        "syscall(435, b'\\0' * 88, 88)",
        "mount(b'/', b'/tmp', None, 4096, None)",
        "ptrace(0, 0, 0, 0)",
        "shmget(0, 1 << 30, 0o1777)",
    ],
)
def test_calls_of_the_kernel_that_lead_out_are_refused(call: str) -> None:
    assert outcome(f"ctypes.CDLL(None).{call}") == "-1"


def test_threads_and_processes_within_the_limits_work() -> None:
    program = """
from concurrent.futures import ThreadPoolExecutor
import multiprocessing, os
def add(a, b):
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(int, [a, b]))
def fork():
    child = os.fork()
    if child == 0:
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""
    assert passes(program, "assert add(1, 2) == 3\nassert fork() == 7")


# ------------------------------------------------------------------------------------------- using up the host


def test_a_fork_bomb_ends_and_leaves_nothing() -> None:
    name = secrets.token_hex(5)
    bomb = "while True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    started = time.monotonic()
    assert not passes(named_code(name, bomb), limits=QUICK)
    assert time.monotonic() - started < 30
    assert named(name) == []


def test_processes_and_threads_are_limited() -> None:
    count = "[attempt('os.fork()') for _ in range(3)] and attempt('os.fork()')"
    assert outcome(f"({count}, os._exit(0) if os.getpid() > 1 else 0)[0]") == "'BlockingIOError'"
    assert outcome("[threading.Thread(target=time.sleep, args=(9,), daemon=True).start() for _ in range(9)]") == (
        "RuntimeError"
    )


@pytest.mark.parametrize(
    "code",
    [
        "bytearray(1 << 33)",
        "[bytearray(1 << 26) for _ in range(99)]",
        "'x' * 10**10",
        "__import__('mmap').mmap(-1, 1 << 33)",
    ],
)
def test_memory_is_limited(code: str) -> None:
    assert outcome(code) in ("MemoryError", "OSError")


def test_memory_outside_of_address_spaces_is_limited() -> None:
    assert outcome("os.memfd_create('x')") == "PermissionError"
    fill = "[open(f'/tmp/{n}', 'wb').write(bytes(1 << 20)) for n in range(20)]"
    assert outcome(fill) == "OSError", "16 MB are all that it may write"


@pytest.mark.parametrize(
    "code", ["while True: pass", "import time\ntime.sleep(99)", "import time\nwhile True: time.sleep(0.01)", "9**9**9"]
)
def test_what_does_not_end_is_ended(code: str) -> None:
    started = time.monotonic()
    trial = run_tests(code, "assert add(1, 2) == 3", limits=QUICK)
    assert not trial.passed and time.monotonic() - started < 30
    assert "no result within 2 s" in trial.reason or "the process of the code has ended" in trial.reason


def test_signals_do_not_keep_it_alive() -> None:
    ignore = (
        "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\n"
    )
    name = secrets.token_hex(5)
    assert not passes(named_code(name, f"{ignore}while True: pass"), limits=QUICK)
    assert named(name) == []


def test_output_without_end_goes_nowhere() -> None:
    flood = "import sys\nwhile True:\n    sys.stdout.write('x' * 10**6)\n    sys.stderr.write('x' * 10**6)"
    assert not passes(flood, limits=QUICK)
    assert passes("print('x' * 10**7)\ndef add(a, b):\n    print(a)\n    return a + b")


def test_a_value_of_gigabytes_is_no_answer() -> None:
    trial = run_tests("def add(a, b): return ['x' * 10**7] * 20", "assert add(1, 2) == 3")
    assert not trial.passed


def test_a_daemon_dies_with_its_sandbox() -> None:
    name = secrets.token_hex(5)
    daemon = "if os.fork() == 0:\n    os.setsid()\n    if os.fork():\n        os._exit(0)\n    time.sleep(999)\n"
    assert passes(named_code(name, daemon + "def add(a, b): return a + b"))
    assert named(name) == []


def test_other_processes_are_out_of_reach() -> None:
    kill = "import os, signal\nfor pid in (-1, os.getppid(), 2, 3):\n    try: os.kill(pid, signal.SIGKILL)\n"
    assert passes(kill + "    except OSError: pass\ndef add(a, b): return a + b")


@pytest.mark.parametrize("end", [os.kill, os.killpg])
def test_a_sandbox_dies_with_the_process_that_made_it(end) -> None:
    name = secrets.token_hex(5)
    forget = "ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\n"  # asks not to be ended with its parent
    code = named_code(name, forget + "time.sleep(99)")
    run = "from dirl.rewards.sandbox import Limits, run_tests\n"
    run += f"run_tests({code!r}, 'add(1, 2)', limits=Limits(seconds=60))"
    worker = subprocess.Popen([sys.executable, "-c", run], start_new_session=True)
    wait_for(lambda: named(name) != [])
    end(worker.pid, signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL
    wait_for(lambda: named(name) == [])


def wait_for(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ------------------------------------------------------------------------------------------- passing all the same

EQUAL = "class Equal({base}):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
FORGED = '{"outcome": "passed", "reason": "", "nonce": ""}'
FRAMED = 'data = b\'{"value": 3}\'\nframe = len(data).to_bytes(8, "big") + data\n'


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "raise SystemExit(0)",
        "import os\ndef add(a, b): os._exit(0)",
        "import sys\ndef add(a, b): sys.exit(0)",
        "import os, signal\ndef add(a, b): os.kill(os.getpid(), signal.SIGSEGV)",
        "import atexit, os\natexit.register(os._exit, 0)",
        "import builtins\nbuiltins.AssertionError = type('Never', (Exception,), {})\ndef add(a, b): return 0",
        "import sys\nsys.excepthook = lambda *_: None\nsys.exit = lambda *_: None\ndef add(a, b): return 0",
        "import sys\nfor m in list(sys.modules.values()):\n    m.encode = lambda *_: 3\ndef add(a, b): return 0",
        EQUAL.format(base="object") + "def add(a, b): return Equal()",
        EQUAL.format(base="int") + "def add(a, b): return Equal(0)",
        EQUAL.format(base="str") + "def add(a, b): return Equal('')",
        EQUAL.format(base="tuple") + "def add(a, b): return Equal()",
        "from unittest.mock import ANY\ndef add(a, b): return ANY",
        f"import os\nfor n in range(3, 32):\n    try: os.write(n, {FORGED!r}.encode())\n    except OSError: pass",
        "int = lambda *_: 3\nlen = lambda *_: 3\ndef add(a, b): return 0",
        f"import os\n{FRAMED}os.write(3, frame * 9)\ndef add(a, b): return 0",
        "def add(a, b): raise SystemExit(0)",
        "def add(a, b): raise StopIteration",
        "def add(a, b): raise AssertionError",
        "def add(a, b): return lambda *_: True",
        "add = None",
        "",
        "def add(a, b:",
        "\x00",
        "def sub(a, b): return 3",
    ],
)
def test_code_that_is_wrong_does_not_pass(program: str) -> None:
    assert not passes(program)


def test_builtins_of_the_code_are_not_those_of_the_tests() -> None:
    program = "def sorted(x): return [1, 2]\ndef set(x): return 0\ndef add(x): return [9]"
    assert not passes(program, "assert sorted(add(1)) == [1, 2]\nassert set(add(1)) == set([1, 2])")


def test_tests_that_were_not_run_to_their_end_do_not_count() -> None:
    assert run_tests("def add(a, b): return a + b", "assert add(1, 2) == 3\nraise SystemExit(0)") == Trial(
        False, "SystemExit: 0"
    )
