"""A session of SFTP in its two steps: the login in any thread, and the session by the loop."""

import sys
import threading
from pathlib import Path

import pytest

from appliance.aio.loop import Loop
from appliance.aio.loop_thread import LoopThread
from appliance.client.sftp_session import Host, LoggedIn, log_in
from appliance.errors import UsageError


def program(folder: Path) -> tuple[str, ...]:
    """A program in place of ssh, which is the server itself."""
    script = folder / "ssh"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} -m appliance sftp-server\n")
    script.chmod(0o755)
    return (str(script),)


def logged_in_elsewhere(host: Host) -> list[LoggedIn | Exception]:
    """What a thread gets that logs in."""
    found: list[LoggedIn | Exception] = []

    def work() -> None:
        try:
            found.append(log_in(host))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found


def test_a_thread_logs_in_and_the_loop_goes_on(tmp_path: Path) -> None:
    (logged_in,) = logged_in_elsewhere(Host("nowhere", program=program(tmp_path)))
    assert not isinstance(logged_in, Exception)
    loop = Loop()
    session = logged_in.session(loop)
    thread = LoopThread(loop)
    thread.call(session.start())
    assert thread.call(session.client.realpath(b"/tmp/..")) == b"/"
    thread.close()
    session.close()
    loop.close()


def test_a_login_that_nobody_wants_any_more_leaves_nothing(tmp_path: Path) -> None:
    (logged_in,) = logged_in_elsewhere(Host("nowhere", program=program(tmp_path)))
    assert not isinstance(logged_in, Exception)
    logged_in.close()


def test_a_program_that_is_missing_is_named_in_any_thread(tmp_path: Path) -> None:
    (error,) = logged_in_elsewhere(Host("nowhere", program=(str(tmp_path / "none"),)))
    assert isinstance(error, UsageError)
    with pytest.raises(UsageError, match="none: No such file"):
        raise error
