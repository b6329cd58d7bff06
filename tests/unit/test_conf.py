"""Every file under conf/ loads, so that what we hand out works."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.config.links import load_links_config
from appliance.config.server import ServerConfig, load_server_config
from appliance.crypto.key_files import load_public_line
from appliance.mount import options as sshfs_options

CONF = Path(__file__).resolve().parents[2] / "conf"
FILES = sorted(CONF.rglob("*.toml"))
LOADERS: dict[str, Callable[[str], object]] = {
    "sshd": lambda path: load_server_config(path, ServerConfig()),
    "links": load_links_config,
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_a_configuration_that_we_hand_out_loads(path: Path) -> None:
    assert path.stem in LOADERS, "tell this test how such a file is loaded"
    assert LOADERS[path.stem](str(path))


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_there_is_one_of_each(name: str) -> None:
    assert CONF / f"{name}.toml" in FILES


def test_the_servers_examples_in_comments_load_and_fit_the_links(tmp_path: Path) -> None:
    text = (CONF / "sshd.toml").read_text()
    path = tmp_path / "sshd.toml"
    path.write_text(re.sub(r"(?m)^# (?=\[|[a-z]+ = )", "", text))
    config = load_server_config(str(path), ServerConfig())
    assert config.subsystems
    links = load_links_config(str(CONF / "links.toml")).link
    assert {link.remote_device for link in links} == {tunnel.device for tunnel in config.tunnel}
    for link in links:
        (tunnel,) = (each for each in config.tunnel if each.device == link.remote_device)
        assert (tunnel.mode, tunnel.bridge) == (link.mode, link.bridge)
        assert tunnel.user in ("", link.user)
        assert bool(tunnel.client.addresses) == link.from_server
        theirs = tunnel.client if link.from_server else link
        assert set(theirs.peer) <= {interface.ip for interface in tunnel.addresses}
        assert set(tunnel.peer) <= {interface.ip for interface in theirs.addresses}


def test_the_host_keys_of_the_links_are_keys() -> None:
    keys = [link.host_key for link in load_links_config(str(CONF / "links.toml")).link]
    assert any(keys)
    for key in filter(None, keys):
        load_public_line(key)


def test_the_lines_for_fstab_are_understood() -> None:
    lines = [line.split() for line in (CONF / "fstab").read_text().splitlines()]
    mounts = [fields for fields in lines if fields and not fields[0].startswith("#")]
    assert len(mounts) == 4
    for source, _, kind, options, *numbers in mounts:
        assert ":" in source
        assert (kind, numbers) == ("sshfs", ["0", "0"])
        sshfs_options.read([options])


GENERATOR = Path("/usr/lib/systemd/system-generators/systemd-fstab-generator")


def test_systemd_makes_units_of_the_lines_for_fstab(tmp_path: Path) -> None:
    environment = {"SYSTEMD_FSTAB": str(CONF / "fstab")}
    subprocess.run([GENERATOR, *[tmp_path] * 3], env=environment, check=True, timeout=30)
    units = {path.name for path in tmp_path.glob("*mount")}
    assert {"mnt-nas.mount", "mnt-home.mount", "mnt-home.automount"} <= units
    assert "Type=sshfs" in (tmp_path / "mnt-nas.mount").read_text()
    assert "TimeoutIdleSec=10min" in (tmp_path / "mnt-home.automount").read_text()
