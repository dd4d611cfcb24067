"""What a sandbox sees: namespaces of its own, and of all files the standard library, read-only.

Linux only, by ctypes: ``os.unshare`` begins with Python 3.12, and mounts are in no version. Runs inside of the sandbox,
so it imports nothing but the standard library.
"""

import ctypes
import errno
import os
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)

NEWNS: Final = 0x00020000
NEWUTS: Final = 0x04000000
NEWIPC: Final = 0x08000000
NEWUSER: Final = 0x10000000
NEWPID: Final = 0x20000000
NEWNET: Final = 0x40000000

_RDONLY, _NOSUID, _NODEV, _NOEXEC = 0x1, 0x2, 0x4, 0x8
_BIND, _REC, _PRIVATE = 0x1000, 0x4000, 0x40000
_DETACH: Final = 2
_AT_FDCWD: Final = -100
_AT_RECURSIVE: Final = 0x8000
_SYS_MOUNT_SETATTR: Final = 442
"""On every architecture; since Linux 5.12."""
_SYS_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}
_SYS_KEYCTL: Final = {"x86_64": 250, "aarch64": 219}
_JOIN_SESSION_KEYRING: Final = 1
_OVER: Final = "/proc"
"""The new root is put together here: a directory that is always there and holds no interpreter."""
_SIZE: Final = "16m"
"""Of the only place that can be written; it is memory."""


class _Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd")]


def unshare(flags: int) -> None:
    """Leaves namespaces for new ones; that of processes is for children only.

    Raises:
        OSError: the system does not let this user.
    """
    _call("unshare", _LIBC.unshare(flags))


def forget_keys() -> None:
    """Leaves the keyring of the session that it was started in, such as one with tickets, for an empty one."""
    if number := _SYS_KEYCTL.get(os.uname().machine):
        _LIBC.syscall(number, _JOIN_SESSION_KEYRING, None, 0, 0, 0)


def shown() -> list[str]:
    """The directories of the standard library, whatever the interpreter's path names besides."""
    return [path for path in sys.path if Path(path).is_dir() and not path.endswith(("site-packages", "dist-packages"))]


def change(paths: Iterable[str]) -> None:
    """Replaces the root by one that holds these directories and an empty ``/tmp``, all read-only.

    Raises:
        OSError: which call failed.
    """
    with suppress(OSError):  # read-only in some containers; then seccomp alone forbids namespaces within
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
    socket.sethostname("sandbox")
    _mount(None, "/", flags=_REC | _PRIVATE)
    _mount("tmpfs", _OVER, "tmpfs", options="size=1m,mode=755")
    for path in sorted(paths, key=len):
        _show(path)
    Path(_OVER, "tmp").mkdir(exist_ok=True)
    os.chdir(_OVER)
    _call("pivot_root", _LIBC.syscall(_number(_SYS_PIVOT_ROOT), b".", b"."))
    _call("umount2", _LIBC.umount2(b".", _DETACH))
    os.chdir("/")
    _make_read_only()


def _number(by_machine: dict[str, int]) -> int:
    machine = os.uname().machine
    if machine not in by_machine:
        raise OSError(errno.ENOSYS, f"the processor is {machine}, expected one of {', '.join(by_machine)}")
    return by_machine[machine]


def _show(path: str) -> None:
    """A directory without what others installed into it."""
    place = Path(f"{_OVER}{path}")
    place.mkdir(parents=True, exist_ok=True)
    _mount(path, str(place), flags=_BIND | _REC)
    for name in ("site-packages", "dist-packages"):
        if (place / name).is_dir():
            _mount("tmpfs", str(place / name), "tmpfs", options="size=4k")


def _make_read_only() -> None:
    """Everything at once, and without asking which flags a mount had: these are added."""
    wanted = _Attributes(set=_RDONLY | _NOSUID | _NODEV)
    arguments = (_AT_FDCWD, b"/", _AT_RECURSIVE, ctypes.byref(wanted), ctypes.sizeof(wanted))
    _call("mount_setattr", _LIBC.syscall(_SYS_MOUNT_SETATTR, *arguments))


def give_scratch() -> None:
    """An empty ``/tmp`` that can be written, in this mount namespace.

    Raises:
        OSError: it cannot be had.
    """
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV | _NOEXEC, f"size={_SIZE},nr_inodes=256,mode=1777")  # noqa: S108


def _mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, options: str = "") -> None:
    given = [text and text.encode() for text in (source, target, kind)]
    _call(f"mount {target}", _LIBC.mount(*given, ctypes.c_ulong(flags), options.encode()))


def _call(name: str, result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
