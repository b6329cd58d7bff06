"""What dbclient's letters mean, where they differ from ssh's."""

import pytest

from appliance.cli.dbclient import main
from appliance.client.login import Login


@pytest.mark.parametrize(
    "hop",
    ["-Jtouch x", "-l@a", "a^-p", "a^22^23", "a;b", "a b", "$(x)@a", "a/../b", "`x`", "@a", ""],
)
def test_a_hop_of_dbclients_is_a_host_and_never_an_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, hop: str
) -> None:
    """CVE-2025-47203: nothing is run with it."""
    monkeypatch.setattr(Login, "_start", pytest.fail)
    for words in (f"{hop},a,host", f"a,{hop},host"):
        assert main(["--", words], "dbclient") == 255
        assert "ProxyJump: expected [user@]host[:port]" in capsys.readouterr().err
