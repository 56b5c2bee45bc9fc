"""Controls the access to the state directory with a lock and a check of the directory's owner.

Only one agent may change a node, so each command that changes the node holds the lock. agent.host
implements the lock itself, and agent.host.ledger the files in the directory.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final

from agent import app, streams
from agent.config import Config
from agent.host.filesystem import HostError

_NO_PERMISSION: Final = (errno.EACCES, errno.EPERM)
_NOT_WRITABLE: Final = (*_NO_PERMISSION, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def require_access(config: Config) -> None:
    """Require that the state directory belongs to the user of this process, or does not exist.

    A process that runs as root can use every state directory.

    Raises:
        agent.app.StartupError: another user owns the state directory.
    """
    user = os.geteuid()
    if user == 0:
        return
    try:
        owner = app.host(config).path(config.state_dir).stat().st_uid
    except FileNotFoundError:
        return
    except OSError:
        owner = 0
    if owner != user:
        raise _not_permitted(config)


@contextlib.contextmanager
def lock(config: Config) -> Iterator[bool]:
    """Yield whether this process is allowed to write to the state directory.

    Raises:
        agent.app.StartupError: the lock file cannot be opened.
    """
    place = _place(config)
    with contextlib.ExitStack() as stack:
        is_locked = True
        try:
            is_locked = stack.enter_context(app.host(config).lock(config.state_dir, "lock"))
        except HostError as error:
            if error.errno in _NO_PERMISSION and os.geteuid() != 0:
                raise _not_permitted(config) from error
            if error.errno not in _NOT_WRITABLE:
                raise app.StartupError(
                    f"The lock in {place} cannot be opened: {error}. Remove the file at this path, "
                    "or pass another --state-dir"
                ) from error
            # Without this permission, each later installation fails with a finding of its own.
            streams.warn(
                [f"{place} cannot be locked: {error}. The command continues without a lock"]
            )
        if not is_locked:
            holder = f"another agent is running on {place} and holds its lock"
            streams.warn(
                [f"{holder}. Nothing was changed. Wait for its end, or pass another --state-dir."]
            )
        for directory in app.ledger(config).make_private() if is_locked else ():
            streams.warn([f"other users could write to {directory}; the agent changed its mode"])
        yield is_locked


def _not_permitted(config: Config) -> app.StartupError:
    return app.StartupError(
        f"The user with ID {os.geteuid()} cannot use the state directory {_place(config)}, which "
        "belongs to another user. Nothing was changed. Run the command as root, for example with "
        "sudo, or pass another --state-dir"
    )


def _place(config: Config) -> str:
    if config.host_root == "/":
        return config.state_dir
    return f"{config.state_dir} in {config.host_root}"
