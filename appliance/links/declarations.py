"""Reads the links that a file declares, and makes each one's login settings."""

import os

from ..client.login import Login
from ..client.ssh_config import load
from ..config.links import Link, LinksConfig, load_links_config
from ..errors import UsageError
from ..services.tunnel.network import plan


def read(path: str) -> LinksConfig:
    """Returns the declarations of a file.

    Raises UsageError, also for mistakes that would otherwise appear only at login.
    """
    config = load_links_config(path)
    _check_owner(path)
    if not config.link:
        raise UsageError(f"{path}: no [[link]] is declared there")
    for link in config.link:
        try:
            login_for(link)
            plan(f"link-{link.name}", link, "tun0" if link.device == "any" else link.device)
        except UsageError as error:
            raise UsageError(f"{path}: link '{link.name}': {error}") from error
    return config


def _check_owner(path: str) -> None:
    """Raises UsageError if another user than root may write the file.

    The file makes root run commands and change routes.
    """
    status = os.stat(path)
    if not os.geteuid() and (status.st_uid or status.st_mode & 0o022):
        raise UsageError(f"{path}: others than root may write it: chown root, chmod go-w")


def login_for(link: Link, is_traced: bool = False) -> Login:
    """Returns the login to the link's server; ssh_config sets everything that the link does not."""
    given: list[str | tuple[str, str]] = [
        ("BatchMode", "yes"),
        ("StrictHostKeyChecking", "yes"),
        ("ConnectTimeout", str(link.connect_timeout)),
    ]
    if is_traced:
        given.append(("LogLevel", "DEBUG3"))
    if link.identity_file:
        given += [("IdentityFile", link.identity_file), ("IdentitiesOnly", "yes")]
    for keyword, value in (
        ("Port", str(link.port or "")),
        ("User", link.user),
        ("UserKnownHostsFile", link.known_hosts_file),
        ("ProxyJump", ",".join(link.proxy_jump)),
        ("Proxy", link.proxy),
        ("ProxyCommand", link.proxy_command),
    ):
        if value:
            given.append((keyword, value))
    options = load(link.host, given, None)
    if link.host_key:
        options.host_key_line = link.host_key
    return Login(options)
