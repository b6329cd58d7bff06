"""culvert up, down and status: the links and mounts of links.toml.

``up`` leaves a supervisor behind, which ``status`` asks and ``down`` ends; one that runs
already is told to read the declarations again.
"""

import logging
import os
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from .. import log
from ..config.links import DeclaredMount, Link, LinksConfig, ServerAccess
from ..errors import CulvertError, UsageError
from ..links import lock
from ..links.control import Answer, NotRunning, is_running, request
from ..links.status import Status, from_json, place_of, server_of, to_table
from .options import Option, Options, help_text, parse

if TYPE_CHECKING:
    from pathlib import Path

    from ..services.tunnel.chains import Outside
    from ..services.tunnel.network import Rules

DEFAULT_FILE: Final = "/etc/culvert/links.toml"

_UP: Final = (
    Option("c", "file", f"the declarations (default {DEFAULT_FILE})"),
    Option("check", None, "only check them"),
    Option("dry-run", None, "only show what would change on this machine"),
    Option("close", None, "only close the kill switches: at boot, before there is a network"),
    Option("F", None, "stay in the foreground; with --close, to keep them closed"),
    Option("E", None, "log to standard error, not to syslog"),
    Option("v", None, "log more; -vvv names each message of the servers' as well", True),
)
_DOWN: Final = (Option("closed", None, "leave the kill switches closed: for a restart"),)
_STATUS: Final = (
    Option("json", None, "for programs"),
    Option("watch", None, "again every second, until Ctrl-C"),
)
_SPECS: Final = {"up": _UP, "down": _DOWN, "status": _STATUS}
_USAGES: Final = {
    "up": (
        "culvert up [options] [name ...]",
        "Connect the links and mounts that are declared in links.toml, all or those named, and\n"
        "keep them connected. If they are already, the declarations are read again.",
    ),
    "down": (
        "culvert down [options] [name ...]",
        "End all links and mounts, or those named, and undo what they changed on this machine.\n"
        "Nothing else opens a kill switch: it stays closed when 'culvert up' is ended in another\n"
        "way.",
    ),
    "status": (
        "culvert status [options] [name ...]",
        "Show the links and mounts: state, device or mount point, server, rates, round trip, and\n"
        "how often they came back.",
    ),
}

# Our own choices
POLL: Final = 0.1  # seconds between looks at links that are on their way up
END_SECONDS: Final = 30.0  # that a supervisor may take to undo what it has made
SLACK: Final = 5.0  # seconds beyond connect_timeout that `up` waits for them
WATCH: Final = 1.0  # seconds


