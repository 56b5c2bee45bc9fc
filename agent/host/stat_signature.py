"""Computes stat signatures, which change whenever the content of a file changes.

Each write changes the ctime, and each replacement changes the inode (inode(7)). After a write
through a memory mapping, however, the times may change later than the content. Two writes within
one clock tick of a file system can have the same times. Therefore, an unchanged signature proves
unchanged content only if the file was not written shortly before it was read (git, racy-git.txt).
"""

import os
from typing import Final

# A signature consists of the device, the inode, the size, and the mtime and ctime in nanoseconds.
Signature = tuple[int, int, int, int, int]

# The clock for file times ticks at least every 10 ms (CONFIG_HZ=100) on a local file system. The
# file system with the coarsest clock is FAT, whose mtime has a resolution of 2 s.
SETTLE_NS: Final = 2_500_000_000


def of(status: os.stat_result) -> Signature:
    """Return the signature of a file."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def modified_ns(signature: Signature) -> int:
    """Return the modification time in Unix nanoseconds."""
    return signature[3]


def is_settled(signature: Signature, read_ns: int) -> bool:
    """Return whether every write after the read changes the signature.

    Args:
        signature: the signature of the file before and after it was read.
        read_ns: the time of the read in Unix nanoseconds.
    """
    return read_ns - signature[-1] > SETTLE_NS
