"""A server whose processes are confined: the one that the server's own tests have."""

from tests.unit.server.conftest import dial, our_server

__all__ = ["dial", "our_server"]
