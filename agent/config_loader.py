"""Reads the values of options from flags, environment variables and the configuration file.

The caller passes the arguments, the environment and the parsed file as parameters. The module
returns every error, so that the operator can correct all errors together.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from agent.config_values import VARIABLE_PREFIX, suggestion
from agent.option import Option

# The kubelet adds these variables to each pod if the namespace has a Service called
# "profile-loader" (kubernetes, pkg/kubelet/envvars/envvars.go).
_SERVICE_LINK: Final = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_.*)?)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class RawValues:
    """The values of options as the user passed them. Flags have the highest priority."""

    flags: Mapping[str, object]
    """Maps the name of an option to its value, which is True for a flag without a value, and a list
    for an option that can be repeated."""
    environ: Mapping[str, str] = field(default_factory=dict)
    file: Mapping[str, object] = field(default_factory=dict)
    file_name: str = ""
    """The path of the configuration file, for messages."""

    def of(self, option: Option) -> Iterator[tuple[str, object]]:
        """Yield the name of each setting of an option, with the raw value, in the order of
        priority.
        """
        if option.name in self.flags:
            yield f"--{option.name}", self.flags[option.name]
        if option.is_flag_only:
            return
        if option.variable in self.environ:
            text = self.environ[option.variable]
            # An empty variable is an error, and never means an empty list. If an empty variable
            # meant an empty list, a manifest that leaves the variable blank would empty the deny
            # list.
            lines = [line for line in text.split("\n") if line] or [""]
            yield option.variable, lines if option.value.is_list else text
        if option.name in self.file:
            yield f"{self.file_name}: {option.name}", self.file[option.name]


def read(options: Iterable[Option], raw: RawValues) -> tuple[dict[str, object], list[str]]:
    """Return the value of each option that is set, by option name, and a list of all errors."""
    known = {option.name: option for option in options}
    mistakes = [*_unknown_variables(known.values(), raw), *_unknown_keys(known, raw)]
    values: dict[str, object] = {}
    for option in known.values():
        for place, value in raw.of(option):
            try:
                values[option.name] = option.value.read(value)
            except ValueError as error:
                mistakes.append(f"{place}: {error}")
            break  # The first setting has the highest priority.
    return values, mistakes


def _unknown_variables(options: Iterable[Option], raw: RawValues) -> Iterator[str]:
    by_variable = {option.variable: option for option in options}
    allowed = {name for name, option in by_variable.items() if not option.is_flag_only}
    allowed.add(VARIABLE_PREFIX + "CONFIG")
    for name in sorted(raw.environ):
        if not name.startswith(VARIABLE_PREFIX) or name in allowed or _SERVICE_LINK.search(name):
            continue
        if name in by_variable:
            yield (
                f"the environment variable {name} has no effect. Unset it, and pass the flag "
                f"--{by_variable[name].name} instead."
            )
        else:
            yield f"the environment variable {name} is unknown.{suggestion(name, allowed)}"


def _unknown_keys(options: Mapping[str, Option], raw: RawValues) -> Iterator[str]:
    allowed = {name for name, option in options.items() if not option.is_flag_only}
    for key in raw.file:
        if key not in allowed:
            if key in options:
                yield (
                    f'{raw.file_name}: "{key}" cannot be a key of this file. Remove it, and pass '
                    f"the flag --{key} instead."
                )
            else:
                hint = suggestion(key, allowed)
                yield f'{raw.file_name}: the key "{key}" is unknown.{hint}'
