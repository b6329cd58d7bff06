"""dropbearkey and dropbearconvert: keys in Dropbear's format."""

from __future__ import annotations

import os
import sys
from typing import Final

from ..crypto import key_files
from ..crypto.keys import RSA
from ..errors import UsageError
from .keygen_files import load_private, read_file, write_whole
from .keygen_words import checked_comment, default_comment, new_key, number, wanted_type
from .options import Option, help_text, parse

_DROPBEARKEY_OPTIONS: Final = (
    Option("t", "TYPE", "type of the new key: ed25519, ecdsa or rsa"),
    Option("f", "FILE", "the key's file; ~/.ssh/id_dropbear is what dbclient looks for"),
    Option("s", "BITS", "its size: rsa 2048 to 16384 (default 2048), ecdsa 256, 384 or 521"),
    Option("y", None, "print public key and fingerprint of the private key in FILE"),
    Option("C", "COMMENT", "the comment of the public key that is printed"),
    Option("q", None, "do not print the new public key"),
    Option("h", None, ""),
)
_DROPBEARKEY_USAGE: Final = "dropbearkey -t TYPE -f FILE [-s BITS] [-C COMMENT] [-q]\n"
_DROPBEARKEY_ABOUT: Final = (
    "Make a private key in Dropbear's format, or show the public key of one."
)
_DROPBEAR_RSA_BITS: Final = 2048


def _dropbearkey(arguments: list[str], name: str) -> None:
    options = parse(arguments, _DROPBEARKEY_OPTIONS, name)
    if "help" in options or "h" in options:
        usage = _DROPBEARKEY_USAGE + "dropbearkey -y -f FILE"
        print(help_text(usage, _DROPBEARKEY_ABOUT, _DROPBEARKEY_OPTIONS), end="")
        return
    path, kind = options.value("f"), options.value("t")
    if options.operands:
        raise UsageError(f"too many arguments: {options.operands[0]!r}; try '{name} --help'")
    if path is None:
        raise UsageError(f"the key's file is missing: -f FILE; try '{name} --help'")
    if "y" in options:
        key = load_private(path, None)
    elif kind is None:
        raise UsageError(f"the key's type is missing: -t TYPE; try '{name} --help'")
    else:
        key_type, bits = wanted_type(kind, number(options.value("s"), "-s"))
        if key_type == RSA:
            bits = bits or _DROPBEAR_RSA_BITS
        if os.path.lexists(path):
            raise UsageError(f"{path} already exists")
        key = new_key(key_type, bits)
        write_whole(path, key_files.dump_dropbear(key))
        if "q" in options:
            return
    comment = options.value("C")
    if comment is None:
        comment = key.comment or default_comment()
    print(f"Public key portion is:\n{key.public.line(checked_comment(comment))}")
    print(f"Fingerprint: {key.public.fingerprint()}")


_CONVERT_USAGE: Final = "dropbearconvert IN_TYPE OUT_TYPE IN_FILE OUT_FILE"
_CONVERT_ABOUT: Final = """\
Copy a private key into another format. The types are openssh and dropbear; openssh includes
PEM when it is read. A key in Dropbear's format has neither passphrase nor comment."""
_CONVERT_FOOTER: Final = """\
example:
  dropbearconvert openssh dropbear ~/.ssh/id_ed25519 ~/.ssh/id_dropbear"""


def _dropbearconvert(arguments: list[str], name: str) -> None:
    options = parse(arguments, (Option("h", None, ""),), name)
    if "help" in options or "h" in options:
        print(help_text(_CONVERT_USAGE, _CONVERT_ABOUT, (), _CONVERT_FOOTER), end="")
        return
    if len(options.operands) != 4:
        raise UsageError(f"expected {_CONVERT_USAGE.partition(' ')[2]}; try '{name} --help'")
    source, target, source_path, target_path = options.operands
    for kind in (source, target):
        if kind not in ("openssh", "dropbear"):
            raise UsageError(f"the type {kind!r} is neither openssh nor dropbear")
    is_dropbear = read_file(source_path, private=True).startswith(b"\0\0\0")
    key = load_private(source_path, None)
    if is_dropbear != (source == "dropbear"):
        raise UsageError(f"{source_path}: not in the format {source}")
    data = key_files.dump_openssh(key) if target == "openssh" else key_files.dump_dropbear(key)
    write_whole(target_path, data, replace=True)
    print(f"Key is a {key.public.key_type} key\nWrote key to '{target_path}'", file=sys.stderr)


def run(arguments: list[str], name: str) -> None:
    """Runs dropbearkey or dropbearconvert; raises CulvertError and OSError."""
    (_dropbearkey if name == "dropbearkey" else _dropbearconvert)(arguments, name)
