"""Private keys at rest: OpenSSH's format, PEM and Dropbear's, each read and written.

OpenSSH's format (its PROTOCOL.key) is an armoured record: how it is encrypted, the public
key in the clear, then the private numbers. In front of these stand two check numbers, which
differ after decryption with a wrong passphrase. This module reads the format itself, because
the reader of `cryptography` drops the comment and imports every key type and format, which
would delay each `culvert ssh`. `cryptography` reads PEM (PKCS #1, SEC 1, PKCS #8). Dropbear's
format is the key's wire form with the private numbers behind it, never encrypted.

This module opens no file: it takes and returns bytes. It raises a KeyFileError with one line
of text, to which the caller adds the file's name.
"""

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import CulvertError, MalformedMessage
from ..wire.codec import (
    MPInt,
    Name,
    Reader,
    Record,
    String,
    UInt32,
    write_mpint,
    write_name,
    write_string,
    write_uint32,
)
from .keys import ED25519, RSA, PrivateKey, PublicKey, load_public_key
from .offered_keys import load_offered_key

if TYPE_CHECKING:
    from .keys import Secret

Passphrase = Callable[[], bytes]

# OpenSSH's PROTOCOL.key
_MAGIC: Final = b"openssh-key-v1\0"
_BEGIN: Final = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_END: Final = b"-----END OPENSSH PRIVATE KEY-----"
_PADDING_MAXIMUM: Final = 255  # bytes, whose values are 1, 2, 3 and so on
_LINE: Final = 70  # characters of base64 a line, as ssh-keygen breaks it

# Our own choices
BCRYPT_ROUNDS: Final = 24  # ssh-keygen's since 9.4: about a quarter of a second
_OUR_CIPHER: Final = "aes256-ctr"  # ssh-keygen's, which other programs read, too


class KeyFileError(CulvertError):
    """A key file that cannot be used; the text says why, the caller names the file."""


class PassphraseNeeded(KeyFileError):
    """The key is encrypted, and the caller gave no way to ask for its passphrase."""


class WrongPassphrase(KeyFileError):
    """The passphrase does not open the key: ask once more."""


class _Cipher(NamedTuple):
    key: int  # bytes
    iv: int  # bytes
    tag: int  # bytes behind the encrypted part
    block: int  # bytes that the plain text is padded to


_CIPHERS: Final[dict[str, _Cipher]] = {
    "none": _Cipher(0, 0, 0, 8),
    "aes256-ctr": _Cipher(32, 16, 0, 16),
    "aes192-ctr": _Cipher(24, 16, 0, 16),
    "aes128-ctr": _Cipher(16, 16, 0, 16),
    "aes256-cbc": _Cipher(32, 16, 0, 16),
    "aes192-cbc": _Cipher(24, 16, 0, 16),
    "aes128-cbc": _Cipher(16, 16, 0, 16),
    "aes256-gcm@openssh.com": _Cipher(32, 12, 16, 16),
    "aes128-gcm@openssh.com": _Cipher(16, 12, 16, 16),
}


class _Container(Record):
    """The armour's content, behind the magic."""

    cipher_name: Name
    kdf_name: Name
    kdf_options: String
    key_count: UInt32
    public_key: String
    private_keys: String


class _RsaNumbers(Record):
    n: MPInt
    e: MPInt
    d: MPInt
    iqmp: MPInt
    p: MPInt
    q: MPInt


class _EcdsaNumbers(Record):
    curve: Name
    point: String
    scalar: MPInt


class _Ed25519Numbers(Record):
    point: String
    seed_and_point: String


# -- reading -----------------------------------------------------------------------------


def load_private_key(data: bytes, passphrase: Passphrase | None = None) -> PrivateKey:
    """The key of a file's bytes, in any of the formats.

    ``passphrase`` is called at most once, and only if the key is encrypted; without it an
    encrypted key raises PassphraseNeeded. Raises WrongPassphrase, after which the caller may
    try again, and KeyFileError for everything else that is wrong with the file.
    """
    try:
        if _BEGIN in data:
            return _load_openssh(data, passphrase)
        if b"-----BEGIN " in data:
            return _load_pem(data, passphrase)
        if data.startswith(b"\0\0\0"):
            return _load_dropbear(data)
    except MalformedMessage as error:
        raise KeyFileError(f"the private key cannot be used: {error}") from error
    if not data.strip():
        raise KeyFileError("the file is empty, so it holds no private key")
    if data.startswith(b"PuTTY-User-Key-File"):
        raise KeyFileError("this is PuTTY's format: convert it with puttygen -O private-openssh")
    if data.startswith((b"ssh-", b"ecdsa-", b"sk-")):
        raise KeyFileError("this is a public key, where a private key is needed")
    raise KeyFileError("not a private key in OpenSSH's, PEM or Dropbear's format")


