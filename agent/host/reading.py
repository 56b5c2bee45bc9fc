"""Reads the content of an open regular file with few system calls.

A buffered stream would need up to six more system calls for each file, and a buffer as large as the
limit.
"""

import os
import sys
from typing import Final

_CHUNK: Final = 1 << 16


def read_all(fd: int, size: int, limit: int = sys.maxsize - 1) -> bytes:
    """Return the content from the current position to the end.

    A read has reached the end if it requests more than the known size and returns exactly that
    size. In /proc and in growing files, only an empty read marks the end of the file. The first
    read has a minimum size, because /proc/sys returns a number only if the first read is large
    enough.

    Args:
        fd: the open file.
        size: the file size that fstat(2) returned.
        limit: the largest allowed size; at most limit + 1 bytes are read, so that the caller
            notices a larger file.

    Raises:
        OSError: the file cannot be read.
    """
    content = os.read(fd, min(size or _CHUNK, limit) + 1)
    if len(content) == size:
        return content
    parts = [content]
    length = len(content)
    while content and length <= limit:
        content = os.read(fd, min(_CHUNK, limit + 1 - length))
        parts.append(content)
        length += len(content)
    return b"".join(parts)
