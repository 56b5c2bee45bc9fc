"""Parses the command line into one value that describes the command to run.

This module does not run a command or print anything. If the command line is invalid, the result
lists every error with its correction. agent.config declares the options of all commands, and
agent.command_help writes the help texts.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from agent import command_help, option_checks, version
from agent.command_help import COMMANDS, FLAG_ONLY_OPTIONS, options_of
from agent.config import OPTIONS, Config
from agent.config_loader import RawValues, read
from agent.config_values import VARIABLE_PREFIX, suggestion
from agent.core.printable import printable
from agent.option import Option


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Install profiles once, or run as a daemon."""

    config: Config
    oneshot: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Check files, directories and manifests."""

    config: Config
    paths: tuple[str, ...]
    arch: str
    """The machine name that `uname -m` prints; empty for this machine."""
    kernel: str = ""
    """The kernel version; empty for the running kernel."""
    include: tuple[str, ...] = ()
    """The directories whose files replace the include rules of AppArmor texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Convert:
    """Print a seccomp profile in the form that every runtime reads in the same way."""

    config: Config
    path: str
    arch: str
    kernel: str
    capabilities: tuple[str, ...] | None
    """The capabilities of the pods; None if the flag was not passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """Compare seccomp profiles."""

    paths: tuple[str, ...]
    """Two files, or one file if a baseline is selected."""
    baseline: str
    """The runtime whose default profile is the baseline; empty for two files."""
    fails_only_if_more_permissive: bool
    is_json: bool
    arch: str
    kernel: str
    capabilities: tuple[str, ...] | None
    """The capabilities of the pods; None if the flag was not passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Show the installed profiles."""

    config: Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """Reinstall the profiles in the ledger."""

    config: Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Render:
    """Print ConfigMaps, or one profile without include rules."""

    path: str
    name: str
    """The name of the ConfigMap; empty to print one profile."""
    namespace: str
    domain: str
    include: tuple[str, ...] = ()
    """The directories whose files replace the include rules; empty to keep the rules."""
    compared_file: str = ""
    """The file that must equal the output; empty to print the output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlabel:
    """Remove the agent's labels from the Node."""

    config: Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The text that a process prints before it exits.

    Help and version are printed to standard output, and error messages to standard error.
    """

    text: str
    status: int


Parsed = Run | Check | Convert | Diff | Status | Restore | Render | Unlabel | Usage


@dataclass(slots=True, kw_only=True)
class _Arguments:
    """The arguments of one command, split into flags and positional arguments."""

    flags: dict[str, object] = field(default_factory=dict)
    """Raw values by option name, in the form that agent.config_loader expects."""
    positional: list[str] = field(default_factory=list)
    unfinished: set[str] = field(default_factory=set)
    """The options whose flags were passed incorrectly. These options are not reported as
    missing."""
    mistakes: list[str] = field(default_factory=list)


def parse(
    argv: Sequence[str], environ: Mapping[str, str], read_config: Callable[[str], object]
) -> Parsed:
    """Return the command that the arguments select, with its validated options.

    Args:
        argv: the arguments without the name of the program.
        environ: the environment.
        read_config: returns the parsed YAML of a file, or raises OSError or ValueError.
    """
    if list(argv) in (["--help"], ["-h"]):
        return Usage(text=command_help.overview(), status=0)
    command, rest = (argv[0], argv[1:]) if argv and argv[0][:1] != "-" else ("run", argv)
    if command not in COMMANDS:
        mistake = f'there is no command "{command}".{suggestion(command, COMMANDS)}'
        return _usage([mistake], "")
    if "-h" in rest or "--help" in rest:
        return Usage(text=command_help.command_page(command), status=0)
    if "--version" in rest:
        return Usage(text=_version(), status=0)
    return _checked(command, _split(command, rest), environ, read_config)


def _version() -> str:
    return f"profile-loader {version.version()} (revision {version.revision()})\n"


def _checked(
    command: str,
    arguments: _Arguments,
    environ: Mapping[str, str],
    read_config: Callable[[str], object],
) -> Parsed:
    """Combine the arguments, the environment and the configuration file, and check all values."""
    path = arguments.flags.pop("config", environ.get(VARIABLE_PREFIX + "CONFIG"))
    file, unreadable = _config_file(path, read_config)
    raw = RawValues(flags=arguments.flags, environ=environ, file=file, file_name=str(path))
    values, wrong = read([*FLAG_ONLY_OPTIONS, *OPTIONS.values()], raw)
    mistakes = [*arguments.mistakes, *unreadable, *wrong]
    # Missing options are not reported here, because the unreadable configuration file could contain
    # them.
    if not unreadable:
        passed = {*arguments.unfinished, *arguments.flags, *file}
        passed |= {option.name for option in OPTIONS.values() if option.variable in environ}
        passed |= {COMMANDS[command].positional} if arguments.positional else set()
        needs = COMMANDS[command].needs
        mistakes += [message for name, message in needs.items() if name not in passed]
    if wrong:
        return _usage(mistakes, command)
    shared = {name.replace("-", "_"): values[name] for name in values.keys() & OPTIONS.keys()}
    config = Config(**shared)  # type: ignore[arg-type] # each value type has checked its value
    mistakes += option_checks.mistakes(command, config, values, arguments.positional)
    return _usage(mistakes, command) if mistakes else _parsed(command, config, values, arguments)


def _split(command: str, rest: Sequence[str]) -> _Arguments:
    """Split the arguments after the command into flags and positional arguments."""
    options = {f"--{option.name}": option for option in options_of(command)}
    options |= {
        f"-{option.value.short}": option for option in options_of(command) if option.value.short
    }
    declared = COMMANDS[command]
    result = _Arguments()
    words = list(rest)
    while words:
        word = words.pop(0)
        if word == "--":
            result.positional += words
            break
        name, equals, value = word.partition("=")
        if word[:1] != "-":
            result.positional.append(word)
        elif name in options:
            _read_flag(result, options[name], value if equals else None, words)
        else:
            result.mistakes.append(_unknown_flag(name, command, options))
            if not equals and words and words[0][:1] != "-" and not declared.positional:
                words.pop(0)  # The next argument is probably the value of the unknown flag.
    most = 0 if not declared.positional else len(rest) if declared.is_repeatable else 1
    result.mistakes += [f'unexpected argument "{word}"' for word in result.positional[most:]]
    return result


def _read_flag(result: _Arguments, option: Option, value: str | None, words: list[str]) -> None:
    """Record a flag. The next argument is the value, if the flag needs a value."""
    if option.value.is_flag and value is None:
        result.flags[option.name] = True
    elif option.value.is_flag:
        result.mistakes.append(f"--{option.name} takes no value. Pass --{option.name} alone.")
        result.unfinished.add(option.name)
    elif value is not None:
        _add(result, option, value)
    elif words and (words[0][:1] != "-" or re.match(r"-\d", words[0])):
        _add(result, option, words.pop(0))
    else:
        result.mistakes.append(f"--{option.name} needs a value: --{option.name} {option.metavar}")
        result.unfinished.add(option.name)


def _add(result: _Arguments, option: Option, value: str) -> None:
    """Record the value of a flag. If the flag already has a different value, record an error."""
    if option.value.is_list:
        values = result.flags.setdefault(option.name, [])
        if isinstance(values, list):
            values.append(value)
    elif result.flags.setdefault(option.name, value) != value:
        result.mistakes.append(
            f'--{option.name} has two values: "{result.flags[option.name]}" and "{value}". '
            "Pass it once."
        )


def _unknown_flag(name: str, command: str, known: Mapping[str, object]) -> str:
    owners = [
        other
        for other in COMMANDS
        if other != command and any(f"--{option.name}" == name for option in options_of(other))
    ]
    if owners:
        return f"{name} is not an option of {command}, only of {' and '.join(owners)}."
    return f"{name} is unknown.{suggestion(name, [*known, '--help', '--version'])}"


def _config_file(
    path: object, read_config: Callable[[str], object]
) -> tuple[Mapping[str, object], list[str]]:
    """Return the content of the configuration file, and the errors that prevent its use."""
    if path is None:
        return {}, []
    problem = "the file must map options to values, as in `prune: never`"
    try:
        content = read_config(str(path)) if path else None
        if path and content is None:
            return {}, []
        if isinstance(content, dict):
            return {str(key): value for key, value in content.items()}, []
    except OSError as error:
        problem = f"{error.strerror or error}. Pass the path of a readable file."
    except ValueError as error:
        problem = f"{' '.join(str(error).split())}. Correct the file."
    return {}, [f"--config {path}: {problem}" if path else "--config: the path must not be empty"]


def _parsed(
    command: str, config: Config, values: Mapping[str, object], arguments: _Arguments
) -> Parsed:
    match command:
        case "check" | "convert" | "diff":
            return _file_command(command, config, values, arguments.positional)
        case "status":
            return Status(config=config)
        case "restore":
            return Restore(config=config)
        case "unlabel":
            return Unlabel(config=config)
        case "render":
            return Render(
                path=arguments.positional[0],
                name=str(values.get("name", "")),
                namespace=str(values.get("namespace", "")),
                domain=config.label_domain,
                include=_include(values),
                compared_file=str(values.get("check", "")),
            )
        case _:
            return Run(config=config, oneshot=bool(values.get("oneshot")))


def _file_command(
    command: str, config: Config, values: Mapping[str, object], paths: Sequence[str]
) -> Check | Convert | Diff:
    arch, kernel = str(values.get("arch", "")), str(values.get("kernel", ""))
    if command == "check":
        return Check(
            config=config,
            paths=tuple(paths),
            arch=arch,
            kernel=kernel,
            include=_include(values),
        )
    caps = values.get("caps")
    capabilities = caps if isinstance(caps, tuple) else None
    if command == "convert":
        return Convert(
            config=config, path=paths[0], arch=arch, kernel=kernel, capabilities=capabilities
        )
    return Diff(
        paths=tuple(paths),
        baseline=str(values.get("baseline", "")),
        fails_only_if_more_permissive="fail-if" in values,
        is_json=values.get("format") == "json",
        arch=arch,
        kernel=kernel,
        capabilities=capabilities,
    )


def _include(values: Mapping[str, object]) -> tuple[str, ...]:
    include = values.get("include")
    return include if isinstance(include, tuple) else ()


def _usage(mistakes: Sequence[str], command: str) -> Usage:
    lines = [f"profile-loader: {printable(mistake)}" for mistake in mistakes]
    see = "See profile-loader --help." if not command else f"See profile-loader {command} --help."
    return Usage(text="\n".join([*lines, see]) + "\n", status=2)
