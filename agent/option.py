"""Defines the class for the declaration of one command-line option.

agent.config declares the options that are part of the configuration, and agent.command_help
declares the options that exist only as flags. Both modules use the class in this module.
"""

from dataclasses import dataclass, field
from typing import TypeVar

from agent.config_values import VARIABLE_PREFIX, ValueType

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """The declaration of one option."""

    name: str
    """The name of the flag without "--", and the key in the configuration file."""
    value: ValueType[object]
    default: object
    help: str
    commands: tuple[str, ...]
    """The commands that accept the option."""
    group: str
    is_flag_only: bool = False
    """Whether the option can only be set with a flag."""

    @property
    def metavar(self) -> str:
        """The placeholder for the value in the help; empty if the flag takes no value."""
        return self.value.metavar

    @property
    def flag(self) -> str:
        """The flag as the help shows it, for example `-v, --verbose`."""
        short = f"-{self.value.short}, " if self.value.short else ""
        return f"{short}--{self.name} {self.metavar}".rstrip()

    @property
    def variable(self) -> str:
        """The environment variable that sets this option."""
        return VARIABLE_PREFIX + self.name.replace("-", "_").upper()

    @property
    def default_text(self) -> str:
        """The default value as a user would write it; empty if the help shows no default."""
        match self.default:
            case bool() | None:
                return ""
            case float() | int():
                return f"{self.default:g}{self.value.unit}"
            case tuple() | frozenset():
                return ", ".join(sorted(self.default))
            case _:
                return str(self.default)


def declare(
    value: ValueType[T],
    default: T,
    help_: str,
    *,
    commands: tuple[str, ...] = ("run",),
    group: str = "Profiles and directories",
) -> T:
    """Declare an option as a field of agent.config.Config."""
    declaration = {"value": value, "help": help_, "commands": commands, "group": group}
    metadata = {**declaration}
    return field(default=default, metadata=metadata)
