"""ChrootDirectory of sshd_config(5): the only directory that the programs of a session reach.

It and everything above it must belong to root, and nobody else may write there; otherwise a user
could put a file in there that a program with root's rights trusts.

As with sshd, it covers all programs of the session, ~/.ssh/rc included, and what is read before
stays outside: authorized_keys, the message of the day. sshd makes the sockets of forwards inside,
too. Here the monitor makes them, which is not in the directory: so forwards of Unix sockets and of
the agent, whose paths would mean other files, are refused, and X11, whose cookie would have to be
removed in there. TCP forwards are not concerned.
"""

import os
import pwd
import stat


class Unsafe(Exception):
    """A directory that is not fit for this; the text says which and why."""


def directory(template: str, user: pwd.struct_passwd) -> str:
    """Returns the directory of a user, '' for none; %h, %u, %U and %% stand in ``template``.

    Raises Unsafe.
    """
    if not template:
        return ""
    if "/" in user.pw_name or user.pw_name.startswith("."):
        raise Unsafe(f"user {user.pw_name} cannot be part of a path")
    tokens = {"h": user.pw_dir, "u": user.pw_name, "U": str(user.pw_uid)}
    parts = template.split("%")
    path = parts.pop(0)
    while parts:
        part = parts.pop(0)
        if not part:  # '%%'; the configuration has no other token and no % at its end
            path += "%" + parts.pop(0)
        else:
            path += tokens[part[0]] + part[1:]
    if not path.startswith("/"):
        raise Unsafe(f"chroot_directory {path} is not an absolute path")
    _check(path)
    return path


def _check(path: str) -> None:
    """Raises Unsafe unless every part of the path belongs to root alone."""
    if os.geteuid():
        raise Unsafe("chroot_directory needs a server that runs as root")
    part = "/"
    for name in ("", *filter(None, path.split("/"))):
        part = os.path.join(part, name)
        try:
            status = os.stat(part)
        except OSError as error:
            raise Unsafe(f"chroot_directory: {part}: {error.strerror}") from error
        if not stat.S_ISDIR(status.st_mode):
            raise Unsafe(f"chroot_directory: {part} is not a directory")
        if status.st_uid or status.st_mode & 0o022:
            raise Unsafe(
                f"chroot_directory: {part} must belong to root, and others may not write there"
            )
