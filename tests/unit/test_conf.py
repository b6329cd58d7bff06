"""Every file under conf/ loads, so that what we hand out works."""

from pathlib import Path

import pytest

from appliance.config import ServerConfig, load_server_config

CONF = Path(__file__).resolve().parents[2] / "conf"
FILES = sorted(CONF.rglob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_a_configuration_that_we_hand_out_loads(path: Path) -> None:
    loaders = {"sshd": lambda: load_server_config(str(path), ServerConfig())}
    assert path.stem in loaders, "tell this test how such a file is loaded"
    assert loaders[path.stem]()


def test_there_is_a_configuration_of_the_server() -> None:
    assert CONF / "sshd.toml" in FILES
