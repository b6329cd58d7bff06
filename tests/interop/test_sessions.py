"""What a session can be: commands and shells, their ends, terminals, much data, new keys."""

import contextlib
import functools
import hashlib
import os
import secrets
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.interop.conftest import OURS, PAIRS, SERVERS_FOR_OURS, pair_of
from tests.netns import wait_until
from tests.peers import (
    CLIENTS,
    SERVERS,
    Account,
    Algorithms,
    ClientKind,
    Invocation,
    Keyring,
    Login,
    Server,
    ServerKind,
    ServerSettings,
    Terminal,
    end,
    private_folder,
)

BULK = 100_000_000  # bytes each way
REKEY = 1 << 20  # bytes after which keys are exchanged again
NUMBERS = "seq 1 100000000 | head -c {}"  # text in which no part stands for another


@functools.cache
def numbers(size: int) -> bytes:
    """Return what the command NUMBERS writes."""
    command = NUMBERS.format(size)
    return subprocess.run(["sh", "-c", command], capture_output=True, check=True).stdout


def checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Ends


@pytest.mark.parametrize("status", [0, 7, 255])
def test_the_exit_status_arrives(
    client: ClientKind, server: Server, login: Login, status: int
) -> None:
    done = client.run(server, login, f"exit {status}")
    assert done.status == status, done.stderr


def test_a_signal_that_ends_the_command_is_reported(
    client: ClientKind, server: Server, login: Login
) -> None:
    done = client.run(server, login, "echo before; kill -TERM $$; echo after")
    assert done.stdout == b"before\n"
    assert done.status != 0 or client.name == "dbclient", done.stderr  # which keeps it to itself
    if client.name == "asyncssh":
        assert "signal TERM" in done.stderr
    if client.name == "culvert" and server.kind.name != "dropbear":
        assert done.status == 255


@pytest.mark.parametrize(("client", "server"), [pair_of("asyncssh", OURS)], indirect=True)
def test_a_signal_reaches_the_command(client: ClientKind, server: Server, login: Login) -> None:
    command = "trap 'exit 6' TERM; echo ready; while :; do sleep 0.05; done"
    done = client.run(server, login, command, options=["--signal", "TERM"])
    assert done.status == 6, done.stderr