def load_public_part(data: bytes) -> PublicKey | None:
    """The public half, which OpenSSH's format shows without the passphrase; None for others."""
    if _BEGIN not in data:
        return None
    try:
        return load_public_key(_open_container(data)[0].public_key)
    except MalformedMessage as error:
        raise KeyFileError(f"the private key cannot be used: {error}") from error


def load_public_line(line: str) -> tuple[PublicKey, str]:
    """Key and comment of the one line of a .pub file; raises KeyFileError."""
    return _load_line(line, load_public_key)


def load_offered_line(line: str) -> tuple[PublicKey, str]:
    """As ``load_public_line``, also for a -cert.pub file: then the key is a Certificate."""
    return _load_line(line, load_offered_key)


def _load_line(line: str, load: Callable[[bytes], PublicKey]) -> tuple[PublicKey, str]:
    words = line.strip().split(None, 2)
    if len(words) < 2:
        raise KeyFileError("not a public key: expected a line like 'ssh-ed25519 AAAA... comment'")
    try:
        key = load(a2b_base64(words[1].encode(), strict_mode=True))
    except (Base64Error, UnicodeEncodeError) as error:
        raise KeyFileError("not a public key: its second word is not base64") from error
    except MalformedMessage as error:
        raise KeyFileError(f"not a public key that can be used: {error}") from error
    if key.key_type != words[0]:
        raise KeyFileError(f"the line says {words[0]!r}, but its key is of type {key.key_type}")
    return key, words[2] if len(words) > 2 else ""


def _open_container(data: bytes) -> tuple[_Container, bytes]:
    """The container and the tag behind it."""
    body, end, _ = data.partition(_BEGIN)[2].partition(_END)
    if not end:
        raise KeyFileError("the private key breaks off before its END line")
    try:
        binary = a2b_base64(b"".join(body.split()), strict_mode=True)
    except Base64Error as error:
        raise KeyFileError("the private key is not valid base64") from error
    if not binary.startswith(_MAGIC):
        raise KeyFileError("the private key does not begin with 'openssh-key-v1'")
    reader = Reader(binary[len(_MAGIC) :])
    container = _Container.read(reader)
    if container.key_count != 1:
        raise KeyFileError(f"the file holds {container.key_count} keys, where one is expected")
    return container, reader.rest()


def _load_openssh(data: bytes, passphrase: Passphrase | None) -> PrivateKey:
    container, tag = _open_container(data)
    cipher = _CIPHERS.get(container.cipher_name)
    if cipher is None or len(tag) != cipher.tag:
        raise KeyFileError(f"the private key is encrypted with {container.cipher_name!r}")
    public = load_public_key(container.public_key)
    if public.key_type.startswith("sk-"):
        raise KeyFileError("the key lives in a security key (FIDO): use it through an agent")
    plain = container.private_keys
    if cipher.key:
        if container.kdf_name != "bcrypt":
            raise KeyFileError(f"the passphrase is hashed with {container.kdf_name!r}")
        if passphrase is None:
            raise PassphraseNeeded("the private key is encrypted, and needs its passphrase")
        options = Reader(container.kdf_options)
        salt, rounds = options.string(), options.uint32()
        options.end()
        material = _stretch(passphrase(), salt, rounds, cipher)
        plain = _decrypt(container.cipher_name, cipher, material, plain, tag)
    reader = Reader(plain)
    if reader.uint32() != reader.uint32():
        if cipher.key:
            raise WrongPassphrase("the passphrase does not open the private key")
        raise KeyFileError("the private key is damaged: its check numbers differ")
    key = PrivateKey(_read_secret(reader))
    key.comment = reader.string().decode(errors="replace")
    padding = reader.rest()
    # Longer than needed from dropbearconvert 2022.83 (a whole block) and puttygen 0.78 (two).
    if len(padding) > _PADDING_MAXIMUM or padding != bytes(range(1, len(padding) + 1)):
        raise KeyFileError("the private key is damaged: its padding is wrong")
    if key.public != public:
        raise KeyFileError("the private key is damaged: its halves do not belong together")
    return key


def _stretch(passphrase: bytes, salt: bytes, rounds: int, cipher: _Cipher) -> bytes:
    """Key and initialisation vector from the passphrase."""
    if not passphrase:
        raise WrongPassphrase("the passphrase does not open the private key")
    import bcrypt

    size = cipher.key + cipher.iv
    try:
        return bcrypt.kdf(passphrase, salt, size, rounds, ignore_few_rounds=True)
    except (ValueError, OverflowError) as error:
        raise KeyFileError("the private key's encryption has impossible settings") from error


