"""Waits before a load until the kernel has released the raw data of earlier versions.

When the same bytes are loaded again, some kernels of 2026 (6.1.176, but not 6.1.192) reuse raw data
that they are about to free. The cause is that aa_replace_profiles in security/apparmor/policy.c
increments the reference count even if it is zero. A kernel with this fault logs a warning, and may
crash. While a process, or another profile from the same load, references the raw data, the kernel
does not free the data, and their reuse is safe.
"""

from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Final

from agent.backends.apparmor import compiled_policy
from agent.backends.apparmor.kernel_access import ROOT, Probes
from agent.host.filesystem import Host, HostError

RELEASE_SECONDS: Final = 0.1
"""The longest wait for the kernel in seconds. In measurements, the kernel needed 0.2 to 13 ms."""

_POLL_SECONDS: Final = 0.001


class RawDataRelease:
    """Tracks the raw data of the agent's profiles, and the raw data that the kernel may be
    freeing.
    """

    def __init__(self, host: Host, probes: Probes) -> None:
        self.host = host
        self.probes = probes
        self._generations: dict[str, str] = {}
        """Maps the name of a profile to its generation at the last observation."""

        self._replaced: set[str] = set()
        """The generations that the agent has replaced or removed since the last wait."""

    def record_observation(
        self, tracked: Collection[str], loaded: Collection[str], generations: Mapping[str, str]
    ) -> None:
        """Record the generations of all profiles that the agent tracks.

        Args:
            tracked: the names that the agent tracks.
            loaded: the tracked names that are loaded.
            generations: the known generations of the loaded names.
        """
        self._replaced |= {
            generation
            for name, generation in self._generations.items()
            if name in tracked
            and (name not in loaded or generations.get(name, generation) != generation)
        }
        self._generations = dict(generations)

    def record_removal(self, removed: str) -> None:
        """Record that the agent removed a profile with its hats and children."""
        names = [
            name
            for name in self._generations
            if name == removed or removed in compiled_policy.ancestors(name)
        ]
        self._replaced |= {self._generations.pop(name) for name in names}

    def wait(self) -> None:
        """Wait until the raw data of replaced and removed profiles are gone, or until a timeout."""
        replaced = self._replaced - set(self._generations.values())
        self._replaced = set()
        directories = [
            f"{ROOT}/policy/raw_data/{PurePosixPath(generation).parent.name}"
            for generation in replaced
        ]
        end = self.probes.clock() + RELEASE_SECONDS
        while any(map(self._exists, directories)) and self.probes.clock() < end:
            self.probes.pause(_POLL_SECONDS)

    def _exists(self, directory: str) -> bool:
        try:
            return self.host.exists(directory)
        except HostError:
            return False
