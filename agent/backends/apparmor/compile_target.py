"""Determines the compile target of profile texts: the kernel's features, the parser and its include
files.

A compiled policy is valid only for one combination of kernel features and parser inputs, which is
called the context. The first part of a context identifies the features of the kernel; the second
part identifies the parser, its configuration and every file that a profile text may include.
"""

from dataclasses import dataclass

from agent.backends.apparmor import kernel_access, network_addresses
from agent.backends.apparmor import parser as apparmor_parser
from agent.backends.apparmor.kernel_access import KernelAccess
from agent.backends.apparmor.parser import Parser
from agent.core.model import digest
from agent.host.filesystem import HostError


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileTarget:
    """The features and the context for which a profile text is compiled."""

    options: tuple[str, ...]
    """The options that pass the features to the parser; empty if there are no features."""

    context: str
    """Identifies everything that a compiled policy depends on, except the text."""

    mediates_addresses: bool = False
    """Whether network rules can have addresses and ports."""


class TargetReader:
    """Reads the current compile target of a host."""

    def __init__(self, access: KernelAccess, parser: Parser, *, checks_only: bool) -> None:
        """Create a reader for one host.

        Args:
            access: gives access to the kernel.
            parser: the parser that compiles texts.
            checks_only: whether to compile for a features file instead of this kernel.
        """
        self.access = access
        self.parser = parser
        self.checks_only = checks_only
        self._kernel_features: bytes | None = None

    @property
    def features_file(self) -> str:
        """The features file that replaces the features of this kernel, or "" if there is no such
        file.
        """
        return self.parser.newest_features_file()

    def unsupported_reason(self) -> str:
        """Return the reason why profile texts cannot be compiled for this kernel, or "" if they can
        be.
        """
        return "" if self.checks_only else self.access.unsupported_reason()

    def read(self) -> CompileTarget:
        """Return the current compile target.

        Raises:
            HostError: the features of the kernel cannot be read.
            ParserError: an input of the parser cannot be read.
        """
        inputs = digest(self.parser.input_digest().encode())
        if self.checks_only or self.access.unsupported_reason():
            file = self.features_file
            if not file:
                return CompileTarget(options=(), context="")
            features = apparmor_parser.file_content(file)
        else:
            file = str(self.access.host.path(f"{kernel_access.ROOT}/features"))
            # The features are read only once, because they cannot change while the kernel runs.
            if self._kernel_features is None:
                self._kernel_features = self.access.features()
            features = self._kernel_features
        context = f"{_features_digest(features)}:{inputs}"
        return CompileTarget(
            options=("--kernel-features", file),
            context=context,
            mediates_addresses=network_addresses.are_mediated(features),
        )

    def accepts(self, context: str) -> bool:
        """Return whether a policy with this context was compiled for the features of this kernel.

        The result does not depend on the parser and its include files, which may have changed or
        may be missing. A policy that was installed and verified stays the last good version even
        after a change of these files.
        """
        if self.access.unsupported_reason():
            return False
        try:
            return context.partition(":")[0] == _features_digest(self.access.features())
        except HostError:
            return False


def _features_digest(features: bytes) -> str:
    return digest(b"features\0" + features)
