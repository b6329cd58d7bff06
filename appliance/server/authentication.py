"""The monitor's part of authentication: it decides which user may log in.

The monitor itself builds the data that a client must have signed, and itself reads the keys that
verify the signature. So a worker that was taken over by an attacker cannot let anybody in.
"""

import logging
import os
import pwd
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from ..config.server import ServerConfig
from ..crypto.keys import PublicKey
from ..crypto.permissions import Permissions
from ..errors import UsageError
from ..ssh.auth_server import Offer, signed_data
from ..ssh.transport import EXCHANGES_BEFORE_LOGIN
from ..wire.codec import write_text
from ..wire.host_keys import HOSTKEYS_PROVE, Proof
from . import accounts, audit, factors, matching, passwords, totp
from .host_keys import HostKey, HostKeys, HostKeySigner
from .peer import Peer
from .requests import (
    AskPrompt,
    Begin,
    Deny,
    Handlers,
    OutcomeReply,
    ProveHostKey,
    RefuseAttempt,
    Reply,
    ShowKey,
    Sign,
    UseKey,
    UsePassword,
)
from .user_keys import Grant, UserKeys

_log = logging.getLogger(__name__)

# Our own choice
FAILURE_SECONDS: Final = 0.02  # a failed attempt takes a multiple of this, which hides the cause

_PROMPTS: Final = {factors.DIALOGUE: "Password: ", factors.CODE: "Verification code: "}


class LoggedIn(NamedTuple):
    """A completed login: the user, and the permissions and settings that apply."""

    user: pwd.struct_passwd
    permissions: Permissions  # that all keys that signed grant
    key: PublicKey | None  # the one that signed last, None if none did
    config: ServerConfig


