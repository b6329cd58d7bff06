"""The keys and certificates that may log in as a user, and what they grant: the monitor's part.

A client's plain key is never parsed here: it is compared with the keys that the user's own file
names. A certificate must be parsed, because its authority vouches for the key. One strict function
does this, and whatever is wrong with a certificate only means that it lets nobody in.

A certificate is accepted in two ways. Either trusted_user_ca_keys has its authority; then it must
name a principal in authorized_principals_file or, without that setting, the user. Or a line of
authorized_keys with cert-authority has its authority. The restrictions of the line and those of the
certificate both apply.
"""

import errno
import logging
import os
import pwd
from collections.abc import Iterator
from typing import Final, NamedTuple

from ..config.server import ServerConfig
from ..crypto.certificates import Certificate, CertType, load_certificate
from ..crypto.key_exchange import FINITE_FIELD
from ..crypto.key_files import KeyFileError, load_public_line
from ..crypto.keys import RSA, PublicKey, is_certificate_name
from ..crypto.permissions import UNRESTRICTED, Permissions
from ..crypto.revoked import RevocationList, load
from ..crypto.suites import MINIMUM_RSA_BITS, Algorithms, default_algorithms
from ..errors import CertificateRefused, MalformedMessage, UsageError
from . import audit, user_files

_log = logging.getLogger(__name__)

# Our own choice
LIST_LIMIT: Final = 16 << 20  # bytes of a revocation list, and of a file of authorities


class Grant(NamedTuple):
    """A key that may log in, and what it may then do."""

    key: PublicKey  # or a Certificate, to verify a signature with
    permissions: Permissions

    @property
    def plain_key(self) -> PublicKey:
        """The key itself, also when it comes with a certificate."""
        return self.key.key if isinstance(self.key, Certificate) else self.key

    def facts(self) -> audit.Key:
        """The fields for this key in the audit."""
        facts = audit.of_key(self.key.key_type, self.plain_key.blob)
        if isinstance(self.key, Certificate):
            terms, authority = self.key.terms, self.key.authority
            facts = facts._replace(
                certificate=terms.key_id,
                serial=terms.serial,
                ca_type=authority.key_type,
                ca=authority.fingerprint(),
            )
        return facts


def algorithms(config: ServerConfig, aes_is_fast: bool) -> Algorithms:
    """The algorithms that the profile offers and the configuration accepts; raises UsageError."""
    base = default_algorithms(aes_is_fast, config.profile)
    usual = tuple(name for name in base.key_exchange if name not in FINITE_FIELD)
    return base._replace(
        key_exchange=_only(config, "kex_algorithms", base.key_exchange, usual),
        user_key=_only(config, "pubkey_accepted_algorithms", base.user_key),
        authority=_only(config, "ca_signature_algorithms", base.authority),
    )


