"""What stands for a file's content, so that it need not be read again.

Rule 1: any write changes the ctime, any replacement the inode (inode(7)); only a write through a
mapping of memory may be told late. Rule 2: a write so soon after another may have the same times,
so a signature answers for later only if the file was old when it was read (git: racy-git.txt).
"""

import os
from typing import Final

Signature = tuple[int, int, int, int, int]  # device, inode, size, mtime and ctime in nanoseconds

# File times come from a clock that ticks every 10 ms at the slowest (CONFIG_HZ=100), on file
# systems of other machines every 2 s (FAT's mtime).
OLD_NS: Final = 2_500_000_000


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
    """Return the modification time, in Unix nanoseconds."""
    return signature[3]


def lasting(signature: Signature, read_ns: int) -> bool:
    """Return whether any later write shows; read_ns: when it was read, in Unix nanoseconds."""
    return read_ns - signature[-1] > OLD_NS