class Authentication:
    """The login attempts of one connection; calls ``succeeded`` once, at the end of the login."""

    def __init__(
        self,
        config: ServerConfig,
        host_keys: HostKeys,
        peer: Peer,
        succeeded: Callable[[LoggedIn], None],
    ) -> None:
        self._servers_config = config
        self._host_keys = host_keys
        self._peer = peer
        self._succeeded = succeeded
        self._session_id = b""
        self._signatures = 0
        self._go_by(config)
        self._name: str | None = None  # the user name that the client gave last
        self._user: pwd.struct_passwd | None = None
        self._permissions = Permissions()  # that all keys that signed grant
        self._used_keys: list[PublicKey] = []
        self.failures = 0
        self.is_over = False  # after max_auth_tries failures
        self.is_done = False

    @property
    def user_is_known(self) -> bool:
        """Whether the client has named a user who may log in."""
        return self._user is not None

    def handlers(self) -> Handlers:
        """The handler of each request."""
        return {
            Sign: self.sign,
            Begin: self.begin,
            RefuseAttempt: self.refuse_attempt,
            ShowKey: self.show_key,
            UseKey: self.use_key,
            UsePassword: self.use_password,
            AskPrompt: self.ask_prompt,
            ProveHostKey: self.prove_host_key,
        }

    def sign(self, request: Sign) -> Reply:
        key = self._host_keys.by_algorithm.get(request.algorithm)
        if key is None or not 20 <= len(request.exchange_hash) <= 64:
            raise Deny("no such host key")
        self._signatures += 1
        if not self._session_id:
            self._session_id = request.exchange_hash
        elif not self.is_done and self._signatures > EXCHANGES_BEFORE_LOGIN:
            raise Deny("too many key exchanges before authentication")
        return self._signed_by(key, request.algorithm, request.exchange_hash), []

    def prove_host_key(self, request: ProveHostKey) -> Reply:
        """Answers with a signature by one of the host keys, for this connection only."""
        key = self._host_keys.by_blob.get(request.host_key)
        if key is None or request.algorithm not in key.public.signature_algorithms:
            raise Deny("no such host key")
        proof = Proof(HOSTKEYS_PROVE, self._session_id, request.host_key)
        return self._signed_by(key, request.algorithm, proof.encode()), []

    @staticmethod
    def _signed_by(key: HostKeySigner | HostKey, algorithm: str, data: bytes) -> bytes:
        try:
            return key.sign(algorithm, data)
        except OSError as error:
            _log.error("the host keys' process does not sign: %s", error.strerror or error)
            raise Deny("no signature by the host key") from error

    def _go_by(self, config: ServerConfig) -> None:
        """Applies these settings; a UsageError leaves the former ones in force."""
        found = factors.Factors(config), UserKeys(config, self._peer.address)
        self._factors, self._keys = found
        self._config = config

    def _find(self, name: str) -> pwd.struct_passwd | None:
        """The user ``name``, None if they may not log in.

        Raises Deny if the client has already named another user who may log in.
        """
        if self._user is not None and self._user.pw_name != name:
            raise Deny("the user changed")
        if name != self._name:
            try:
                self._go_by(self._settings_for(name))
            except UsageError as error:  # two [[match]] tables do not go together
                _log.error("nobody can log in as %s: %s", audit.word(name), error)
                raise Deny("no way to log in") from error
            self._name = name
        user = accounts.find(name, self._config, self._peer.address)
        if user is not None:
            self._user = user
        return user

    def _settings_for(self, name: str) -> ServerConfig:
        def groups() -> list[str]:
            return accounts.groups_of(name)

        return matching.effective(self._servers_config, name, groups, self._peer)

    def begin(self, request: Begin) -> Reply:
        user = self._find(request.user)
        allowed = factors.PASSWORD in self._factors.next and self._may_use_password(user)
        if self._config.permit_empty_passwords and allowed and passwords.has_no_password(user):
            return self._satisfied_by(factors.PASSWORD)
        return self._outcome(False), []

    def refuse_attempt(self, request: RefuseAttempt) -> Reply:
        self._find(request.user)
        method = request.method[:64]  # the client's own text
        return self._failed(request.user, method, time.monotonic(), "not supported")

    def ask_prompt(self, request: AskPrompt) -> Reply:
        """Answers with the same text whether or not the user exists."""
        self._find(request.user)
        return write_text(_PROMPTS[self._factors.dialogue]), []

    # -- keys ------------------------------------------------------------------------

    def show_key(self, request: ShowKey) -> Reply:
        started = time.monotonic()
        if self._grant(request) is not None:
            return b"", []
        key = audit.of_key(request.algorithm, request.public_key)
        return self._failed(request.user, "publickey", started, "key not accepted", key)

    def _grant(self, request: ShowKey | UseKey) -> Grant | None:
        """What the key would grant, if anything; a used key is no second factor."""
        user = self._find(request.user)
        if user is None or factors.PUBLICKEY not in self._factors.next:
            return None
        grant = self._keys.grant(user, request.algorithm, request.public_key, time.time())
        return None if grant is None or grant.plain_key in self._used_keys else grant

    def use_key(self, request: UseKey) -> Reply:
        started = time.monotonic()
        grant = self._grant(request)
        bound = (b"", *(key.public.blob for key in self._host_keys.by_algorithm.values()))
        if grant is None or not self._session_id or request.host_key not in bound:
            key = audit.of_key(request.algorithm, request.public_key)
            return self._failed(request.user, "publickey", started, "key not accepted", key)
        offer = Offer(request.user, request.algorithm, request.public_key, request.host_key)
        valid = grant.key.verify(
            request.algorithm,
            request.signature,
            signed_data(self._session_id, offer),
            touch_required=grant.permissions.touch_required,
            verify_required=grant.permissions.verify_required,
        )
        facts = grant.facts()
        if not valid:
            return self._failed(request.user, "publickey", started, "wrong signature", facts)
        permissions = self._permissions.restricted_by(grant.permissions)
        if permissions is None:
            why = "it forces another command than the key before"
            return self._failed(request.user, "publickey", started, why, facts)
        self._permissions = permissions
        self._used_keys.append(grant.plain_key)
        return self._satisfied_by(factors.PUBLICKEY, facts)

    # -- passwords and codes ---------------------------------------------------------

    def _may_use_password(self, user: pwd.struct_passwd | None) -> bool:
        if not self._config.password_authentication:
            return False
        if user is not None and user.pw_uid == 0:
            return self._config.permit_root_login == "yes"
        return True

    def use_password(self, request: UsePassword) -> Reply:
        started = time.monotonic()
        user = self._find(request.user)
        factor = {
            "password": factors.PASSWORD,
            "keyboard-interactive": self._factors.dialogue,
        }.get(request.method, "")
        if factor == factors.CODE:
            right = totp.accepts(user, request.password, self._config.totp_file, time.time())
            if not right:
                return self._failed(request.user, request.method, started, "wrong code")
            return self._satisfied_by(factor)
        allowed = factor in self._factors.next and self._may_use_password(user)
        right = passwords.is_right(user, request.password, self._config)
        if not (right and allowed):
            return self._failed(request.user, request.method, started, "wrong password")
        return self._satisfied_by(factor)

    # -- outcomes --------------------------------------------------------------------

    def _satisfied_by(self, factor: str, key: audit.Key | None = None) -> Reply:
        """Counts a satisfied factor; after the last one the user is logged in.

        ``key`` describes the key that signed, for the audit, as in ``_failed``.
        """
        assert self._user is not None
        if not self._factors.satisfy(factor):
            audit.write(audit.Partial(user=self._user.pw_name, method=factor, with_key=key))
            return self._outcome(False, partial=True), []
        if self._user.pw_uid and os.path.exists("/etc/nologin"):
            return self._failed(self._user.pw_name, factor, time.monotonic(), "/etc/nologin")
        if self._lacks_forced_command():
            why = "root may log in for a key's forced command only"
            return self._failed(self._user.pw_name, factor, time.monotonic(), why, key)
        self.is_done = True
        last = self._used_keys[-1] if self._used_keys else None
        self._succeeded(LoggedIn(self._user, self._permissions, last, self._config))
        audit.write(audit.Login(user=self._user.pw_name, method=factor, with_key=key))
        audit.serve_user(self._user.pw_name)
        return OutcomeReply(True, (), False, False).encode(), []

    def _lacks_forced_command(self) -> bool:
        assert self._user is not None
        return (
            self._user.pw_uid == 0
            and self._config.permit_root_login == "forced-commands-only"
            and self._permissions.command is None
        )

    def _failed(
        self,
        user: str,
        method: str,
        started: float,
        why: str,
        key: audit.Key | None = None,
    ) -> Reply:
        """Counts and logs a failure, then waits, so that the time does not tell the cause."""
        self.failures += 1
        audit.write(audit.Refused(user=user, method=method, reason=why, with_key=key))
        spent = time.monotonic() - started
        time.sleep(FAILURE_SECONDS - spent % FAILURE_SECONDS)
        self.is_over = self.is_over or self.failures >= self._config.max_auth_tries
        return self._outcome(False, final=self.is_over), []

    def _outcome(self, success: bool, partial: bool = False, final: bool = False) -> bytes:
        return OutcomeReply(success, self._factors.method_names, partial, final).encode()