def _decrypt(name: str, cipher: _Cipher, material: bytes, data: bytes, tag: bytes) -> bytes:
    key, iv = material[: cipher.key], material[cipher.key :]
    if cipher.tag:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            return AESGCM(key).decrypt(iv, data + tag, None)
        except InvalidTag as error:
            raise WrongPassphrase("the passphrase does not open the private key") from error
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import CBC, CTR

    context = Cipher(AES(key), CTR(iv) if name.endswith("ctr") else CBC(iv)).decryptor()
    try:
        return context.update(data) + context.finalize()
    except ValueError as error:
        raise KeyFileError("the private key is damaged: its length is wrong") from error


def _read_secret(reader: Reader) -> "Secret":
    """The type and the numbers of one key in OpenSSH's order."""
    key_type = reader.name()
    if key_type == ED25519:
        ed25519 = _Ed25519Numbers.read(reader)
        return _ed25519_secret(ed25519.seed_and_point, ed25519.point)
    if key_type == RSA:
        rsa = _RsaNumbers.read(reader)
        return _rsa_secret(rsa.n, rsa.e, rsa.d, rsa.p, rsa.q)
    if key_type.startswith("ecdsa-sha2-"):
        ecdsa = _EcdsaNumbers.read(reader)
        return _ecdsa_secret(ecdsa.curve, ecdsa.point, ecdsa.scalar)
    raise KeyFileError(f"private keys of type {key_type!r} are not supported")


def _ed25519_secret(seed_and_point: bytes, point: bytes) -> "Secret":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if len(seed_and_point) != 64 or seed_and_point[32:] != point:
        raise KeyFileError("the private key is damaged: its halves do not belong together")
    return Ed25519PrivateKey.from_private_bytes(seed_and_point[:32])


def _rsa_secret(n: int, e: int, d: int, p: int, q: int) -> "Secret":
    from cryptography.hazmat.primitives.asymmetric import rsa

    # The tests for primality that `cryptography` would make take as long as a login. These checks
    # find the damage that a file can suffer.
    if min(n, e, d) < 1 or min(p, q) < 3 or p * q != n or (d * e - 1) % (p - 1):
        raise KeyFileError("the private key is damaged: its numbers do not belong together")
    try:
        numbers = rsa.RSAPrivateNumbers(
            p=p,
            q=q,
            d=d,
            dmp1=rsa.rsa_crt_dmp1(d, p),
            dmq1=rsa.rsa_crt_dmq1(d, q),
            iqmp=rsa.rsa_crt_iqmp(p, q),
            public_numbers=rsa.RSAPublicNumbers(e, n),
        )
        return numbers.private_key(unsafe_skip_rsa_key_validation=True)
    except ValueError as error:
        raise KeyFileError("the private key's numbers are not an RSA key") from error


def _ecdsa_secret(curve_name: str, point: bytes, scalar: int) -> "Secret":
    from cryptography.hazmat.primitives.asymmetric import ec

    curves: dict[str, ec.EllipticCurve] = {
        "nistp256": ec.SECP256R1(),
        "nistp384": ec.SECP384R1(),
        "nistp521": ec.SECP521R1(),
    }
    if curve_name not in curves:
        raise KeyFileError(f"ECDSA keys over {curve_name!r} are not supported")
    try:
        secret = ec.derive_private_key(scalar, curves[curve_name])
    except ValueError as error:
        raise KeyFileError("the private key's number is not one of its curve") from error
    if not PrivateKey(secret).public.blob.endswith(write_string(point)):
        raise KeyFileError("the private key is damaged: its halves do not belong together")
    return secret


def _load_pem(data: bytes, passphrase: Passphrase | None) -> PrivateKey:
    from cryptography.exceptions import InternalError, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    encrypted = b"ENCRYPTED" in data
    word = None
    if encrypted:
        if passphrase is None:
            raise PassphraseNeeded("the private key is encrypted, and needs its passphrase")
        word = passphrase()
        if not word:
            raise WrongPassphrase("the passphrase does not open the private key")
    try:
        secret = load_pem_private_key(data, word)
    except UnsupportedAlgorithm as error:
        raise KeyFileError("the PEM file uses an algorithm that is not supported") from error
    except (ValueError, TypeError, InternalError) as error:  # InternalError: a bad length
        if encrypted:
            raise WrongPassphrase("the passphrase does not open the private key") from error
        raise KeyFileError(
            "the PEM file does not hold a private key that can be read;"
            " 'ssh-keygen -p -f FILE' may turn it into one"
        ) from error
    return PrivateKey(secret)  # type: ignore[arg-type] # PrivateKey refuses the other types


