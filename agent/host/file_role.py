"""Defines the uses of files that the agent writes. The use determines how filesystem.py writes a
file.
"""

import enum


class FileRole(enum.Enum):
    """The use of a file that the agent writes."""

    PROFILE = "profile"
    """Other programs read the file."""
    RECORD = "record"
    """Only the agent reads the file, which must be intact even after a machine crash."""
    TRANSIENT = "transient"
    """No process needs the file after a machine crash, so the crash may leave any content in it."""

    @property
    def mode(self) -> int:
        """The permissions of the file."""
        return 0o644 if self is FileRole.PROFILE else 0o600

    @property
    def is_durable(self) -> bool:
        """Whether a write of the file waits until the content is on the disk."""
        return self is not FileRole.TRANSIENT
