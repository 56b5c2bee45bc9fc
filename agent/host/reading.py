"""The content of an open regular file, read with few system calls.

A buffered stream needs up to six more system calls per file, and allocates a buffer of the size
limit.
"""

import os
import sys
from typing import Final

_CHUNK: Final = 1 << 16


def read_all(fd: int, size: int, limit: int = sys.maxsize - 1) -> bytes:
    """Return the content from the current position to the end.

    A read that requests more than the known size and returns exactly that size has reached the end.
    For files in /proc and for files that grow, only an empty read marks the end. The first read is
    never small, because /proc/sys returns a number only to a first read of sufficient size.

    Args:
        fd: the open file.
        size: the size that fstat(2) returned.
        limit: reading stops after limit + 1 bytes, so that the caller notices a larger file.

    Raises:
        OSError: the file could not be read.
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
