"""What the parser said about a text, stored under everything that it depends on.

Rule 1: the key is a digest of content, never of a name or a time. Rule 2: content is verified on
reading; what is damaged is absent. Rule 3: a cache that cannot be written costs time, nothing else.
Rule 4: editions of a text that are over leave the memory, and the disk once there is too much.
"""

import contextlib
import json
from dataclasses import dataclass

from agent.core.model import digest
from agent.doors.host import Host, HostError

_LIMIT = 64 << 20
_MOST = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What the parser did with a text: the policy, or its message, or how it was killed.

    notes: what it said beside the policy, a line each.
    """

    policy: bytes = b""
    notes: tuple[str, ...] = ()
    message: str = ""
    killed: str = ""
    times: int = 0  # how often the parser was killed by this text


class Cache:
    """Compiled policy below <state directory>/cache; with write=False it is only read."""

    def __init__(self, host: Host, state_dir: str, *, write: bool) -> None:
        self.host = host
        self.base = f"{state_dir}/cache"
        self.write = write
        self.memory: dict[str, Compiled] = {}
        self._used: set[str] = set()  # keys of memory, since the last full pass began

    def find(self, key: str) -> Compiled | None:
        """Return what is stored under key, or None if it is absent or damaged."""
        if key in self.memory:
            self._used.add(key)
            return self.memory[key]
        try:
            content = self.host.read_regular(self.base, key, limit=_LIMIT)
        except HostError:
            return None
        found = _decode(content) if content is not None else None
        if found is not None:
            self._keep(key, found)
        return found

    def store(self, key: str, compiled: Compiled) -> None:
        """Store what the parser said."""
        self._keep(key, compiled)
        if not self.write:
            return
        with contextlib.suppress(HostError):
            self._make_room()
            self.host.write_file(self.base, key, _encode(compiled), mode=0o600, durable=False)

    def forget(self) -> None:
        """Begin a full pass: what was not used since the last one began leaves the memory."""
        self.memory = {key: self.memory[key] for key in self._used}
        self._used = set()

    def _keep(self, key: str, compiled: Compiled) -> None:
        self.memory[key] = compiled
        self._used.add(key)

    def _make_room(self) -> None:
        """Drop what this process did not use of late, once there is too much of it."""
        if not self.host.exists(self.base):
            return
        names = self.host.names(self.base)
        if len(names) < _MOST:
            return
        for name in names:
            if name not in self.memory:
                self.host.remove_file(self.base, name)


def _encode(compiled: Compiled) -> bytes:
    head = {
        "message": compiled.message,
        "notes": list(compiled.notes),
        "killed": compiled.killed,
        "times": compiled.times,
    }
    rest = json.dumps(head).encode() + b"\n" + compiled.policy
    return digest(rest).encode() + b"\n" + rest


def _decode(content: bytes) -> Compiled | None:
    seal, _, rest = content.partition(b"\n")
    if seal.decode("ascii", "replace") != digest(rest):
        return None
    line, _, policy = rest.partition(b"\n")
    try:
        match json.loads(line):
            case {
                "message": str(message),
                "notes": list(notes),
                "killed": str(killed),
                "times": int(times),
            }:
                return Compiled(
                    policy=policy,
                    message=message,
                    notes=tuple(str(one) for one in notes),
                    killed=killed,
                    times=times,
                )
            case _:
                return None
    except ValueError:
        return None
