"""The keeper: a process that keeps kill switches closed when another program flushes nftables.

Firewall scripts begin with `nft flush ruleset`, which removes the tables of all programs. So the
table of a closed kill switch has a copy with the flag ``owner`` (Linux 5.12): the copy belongs to
the netlink socket that made it, no other process can change it, and the kernel removes it when that
socket's process ends. The keeper is that process:

    culvert up --close, supervisor --"table and rules", over a unix socket--> keeper (root)

The keeper outlives the supervisor, because the supervisor's end, restart or crash must not open a
switch. It makes a flushed table again while no supervisor runs. It ends when its last copy is
released, as `culvert down` does. If the system has no such tables, there is no keeper, and a flush
opens a switch until the supervisor has made its rules again.
"""

import contextlib
import ctypes
import fcntl
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from .. import log
from ..aio.listening import bind_local, peer_of
from ..aio.loop import Callback
from ..aio.service_manager import notify
from ..config.directories import runtime_directory
from ..errors import CulvertError
from ..process import ourselves
from ..process.daemon import daemonize
from ..services.tunnel.marks import table_script
from ..services.tunnel.rules_watch import RulesWatch

if TYPE_CHECKING:
    from ..services.tunnel.network import Rules

_log = logging.getLogger(__name__)

# Our own choices
_PATIENCE: Final = 10.0  # seconds for one request; a small board needs half of one
_STARTS: Final = 3  # of a process that ends before it has answered
_REQUEST_LIMIT: Final = 4 << 20  # bytes: a table for some 100 000 networks
_POLL: Final = 0.05  # seconds
_COPY: Final = "/held"  # what the name of a copy ends with; no link's name has a slash

_DONE: Final = b"done"
_NO_COPY: Final = "a flush of the ruleset opens kill switches for a moment: %s"

_START: Final = "from appliance.links.keeper import main; main(*map(int, sys.argv[1:]))"


def copy_of(table: str) -> str:
    """Returns the name of a table's copy."""
    return table + _COPY


# -- for processes that close kill switches ----------------------------------------------


class Keeper:
    """Asks the keeper to hold copies of tables, and starts its process when it is needed.

    A failure is logged once and is no error: the tables themselves stand without copies, too. With
    ``watch``, which is Loop.watch_reader, a keeper that was killed is started again.
    """

    def __init__(self, watch: Callable[[int, Callback | None], None] | None = None) -> None:
        self.process = 0  # its id, once something is held
        self._watch = watch
        self._process_descriptor = -1
        self._told: dict[str, str] = {}
        self._warned = False

    def hold(self, table: str, body: str) -> None:
        """Has the keeper hold ``body``, the text between the braces, as the copy of a table."""
        if self._told.get(table) == body:
            return
        try:
            process = self._hold(table, body)
            self._told[table] = body
            self._follow(process)
        except (CulvertError, OSError) as error:
            self._told.pop(table, None)
            if not self._warned:
                _log.warning(_NO_COPY, error)
            self._warned = True

    def release(self, table: str) -> None:
        """Removes a table's copy, also one of another process. Raises CulvertError if it stays.

        Call it before the table itself is removed: the keeper makes the table again while it holds
        the copy.
        """
        self._told.pop(table, None)
        self._release(table, copy_of(table))

    def release_all(self) -> None:
        """Removes all copies, also those of other processes. Raises CulvertError if one stays."""
        self._told.clear()
        self._release("", "what the keeper holds")

    def close(self) -> None:
        """Stops watching the keeper, which goes on holding its copies."""
        if self._watch is not None and self._process_descriptor >= 0:
            self._watch(self._process_descriptor, None)
            os.close(self._process_descriptor)
            self._process_descriptor = -1

    def _follow(self, process: int) -> None:
        """Watches for the end of the keeper. Raises OSError."""
        if process != self.process:
            self.close()
            self.process = process
            if self._watch is not None:
                self._process_descriptor = os.pidfd_open(process)
                self._watch(self._process_descriptor, self._ended)
            self._hold_again()  # what the one before held, of whose end we may not know yet

    def _ended(self) -> None:
        """Has another keeper hold the copies that the ended one held for this process."""
        self.close()
        self.process = 0
        self._hold_again()

    def _hold_again(self) -> None:
        told, self._told = self._told, {}
        for table, body in told.items():
            self.hold(table, body)

    def _hold(self, table: str, body: str) -> int:
        """Returns the keeper's process id. Raises CulvertError and OSError."""
        deadline = 0.0
        starts = 0
        while (process := _request(table, body)) is None:
            deadline = deadline or time.monotonic() + _PATIENCE
            try:
                self._start()
            except BlockingIOError:  # another one begins or ends
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL)
                continue
            starts += 1
            if starts > _STARTS:
                raise CulvertError("the process that would prevent it ends at once")
        return process

    def _release(self, table: str, what: str) -> None:
        """Raises CulvertError."""
        deadline = 0.0
        try:
            while _request(table, "") is None and _is_locked():  # one begins or ends
                deadline = deadline or time.monotonic() + _PATIENCE
                if time.monotonic() > deadline:
                    raise CulvertError("no keeper answers")
                time.sleep(_POLL)
        except (CulvertError, OSError) as error:
            raise CulvertError(f"{what} is not released: {error}") from error

    def _start(self) -> None:
        """Raises OSError."""
        lock = _lock()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with _bind() as listening:
                sys.stdout.flush()  # or what waits there is written twice
                child = os.fork()
                if child == 0:
                    _become_keeper(lock, listening.fileno())
                os.waitpid(child, 0)
        finally:
            os.close(lock)


