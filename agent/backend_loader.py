"""Finds the backend of each profile kind by the name of the kind.

Only this module imports the factories of backends. A factory is imported when it is needed, because
an unused backend would use memory on every node.
"""

import importlib
from typing import Protocol

from agent.backends.parts import BackendContext, BackendParts, CheckerParts, CheckTarget
from agent.config import Config
from agent.core.model import ProfileKind


class BackendFactory(Protocol):
    """The module `factory` of a backend package."""

    def build(self, config: Config, context: BackendContext) -> BackendParts:
        """Build the parts of the backend."""

    def build_checker(self, config: Config, target: CheckTarget) -> CheckerParts:
        """Build the parts of the checker."""


def factory(kind: ProfileKind) -> BackendFactory:
    """Return the factory of a profile kind, which is the module agent.backends.KIND.factory."""
    module: BackendFactory = importlib.import_module(f"agent.backends.{kind}.factory")
    return module