def _only(
    config: ServerConfig, setting: str, known: tuple[str, ...], usual: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """The algorithms that the setting names; if none, ``usual``, or else all of ``known``.

    Raises UsageError for a name that is not in ``known``.
    """
    wanted: tuple[str, ...] = getattr(config, setting)
    for name in wanted:
        if name not in known:
            raise UsageError(f"{setting}: '{name}' is none of {', '.join(known)}")
    return wanted or usual or known


class UserKeys:
    """Decides which keys of clients at one address are accepted."""

    def __init__(self, config: ServerConfig, address: str) -> None:
        self._config = config
        self._address = address
        self._algorithms = algorithms(config, True)

    def grant(
        self, user: pwd.struct_passwd, algorithm: str, blob: bytes, now: float
    ) -> Grant | None:
        """What a key grants ``user`` at ``now`` (seconds since 1970), None if it may not log in.

        ``algorithm`` is that of the key's signature, which the caller verifies.
        """
        if algorithm not in self._algorithms.user_key:
            return None
        candidates = self._plain(user, blob)
        if is_certificate_name(algorithm):
            candidates = self._certified(user, blob, now)
        for key, permissions in candidates:
            if algorithm not in key.signature_algorithms or self._is_unusable(key, user):
                continue
            refusal = permissions.refusal(self._address, now)
            if not refusal:
                return Grant(key, permissions)
            self._log_refusal(key, user, refusal)
        return None

    def _is_unusable(self, key: PublicKey, user: pwd.struct_passwd) -> bool:
        if key.key_type == RSA and key.bits < MINIMUM_RSA_BITS[self._config.profile]:
            return True
        try:
            revoked = self._revoked()
        except (OSError, MalformedMessage) as error:
            # A part of the list would accept keys that the rest revokes.
            _log.error("every key is refused: %s: %s", self._config.revoked_keys, error)
            return True
        if revoked is not None and revoked.revokes(key):
            self._log_refusal(key, user, "revoked")
            return True
        return False

    def _revoked(self) -> RevocationList | None:
        """The list, None if none is configured; raises OSError or MalformedMessage."""
        path = self._config.revoked_keys
        return load(_read(path)) if path else None

    @staticmethod
    def _log_refusal(key: PublicKey, user: pwd.struct_passwd, why: str) -> None:
        _log.info("key %s of user %s refused: %s", key.fingerprint(), user.pw_name, why)

    def _plain(
        self, user: pwd.struct_passwd, blob: bytes
    ) -> Iterator[tuple[PublicKey, Permissions]]:
        for entry in user_files.authorized_keys(user, self._config):
            if entry.key.blob == blob and not entry.is_authority:
                yield entry.key, entry.options

    # -- certificates ----------------------------------------------------------------

    def _certified(
        self, user: pwd.struct_passwd, blob: bytes, now: float
    ) -> Iterator[tuple[PublicKey, Permissions]]:
        trusted = self._authorities()
        lines = [
            entry for entry in user_files.authorized_keys(user, self._config) if entry.is_authority
        ]
        try:
            certificate = load_certificate(blob, trusted | {entry.key.blob for entry in lines})
            shortest = MINIMUM_RSA_BITS[self._config.profile]
            certificate.check(CertType.USER, now, self._algorithms.authority, shortest)
            granted = certificate.permissions()
        except (MalformedMessage, CertificateRefused) as error:
            _log.info("certificate of user %s refused: %s", user.pw_name, error)
            return
        found = list(self._vouched_by_file(user, certificate, trusted))
        for entry in lines:
            names = (user.pw_name,) if entry.principals is None else entry.principals
            if entry.key == certificate.authority and certificate.is_for(names):
                found.append(entry.options)
        if not found:
            self._log_refusal(certificate, user, "its certificate is not for this user")
        for options in found:
            both = options.restricted_by(granted)
            if both is None:
                self._log_refusal(certificate, user, "it forces another command than its line")
            else:
                yield certificate, both

    def _vouched_by_file(
        self, user: pwd.struct_passwd, certificate: Certificate, trusted: set[bytes]
    ) -> Iterator[Permissions]:
        """The options under which trusted_user_ca_keys lets the certificate log in as ``user``."""
        if certificate.authority.blob not in trusted:
            return
        if self._config.authorized_principals_file:
            for principal, options in user_files.authorized_principals(user, self._config):
                if certificate.is_for((principal,)):
                    yield options
        elif certificate.is_for((user.pw_name,)):
            yield UNRESTRICTED

    def _authorities(self) -> set[bytes]:
        """The key blobs of trusted_user_ca_keys; a line that is not a key is logged and skipped."""
        path = self._config.trusted_user_ca_keys
        if not path:
            return set()
        try:
            text = _read(path).decode(errors="replace")
        except OSError as error:
            _log.error("trusted_user_ca_keys %s: %s", path, error.strerror)
            return set()
        found = set()
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.lstrip().startswith("#"):
                try:
                    found.add(load_public_line(line)[0].blob)
                except KeyFileError as error:
                    _log.warning("trusted_user_ca_keys %s: line %d: %s", path, number, error)
        return found


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        data = file.read(LIST_LIMIT + 1)
    if len(data) > LIST_LIMIT:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
    return data
