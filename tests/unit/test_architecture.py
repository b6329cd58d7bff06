"""The layers of the package, what must start fast, and where the tests of a module stand."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "appliance"
LAYERS = {
    "wire": 0,
    "crypto": 1,
    "sftp": 1,
    "ssh": 2,
    "x11": 2,
    "aio": 3,
    "services": 4,
    "files": 4,
    "process": 5,
    "server": 6,
    "client": 6,
    "mount": 7,
    "links": 8,
    "cli": 9,
    "multicall": 10,
    "__main__": 11,
}
EVERYBODYS = {"errors", "config", "log", "__version__"}
PURE = ("wire", "crypto", "ssh", "x11")
IMPURE = {
    "asyncio", "socket", "os", "threading", "time", "subprocess",
    "select", "selectors", "signal", "random", "tempfile", "shutil", "pathlib",
}  # fmt: skip
FOLDERS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path, within_functions: bool = True) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that a module imports."""
    package = ("appliance", *path.relative_to(PACKAGE).parent.parts)
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if within_functions else _at_import(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *((node.module,) if node.module else ())))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            yield from _at_import(node)


def test_every_folder_is_a_layer() -> None:
    assert set(FOLDERS) <= set(LAYERS) | EVERYBODYS


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_folder_imports_only_folders_below_it(path: Path) -> None:
    folder = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for line, name in imports(path):
        words = name.split(".")
        if words[0] != "appliance" or words[1] in EVERYBODYS:
            continue
        assert words[1] in LAYERS, f"line {line}: {name}"
        is_below = LAYERS[words[1]] < LAYERS.get(folder, -1)
        assert is_below or words[1] == folder, f"line {line}: {folder} imports {name}"


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in MODULES
        if path.relative_to(PACKAGE).parts[0].removesuffix(".py") in EVERYBODYS
    ],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_what_everybody_imports_imports_no_layer(path: Path) -> None:
    for line, name in imports(path):
        words = name.split(".")
        assert words[0] != "appliance" or words[1] in EVERYBODYS, f"line {line}: {name}"


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if path.relative_to(PACKAGE).parts[0] in PURE],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_the_pure_layers_know_no_clock_no_files_and_no_network(path: Path) -> None:
    for line, name in imports(path):
        assert name.split(".")[0] not in IMPURE, f"line {line}: {name}"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "print", "input"), f"line {node.lineno}"


def module_name(path: Path) -> str:
    words = ("appliance", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(words).removesuffix(".__init__")


def test_no_modules_import_each_other() -> None:
    """Nor in a circle; an import within a function or for type checkers only counts as well."""
    names = {module_name(path) for path in MODULES}
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        found = graph[module_name(path)] = set()
        for _, name in imports(path):
            while name and name not in names:  # what is imported from a module
                name = name.rpartition(".")[0]
            if name:
                found.add(name)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


UNIT = Path(__file__).parent
TOPICS = {  # tests that go by no module
    "test_architecture.py": "the package as a whole",
    "test_conf.py": "the files of conf/",
    "cli/test_mistakes.py": "what every command says to a mistake of the user's",
    "client/test_hostile_texts.py": "what a server says, wherever the client shows it",
    "config/test_properties.py": "all configuration files, with values that hypothesis makes",
    "files/test_hostile_replies.py": "what a hostile SFTP server answers",
    "files/test_late_replies.py": "what comes after a copy was cancelled, in both directions",
    "server/test_facts.py": "a real server's log and audit file, and fail2ban",
    "server/test_left_behind.py": "what all processes of a server keep of peers that went away",
    "server/test_monitor_logins.py": "logins through the monitor, with all that decides there",
    "server/test_reload.py": "SIGHUP and restarts, from the listener to the sessions",
    "server/test_taken_over.py": "what all of the monitor refuses a worker that was taken over",
}


def test_a_unit_test_goes_by_its_module_or_is_a_topic() -> None:
    names = {str(path.relative_to(UNIT)) for path in UNIT.rglob("test_*.py")}
    modules = {str(path.relative_to(PACKAGE).with_name(f"test_{path.name}")) for path in MODULES}
    assert names - modules == set(TOPICS)


HEAVY = ("asyncio", "cattrs", "attr", "attrs", "nacl", "tomllib", "difflib", "ssl", "tempfile")


def modules_after(statement: str) -> set[str]:
    """The names of all modules that a new interpreter has after a statement."""
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
        timeout=60,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import appliance.cli.ssh",
        "import appliance.cli.ssh, appliance.aio.dial, appliance.services.agent_client",
        "import appliance.multicall",
        "from appliance.cli.ssh import main; main(['--help'], 'ssh')",
        "from appliance.cli.ssh import main; main(['-F', 'none', '-G', 'host'], 'ssh')",
        "from appliance.cli.sshfs import main; main(['host:', '/none'], 'sshfs')",
    ],
)
def test_the_client_imports_nothing_heavy_before_it_is_connected(statement: str) -> None:
    assert not modules_after(statement) & set(HEAVY)


def test_the_client_reads_the_code_for_certificates_when_it_meets_one() -> None:
    statement = "import appliance.cli.ssh, appliance.client.login, appliance.services.agent_client"
    late = {f"appliance.crypto.{name}" for name in ("certificates", "revoked", "totp")}
    assert not modules_after(statement) & late


@pytest.mark.parametrize(
    "statement",
    [
        "import appliance.cli.sshd",
        "import appliance.config.server, appliance.config.links",
        "from appliance.cli.sshd import main; main(['--help'], 'sshd')",
    ],
)
def test_a_configuration_imports_its_readers_when_there_is_a_file(statement: str) -> None:
    assert not modules_after(statement) & {"cattrs", "attr", "attrs", "tomllib", "difflib"}


def test_a_session_does_not_wait_for_what_sftp_server_imports() -> None:
    """typing, say, takes longer to import than Python takes to start."""
    slow = {"typing", "enum", "re", "dataclasses", "collections", "functools", "contextlib"}
    slow |= {"argparse", "logging", "ctypes", "socket", "select", "pwd", "grp", "importlib"}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"""
import sys
sys.path.insert(0, {str(PACKAGE.parent)!r})
import appliance.multicall, appliance.cli.sftp_server
print(*sys.modules)
"""],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert not slow & set(done.stdout.split())


def test_a_login_imports_nothing_heavy() -> None:
    """A whole login in memory, with the key exchange and cipher that come first."""
    login = """
import asyncio, sys
from appliance.process import rehearsal
from appliance.crypto.keys import generate
from appliance.crypto.suites import default_algorithms
for name in [name for name in sys.modules if name.partition('.')[0] == 'asyncio']:
    del sys.modules[name]
rehearsal._connect(generate('ssh-ed25519'), default_algorithms(True))
"""
    assert not modules_after(login) & (set(HEAVY) - {"ssl"})  # asyncio had it before
