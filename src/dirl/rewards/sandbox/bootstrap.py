"""Turns a child process into an isolated one, and that into another program.

It is run as a script of its own (`python -I -S bootstrap.py SETTINGS`), so that it imports nothing but the standard
library. The process that runs it stays outside and makes one inside, number 1 of its own world: no network, a file
system of the few folders that Python needs, read-only, and one small folder to write to, an unprivileged user without
capabilities, limits, and a filter of system calls. When number 1 ends, the kernel ends all that it has started.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys

LIBC = ctypes.PyDLL(None, use_errno=True)
"""It keeps Python's lock, which a process that is copied in the middle of a call must have."""
CLONE_NEWS = 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
"""New namespaces for mounts, hostname, IPC, users, process numbers and network."""
NEW_ANY = CLONE_NEWS | 0x02000000 | 0x00000080
MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1000, 0x4000, 0x40000, 2, 4, 8
MOUNT_READ_ONLY, MOUNT_NOSUID, MOUNT_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE, MNT_DETACH = -100, 0x8000, 2
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_FILTER = 1, 38, 22, 2
INSIDE = 65534
"""Number of the user inside; no file is theirs but those that they write."""
DEVICES = ("null", "zero", "random", "urandom")
READY = b"ready"

COLUMNS = ("x86_64", "aarch64")
CALLS = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "prctl": (157, 167),
    "pivot_root": (155, 41),
    "mount_setattr": (442, 442),
}
DENIED = {
    "socket": (41, 198),  # the network namespace leaves VSOCK, which reaches the host of a virtual machine
    **{"shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180)},  # memory without a limit
    **{"memfd_create": (319, 279), "memfd_secret": (447, 447)},
    **{"unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "chroot": (161, 51)},
    **{"pivot_root": (155, 41), "mount_setattr": (442, 442), "open_tree": (428, 428), "move_mount": (429, 429)},
    **{"fsopen": (430, 430), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264)},
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271)},
    **{"pidfd_getfd": (438, 438), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218)},
    **{"bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "fanotify_init": (300, 262)},
    **{"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427)},
}
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE, MISSING, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
"""Verdicts of the filter: go on, EPERM, ENOSYS, the end."""


def main(settings: dict) -> None:
    """Settings: `status` and `keep` (descriptors), `argv`, `readable`, `links`, `parent`, `limits`."""
    check(LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0), "prctl")
    if os.getppid() != settings["parent"]:
        return
    heard, told = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    ctypes.pythonapi.PyOS_BeforeFork()
    child = syscall("clone", CLONE_NEWS | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        os.close(told)
        inside(settings, heard)
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    try:
        signal.signal(signal.SIGTERM, lambda *_: end(child))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        several = map_users(child)
        os.write(told, b"1" if several else b"0")
        for descriptor in (settings["status"], told, heard, *settings["keep"]):
            os.close(descriptor)
        os.waitpid(child, 0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os._exit(0)


def map_users(child: int) -> bool:
    """Tell the kernel who is who inside: root, for the setting up, and nobody; or nobody alone. True: both."""
    if os.geteuid() == 0:
        try:
            for kind in ("uid", "gid"):
                write(f"/proc/{child}/{kind}_map", f"0 0 1\n{INSIDE} {INSIDE} 1\n")
            return True
        except OSError:
            pass  # root of a container that lacks the right, or the numbers: as any user then
    write(f"/proc/{child}/setgroups", "deny")
    write(f"/proc/{child}/uid_map", f"{INSIDE} {os.geteuid()} 1\n")
    write(f"/proc/{child}/gid_map", f"{INSIDE} {os.getegid()} 1\n")
    return False


def inside(settings: dict, heard: int) -> None:
    """Number 1: everything up to the other program. It never returns."""
    status = settings["status"]
    try:
        mapped = os.read(heard, 1)
        if not mapped:
            os._exit(1)  # the outer process says why
        os.setsid()
        make_root(settings)
        if mapped == b"1":
            os.setgroups([])
            os.setresgid(INSIDE, INSIDE, INSIDE)
            os.setresuid(INSIDE, INSIDE, INSIDE)
        check(LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
        status = arrange_descriptors(settings)
        limit(settings["limits"])
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        check(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        filter_calls()
        os.write(status, READY)
        os.execve(settings["argv"][0], settings["argv"], {"PATH": "", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"})
    except BaseException as error:
        os.write(status, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(1)


def make_root(settings: dict) -> None:
    """A new file system in place of the old one; /proc is where it is put together, as every host has that folder."""
    root, files = "/proc", settings["limits"]["files_mb"]
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in settings["readable"]:
        attach(path, root + path, MOUNT_READ_ONLY | MOUNT_NOSUID | MOUNT_NODEV)
    for name in DEVICES:
        attach(f"/dev/{name}", f"{root}/dev/{name}", MOUNT_READ_ONLY | MOUNT_NOSUID)
    for link, target in settings["links"]:
        os.symlink(target, root + link)
    os.mkdir(f"{root}/tmp")
    mount("tmpfs", f"{root}/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, f"size={files}m,nr_inodes=256,mode=1777")
    os.chdir(root)
    syscall("pivot_root", b".", b".")
    check(LIBC.umount2(b".", MNT_DETACH), "umount2")
    set_attributes("/", MOUNT_READ_ONLY, 0)
    os.chdir("/tmp")


def attach(path: str, place: str, attributes: int) -> None:
    """Show a file or folder of the host at this place, with all that is mounted below it."""
    if os.path.isdir(path):
        os.makedirs(place, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        write(place, "")
    mount(path, place, None, MS_BIND | MS_REC)
    set_attributes(place, attributes, AT_RECURSIVE)


def limit(limits: dict) -> None:
    mib = 1 << 20
    for name, value in {
        "AS": limits["memory_mb"] * mib,
        "CPU": limits["seconds"],
        "FSIZE": limits["files_mb"] * mib,
        "NPROC": limits["processes"],
        "NOFILE": limits["open_files"],
        "CORE": 0,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
    }.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def arrange_descriptors(settings: dict) -> int:
    """0 stays, 1 and 2 lead nowhere, those to keep are 3 and up, and then the status, which no other program has."""
    apart = [os.dup2(descriptor, 100 + n) for n, descriptor in enumerate((settings["status"], *settings["keep"]))]
    nowhere = os.open("/dev/null", os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.closerange(3, 100)
    for number, descriptor in enumerate(apart[1:], 3):
        os.dup2(descriptor, number)
    status = os.dup2(apart[0], 3 + len(settings["keep"]), inheritable=False)
    os.closerange(100, 110)
    return status


def filter_calls() -> None:
    """The filter of system calls, for this process and all that it becomes or starts."""
    machine = platform.machine()
    column = COLUMNS.index(machine)
    rules = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, AUDIT_ARCH[machine]), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    rules += [(AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, REFUSE)]  # x32's numbers
    for numbers in DENIED.values():
        rules += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, REFUSE)]
    rules += [(EQUAL, 0, 1, CALLS["clone3"][column]), (RETURN, 0, 0, MISSING)]  # its flags lie in memory
    asked = [(LOAD, 0, 0, 16), (ANY_BIT, 0, 1, NEW_ANY & ~0xFF), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    rules += [(EQUAL, 0, len(asked), CALLS["clone"][column]), *asked]
    asked = [(LOAD, 0, 0, 16), (EQUAL, 0, 1, PR_SET_PDEATHSIG), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    rules += [(EQUAL, 0, len(asked), CALLS["prctl"][column]), *asked, (RETURN, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *rule) for rule in rules))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(rules), ctypes.addressof(code)))
    check(LIBC.prctl(PR_SET_SECCOMP, SECCOMP_FILTER, program, 0, 0), "seccomp")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    encoded = None if kind is None else kind.encode()
    found = LIBC.mount(source.encode(), target.encode(), encoded, ctypes.c_ulong(flags), options.encode())
    check(found, f"mount {source} on {target}")


def set_attributes(path: str, attributes: int, flags: int) -> None:
    values = ctypes.create_string_buffer(struct.pack("=QQQQ", attributes, 0, 0, 0), 32)
    syscall("mount_setattr", AT_FDCWD, path.encode(), flags, values, 32)


def syscall(name: str, *arguments: object) -> int:
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return check(LIBC.syscall(ctypes.c_long(CALLS[name][COLUMNS.index(platform.machine())]), *converted), name)


def check(result: int, name: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(descriptor, text.encode())
    os.close(descriptor)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    try:
        main(given)
    except BaseException as failure:
        os.write(given["status"], f"{type(failure).__name__}: {failure}".encode())
        os._exit(1)
