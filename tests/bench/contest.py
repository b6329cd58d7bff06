"""What a measurement is made of: who takes part, what they do, and the lines that tell of it.

A contender is a client and a server. Its context manager sets both up and yields a function that
measures once; all contenders of a work are up at the same time and take turns, so that whatever
else the machine does meets them alike.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.peers import SERVERS, Account, Keyring, Login, Server, ServerSettings, start


class Sample(NamedTuple):
    """One measurement."""

    figure: float
    openssh: float | None = None  # the share of a core that OpenSSH's process took, at one end


Measure = Callable[[], Sample]


@dataclass(frozen=True, slots=True)
class Bench:
    """What all measurements share: a user who may log in, host keys and a folder."""

    folder: Path
    account: Account
    user_keys: Keyring
    host_keys: Keyring

    def login(self) -> Login:
        """Return the login that every measurement uses."""
        return Login(self.account, self.user_keys.key())

    def penalties(self, name: str) -> list[str]:
        """Return the words that have a server judge sources that are of this machine, too."""
        return self._settings(name, 'per_source_penalty_exempt_list = ["127.0.0.1"]')

    def merging(self, name: str) -> list[str]:
        """Return the words that have a server's memory merged."""
        return self._settings(name, "merge_memory = true")

    def _settings(self, name: str, line: str) -> list[str]:
        if name != "culvert":
            return []
        path = self.new_folder("settings") / "sshd.toml"
        path.write_text(f"{line}\n")
        return ["--config", str(path)]

    def serve(self, name: str, options: Sequence[str] = ()) -> Server:
        """Start a server; the caller stops it."""
        settings = ServerSettings(host_keys=[self.host_keys.key()], options=options)
        return start(SERVERS[name], settings, self.new_folder(name))

    def new_folder(self, name: str) -> Path:
        """Return a new folder."""
        path = self.folder / f"{len(list(self.folder.iterdir()))}-{name}"
        path.mkdir()
        return path


@dataclass(frozen=True, slots=True)
class Contender:
    """A client and a server, by the names that `tests.peers` gives them, and their connections."""

    client: str
    server: str
    links: int = 1


CULVERT = Contender("culvert", "culvert")
OPENSSH = Contender("openssh", "openssh")
DROPBEAR = Contender("dbclient", "dropbear")
WIREGUARD = Contender("wireguard-go", "wireguard-go")  # which is no SSH, but a tunnel

Setup = Callable[[Bench, Contender], AbstractContextManager[Measure]]


@dataclass(frozen=True, slots=True)
class Rival:
    """Another program beside a line, and the line's ratio to it that is to be reached, if any."""

    name: str
    contender: Contender
    target: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table: a contender, and the ratio to the work's base that is to be reached."""

    what: str
    contender: Contender
    target: float | None
    rivals: Sequence[Rival] = ()


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of work, done by its base, by the contenders of its lines, and by their rivals."""

    name: str
    unit: str
    more_is_better: bool
    setup: Setup
    lines: Sequence[Line]
    base: Contender | None = OPENSSH
    base_note: str = ""  # what the base is, where it is not OpenSSH

    def contenders(self) -> list[Contender]:
        """Return who must take part, the base first."""
        base = [self.base] if self.base is not None else []
        return list(dict.fromkeys([*base, *(line.contender for line in self.lines)]))

    def rivals(self) -> list[Contender]:
        """Return who takes part if it can be had."""
        rivals = (rival.contender for line in self.lines for rival in line.rivals)
        return [each for each in dict.fromkeys(rivals) if each not in self.contenders()]
