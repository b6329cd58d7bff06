"""Decides whether a host key is trusted, by StrictHostKeyChecking and known_hosts, or by one key.

Every failure raises and ends the connection: a key is accepted only if it is known, or if the user
or the configuration takes it on trust. A certificate is good if a line with @cert-authority has the
key that signed it. Of any other certificate only the key within counts, and is looked up like a
plain key (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT).
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Final

from ..crypto.key_files import KeyFileError, load_public_line
from ..crypto.keys import PublicKey, is_certificate_name
from ..crypto.known_hosts import AUTHORITY, SALT_BYTES, Decision, Lookup, add_line, lookup
from ..crypto.suites import MINIMUM_RSA_BITS, SIGNATURES, default_algorithms
from ..errors import CertificateRefused, HostKeyRejected, MalformedMessage, UsageError
from . import prompts
from .host_options import HostOptions
from .known_hosts_file import locked

if TYPE_CHECKING:
    from ..crypto.certificates import Certificate
    from ..crypto.revoked import RevocationList

_log = logging.getLogger(__name__)

# Our own choice
REVOKED_LIMIT: Final = 16 << 20  # bytes of a revocation list


class HostTrust:
    """Owns the keys that the known_hosts files have for one host."""

    def __init__(self, options: HostOptions) -> None:
        """Reads the files; raises UsageError if ``options.host_key_line`` is no key."""
        self._options = options
        self._host = options.host_key_alias or options.host_name
        self._port = 22 if options.host_key_alias else options.port
        self.passwords_are_safe = True
        self._lookups: list[tuple[str, Lookup]] = []
        self._unread = ""  # a file that may have a line for the host, but cannot be read
        self._only: PublicKey | None = None
        self._authorities: set[PublicKey] = set()
        self._revoked = self._load_revoked()
        self._read(options)

    def _read(self, options: HostOptions) -> None:
        if options.host_key_line:
            line = options.host_key_line
            marker, _, rest = line.partition(" ")
            by_authority = marker == AUTHORITY
            try:
                key, _ = load_public_line(rest if by_authority else line)
            except KeyFileError as error:
                raise UsageError(f"the host key of {self._host}: {error}") from error
            if by_authority:
                self._authorities.add(key)
            else:
                self._only = key
            return
        for path in (*options.user_known_hosts_files, *options.global_known_hosts_files):
            try:
                with open(path, encoding="utf-8", errors="surrogateescape") as file:
                    text = file.read()
            except FileNotFoundError:
                continue
            except OSError as error:
                prompts.tell(f"culvert: {path}: {error.strerror}")
                self._unread = path
                continue
            found = lookup(text, self._host, self._port)
            self._lookups.append((path, found))
            self._authorities.update(each.key for each in found.authorities)

    def _load_revoked(self) -> RevocationList | None:
        """Loads RevokedHostKeys; raises UsageError, since half a list would trust revoked keys."""
        path = self._options.revoked_host_keys
        if path is None:
            return None
        from ..crypto.revoked import load

        try:
            with open(path, "rb") as file:
                data = file.read(REVOKED_LIMIT + 1)
            if len(data) > REVOKED_LIMIT:
                raise MalformedMessage("it is too long")
            return load(data)
        except OSError as error:
            raise UsageError(f"RevokedHostKeys {path}: {error.strerror}") from error
        except MalformedMessage as error:
            raise UsageError(f"RevokedHostKeys {path}: {error}") from error

    @property
    def knows_authority(self) -> bool:
        """Whether a certificate of the host can be good, and should be asked for first."""
        return bool(self._authorities)

    @property
    def known_types(self) -> tuple[str, ...]:
        """The types of the host's known keys, which should be asked for first."""
        if self._only is not None:
            return (self._only.key_type,)
        return tuple(dict.fromkeys(t for _, found in self._lookups for t in found.key_types))

    def check(self, key: PublicKey) -> None:
        """Returns if ``key`` may be the host's; raises HostKeyRejected otherwise."""
        name = self._host if self._port == 22 else f"[{self._host}]:{self._port}"
        _log.debug("Server host key: %s %s", key.key_type, key.fingerprint(self._hash))
        parts = [key]
        if is_certificate_name(key.key_type):
            certificate: Certificate = key  # type: ignore[assignment] # only that has such a type
            parts = [certificate.key, certificate.authority]
        revoked = any(
            found.decide(part) is Decision.REVOKED for _, found in self._lookups for part in parts
        )
        if revoked or (self._revoked is not None and self._revoked.revokes(key)):
            raise HostKeyRejected(
                f"the {self._shown(parts[0])} of {name} is revoked: do not connect"
            )
        if len(parts) == 1:
            self._check_key(name, key)
        elif not self._vouches(certificate, name):
            self._check_key(name, certificate.key)

    @property
    def _hash(self) -> str:
        return self._options.fingerprint_hash

    def _shown(self, key: PublicKey) -> str:
        return f"{key.key_type} key {key.fingerprint(self._hash)}"

    @property
    def _shortest(self) -> int:
        return max(self._options.required_rsa_size, MINIMUM_RSA_BITS[self._options.profile])

    def _vouches(self, certificate: Certificate, name: str) -> bool:
        """Whether an authority that is known for the host has certified this key."""
        if certificate.authority not in self._authorities:
            return False
        from ..crypto.certificates import CertType

        base = default_algorithms(True, self._options.profile).authority
        algorithms = self._options.algorithms("ca_signature_algorithms", base, SIGNATURES)
        try:
            certificate.check(CertType.HOST, time.time(), algorithms, self._shortest)
            if not certificate.is_for((self._host,)):
                raise CertificateRefused(f"it is not for {self._host}")
        except CertificateRefused as error:
            prompts.tell(f"culvert: the certificate of {name} does not count: {error}")
            return False
        _log.debug("Host '%s' has a certificate of a known authority.", name)
        return True

    def _check_key(self, name: str, key: PublicKey) -> None:
        options = self._options
        shown = self._shown(key)
        if key.key_type == "ssh-rsa" and key.bits < self._shortest:
            raise HostKeyRejected(f"the host key of {name} is too short: {key.bits} bits")
        if options.host_key_line and self._only is None:
            raise HostKeyRejected(
                f"{name} shows {shown}, and no certificate by the authority that was given:"
                " somebody may be listening in"
            )
        if self._only is not None:
            if key != self._only:
                raise HostKeyRejected(
                    f"{name} shows {shown}, and its key is"
                    f" {self._only.fingerprint(options.fingerprint_hash)}: somebody may be"
                    " listening in"
                )
            return
        decisions = [(path, found, found.decide(key)) for path, found in self._lookups]
        kinds = {decision for _, _, decision in decisions}
        if Decision.TRUSTED in kinds:
            path = next(path for path, _, each in decisions if each is Decision.TRUSTED)
            _log.debug("Host '%s' is known and matches the host key in %s.", name, path)
            return
        strict = options.strict_host_key_checking
        for path, found, decision in decisions:
            if decision is Decision.CHANGED:
                self._changed(name, shown, path, found, key)
                return
        if strict == "yes":
            raise HostKeyRejected(
                f"no {key.key_type} host key is known for {name} and you have requested strict "
                "checking: log in to it once by hand, or write its key down"
            )
        if strict == "accept-new" and self._unread:
            raise HostKeyRejected(
                f"it is not known whether {name} is new: {self._unread} could not be read"
            )
        if strict == "ask":
            self._ask(name, shown)
        self._remember(name, key)

    def _changed(self, name: str, shown: str, path: str, found: Lookup, key: PublicKey) -> None:
        offending = found.offending(key)
        line = offending.line_number if offending else 0
        text = (
            f"the host key of {name} has changed: it shows {shown}, and {path} line {line} says "
            f"otherwise. Somebody may be listening in. If you know why, remove the old key: "
            f"culvert keygen -R '{name}' -f {path}"
        )
        if self._options.strict_host_key_checking != "no":
            raise HostKeyRejected(text)
        prompts.tell(f"culvert: warning: {text}")
        self._withhold()

    def _withhold(self) -> None:
        """Disables what a man in the middle could use, as OpenSSH does and in its words."""
        options = self._options
        self.passwords_are_safe = False
        options.is_impostor = True
        disabled = []
        if options.password_authentication:
            disabled.append("Password authentication")
        if options.kbd_interactive_authentication:
            disabled.append("Keyboard-interactive authentication")
        options.password_authentication = options.kbd_interactive_authentication = False
        forwarding = []
        if options.forward_agent:
            forwarding.append("Agent forwarding")
        if options.forward_x11:
            forwarding.append("X11 forwarding")
        if options.forwards:
            forwarding.append("Port forwarding")
        if options.tunnel != "no":
            forwarding.append("Tunnel forwarding")
        options.forward_agent, options.forwards, options.tunnel = "", (), "no"
        options.forward_x11 = False
        for what in (*disabled, *forwarding):
            prompts.tell(f"{what} is disabled to avoid man-in-the-middle attacks.")
        if options.update_host_keys != "no":
            prompts.tell("UpdateHostkeys is disabled because the host key is not trusted.")
            options.update_host_keys = "no"
        if forwarding and options.exit_on_forward_failure:
            raise HostKeyRejected("forwarding disabled due to host key check failure")

    def _ask(self, name: str, shown: str) -> None:
        refusal = HostKeyRejected(f"the host {name} is not known, and nobody confirmed its {shown}")
        if self._options.batch_mode:
            raise refusal
        answer = prompts.line(
            f"The authenticity of host '{name}' can't be established.\n{shown}.\n"
            "Are you sure you want to continue connecting (yes/no)? "
        )
        while answer is not None and answer not in ("yes", "no"):
            answer = prompts.line("Please type 'yes' or 'no': ")
        if answer != "yes":
            raise refusal

    def _remember(self, name: str, key: PublicKey) -> None:
        files = self._options.user_known_hosts_files
        if not files or files[0] == os.devnull:
            return
        path = files[0]
        try:
            hashed = self._options.hash_known_hosts
            salt = os.urandom(SALT_BYTES)
            line = add_line(self._host, self._port, key, hashed, salt)
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with locked(path) as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        line = "\n" + line
                file.write(line.encode(errors="surrogateescape") + b"\n")
        except (OSError, UsageError) as error:
            prompts.tell(f"culvert: the host key could not be added to {path}: {error}")
            return
        prompts.tell(f"Warning: Permanently added '{name}' ({key.key_type}) to {path}.")
