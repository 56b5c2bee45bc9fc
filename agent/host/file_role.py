"""The use of a file that the agent writes, which decides how filesystem.py writes the file."""

import enum


class FileRole(enum.Enum):
    """The use of a file that the agent writes."""

    PROFILE = "profile"
    """Other programs read the file."""
    RECORD = "record"
    """Only the agent reads the file, even after a machine crash."""
    TRANSIENT = "transient"
    """The file is not needed after a machine crash, which can leave any content in it."""

    @property
    def mode(self) -> int:
        """The permissions of the file."""
        return 0o644 if self is FileRole.PROFILE else 0o600

    @property
    def is_durable(self) -> bool:
        """Whether a write waits until the content is on the disk."""
        return self is not FileRole.TRANSIENT
