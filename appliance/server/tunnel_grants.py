"""Tunnel devices for the user who is logged in: what is declared, and what is permitted."""

import errno
import logging
import os

from ..errors import UsageError
from ..services.tunnel.device import exists, name_of, open_device, unit_of
from ..wire.codec import write_text
from ..wire.tun import ANY_UNIT, ETHERNET, POINT_TO_POINT
from . import accounts, audit, tunnels
from .authentication import LoggedIn
from .requests import TUNNELS_LIMIT, CloseTunnel, Deny, Handlers, OpenTunnel, Reply

_log = logging.getLogger(__name__)


class TunnelGrants:
    """The devices that one connection was given."""

    def __init__(self, login: LoggedIn) -> None:
        self._login = login
        self._tunnels: dict[str, tunnels.Claim | None] = {}  # devices that the worker has

    def handlers(self) -> Handlers:
        """The handler of each request."""
        return {OpenTunnel: self.open_tunnel, CloseTunnel: self.close_tunnel}

    def open_tunnel(self, request: OpenTunnel) -> Reply:
        try:
            return self._open_tunnel(request)
        except Deny as denial:
            mode, unit = request.mode, request.unit
            known = mode in (POINT_TO_POINT, ETHERNET) and unit != ANY_UNIT
            device = name_of(mode, unit) if known else "any"
            audit.write(audit.TunnelRefused(device=device, reason=str(denial)))
            raise

    def _open_tunnel(self, request: OpenTunnel) -> Reply:
        if request.mode not in (POINT_TO_POINT, ETHERNET):
            raise Deny("there is no such mode of a tunnel")
        if self._login.config.disable_forwarding:
            raise Deny("this server does not forward anything (DisableForwarding)")
        if not self._login.permissions.tunnel_allowed:
            raise Deny("this key may not have a tunnel")
        unit = request.unit
        if self._login.permissions.tunnel is not None:
            if unit not in (ANY_UNIT, self._login.permissions.tunnel):
                raise Deny(f"this key may have tunnel {self._login.permissions.tunnel} only")
            unit = self._login.permissions.tunnel
        if len(self._tunnels) >= TUNNELS_LIMIT:
            raise Deny("too many tunnels")
        fd, name = self._open_first(request.mode, self._units(request.mode, unit))
        self._tunnels[name] = self._claim(name)
        audit.write(audit.Tunnel(device=name))
        return write_text(name), [fd]

    def _units(self, mode: int, unit: int) -> list[int]:
        """The units to try, in this order; a declared device needs no PermitTunnel."""
        declared = self._login.config.tunnel
        own = tunnels.candidates(declared, mode, unit, self._login.user, self._login.key)
        permissions = self._login.permissions
        if permissions.command is not None and permissions.tunnel is None:
            # A key that was limited to one command is not given all devices of its user.
            own = [tunnel for tunnel in own if tunnel.key]
        if own:
            return [unit_of(tunnel.device) for tunnel in own]
        if tunnels.is_declared(declared, mode, unit):
            raise Deny(f"{name_of(mode, unit)} is declared for somebody else")
        permitted = {
            "no": (),
            "point-to-point": (POINT_TO_POINT,),
            "ethernet": (ETHERNET,),
            "yes": (POINT_TO_POINT, ETHERNET),
        }[self._login.config.permit_tunnel]
        if mode not in permitted:
            raise Deny("this server does not permit such a tunnel (PermitTunnel)")
        return [unit]

    def _open_first(self, mode: int, units: list[int]) -> tuple[int, str]:
        """Opens a device that is free, or else takes one over.

        It takes over the device of an earlier connection with the same key, if the client of that
        connection does not answer any more.
        """
        failures = []
        busy = []
        for unit in units:
            try:
                return self._open_device(mode, unit)
            except UsageError as error:
                failures.append(str(error))
                cause = error.__cause__
                if isinstance(cause, OSError) and cause.errno == errno.EBUSY:
                    busy.append(unit)
        for unit in busy:
            try:
                if self._end_predecessor(name_of(mode, unit)):
                    return self._open_device(mode, unit)
            except UsageError as error:
                failures.append(str(error))
        for failure in failures:
            _log.warning("%s", failure)
        raise Deny(failures[-1])

    def _open_device(self, mode: int, unit: int) -> tuple[int, str]:
        """Opens the device of this unit; returns its descriptor and name. Raises UsageError."""
        declared = self._login.config.tunnel
        if tunnels.is_declared(declared, mode, unit):
            name = name_of(mode, unit)
            if not exists(name):  # open_device would make it, without addresses, until it is closed
                raise UsageError(
                    f"there is no {name} now: a server makes it when it starts, but not with -i, "
                    "and removes it when it stops"
                )
            fd, name = open_device(mode, unit)
        else:
            with accounts.as_user(self._login.user):  # sshd_config(5), PermitTunnel
                fd, name = open_device(mode, unit)
            if tunnels.is_declared(declared, mode, unit_of(name)):  # for a request of any unit
                os.close(fd)
                raise UsageError(f"{name} is declared, but was removed: restart the server")
        if name in self._tunnels:
            os.close(fd)
            raise UsageError(f"{name} was removed, and this connection has yet to close it")
        return fd, name

    def _end_predecessor(self, name: str) -> bool:
        """Ends a connection with the same key that has the device; returns whether it did.

        Raises UsageError if the client of that connection answers.
        """
        if self._login.key is None or name in self._tunnels:
            return False
        try:
            claim = tunnels.Claim(name)
        except OSError:
            return False
        try:
            return claim.end_predecessor(self._login.key)
        finally:
            claim.close()

    def _claim(self, name: str) -> tunnels.Claim | None:
        try:
            claim = tunnels.Claim(name)
        except OSError as error:  # the server of an ordinary user
            _log.debug("no other connection can take over %s: %s", name, error)
            return None
        claim.register(self._login.key)
        return claim

    def tell_client_answers(self) -> None:
        """Tells connections that want one of these devices that the client is alive."""
        for claim in filter(None, self._tunnels.values()):
            claim.tell_client_answers()

    def close_tunnel(self, request: CloseTunnel) -> Reply:
        if request.device not in self._tunnels:
            raise Deny("no such tunnel")
        claim = self._tunnels.pop(request.device)
        if claim is not None:
            claim.close()
        audit.write(audit.TunnelClosed(device=request.device))
        return b"", []
