"""The client's secrets, from key files, an agent, and questions to the user."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from ..crypto.key_files import (
    KeyFileError,
    PassphraseNeeded,
    WrongPassphrase,
    load_offered_line,
    load_private_key,
    load_public_line,
    load_public_part,
)
from ..crypto.keys import PrivateKey, PublicKey, is_certificate_name, plain_name
from ..log import harmless
from ..ssh.auth_client import Identity
from ..ssh.connection import Connection
from . import prompts
from .host_options import HostOptions
from .host_trust import HostTrust

if TYPE_CHECKING:
    from ..crypto.certificates import Certificate
    from ..services.agent_client import AgentKey

FILE_LIMIT: Final = 1 << 20  # bytes of a key file


class UserCredentials:
    """The secrets for one login."""

    def __init__(self, options: HostOptions, trust: HostTrust) -> None:
        self._options = options
        self._trust = trust
        self._passwords = 0
        self._added: set[bytes] = set()  # blobs of the keys that were offered to the agent
        self.connection: Connection | None = None  # the connection of this login, once it exists

    # -- keys ------------------------------------------------------------------------

    def identities(self) -> Iterator[Identity]:
        """Yields certificates, the agent's keys that a file names, its other keys, then key files.

        A certificate from a file is used with the agent or the key file that has its key.
        """
        options = self._options
        publics = [(path, self._public_of(path)) for path in options.identity_files]
        named = {key.blob for _, key in publics if key is not None}
        certificates = list(self._certificates())
        keys = list(self._from_agent(named | {each.blob for each in certificates}))
        held = {identity.blob: identity for identity in keys}
        files: dict[str, Identity | None] = {}

        def of_file(path: str, public: PublicKey | None) -> Identity | None:
            if path not in files:
                files[path] = self._from_file(path, public)
            return files[path]

        seen: set[bytes] = set()
        for certificate in certificates:
            holder = held.get(certificate.key.blob)
            for path, public in publics:
                if holder is None and public == certificate.key:
                    holder = of_file(path, public)
            if holder is not None and certificate.blob not in seen:
                seen.add(certificate.blob)
                yield _certified(certificate, holder)
        for identity in keys:
            if identity.blob not in seen:
                seen.add(identity.blob)
                yield identity
        for path, public in publics:
            if public is None or public.blob not in seen:
                found = of_file(path, public)
                if found is not None and found.blob not in seen:
                    seen.add(found.blob)
                    yield found

    def _certificates(self) -> Iterator[Certificate]:
        """Yields the certificates of CertificateFile, and those beside the identity files."""
        options = self._options
        beside = [f"{path}-cert.pub" for path in options.identity_files]
        for path in (*options.certificate_files, *beside):
            try:
                with open(path, "rb") as file:
                    line = file.readline(FILE_LIMIT).decode(errors="replace")
                found, _ = load_offered_line(line)
            except (OSError, KeyFileError) as error:
                if path in options.certificate_files:
                    why = error.strerror if isinstance(error, OSError) else error
                    prompts.tell(f"culvert: certificate file {path}: {why}")
                continue
            from ..crypto.certificates import Certificate, CertType

            if isinstance(found, Certificate) and found.terms.kind is CertType.USER:
                yield found
            else:
                prompts.tell(f"culvert: certificate file {path}: it is no user's certificate")

    def _from_agent(self, named: set[bytes]) -> Iterator[Identity]:
        path = _agent_path(self._options)
        if not path:
            return
        from ..services.agent_client import Agent

        try:
            agent = Agent(path)
            if self.connection is not None:
                agent.bind(self.connection.transport.host_binding)
            keys = list(agent.keys())
        except OSError as error:
            _debug(f"agent {path}: {error}")
            return
        # A certificate counts as named when its key is; such ones come before plain keys.
        keys.sort(key=lambda each: (_key_within(each.public) not in named, not _is_certified(each)))
        for public, comment in keys:
            if self._options.identities_only and _key_within(public) not in named:
                continue

            def sign(algorithm: str, data: bytes, key: PublicKey = public) -> bytes | None:
                with contextlib.suppress(OSError):
                    return agent.sign(key, algorithm, data)
                return None

            # Ask the server first: the key may be one of many, or one that must be touched.
            yield Identity(public.blob, public.signature_algorithms, sign, True, comment)

    def _public_of(self, path: str) -> PublicKey | None:
        """Returns the public key of a key file; None if that needs a passphrase or fails."""
        with contextlib.suppress(OSError, KeyFileError), open(path + ".pub", "rb") as beside:
            return load_public_line(beside.readline(FILE_LIMIT).decode(errors="replace"))[0]
        with contextlib.suppress(OSError, KeyFileError), open(path, "rb") as private:
            data = private.read(FILE_LIMIT)
            if not data.startswith(b"-----"):
                return load_public_line(data.decode(errors="replace"))[0]
            return load_public_part(data)
        return None

    def _from_file(self, path: str, public: PublicKey | None) -> Identity | None:
        data = self._read(path)
        if data is None:
            return None
        try:
            key = load_private_key(data)
        except PassphraseNeeded:
            if self._options.batch_mode:
                prompts.tell(f"culvert: identity file {path} has a passphrase, and BatchMode is on")
                return None
            if public is None:
                unlocked = self._unlock(path, data)
                return None if unlocked is None else self._at_hand(unlocked, path)
            return Identity(
                public.blob, public.signature_algorithms, self._signer(path, data), True, path
            )
        except KeyFileError as error:
            prompts.tell(f"culvert: identity file {path}: {error}")
            return None
        return self._at_hand(key, path)

    def _at_hand(self, key: PrivateKey, path: str) -> Identity:
        """Returns an identity that can sign at once, without asking the server first."""

        def sign(algorithm: str, signed: bytes) -> bytes:
            self._add_to_agent(key, path)
            return key.sign(algorithm, signed)

        public = key.public
        return Identity(public.blob, public.signature_algorithms, sign, False, path)

    def _add_to_agent(self, key: PrivateKey, path: str) -> None:
        """Adds a key to the agent if AddKeysToAgent says so (ssh_config(5))."""
        options = self._options
        wanted = options.add_keys_to_agent
        place = _agent_path(options)
        if wanted.how == "no" or not place or key.public.blob in self._added:
            return
        self._added.add(key.public.blob)
        if wanted.how == "ask":
            answer = prompts.line(f"Add key {path} ({key.public.fingerprint()}) to agent? ")
            if answer is None or answer.lower() not in ("y", "yes"):
                return
        from ..services.agent_client import Agent

        try:
            agent = Agent(place)
            try:
                if not agent.add(key, path, wanted.how == "confirm", wanted.lifetime):
                    _debug(f"the agent does not take {path}")
            finally:
                agent.close()
        except OSError as error:
            _debug(f"agent {place}: {error}")

    def _read(self, path: str) -> bytes | None:
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_uid == os.getuid() and status.st_mode & 0o077:
                    prompts.tell(
                        f"culvert: identity file {path} may be read by others, so it is not used:"
                        f" chmod 600 {path}"
                    )
                    return None
                return file.read(FILE_LIMIT)
        except OSError as error:
            if self._options.identity_files_given:
                prompts.tell(f"culvert: identity file {path}: {error.strerror}")
            return None

    def _signer(self, path: str, data: bytes) -> Callable[[str, bytes], bytes | None]:
        key: PrivateKey | None = None

        def sign(algorithm: str, signed: bytes) -> bytes | None:
            nonlocal key
            if key is None:  # ask once, though a certificate and its key may both sign
                key = self._unlock(path, data)
            if key is None:
                return None
            self._add_to_agent(key, path)
            return key.sign(algorithm, signed)

        return sign

    def _unlock(self, path: str, data: bytes) -> PrivateKey | None:
        for _ in range(self._options.number_of_password_prompts):
            passphrase = prompts.secret(f"Enter passphrase for key '{path}': ")
            if not passphrase:
                return None
            secret = passphrase.encode(errors="surrogateescape")
            try:
                return load_private_key(data, lambda secret=secret: secret)  # type: ignore[misc]
            except WrongPassphrase:
                continue
            except KeyFileError as error:
                prompts.tell(f"culvert: identity file {path}: {error}")
                return None
        return None

    # -- passwords -------------------------------------------------------------------

    def password(self) -> str | None:
        """Asks for a password, at most NumberOfPasswordPrompts times; None if it may not ask."""
        options = self._options
        if self._passwords >= options.number_of_password_prompts or not self._may_ask():
            return None
        if self._passwords:
            prompts.tell("Permission denied, please try again.")
        self._passwords += 1
        return prompts.secret(f"{options.user}@{options.host}'s password: ")

    def _may_ask(self) -> bool:
        """Whether secrets may be asked for: never if the host's key has changed."""
        return not self._options.batch_mode and self._trust.passwords_are_safe

    def answers(
        self, name: str, instruction: str, questions: tuple[tuple[str, bool], ...]
    ) -> tuple[str, ...] | None:
        """Shows the server's texts and asks its questions (keyboard-interactive)."""
        if questions and not self._may_ask():
            return None
        for text in (name, instruction):
            if text:
                prompts.tell(harmless(text))
        answers = []
        for question, echo in questions:
            shown = f"({self._options.user}@{self._options.host}) {question}"
            answer = prompts.line(shown) if echo else prompts.secret(shown)
            if answer is None:
                return None
            answers.append(answer)
        return tuple(answers)


def _is_certified(held: AgentKey) -> bool:
    return is_certificate_name(held.public.key_type)


def _key_within(key: PublicKey) -> bytes:
    """Returns the blob of a key; of a certificate, the blob of the key within."""
    if not is_certificate_name(key.key_type):
        return key.blob
    from ..crypto.certificates import Certificate

    assert isinstance(key, Certificate)
    return key.key.blob


def _certified(certificate: Certificate, holder: Identity) -> Identity:
    """Returns the identity of a certificate; the holder of its key signs."""

    def sign(algorithm: str, data: bytes) -> bytes | None:
        return holder.sign(plain_name(algorithm), data)

    return Identity(
        certificate.blob,
        certificate.signature_algorithms,
        sign,
        holder.costs_the_user,
        f"{holder.name} with a certificate",
    )


def _agent_path(options: HostOptions) -> str:
    """Returns the path of the agent's socket; '' for no agent."""
    path = options.identity_agent
    return os.environ.get("SSH_AUTH_SOCK", "") if path is None else path


def _debug(text: str) -> None:
    import logging

    logging.getLogger(__name__).debug("%s", text)
