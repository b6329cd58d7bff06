"""The system calls that a worker may make: those that its work needs, none that opens anything.

A worker holds its connection, its monitor's socket and the descriptors that the monitor gave it. It
needs memory, time and random numbers, and to wait, read, write, send, receive, accept and close. It
never needs to open a file, to make or connect a socket, to start a process or a thread, or to
signal another process. Where a call that it needs could do so by an argument (MSG_FASTOPEN
connects, O_ASYNC signals), the filter checks the arguments as well.

An attacker who has taken over a worker can still use its descriptors: talk to its client and to the
programs, forwards and tunnel devices of this connection, and read what passes through; accept where
it listens; and send the requests that the monitor's table allows: lines in the log, host keys'
signatures, attempts to log in, and everything that the logged-in user may have. The attacker can
use up memory to the limit of ``sandbox``, and processor time, and can look for bugs of the kernel
in the calls that are left.

A call that is not in the list fails, so that an attempt of a library (to open a file for a
traceback) does not end the connection. A call with a path fails with ENOENT, as in the empty root
directory of a worker that was started as root; any other fails with EPERM. A call that only an
attacker would try (FATAL) ends the worker with SIGSYS; the monitor counts that as a crash, and
penalizes the source.

libseccomp knows the calls' numbers on each architecture and writes the program for the kernel. The
listener does this once; a worker has no files, and only passes the finished program to the kernel.

The list comes from tracing workers on x86-64: in sessions with and without a terminal, forwards,
the agent, tunnels, compression, rekeying, ends by idleness, the system's log, and an exception with
its traceback. On emulated boards with Debian 13 (Python 3.13, glibc 2.41, libseccomp 2.6) all of
that works as well, and a compromised worker is refused the same calls: on arm64 (Linux 6.12.117)
and on armhf with its 64-bit time (Linux 6.12.107). Sessions, forwards, the agent and tunnels were
also run with the libraries of Debian 12 (Python 3.11, glibc 2.36, libseccomp 2.5.4), those of arm64
and of armhf, both on the arm64 kernel. No call of a traced worker was refused in any of these.
Other C libraries and other versions of Python make other calls for the same purpose; the list has
those that are known. The tests run under this filter.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import termios
from typing import Final

from ..services.tunnel.device import TUNGETIFF, TUNSETOFFLOAD
from .merging import PR_SET_MEMORY_MERGE

# seccomp.h of libseccomp
_KILL_PROCESS: Final = 0x80000000
_ERRNO: Final = 0x00050000
_ALLOW: Final = 0x7FFF0000
_OPTIMIZE: Final = 8  # SCMP_FLTATR_CTL_OPTIMIZE
_BY_TREE: Final = 2
_MASKED_EQ: Final = 7

# linux/prctl.h, linux/seccomp.h
_PR_SET_SECCOMP: Final = 22
_MODE_FILTER: Final = 2
_INSTRUCTION: Final = 8  # bytes of struct sock_filter

# linux/fcntl.h
_AT_EMPTY_PATH: Final = 0x1000

ALLOWED: Final = (
    # memory
    *("brk", "mremap", "munmap", "madvise"),
    # time, random numbers, identity
    *("clock_gettime", "clock_gettime64", "clock_getres", "clock_getres_time64", "gettimeofday"),
    *("clock_nanosleep", "clock_nanosleep_time64", "nanosleep", "time", "getrandom"),
    *("getpid", "gettid", "getppid", "getuid", "geteuid", "getgid", "getegid", "sysinfo"),
    # waiting
    *("epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "poll", "ppoll", "ppoll_time64"),
    *("select", "_newselect", "pselect6", "pselect6_time64", "sched_yield", "restart_syscall"),
    *("futex", "futex_time64"),
    # open descriptors
    *("read", "readv", "write", "writev", "close", "close_range", "lseek", "_llseek"),
    *("dup", "dup2", "dup3", "fstat", "fstat64"),
    *("recv", "recvfrom", "recvmsg", "shutdown", "accept", "accept4"),
    *("getsockname", "getpeername", "getsockopt"),
    # receiving signals, and exit
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigreturn", "sigaltstack"),
    *("exit", "exit_group"),
)

# Calls with a path: they fail with ENOENT.
MISSING: Final = (
    *("open", "openat", "openat2", "access", "faccessat", "faccessat2", "readlink", "readlinkat"),
    *("stat", "stat64", "lstat", "lstat64"),
)

# System call; for each checked argument: index, mask, required value.
_WORD: Final = 0xFFFFFFFF
_POINTER: Final = 0xFFFFFFFFFFFFFFFF
IOCTLS: Final = (
    *(termios.FIONREAD, termios.FIONBIO, termios.TIOCGWINSZ, termios.TIOCSWINSZ, termios.TCGETS),
    *(termios.TCSETS, termios.TCSETSW, termios.TCSETSF, TUNSETOFFLOAD, TUNGETIFF),
)
_FCNTLS: Final = (
    *(fcntl.F_GETFL, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC),
)
_Condition = tuple[int, int, int]
CONDITIONS: Final[tuple[tuple[str, *tuple[_Condition, ...]], ...]] = (
    *(("ioctl", (1, _WORD, request)) for request in IOCTLS),
    # No flags and no address: MSG_FASTOPEN connects any socket, even one that listened before. A
    # filter cannot see the address that sendmsg points to; a worker does not need that call.
    ("send", (3, _WORD, 0)),
    ("sendto", (3, _WORD, 0), (4, _POINTER, 0)),
    # O_ASYNC sends a signal: with F_SETSIG any signal, with F_SETOWN to any process of the same
    # user, which the workers of other connections are.
    *((name, (1, _WORD, command)) for name in ("fcntl", "fcntl64") for command in _FCNTLS),
    *((name, (1, _WORD, fcntl.F_SETFL), (2, os.O_ASYNC, 0)) for name in ("fcntl", "fcntl64")),
    ("setsockopt", (1, _WORD, socket.IPPROTO_TCP), (2, _WORD, socket.TCP_NODELAY)),
    # written memory never becomes executable
    *((name, (2, mmap.PROT_EXEC, 0)) for name in ("mmap", "mmap2", "mprotect")),
)

# Only with merge_memory: the time of a write to a page reveals equal pages of other processes.
MERGING: Final[tuple[str, _Condition]] = ("prctl", (0, _WORD, PR_SET_MEMORY_MERGE))

# Calls that take a descriptor or a path, and the index of the flags that say which (AT_EMPTY_PATH).
EITHER: Final = (("newfstatat", 3), ("fstatat64", 3), ("statx", 2))

FATAL: Final = (
    *("execve", "execveat", "fork", "vfork", "clone", "clone3"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "kill", "tkill", "tgkill"),
    *("rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_open", "pidfd_getfd", "pidfd_send_signal"),
    *("unshare", "setns", "chroot", "pivot_root", "mount", "umount2", "open_tree", "move_mount"),
    *("bpf", "io_uring_setup", "io_uring_enter", "userfaultfd", "perf_event_open"),
    *("add_key", "request_key", "keyctl", "init_module", "finit_module", "kexec_load"),
)

_libc = ctypes.CDLL(None, use_errno=True)


class Unsupported(Exception):
    """This system cannot filter system calls; the text says what it lacks."""


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def program(merging: bool) -> bytes:
    """Returns the filter for this machine, for ``load``; raises Unsupported.

    With ``merging``, a process may merge its pages with others'.
    """
    # This program is invalid on purpose: EFAULT says that the kernel has filters.
    _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, None, 0, 0)
    if ctypes.get_errno() != errno.EFAULT:
        raise Unsupported("the kernel has no seccomp filters")
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise Unsupported("libseccomp.so.2 is missing (Debian's package libseccomp2)") from error
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(_ERRNO | errno.EPERM))
    try:
        library.seccomp_attr_set(context, _OPTIMIZE, _BY_TREE)
        for name in ALLOWED:
            _add(library, context, _ALLOW, name)
        for name, *conditions in (*CONDITIONS, MERGING) if merging else CONDITIONS:
            comparisons = (
                _Comparison(argument, _MASKED_EQ, mask, value)
                for argument, mask, value in conditions
            )
            _add(library, context, _ALLOW, name, *comparisons)
        for name in MISSING:
            _add(library, context, _ERRNO | errno.ENOENT, name)
        for name, argument in EITHER:
            for action, flag in ((_ALLOW, _AT_EMPTY_PATH), (_ERRNO | errno.ENOENT, 0)):
                comparison = _Comparison(argument, _MASKED_EQ, _AT_EMPTY_PATH, flag)
                _add(library, context, action, name, comparison)
        for name in FATAL:
            _add(library, context, _KILL_PROCESS, name)
        return _exported(library, context)
    finally:
        library.seccomp_release(context)


def _add(
    library: ctypes.CDLL,
    context: ctypes.c_void_p,
    action: int,
    name: str,
    *comparisons: _Comparison,
) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number == -1:  # newer than the library, or of another architecture
        return
    array = (_Comparison * len(comparisons))(*comparisons)
    failed = library.seccomp_rule_add_array(
        context, ctypes.c_uint32(action), number, len(comparisons), array
    )
    if failed:
        raise Unsupported(f"libseccomp: {name}: {os.strerror(-failed)}")


def _exported(library: ctypes.CDLL, context: ctypes.c_void_p) -> bytes:
    with open(os.memfd_create("seccomp"), "w+b", buffering=0) as file:
        failed = library.seccomp_export_bpf(context, file.fileno())
        if failed:
            raise Unsupported(f"libseccomp: {os.strerror(-failed)}")
        file.seek(0)
        return file.read()


def load(instructions: bytes) -> None:
    """Applies a filter to this process for good; raises OSError."""
    wanted = _Program(len(instructions) // _INSTRUCTION, instructions)
    if _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(wanted), 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
