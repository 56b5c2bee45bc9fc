"""Determines the target of compilation: the kernel's features, the parser and its includes.

A compiled policy is valid only for one combination of kernel features and parser inputs, the
context. The first part of a context identifies the features of the kernel; the second part
identifies the parser, its configuration and every file that a text may include.
"""

from dataclasses import dataclass

from agent.backends.apparmor import kernel_access
from agent.backends.apparmor import parser as apparmor_parser
from agent.backends.apparmor.kernel_access import KernelAccess
from agent.backends.apparmor.parser import Parser
from agent.core.model import digest
from agent.host.filesystem import HostError


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileTarget:
    """The features and the context for which a text is compiled."""

    options: tuple[str, ...]
    """The options that pass the features to the parser; empty if there are no features."""

    context: str
    """Identifies everything that a compiled policy depends on, except the text."""


class TargetReader:
    """Reads the current target of one host."""

    def __init__(
        self, access: KernelAccess, parser: Parser, *, checks_only: bool, features_file: str
    ) -> None:
        """Create a reader.

        Args:
            access: the access to the kernel.
            parser: the parser.
            checks_only: whether to compile for a features file instead of this kernel.
            features_file: the features file; empty for the newest file in the include directory.
        """
        self.access = access
        self.parser = parser
        self.checks_only = checks_only
        self._features_file = features_file
        self._kernel_features: bytes | None = None

    @property
    def features_file(self) -> str:
        """The features file to compile for if texts are not compiled for this kernel; empty if
        there is no such file.
        """
        return self._features_file or self.parser.newest_features_file()

    def unsupported_reason(self) -> str:
        """Return why texts cannot be compiled for this kernel; empty if they can."""
        return "" if self.checks_only else self.access.unsupported_reason()

    def read(self) -> CompileTarget:
        """Return the current target.

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
            if self._kernel_features is None:  # the features cannot change while the kernel runs
                self._kernel_features = self.access.features()
            features = self._kernel_features
        context = f"{_features_digest(features)}:{inputs}"
        return CompileTarget(options=("--kernel-features", file), context=context)

    def accepts(self, context: str) -> bool:
        """Return whether a policy from a context was compiled for the features of this kernel.

        The parser and the includes may have changed since the compilation, or may be missing. A
        policy that was installed and verified remains the last good version.
        """
        if self.access.unsupported_reason():
            return False
        try:
            return context.partition(":")[0] == _features_digest(self.access.features())
        except HostError:
            return False


def _features_digest(features: bytes) -> str:
    return digest(b"features\0" + features)
