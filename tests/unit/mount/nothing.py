"""A file system with an empty root, for tests of mounting."""

import contextlib
import errno
import os
import select
import stat
import threading

from appliance.wire import fuse


class Nothing:
    """Answers the kernel in a thread until the file system is unmounted."""

    def __init__(self, fd: int) -> None:
        self._fd = os.dup(fd)  # the caller closes theirs when they unmount
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()
        os.close(self._fd)

    def _serve(self) -> None:
        buffer = bytearray((1 << 20) + 4096)
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while True:
            poll.poll()
            try:
                count = os.readv(self._fd, [buffer])
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    return
                continue
            asked = fuse.parse(memoryview(buffer)[:count])
            with contextlib.suppress(FileNotFoundError):
                self._answer(asked)

    def _answer(self, asked: fuse.Request) -> None:
        when = (0, 0)
        root = fuse.Attributes(1, 0, 0, when, when, when, stat.S_IFDIR | 0o755, 2, 0, 0)
        if asked.opcode == fuse.INIT:
            structure, _ = fuse.negotiate(asked, 0, 1 << 17)
        elif asked.opcode == fuse.GETATTR:
            structure = fuse.attributes_reply(60, root.encode())
        elif asked.opcode == fuse.OPENDIR:
            structure = fuse.opened(1, 0)
        elif asked.opcode in (fuse.READDIR, fuse.RELEASEDIR):
            structure = b""
        elif asked.opcode in (fuse.FORGET, fuse.BATCH_FORGET, fuse.INTERRUPT):
            return
        else:
            os.write(self._fd, fuse.failure(asked.unique, errno.ENOENT))
            return
        os.writev(self._fd, fuse.reply(asked.unique, structure))