@pytest.mark.parametrize("command", ["cat /dev/zero", "while echo x; do sleep 0.1; done"])
@pytest.mark.parametrize(
    ("client", "server"),
    [
        *(pair_of(OURS, server) for server in (*SERVERS_FOR_OURS, OURS)),
        *(pair_of(client, OURS) for client in ("openssh", "plink")),
    ],
    indirect=True,
)
def test_an_endless_command_ends_with_its_reader(
    client: ClientKind, server: Server, login: Login, command: str
) -> None:
    """As in `ssh host 'cat /dev/zero' | head -c 2`: the client ends, and so does the command.

    Not so Dropbear's client: it waits for ever, whatever the server is, its own included.
    """
    mark = f"CULVERT_READER={secrets.token_hex(8)}"
    call = client.invocation(server, login, f"{mark}; export {mark.partition('=')[0]}; {command}")
    process = subprocess.Popen(
        call.argv, env=call.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    try:
        with process.stderr, process.stdout as output:
            assert len(output.read(2)) == 2
            output.close()
            process.wait(20)
        # The AsyncSSH server of these tests leaves it running.
        assert server.kind.name == "asyncssh" or wait_until(lambda: not commands_with(mark), 20)
    finally:
        end(process)
        for pid in commands_with(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def commands_with(variable: str) -> list[int]:
    """The processes of this machine that have it in their environment, or their words."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            text = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
            if folder.name.isdigit() and variable.encode() in text:
                found.append(int(folder.name))
    return found


@pytest.mark.parametrize(("client", "server"), [pair_of("openssh", OURS)], indirect=True)
def test_several_sessions_share_a_connection(
    client: ClientKind, server: Server, login: Login
) -> None:
    with private_folder("control") as folder:
        shared = ["-S", str(folder / "socket")]
        call = client.invocation(server, login, None, options=[*shared, "-M", "-N"])
        master = subprocess.Popen(call.argv, env=call.env, stdin=subprocess.DEVNULL)
        try:
            assert wait_until((folder / "socket").exists)
            with ThreadPoolExecutor() as pool:
                runs = [
                    pool.submit(client.run, server, login, "cat", options=shared, data=b"%d" % n)
                    for n in range(8)
                ]
            assert [run.result().stdout for run in runs] == [b"%d" % n for n in range(8)]
        finally:
            end(master)


def test_the_end_of_standard_input_arrives(
    client: ClientKind, server: Server, login: Login
) -> None:
    done = client.run(server, login, "wc -c", data=b"twelve bytes")
    assert (done.status, done.stdout.strip()) == (0, b"12"), done.stderr


def test_output_after_the_end_of_input_arrives(
    client: ClientKind, server: Server, login: Login
) -> None:
    done = client.run(server, login, "cat >/dev/null; sleep 0.3; echo late", data=b"x")
    assert (done.status, done.stdout) == (0, b"late\n"), done.stderr


def test_standard_error_keeps_apart_from_standard_output(
    client: ClientKind, server: Server, login: Login
) -> None:
    done = client.run(server, login, "echo out; echo err >&2")
    assert done.stdout == b"out\n"
    assert "err\n" in done.stderr.replace("\r\n", "\n")


def test_the_command_runs_as_the_user_in_their_home(
    client: ClientKind, server: Server, login: Login
) -> None:
    if server.kind.name == "asyncssh":
        pytest.skip("this server runs everything as itself")
    done = client.run(server, login, "id -un; pwd")
    assert done.stdout.decode().split() == [login.user, str(login.account.home)], done.stderr


# Much data


@pytest.mark.timeout(240)
def test_100_megabytes_go_to_the_server_whole(
    client: ClientKind, server: Server, login: Login
) -> None:
    data = numbers(BULK)
    done = client.run(server, login, "sha256sum", data=data, timeout=200)
    assert done.stdout.split()[0].decode() == checksum(data), done.stderr


@pytest.mark.timeout(240)
def test_100_megabytes_come_from_the_server_whole(
    client: ClientKind, server: Server, login: Login
) -> None:
    done = client.run(server, login, NUMBERS.format(BULK), timeout=200)
    assert len(done.stdout) == BULK, done.stderr
    assert checksum(done.stdout) == checksum(numbers(BULK))


def test_both_directions_run_at_once(client: ClientKind, server: Server, login: Login) -> None:
    data = numbers(BULK // 10)
    done = client.run(server, login, "cat", data=data)
    assert checksum(done.stdout) == checksum(data), done.stderr


# dbclient and dropbear exchange keys again only after a gigabyte.
REKEYING = [names for names in PAIRS if names[0] != "dbclient"]


@pytest.fixture(scope="module")
def rekeying(
    request: pytest.FixtureRequest,
    serve: Callable[[ServerKind, ServerSettings], Server],
    host_keys: Keyring,
    account: Account,
    tmp_path_factory: pytest.TempPathFactory,
) -> Server:
    """Our server, which exchanges keys after every REKEY bytes."""
    config = tmp_path_factory.mktemp("rekeying") / "sshd.toml"
    config.write_text(f"rekey_bytes = {REKEY}\n")
    settings = ServerSettings(
        host_keys=host_keys.keys(("ssh-ed25519",)),
        authorized_keys=None if account.password else request.getfixturevalue("authorized_keys"),
        options=("--config", str(config)),
    )
    return serve(SERVERS[OURS], settings)


@pytest.mark.parametrize("name", CLIENTS)
def test_our_server_exchanges_keys_in_the_middle_of_a_transfer(
    name: str, rekeying: Server, login: Login
) -> None:
    data = numbers(10 * REKEY)
    done = CLIENTS[name].run(rekeying, login, "cat", data=data)
    assert (done.status, done.stdout == data) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("client", "server"), [pair_of(*names) for names in REKEYING], indirect=True
)
def test_new_keys_in_the_middle_of_a_transfer_change_nothing(
    client: ClientKind, server: Server, login: Login
) -> None:
    data = numbers(20 * REKEY)
    done = client.run(server, login, "cat", Algorithms(rekey_bytes=REKEY), data=data)
    assert done.status == 0, done.stderr
    assert checksum(done.stdout) == checksum(data), done.stderr


# What the client says beside the command

ENVIRONMENT = {
    "openssh": ("-oSetEnv=LC_ALL=C.UTF-8",),
    "culvert": ("-oSetEnv=LC_ALL=C.UTF-8",),
    "asyncssh": ("--env", "LC_ALL=C.UTF-8"),
    "paramiko": ("--env", "LC_ALL=C.UTF-8"),
}
SETTING = [names for names in PAIRS if names[0] in ENVIRONMENT and names[1] != "dropbear"]


@pytest.mark.parametrize(
    ("client", "server"), [pair_of(*names) for names in SETTING], indirect=True
)
def test_a_listed_variable_reaches_the_command(
    client: ClientKind, server: Server, login: Login
) -> None:
    done = client.run(server, login, "echo $LC_ALL", options=ENVIRONMENT[client.name])
    assert (done.status, done.stdout) == (0, b"C.UTF-8\n"), done.stderr


@pytest.mark.parametrize(("client", "server"), [pair_of("openssh", OURS)], indirect=True)
def test_a_variable_that_is_not_listed_stays_out(
    client: ClientKind, server: Server, login: Login
) -> None:
    options = ["-oSetEnv=LD_PRELOAD=/tmp/x.so"]
    done = client.run(server, login, "echo $LD_PRELOAD", options=options)
    assert (done.status, done.stdout) == (0, b"\n"), done.stderr


SUBSYSTEM = {
    "openssh": ("-s",),
    "culvert": ("-s",),
    "plink": ("-s",),
    "asyncssh": ("--subsystem",),
    "paramiko": ("--subsystem",),
}


# dbclient waits for ever when its subsystem is refused, by OpenSSH too.
ASKING = [names for names in PAIRS if names[0] in SUBSYSTEM]


@pytest.mark.parametrize(("client", "server"), [pair_of(*names) for names in ASKING], indirect=True)
def test_a_subsystem_that_is_not_there_is_refused(
    client: ClientKind, server: Server, login: Login
) -> None:
    done = client.run(server, login, "nothing-like-it", options=SUBSYSTEM[client.name])
    assert done.status != 0
    assert done.stdout == b""


@pytest.mark.parametrize(
    ("client", "server"), [pair_of(OURS, name) for name in ("openssh", "asyncssh")], indirect=True
)
def test_a_subsystem_gets_its_input(client: ClientKind, server: Server, login: Login) -> None:
    done = client.run(server, login, "echo", options=SUBSYSTEM[client.name], data=b"there")
    assert (done.status, done.stdout) == (0, b"there"), done.stderr


# Terminals

TERMINAL = {
    "openssh": ("-tt",),
    "culvert": ("-tt",),
    "dbclient": ("-t",),
    "plink": ("-t",),
}
ON_TERMINALS = [pair_of(*names) for names in PAIRS if names[0] in TERMINAL]
with_terminal = pytest.mark.parametrize(("client", "server"), ON_TERMINALS, indirect=True)


def on_terminal(
    client: ClientKind,
    server: Server,
    login: Login,
    command: str | None,
    rows: int = 24,
    columns: int = 80,
    modes: str = "",
) -> Terminal:
    """Start the client on a terminal of this size, with what `stty` is told in `modes`."""
    call = client.invocation(server, login, command, options=TERMINAL[client.name])
    script = f'stty {modes}; exec "$@"' if modes else 'exec "$@"'
    argv = ["/bin/sh", "-c", script, "sh", *call.argv]
    return Terminal(Invocation(argv, call.env | {"TERM": "xterm"}), rows, columns)


@with_terminal
def test_the_size_of_the_window_is_known(client: ClientKind, server: Server, login: Login) -> None:
    with on_terminal(client, server, login, "stty size; tty; echo $TERM", 33, 97) as terminal:
        terminal.read_until(b"33 97")
        terminal.read_until(b"/dev/")
        terminal.read_until(b"xterm")
        assert terminal.wait() == 0


@with_terminal
def test_a_change_of_the_window_arrives(client: ClientKind, server: Server, login: Login) -> None:
    command = "trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 0.05; done"
    with on_terminal(client, server, login, command) as terminal:
        terminal.read_until(b"ready")
        terminal.resize(41, 123)
        terminal.read_until(b"41 123")
        assert terminal.wait() == 5


@with_terminal
def test_the_modes_of_the_terminal_arrive(client: ClientKind, server: Server, login: Login) -> None:
    if "asyncssh" in (client.name, server.kind.name):
        pytest.skip("AsyncSSH leaves the modes to the program")
    if client.name == "plink":
        pytest.skip("plink sends modes of its own")
    with on_terminal(client, server, login, "stty -a", modes="intr ^X ixoff") as terminal:
        terminal.read_until(b"intr = ^X")
        terminal.read_until(b" ixoff")
        assert terminal.wait() == 0


@with_terminal
def test_an_interrupt_key_interrupts_the_command(
    client: ClientKind, server: Server, login: Login
) -> None:
    with on_terminal(client, server, login, "trap 'exit 9' INT; echo go; read line") as terminal:
        terminal.read_until(b"go")
        terminal.write(b"\x03")
        assert terminal.wait() == 9


@with_terminal
def test_a_shell_on_a_terminal_talks(client: ClientKind, server: Server, login: Login) -> None:
    with on_terminal(client, server, login, None) as terminal:
        terminal.write(b"echo $((6*7))\n")
        terminal.read_until(b"42")
        terminal.write(b"exit 3\n")
        assert terminal.wait() == 3


# Escapes


our_client = pytest.mark.parametrize(
    ("client", "server"), [pair_of(OURS, "openssh"), pair_of(OURS, OURS)], indirect=True
)


@our_client
def test_the_escape_character_commands_the_client(
    client: ClientKind, server: Server, login: Login
) -> None:
    with on_terminal(client, server, login, "stty -echo; echo go; cat") as terminal:
        terminal.read_until(b"go")
        terminal.write(b"\r~?")
        terminal.read_until(b"Supported escape sequences")
        terminal.write(b"\r~#")
        terminal.read_until(b"#0 session")
        terminal.write(b"\r~R\rafter new keys\r")
        terminal.read_until(b"after new keys\r\n")
        terminal.write(b"\r~~one tilde\r")
        assert b"~~" not in terminal.read_until(b"~one tilde\r\n")
        terminal.write(b"\r~xyz\r")  # no escape, so it is for the program
        terminal.read_until(b"~xyz\r\n")
        terminal.write(b"not at the ~.start\r")
        terminal.read_until(b"not at the ~.start\r\n")
        terminal.write(b"\r~.")
        terminal.read_until(b"Disconnected.")
        assert terminal.wait() == 255


@our_client
def test_the_client_can_be_suspended(client: ClientKind, server: Server, login: Login) -> None:
    call = client.invocation(
        server, login, "stty -echo; echo go; cat", options=TERMINAL[client.name]
    )
    jobs = ["/bin/sh", "-mc", '"$@"; echo suspended; fg', "sh", *call.argv]
    with Terminal(Invocation(jobs, call.env | {"TERM": "xterm"})) as terminal:
        terminal.read_until(b"go")
        terminal.write(b"\r~\x1a")
        terminal.read_until(b"suspended")
        terminal.write(b"here again\r")
        terminal.read_until(b"here again\r\n")
        terminal.write(b"\r~.")
        assert terminal.wait() == 255
