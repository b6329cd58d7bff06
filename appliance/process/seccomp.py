"""Which system calls a worker may make: those that its work needs, none that opens anything.

A worker that was taken over holds its connection, its monitor's socket and what the monitor gave
it. It needs memory, time and random numbers, and to wait, read, write, send, receive, accept and
close. It never opens a file, makes a socket or connects one, starts a process or a thread, or
sends a signal: what its parsers handle cannot turn it into something that does.

What is not in the list fails, so that what libraries try now and then (a file for a traceback, the
system's log after that started again) does not cost the connection: a path with ENOENT, as in the
empty directory that a worker of root's is locked into, all else with EPERM. What only somebody who
has taken the worker over would try (FATAL) ends it, with SIGSYS, which the monitor counts as a
crash, and the source pays for that.

libseccomp knows the calls' numbers on each architecture and writes the program for the kernel. That
happens once, in the listener; a worker has no files, and only hands the kernel the ready program.
The list was found by tracing workers through every service, and the tests run under it.
"""

import ctypes
import errno
import mmap
import os
import termios
from typing import Final

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

# linux/if_tun.h, linux/fcntl.h
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNGETIFF: Final = 0x800454D2
_AT_EMPTY_PATH: Final = 0x1000

ALLOWED: Final = (
    # memory
    *("brk", "mremap", "munmap", "madvise"),
    # time, random numbers, who we are
    *("clock_gettime", "clock_gettime64", "clock_getres", "clock_getres_time64", "gettimeofday"),
    *("clock_nanosleep", "clock_nanosleep_time64", "nanosleep", "time", "getrandom"),
    *("getpid", "gettid", "getppid", "getuid", "geteuid", "getgid", "getegid", "sysinfo"),
    # waiting
    *("epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "poll", "ppoll", "ppoll_time64"),
    *("select", "_newselect", "pselect6", "pselect6_time64", "sched_yield", "restart_syscall"),
    *("futex", "futex_time64"),
    # what is open
    *("read", "readv", "write", "writev", "close", "close_range", "lseek", "_llseek"),
    *("dup", "dup2", "dup3", "fcntl", "fcntl64", "fstat", "fstat64"),
    *("send", "sendto", "sendmsg", "recv", "recvfrom", "recvmsg", "shutdown", "accept", "accept4"),
    *("getsockname", "getpeername", "getsockopt", "setsockopt"),
    # signals to us, and the end
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigreturn", "sigaltstack"),
    *("exit", "exit_group"),
)

# Calls with a path.
MISSING: Final = (
    *("open", "openat", "openat2", "access", "faccessat", "faccessat2", "readlink", "readlinkat"),
    *("stat", "stat64", "lstat", "lstat64"),
)

# A call, the argument that is looked at, and the value that must stand under the mask.
_WORD: Final = 0xFFFFFFFF
IOCTLS: Final = (
    *(termios.FIONREAD, termios.FIONBIO, termios.TIOCGWINSZ, termios.TIOCSWINSZ, termios.TCGETS),
    *(termios.TCSETS, termios.TCSETSW, termios.TCSETSF, _TUNSETOFFLOAD, _TUNGETIFF),
)
CONDITIONS: Final = (
    *(("ioctl", 1, _WORD, request) for request in IOCTLS),
    # nothing that was written becomes a program
    *((name, 2, mmap.PROT_EXEC, 0) for name in ("mmap", "mmap2", "mprotect")),
)

# A call that takes a descriptor or a path, and the argument that says by a flag which of them.
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


def program() -> bytes:
    """The filter for this machine, for ``load``; raises Unsupported."""
    # An invalid program: EFAULT says that the kernel would look at one.
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
        for name, argument, mask, value in CONDITIONS:
            _add(library, context, _ALLOW, name, _Comparison(argument, _MASKED_EQ, mask, value))
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
    """Have the kernel hold this process to the program, for good; raises OSError."""
    wanted = _Program(len(instructions) // _INSTRUCTION, instructions)
    if _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(wanted), 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
