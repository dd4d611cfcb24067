"""What a process of a sandbox may: no capabilities, no other process, little memory, few system calls.

Runs inside of the sandbox, so it imports nothing but the standard library.
"""

import ctypes
import os
import resource
import signal
from contextlib import suppress
from functools import cache
from typing import Any, Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)

NOBODY: Final = 65534
"""Who root becomes: limits on processes do not hold for root, and files of root are not to be its own."""
MEMORY_BYTES: Final = 512 << 20
"""Address space of one process; there are two."""
_FILE_BYTES: Final = 16 << 20
_FILES: Final = 64

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x20080522

_ACT_ALLOW: Final = 0x7FFF0000
_ACT_EPERM: Final = 0x00050001
_FORBIDDEN: Final = """
accept accept4 acct add_key adjtimex bind bpf chroot clock_adjtime clock_settime clone3 connect delete_module execve
execveat fanotify_init finit_module fork fsconfig fsmount fsopen fspick init_module io_uring_enter io_uring_register
io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl listen lookup_dcookie memfd_create memfd_secret
mknod mknodat mount mount_setattr move_mount name_to_handle_at open_by_handle_at open_tree perf_event_open
personality pidfd_getfd pidfd_open pivot_root process_madvise process_vm_readv process_vm_writev ptrace quotactl
quotactl_fd reboot request_key sched_setaffinity setdomainname sethostname setns settimeofday shmget socket swapoff
swapon sync syslog umount2 unshare userfaultfd vfork vhangup
"""
"""What the tests of an answer have no use for, and what most ways out of a kernel begin with."""


def guard() -> None:
    """Nobody who is not privileged reads or changes the memory of this process, and it ends with its parent."""
    _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def confine(seconds: float) -> None:
    """Gives up, for good, all that this process does not need.

    Args:
        seconds: of processor time, about.

    Raises:
        OSError: something cannot be given up.
    """
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    restrict(seconds)
    _drop_capabilities()
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl: no_new_privs")
    _filter_calls()


def restrict(seconds: float) -> None:
    """The limits alone. With no processes allowed, threads are not either."""
    cpu_s = int(seconds) + 2
    wanted = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: _FILE_BYTES,
        resource.RLIMIT_NOFILE: _FILES,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for name, most in wanted.items():
        _, hard = resource.getrlimit(name)
        lower = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(name, (lower, lower))


def _drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    if _LIBC.capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


@cache
def call_filter() -> Any:
    """The system calls that are refused, for libseccomp; None where it is not installed.

    Made once, before the root is changed, for forks to load.
    """
    with suppress(OSError):
        library = ctypes.CDLL("libseccomp.so.2")
        library.seccomp_init.restype = ctypes.c_void_p
        context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ACT_ALLOW)))
        for name in _FORBIDDEN.split():
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number >= 0:  # this version and this architecture know it
                library.seccomp_rule_add(context, ctypes.c_uint32(_ACT_EPERM), number, 0)
        return library, context
    return None


def _filter_calls() -> None:
    if loaded := call_filter():
        library, context = loaded
        if failed := library.seccomp_load(context):
            raise OSError(-failed, "seccomp_load")