def _load_dropbear(data: bytes) -> PrivateKey:
    """Reads what Dropbear's signkey.c writes in buf_put_priv_key."""
    reader = Reader(data)
    key_type = reader.name()
    if key_type == ED25519:
        seed_and_point = reader.string()
        secret = _ed25519_secret(seed_and_point, seed_and_point[32:])
        if PrivateKey(secret).public.blob[-32:] != seed_and_point[32:]:
            raise KeyFileError("the private key is damaged: its halves do not belong together")
    elif key_type == RSA:
        e, n, d, p, q = (reader.mpint() for _ in range(5))
        secret = _rsa_secret(n, e, d, p, q)
    elif key_type.startswith("ecdsa-sha2-"):
        curve, point, scalar = reader.name(), reader.string(), reader.mpint()
        secret = _ecdsa_secret(curve, point, scalar)
    else:
        raise KeyFileError(f"private keys of type {key_type!r} are not supported")
    reader.end()
    return PrivateKey(secret)


# -- writing -----------------------------------------------------------------------------


def dump_openssh(
    key: PrivateKey,
    passphrase: bytes | None = None,
    comment: str | None = None,
    rounds: int = BCRYPT_ROUNDS,
) -> bytes:
    """The key in OpenSSH's format, encrypted if there is a passphrase.

    ``comment`` is the key's own unless given. The salt comes from the generator that makes
    `cryptography`'s keys.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    comment = key.comment if comment is None else comment
    name = _OUR_CIPHER if passphrase else "none"
    cipher = _CIPHERS[name]
    check = AESGCM.generate_key(128)[:4]
    plain = check + check + write_secret(key) + write_string(comment.encode())
    plain += bytes(range(1, -len(plain) % cipher.block + 1))
    options = b""
    if passphrase:
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.algorithms import AES
        from cryptography.hazmat.primitives.ciphers.modes import CTR

        salt = AESGCM.generate_key(128)
        options = write_string(salt) + write_uint32(rounds)
        material = _stretch(passphrase, salt, rounds, cipher)
        context = Cipher(AES(material[: cipher.key]), CTR(material[cipher.key :])).encryptor()
        plain = context.update(plain) + context.finalize()
    container = _Container(
        cipher_name=name,
        kdf_name="bcrypt" if passphrase else "none",
        kdf_options=options,
        key_count=1,
        public_key=key.public.blob,
        private_keys=plain,
    )
    text = b2a_base64(_MAGIC + container.encode(), newline=False)
    lines = [text[start : start + _LINE] for start in range(0, len(text), _LINE)]
    return b"\n".join([_BEGIN, *lines, _END, b""])


def write_secret(key: PrivateKey) -> bytes:
    """The inverse of ``_read_secret``; an agent takes this form, too, with the comment behind."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    secret, public = key.secret, key.public
    numbers: Record
    if isinstance(secret, Ed25519PrivateKey):
        point = public.blob[-32:]
        numbers = _Ed25519Numbers(point=point, seed_and_point=secret.private_bytes_raw() + point)
    elif isinstance(secret, RSAPrivateKey):
        rsa = secret.private_numbers()
        n, e = rsa.public_numbers.n, rsa.public_numbers.e
        numbers = _RsaNumbers(n=n, e=e, d=rsa.d, iqmp=rsa.iqmp, p=rsa.p, q=rsa.q)
    else:
        reader = Reader(public.blob)
        reader.name()
        scalar = secret.private_numbers().private_value
        numbers = _EcdsaNumbers(curve=reader.name(), point=reader.string(), scalar=scalar)
    return write_name(public.key_type) + numbers.encode()


def dump_pem(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """PKCS #1 or SEC 1, as OpenSSL's older commands write; PKCS #8 if encrypted or ed25519."""
    from cryptography.hazmat.primitives import serialization

    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    form = serialization.PrivateFormat.TraditionalOpenSSL
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase)
    if passphrase or key.public.key_type == ED25519:
        form = serialization.PrivateFormat.PKCS8
    return key.secret.private_bytes(serialization.Encoding.PEM, form, encryption)


def dump_dropbear(key: PrivateKey) -> bytes:
    """The key in Dropbear's format, which has no passphrase and no comment."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    secret, public = key.secret, key.public
    if isinstance(secret, Ed25519PrivateKey):
        return write_name(ED25519) + write_string(secret.private_bytes_raw() + public.blob[-32:])
    if isinstance(secret, RSAPrivateKey):
        rsa = secret.private_numbers()
        return public.blob + b"".join(map(write_mpint, (rsa.d, rsa.p, rsa.q)))
    return public.blob + write_mpint(secret.private_numbers().private_value)
