"""The content of an open regular file, in as few system calls as can be.

A buffered stream asks up to six more of the kernel for each file, and maps as much memory as the
file might at most be long.
"""

import os
import sys

_CHUNK = 1 << 16


def whole(fd: int, size: int, limit: int = sys.maxsize - 1) -> bytes:
    """Return the content from here to the end; of more than limit bytes limit + 1.

    size: what fstat(2) says. A read that was asked for more and gave exactly that much met the end;
    of any other file (in /proc, or growing) the end is where a read gives nothing. Numbers in
    /proc/sys are given to the first read alone, so that one is never small. Raises OSError.
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