def _become_keeper(lock: int, listening: int) -> NoReturn:
    """Executes the keeper's program, in a fork, so that none of the parent's memory is left."""
    try:
        daemonize()
        for each in (lock, listening):
            os.set_inheritable(each, True)
        argv = ourselves.command(_START, str(lock), str(listening))
        os.execv(argv[0], argv)
    finally:
        os._exit(1)


def _request(table: str, body: str) -> int | None:
    """Sends a request to the keeper; returns its process id, None if no keeper runs.

    Ends a keeper that does not answer. Raises CulvertError with the keeper's answer, and OSError.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_PATIENCE)
        try:
            sock.connect(str(_socket_path()))
            process = peer_of(sock).process
            try:
                sock.sendall(f"{table}\n{body}".encode())
                sock.shutdown(socket.SHUT_WR)
                answer = _read_all(sock)
            except TimeoutError:
                _log.warning("the keeper, process %d, does not answer and is ended", process)
                _end(process)
                return None
        except (FileNotFoundError, ConnectionError):
            return None
    if not answer:  # it ended before it read this
        return None
    if answer != _DONE:
        raise CulvertError(answer.decode())
    return process


def _end(process: int) -> None:
    """Ends a keeper; the kernel removes its copies. Raises OSError."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return
    try:
        # SIGTERM, which a service manager takes for no reason to start it again.
        for number in (signal.SIGTERM, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        if not ended.poll(_PATIENCE * 1000):
            raise TimeoutError(f"process {process} does not end")
    finally:
        os.close(descriptor)


def _lock() -> int:
    """Opens the file whose lock the keeper has. Raises OSError."""
    return os.open(_lock_path(), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _is_locked() -> bool:
    """Whether there is a keeper. Raises OSError."""
    try:
        lock = os.open(_lock_path(), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def has_run() -> bool:
    """Whether there has been a keeper since the machine's start."""
    return _lock_path().exists()


def _lock_path() -> Path:
    return runtime_directory() / "keeper.lock"


def _socket_path() -> Path:
    return runtime_directory() / "keeper.sock"


def _bind() -> socket.socket:
    """Returns the keeper's socket, bound to a path that only root can open.

    The caller has the lock. The keeper itself calls listen(), so that SO_PEERCRED names it.
    """
    # A keeper that was killed left its file.
    return bind_local(os.fsencode(_socket_path()), unlink=True)


def _read_all(sock: socket.socket) -> bytes:
    """Reads until the end of the stream. Raises OSError, also for more than _REQUEST_LIMIT."""
    data = bytearray()
    while part := sock.recv(65536):
        data += part
        if len(data) > _REQUEST_LIMIT:
            raise OSError("too long")
    return bytes(data)


# -- the process -------------------------------------------------------------------------


def main(lock: int, listening: int) -> NoReturn:
    """Runs a keeper that was started by another process, until it holds no copy any more."""
    log.set_up("culvert-keeper", logging.INFO, False)
    serve(Copies(), socket.socket(fileno=listening), lock, stays=False)
    os._exit(0)


def stay(closed: Callable[[], Iterable["Rules"]]) -> NoReturn:
    """Makes this process the keeper until a signal ends it; ``closed`` returns the first tables.

    If another keeper runs, asks that one to hold the tables, and waits for its end. Raises OSError.
    """
    lock = _lock()
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        other = Keeper()
        for rules in closed():
            other.hold(rules.table, rules.body)
        notify("READY=1")
        fcntl.flock(lock, fcntl.LOCK_EX)
    copies = Copies()
    with _bind() as listening:
        for rules in closed():
            try:
                copies.hold(rules.table, rules.body)
            except CulvertError as error:
                _log.warning(_NO_COPY, error)
        notify("READY=1")
        serve(copies, listening, lock, stays=True)
    raise AssertionError("a keeper that stays ends by a signal only")


def serve(copies: "Copies", listening: socket.socket, lock: int, stays: bool) -> None:
    """Answers one request after the other; unless it ``stays``, until no copy is held.

    The lock is free when the last request is answered, so that another keeper can be started.
    """
    listening.listen()
    watch = RulesWatch()
    events = select.poll()
    for descriptor in (listening.fileno(), watch.fileno()):
        events.register(descriptor, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _ in events.poll()]
        if watch.fileno() in ready:
            copies.restore(watch.take())
        if listening.fileno() not in ready:
            continue
        asking, _ = listening.accept()
        with asking:
            asking.settimeout(_PATIENCE)
            try:
                table, _, body = _read_all(asking).decode().partition("\n")
                copies.answer(table, body)
                answer = _DONE
            except (CulvertError, OSError, UnicodeDecodeError) as error:
                answer = str(error).encode()
            ends = not copies and not stays
            if ends:
                _socket_path().unlink(missing_ok=True)
                os.close(lock)
            with contextlib.suppress(OSError):
                asking.sendall(answer)
        if ends:
            return


class Copies:
    """Copies of tables that only this process can change; the kernel removes them when it ends."""

    def __init__(self) -> None:
        self._held: dict[str, str] = {}
        self._library: ctypes.CDLL | None = None
        self._context = ctypes.c_void_p()

    def __len__(self) -> int:
        return len(self._held)

    def answer(self, table: str, body: str) -> None:
        """Holds a copy; removes it if ``body`` is empty, and all copies if ``table`` is empty, too.

        Raises CulvertError.
        """
        if body:
            self.hold(table, body)
        elif table:
            self._release(table)
        else:
            for each in list(self._held):
                self._release(each)

    def hold(self, table: str, body: str) -> None:
        """Holds this version of a table's copy. Raises CulvertError."""
        if self._held.get(table) == body:
            return
        copy = f"table inet {copy_of(table)}"
        # In one transaction.
        script = f"delete {copy}\n" if table in self._held else ""
        self._run(f"{script}{copy} {{\n\tflags owner\n{body}}}\n")
        self._held[table] = body

    def restore(self, changed: Collection[str] | None) -> None:
        """Makes those of the ``changed`` tables again that are gone; None: any may have changed."""
        for table, body in self._held.items():
            if changed is None or table in changed:
                # One transaction, which fails if the table is there.
                with contextlib.suppress(CulvertError):
                    self._run(f"create table inet {table}\n{table_script(table, body)}")

    def _release(self, table: str) -> None:
        if table in self._held:
            self._run(f"delete table inet {copy_of(table)}\n")
            del self._held[table]

    def _run(self, script: str) -> None:
        """Runs a script of nft in one transaction; raises CulvertError."""
        library = self._load()
        if library.nft_run_cmd_from_buffer(self._context, script.encode()):
            said = library.nft_ctx_get_error_buffer(self._context) or b""
            raise CulvertError((said.decode(errors="replace").splitlines() or ["refused"])[0])

    def _load(self) -> ctypes.CDLL:
        if self._library is None:
            try:
                library = ctypes.CDLL("libnftables.so.1")
            except OSError as error:
                raise CulvertError("libnftables.so.1 is missing (nftables)") from error
            library.nft_ctx_new.restype = ctypes.c_void_p
            library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
            self._context = ctypes.c_void_p(library.nft_ctx_new(0))
            library.nft_ctx_buffer_error(self._context)
            library.nft_ctx_buffer_output(self._context)
            self._library = library
        return self._library
