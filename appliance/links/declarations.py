"""Reads the links and mounts that a file declares, and makes each one's login settings."""

import os

from ..client.login import Login
from ..client.ssh_config import load
from ..config.links import DeclaredMount, Link, LinksConfig, ServerAccess, load_links_config
from ..errors import UsageError
from ..mount.options import MountLine
from ..mount.options import read as read_options
from ..services.tunnel.network import plan


def read(path: str) -> LinksConfig:
    """Returns the declarations of a file.

    Raises UsageError, also for mistakes that would otherwise appear only at login.
    """
    config = load_links_config(path)
    _check_owner(path)
    if not (config.link or config.mount):
        raise UsageError(f"{path}: no [[link]] and no [[mount]] is declared there")
    for link in config.link:
        try:
            login_for(link)
            plan(f"link-{link.name}", link, "tun0" if link.device == "any" else link.device)
        except UsageError as error:
            raise UsageError(f"{path}: link '{link.name}': {error}") from error
    for mount in config.mount:
        try:
            _check_mount(mount)
        except UsageError as error:
            raise UsageError(f"{path}: mount '{mount.name}': {error}") from error
    return config


def _check_mount(mount: DeclaredMount) -> None:
    """Raises UsageError for settings that a login, or a program that does it, cannot have."""
    line = options_of(mount)
    options = load(mount.host, (*line.ssh, *settings_of(mount)), None)
    Login(options)
    for key in ("host_key", "proxy"):
        if line.ssh_command and getattr(mount, key):
            raise UsageError(f"options: the program of ssh_command does not know {key}")
    if mount.proxy and options.control_path is not None and options.control_master != "no":
        raise UsageError(
            "options: the program that ControlMaster starts would show the proxy's password"
        )


def _check_owner(path: str) -> None:
    """Raises UsageError if another user than root may write the file.

    The file makes root run commands and change routes.
    """
    status = os.stat(path)
    if not os.geteuid() and (status.st_uid or status.st_mode & 0o022):
        raise UsageError(f"{path}: others than root may write it: chown root, chmod go-w")


def login_for(link: Link, is_traced: bool = False) -> Login:
    """Returns the login to the link's server; ssh_config sets everything that the link does not."""
    traced = [("LogLevel", "DEBUG3")] if is_traced else []
    return Login(load(link.host, settings_of(link) + traced, None))


def settings_of(access: ServerAccess) -> list[tuple[str, str]]:
    """Returns what a declaration says of the server as keywords and values of ssh_config(5)."""
    given = [
        ("BatchMode", "yes"),
        ("StrictHostKeyChecking", "yes"),
        ("ConnectTimeout", str(access.connect_timeout)),
        ("ServerAliveInterval", str(access.server_alive_interval)),
        ("ServerAliveCountMax", str(access.server_alive_count_max)),
    ]
    if access.identity_file:
        given += [("IdentityFile", access.identity_file), ("IdentitiesOnly", "yes")]
    for keyword, value in (
        ("Port", str(access.port or "")),
        ("User", access.user),
        ("HostKeyLine", access.host_key),
        ("UserKnownHostsFile", access.known_hosts_file),
        ("ProxyJump", ",".join(access.proxy_jump)),
        ("Proxy", access.proxy),
        ("ProxyCommand", access.proxy_command),
    ):
        if value:
            given.append((keyword, value))
    return given


def options_of(mount: DeclaredMount) -> MountLine:
    """Returns what a mount's options say; raises UsageError."""
    line = read_options(mount.options)
    for option, is_given in (
        ("passive", line.passive),
        ("password_stdin", line.password_stdin),
    ):
        if is_given:
            raise UsageError(f"options: {option} needs a program that calls culvert sshfs")
    return line


def source_of(mount: DeclaredMount) -> str:
    """Returns the directory at the server as ``culvert sshfs`` takes it: [user@]host:[dir]."""
    user = f"{mount.user}@" if mount.user else ""
    host = f"[{mount.host}]" if ":" in mount.host else mount.host
    return f"{user}{host}:{mount.directory}"