def main(arguments: list[str], name: str) -> int:
    """Run one of the three; returns its exit status."""
    command = f"culvert {name}"
    try:
        options = parse(arguments, _SPECS[name], command)
        if "help" in options:
            print(help_text(*_USAGES[name], _SPECS[name]))
            return 0
        return {"up": _up, "down": _down, "status": _status}[name](options)
    except CulvertError as error:
        print(f"{command}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


# -- up ----------------------------------------------------------------------------------


def _up(options: Options) -> int:
    from ..links.declarations import read

    running = _declarations_in_use()
    path = os.path.abspath(options.value("c") or running or DEFAULT_FILE)
    names = options.operands
    if "E" in options and "F" not in options:
        raise UsageError("-E needs -F: who stays in the background has no standard error")
    if "close" in options:
        _require_root()
        return _close(path, names, "F" in options)
    config = read(path)
    chosen = _chosen(config, names, path)
    if "check" in options:
        print(f"{path}: {len(config.link)} links, {len(config.mount)} mounts, nothing wrong")
        return 0
    if "dry-run" in options:
        return _show_changes(chosen)
    _require_root()
    if running is None:
        _refuse_to_open(path)
        return _start(options, path, chosen)
    if running != path:
        raise UsageError(f"the links of {running} are up: 'culvert down' ends them")
    for each in [f"/up/{name}" for name in names] or ["/up"]:
        _raise_unless_done(request("POST", each))
    return _wait_for(chosen)


def _require_root() -> None:
    if os.geteuid():
        raise UsageError("it changes the machine's network: run it as root")


def _declarations_in_use() -> str | None:
    """The file of the supervisor that runs, if one does."""
    try:
        return request("GET", "/declarations").text.strip()
    except NotRunning:
        return None


def _chosen(config: LinksConfig, names: Sequence[str], path: str) -> list[Link | DeclaredMount]:
    every: list[Link | DeclaredMount] = [*config.link, *config.mount]
    declared = {each.name: each for each in every}
    for name in names:
        if name not in declared:
            raise UsageError(
                f"{path} declares no link or mount '{name}'; there are {', '.join(declared)}"
            )
    return [declared[name] for name in names or declared]


def _links_among(chosen: Sequence[Link | DeclaredMount]) -> list[Link]:
    return [each for each in chosen if isinstance(each, Link)]


def _show_changes(chosen: Sequence[Link | DeclaredMount]) -> int:
    """--dry-run: command lines that would do the same as what is still to be done."""
    from ..links.declarations import source_of
    from ..links.running import record_of
    from ..services.tunnel.kernel import free_device, pending
    from ..services.tunnel.network import Change, Rules, plan

    for mount in chosen:
        if isinstance(mount, DeclaredMount):
            print(f"# mount {mount.name}")
            options = [word for option in mount.options for word in ("-o", option)]
            words = ["culvert", "sshfs", *options, source_of(mount), mount.mountpoint]
            print(shlex.join(words))
    for link in _links_among(chosen):
        device = free_device(link.mode) if link.device == "any" else link.device
        wanted = plan(f"link-{link.name}", link, device, _outside(link), link.kill_switch)
        changes = (*wanted.at_start, *wanted.while_up)
        undone: Sequence[Change] = ()
        made: Sequence[Change] = changes
        if not os.geteuid():  # others see too little to tell what is there
            undone, made = pending(record_of(link.name), changes)
        print(f"# link {link.name}")
        for change in undone:
            print(f"# undone: {change.describe()}")
        for change in made:
            print(change.describe())
            if isinstance(change, Rules):
                print(textwrap.indent(change.script, "    ").rstrip())
        if link.from_server:
            print("# addresses and routes as the server hands them out")
    return 0


def _outside(link: Link) -> "Outside":
    """Where the link dials first, as far as its name can be resolved now."""
    import socket

    from ..links.declarations import login_for
    from ..services.tunnel.chains import Outside

    hop = login_for(link).first_hop
    if hop is None:
        return Outside()
    try:
        found = socket.getaddrinfo(*hop, type=socket.SOCK_STREAM)
    except OSError as error:
        print(f"# {hop[0]} cannot be resolved now: {error.strerror}")
        return Outside((), hop[1])
    servers = [ip_address(str(each[4][0]).partition("%")[0]) for each in found]
    return Outside(tuple(servers), hop[1])


def _close(path: str, names: Sequence[str], stays: bool) -> int:
    """--close: what is declared to go into tunnels leaves no other way from now on.

    Where the declarations cannot be read, what was closed when they last could be.
    """
    from ..links import keeper
    from ..links.supervisor import left_closed

    result = 0
    used = _declarations_in_use()
    if used is not None and not stays:
        _require_closed(path, names, used)
    # A keeper that is started again leaves open what 'down' has opened meanwhile.
    if used is None and not (stays and keeper.has_run()):
        with lock.without_supervisor("" if lock.last_declarations() else path):
            result = _close_declared(path, names, not stays)
    if stays:
        try:
            # A supervisor has its own held. It may wait for this process, and is asked nothing.
            keeper.stay(lambda: () if is_running() else left_closed().values())
        except OSError as error:
            raise UsageError(f"no rules are held: {error}") from error
    return result


def _require_closed(path: str, names: Sequence[str], used: str) -> None:
    """Raise UsageError for a kill switch that is open while the links of ``used`` are up."""
    from ..links.declarations import read
    from ..links.running import record_of
    from ..links.supervisor import left_closed

    closed = left_closed()
    chosen = _links_among(_chosen(read(path), names, path))
    wanted = [link for link in chosen if link.kill_switch]
    if found := [link.name for link in wanted if record_of(link.name) not in closed]:
        raise UsageError(
            f"the kill switch of {', '.join(found)} is open: 'culvert up' closes it, as the links "
            f"of {used} are up"
        )


def _close_declared(path: str, names: Sequence[str], held: bool) -> int:
    """Close what is declared, or was closed before; the exit status. No supervisor runs."""
    from ..links.declarations import read
    from ..links.running import closed_rules, record_of
    from ..links.supervisor import left_closed

    result = 0
    try:
        links = _links_among(_chosen(read(path), names, path))
        switches = {record_of(each.name): one for each in links for one in closed_rules(each)}
    except UsageError as error:
        print(f"culvert up: {error}", file=sys.stderr)
        switches = left_closed(earlier=True)
        result = 1
    return result | _make(switches, held)


def _make(switches: "Mapping[Path, Rules]", held: bool) -> int:
    """Close these kill switches, each of its record, and have them held; the exit status."""
    from ..links.keeper import Keeper
    from ..links.supervisor import name_of
    from ..services.tunnel.kernel import reconcile

    keeper = Keeper()
    result = 0
    for path, rules in switches.items():
        try:
            reconcile(path, [rules])
            if held:
                keeper.hold(rules.table, rules.body)
            print(f"{name_of(path)}: its kill switch is closed", flush=True)
        except CulvertError as error:
            print(f"{name_of(path)}: its kill switch is open: {error}", file=sys.stderr)
            result = 1
    return result


def _refuse_to_open(path: str) -> None:
    """Raise UsageError where other declarations have closed something, of whatever name."""
    from ..links.supervisor import left_closed, name_of

    last = lock.last_declarations()
    closed = sorted(name_of(each) for each in left_closed())
    if closed and last not in ("", path):
        raise UsageError(
            f"the kill switch of {', '.join(closed)}, of {last}, is closed: 'culvert down' opens it"
        )


def _start(options: Options, path: str, chosen: Sequence[ServerAccess]) -> int:
    """Become the supervisor, or leave one behind and wait for its links and mounts."""
    from ..links.supervisor import Supervisor
    from ..process.daemon import daemonize

    names = {each.name for each in chosen} if options.operands else None
    level = logging.DEBUG if "v" in options else logging.INFO
    is_traced = options.count("v") >= 3
    if "F" in options:
        log.set_up("culvert-links", level, "E" in options)
        Supervisor(path, is_traced).run(names)
        return 0
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            log.set_up("culvert-links", level, "E" in options)
            supervisor = Supervisor(path, is_traced)  # its mistakes are told here
            daemonize()
            log.set_up("culvert-links", level, "E" in options)
            supervisor.run(names)
            status = 0
        except CulvertError as error:
            print(f"culvert up: {error}", file=sys.stderr, flush=True)
        except Exception:  # the root of a process
            logging.getLogger(__name__).exception("the supervisor failed")
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return _wait_for(chosen) if status == 0 else 1


def _wait_for(chosen: Sequence[ServerAccess]) -> int:
    """Until each link and mount is up or will not come up so soon; tells which."""
    waiting = {each.name: each.connect_timeout + SLACK for each in chosen}
    began = time.monotonic()
    result = 0
    while waiting:
        time.sleep(POLL)
        passed = time.monotonic() - began
        try:
            all_now = {each.name: each for each in _ask()}
        except NotRunning:
            if passed > SLACK:
                raise
            continue
        for name, patience in list(waiting.items()):
            now = all_now.get(name)
            if now is not None and now.state == "up":
                print(f"{name}: up, {place_of(now)} to {server_of(now)}")
            elif now is not None and now.state == "stopped":
                print(f"{name}: stopped: {now.last_error}")
                result = 1
            elif now is not None and (now.state == "backing_off" or passed > patience):
                error = now.last_error or "no answer yet"
                print(f"{name}: {error}; it is tried again ('culvert status' tells)")
                result = 1
            elif now is None and passed > SLACK:
                print(f"{name}: down, by somebody else")
                result = 1
            else:
                continue
            del waiting[name]
    return result


def _ask() -> list[Status]:
    answer = request("GET", "/status")
    _raise_unless_done(answer)
    try:
        return from_json(answer.text)
    except ValueError as error:
        raise NotRunning(f"the supervisor's answer was cut: {error}") from error


def _raise_unless_done(answer: Answer) -> None:
    if answer.status != 200:
        raise CulvertError(answer.text.strip())


# -- down --------------------------------------------------------------------------------


def _down(options: Options) -> int:
    _require_root()
    names = options.operands
    stays_closed = "closed" in options
    if stays_closed and names:
        raise UsageError("--closed is for all links at once")
    wanted = ["/end"] if stays_closed else [f"/down/{name}" for name in names] or ["/down"]
    deadline = time.monotonic() + END_SECONDS
    while True:
        try:
            for path in wanted:
                _raise_unless_done(request("POST", path))
            break
        except NotRunning as error:
            try:
                with lock.without_supervisor():
                    return 0 if stays_closed else _undo(names)
            except lock.Taken:  # one begins or ends
                if time.monotonic() > deadline:
                    raise error from None
                time.sleep(POLL)
    if not names:  # so that another can be started
        lock.wait_until_free(END_SECONDS)
    return 0


def _undo(names: Sequence[str]) -> int:
    """No supervisor runs: undo what one that was killed, or ended in another way, has left."""
    from ..config.directories import network_records
    from ..links.keeper import Keeper
    from ..links.mount_record import end_left, names_left
    from ..links.running import record_of
    from ..links.supervisor import left_behind, open_again
    from ..services.tunnel.kernel import remove_unrecorded

    left = left_behind()
    mounts = names_left()
    if names:
        left = [path for path in left if path in {record_of(name) for name in names}]
        mounts = [name for name in mounts if name in names]
    keeper = Keeper()
    removed: list[str] = []
    steps: list[Callable[[], object]] = [partial(end_left, name) for name in mounts]
    steps += [partial(open_again, path, keeper) for path in left]
    if not names:
        # A record may be lost, or could not be written.
        steps.append(keeper.release_all)
        steps.append(lambda: removed.extend(remove_unrecorded(network_records())))
    wrong = []
    for step in steps:
        try:
            step()
        except CulvertError as error:  # the others are undone all the same
            wrong.append(str(error))
    if wrong:
        raise CulvertError("; ".join(wrong))
    if not (left or mounts or removed):
        raise UsageError("no link is up")
    return 0


# -- status ------------------------------------------------------------------------------


def _left_closed() -> str:
    """Which kill switches a supervisor left closed when it ended, '' for none, or for not root."""
    if os.geteuid():
        return ""
    from ..links.keeper import copy_of
    from ..links.supervisor import left_closed, name_of
    from ..services.tunnel.programs import Programs
    from ..services.tunnel.rules import exists, holds

    said = []
    for path, rules in left_closed().items():
        name, programs = name_of(path), Programs()
        if holds(rules, programs) or exists(copy_of(rules.table), programs):
            said.append(f"the kill switch of {name} is closed ('culvert down' opens it)")
        else:
            said.append(f"somebody has opened the kill switch of {name} ('culvert up' closes it)")
    return "; ".join(said)


def _status(options: Options) -> int:
    if "watch" not in options:
        return _show(options)
    while True:
        print("\x1b[H\x1b[2J", end="")
        _show(options)
        sys.stdout.flush()
        time.sleep(WATCH)


def _show(options: Options) -> int:
    try:
        found = _ask()
    except NotRunning as error:
        if left := _left_closed():
            raise UsageError(f"no link is up; {left}") from error
        raise UsageError(f"no link is up: {error}") from error
    names = options.operands
    for name in names:
        if name not in {each.name for each in found}:
            raise UsageError(f"there is no link or mount '{name}'")
    chosen = [each for each in found if not names or each.name in names]
    if "json" in options:
        from ..links.status import to_json

        print(to_json(chosen))
    else:
        width = shutil.get_terminal_size((200, 24)).columns if sys.stdout.isatty() else 200
        print(to_table(chosen, width))
    return 0 if all(each.state == "up" for each in chosen) else 1
