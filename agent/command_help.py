"""The declaration of every command, and the help texts of the command line.

agent.cli parses the arguments; agent.config declares the options that are part of the
configuration. docs/reference.md is generated from the same declarations.
"""

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from agent.config import OPTIONS
from agent.config_values import (
    CAPABILITIES,
    DIRECTORIES,
    FLAG,
    KERNEL,
    MACHINE,
    NAMESPACE,
    SUBDOMAIN,
    TEXT,
    ValueType,
    choice,
)
from agent.option import Option

DESCRIPTION: Final = (
    "Install AppArmor and seccomp profiles on this node, verify them, and report the result."
)
ENVIRONMENT: Final = (
    "An option can also be set by an environment variable, such as PROFILE_LOADER_STATE_DIR, or by "
    "a key of the same name in the file of --config. A flag overrides a variable, and a variable "
    "overrides the file. A variable for an option that can be repeated has one value per line."
)
# On a terminal with fewer columns, each explanation begins on the line below its term.
_NARROW: Final = 70
_TERM_COLUMNS: Final = 24
_OVERVIEW_EXAMPLES: Final = ("run", "check", "status")  # The screen has no room for more examples.
_COMMON_STATUSES: Final = {
    2: "The command line, the environment or the configuration file contains an error. Nothing "
    "was changed.",
    70: "The agent has a bug. The message explains how to report the bug.",
    130: "The process was interrupted, for example with Ctrl-C.",
}
_PENDING_CHANGES: Final = {
    5: "With --dry-run and --detailed-exitcode: changes are pending, and no other status applies."
}
_LOCKED: Final = {4: "Another agent holds the lock. Nothing was changed. A dry run needs no lock."}
_SECCOMP_COMMANDS: Final = ("check", "convert", "diff")


def _own_option(name: str, value: ValueType[object], help_: str, *commands: str) -> Option:
    """Declare an option that exists only as a flag."""
    return Option(
        name=name,
        value=value,
        default=None,
        help=help_,
        commands=commands,
        group="Command",
        is_flag_only=True,
    )


_CAPS: Final = _own_option(
    "caps",
    CAPABILITIES,
    "The capabilities of the pods that use the profile. Rules for other capabilities are omitted.",
    "convert",
    "diff",
)
_ARCH: Final = _own_option(
    "arch",
    MACHINE,
    "The machine to check for, as `uname -m` prints it.",
    *_SECCOMP_COMMANDS,
)
_KERNEL: Final = _own_option(
    "kernel",
    KERNEL,
    "The Linux version for which conditions on the kernel are resolved, such as 6.1.",
    *_SECCOMP_COMMANDS,
)
_INCLUDE: Final = _own_option(
    "include",
    DIRECTORIES,
    "A directory such as /etc/apparmor.d, whose files replace the include rules of AppArmor "
    "profiles. If the option is repeated, the first directory with a file is used.",
    "check",
    "render",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """The declaration of one command."""

    summary: str
    usage: str
    """The arguments that the usage line shows."""
    examples: tuple[str, ...]
    statuses: Mapping[int, str]
    """The meaning of each exit status that the command can have."""
    positional: str = ""
    """The placeholder of the positional arguments; empty for a command without them."""
    is_repeatable: bool = False
    """Whether the command accepts more than one positional argument."""
    options: tuple[Option, ...] = ()
    """The options that only this command has. These options exist only as flags."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """The message about each required option or positional argument that is missing."""


COMMANDS: Final[Mapping[str, Command]] = {
    "run": Command(
        summary="Install profiles as a daemon (the default), or once with --oneshot.",
        usage="[--oneshot] --source SOURCE... [options]",
        examples=(
            "profile-loader --oneshot --source profiles --dry-run",
            "profile-loader --oneshot --source dir:/etc/profiles --source manifest:more.yaml",
            'profile-loader --source configmaps:profile-loader --node-name "$NODE_NAME"',
        ),
        statuses={
            0: "Every profile from the sources is installed and verified. A profile that is kept "
            "until its processes end does not count.",
            1: "A profile was rejected, is foreign, could not be installed or is not supported, "
            "or a source no longer provides profiles.",
            3: "A source is missing or cannot be read, or the API server did not carry out a "
            "request. Installed profiles stay.",
            **_LOCKED,
            **_PENDING_CHANGES,
        },
        options=(_own_option("oneshot", FLAG, "Run one pass and exit.", "run"),),
        needs={"source": "at least one --source is required, for example --source profiles"},
    ),
    "check": Command(
        summary="Check profiles without changing the node.",
        usage="PATH... [options]",
        examples=(
            "profile-loader check profiles",
            "profile-loader check --kinds seccomp --arch aarch64 audit.json",
            "profile-loader check configmap.yaml --output json",
            "profile-loader check web.profile --include /etc/apparmor.d",
        ),
        statuses={
            0: "Every profile is accepted.",
            1: "A profile was rejected, or no profile was found.",
            3: "A path is missing or cannot be read.",
        },
        positional="PATH",
        is_repeatable=True,
        options=(_INCLUDE, _ARCH, _KERNEL),
        needs={"PATH": "at least one PATH is required: profile-loader check profiles"},
    ),
    "convert": Command(
        summary="Print a seccomp profile in the form that every runtime reads in the same way.",
        usage="FILE [--caps CAP_A,CAP_B] [options]",
        examples=(
            "profile-loader convert docker-default.json --caps CAP_CHOWN,CAP_SETUID > web.json",
            "profile-loader convert seccompprofile.yaml > web.json",
            "profile-loader convert config.json --arch aarch64 --kernel 6.1 > web.json",
        ),
        statuses={
            0: "The profile was printed to standard output, and the changes to standard error.",
            1: "The file contains no profile that can be converted.",
            3: "The file is missing or cannot be read.",
        },
        positional="FILE",
        options=(_CAPS, _ARCH, _KERNEL),
        needs={"FILE": "a FILE is required: profile-loader convert profile.json"},
    ),
    "diff": Command(
        summary="Show the system calls that two seccomp profiles handle differently.",
        usage="A B [options], or --baseline RUNTIME FILE [options]",
        examples=(
            "profile-loader diff old.json new.json --fail-if more-permissive",
            "profile-loader diff --baseline runtime-default web.json",
            "profile-loader diff --baseline containerd web.json --format json",
        ),
        statuses={
            0: "The profiles have the same meaning; with --fail-if, the second profile is not "
            "more permissive.",
            1: "The profiles differ; with --fail-if, the second profile is more permissive. The "
            "status is also 1 if a file contains no profile.",
            3: "A file is missing or cannot be read.",
        },
        positional="FILE",
        is_repeatable=True,
        options=(
            _own_option(
                "baseline",
                choice("runtime-default", "containerd", "cri-o"),
                "Compare with the default profile of containerd, of CRI-O, or of both.",
                "diff",
            ),
            _own_option(
                "fail-if",
                choice("more-permissive"),
                "Exit with status 1 only if the second profile allows more.",
                "diff",
            ),
            _own_option("format", choice("table", "json"), "The output format.", "diff"),
            _CAPS,
            _ARCH,
            _KERNEL,
        ),
    ),
    "status": Command(
        summary="Show the profiles that are installed on this node or were rejected.",
        usage="[options]",
        examples=("profile-loader status", "profile-loader status --output json"),
        statuses={
            0: "Every profile in the ledger is installed and unchanged, and none was rejected.",
            1: "A profile is missing, was changed, rejected or not installed, or the node or the "
            "ledger cannot be read.",
        },
    ),
    "restore": Command(
        summary="Reinstall the profiles in the ledger, without reading any source.",
        usage="[options]",
        examples=("profile-loader restore", "profile-loader restore --dry-run"),
        statuses={
            0: "Every profile in the ledger is installed and verified.",
            1: "A profile could not be installed, or the node or the ledger cannot be read.",
            **_LOCKED,
            **_PENDING_CHANGES,
        },
    ),
    "render": Command(
        summary="Print ConfigMaps with profiles, or a profile without includes.",
        usage="PATH --name NAME --namespace NAMESPACE [options], or FILE --inline --include DIR",
        examples=(
            "profile-loader render profiles --name web --namespace web | kubectl apply -f -",
            "profile-loader render web.profile --inline --include /etc/apparmor.d > new.profile",
            "profile-loader render profiles --name web --namespace web --check web.yaml",
        ),
        statuses={
            0: "Every profile is part of the output, and the file of --check equals the output.",
            1: "A file cannot be rendered, no profile was found, or the file of --check differs.",
            3: "The directory or a file is missing or cannot be read.",
        },
        positional="PATH",
        options=(
            _own_option("name", SUBDOMAIN, "The name of the ConfigMap.", "render"),
            _own_option("namespace", NAMESPACE, "The namespace of the ConfigMap.", "render"),
            _own_option(
                "inline",
                FLAG,
                "Replace the include rules of AppArmor profiles with the text of the included "
                "files. Without --name, PATH is a file, and the output is its text.",
                "render",
            ),
            _INCLUDE,
            _own_option(
                "check",
                TEXT.named("FILE"),
                "Compare FILE with the output, and print the differences instead of the output.",
                "render",
            ),
        ),
        needs={"PATH": "a PATH is required: the directory with the profiles"},
    ),
    "unlabel": Command(
        summary="Remove the agent's labels from the Node, before an uninstall.",
        usage="--node-name NODE [options]",
        examples=('profile-loader unlabel --node-name "$NODE_NAME"',),
        statuses={
            0: "The Node has no labels from the agent.",
            3: "The API server did not carry out the request.",
        },
        needs={"node-name": "--node-name is required: the name of the Node object"},
    ),
}
CONFIG: Final = Option(
    name="config",
    value=TEXT.named("FILE"),
    default=None,
    help="A YAML file with options.",
    commands=tuple(COMMANDS),
    group="General",
    is_flag_only=True,
)
FLAG_ONLY_OPTIONS: Final = list(
    {option.name: option for command in COMMANDS.values() for option in command.options}.values()
)


def options_of(command: str) -> list[Option]:
    """Return the options of a command, in the order of its help."""
    shared = [option for option in OPTIONS.values() if command in option.commands]
    return [*COMMANDS[command].options, *shared, CONFIG]


def statuses_of(command: str) -> dict[int, str]:
    """Return the exit statuses that a command can have, with their meanings."""
    return dict(sorted({**_COMMON_STATUSES, **COMMANDS[command].statuses}.items()))


def overview() -> str:
    """Return the help of the program, which lists its commands."""
    summaries = {name: command.summary for name, command in COMMANDS.items()}
    examples = [COMMANDS[name].examples[0] for name in _OVERVIEW_EXAMPLES]
    return _page(
        "Usage: profile-loader COMMAND [options]",
        _paragraph(DESCRIPTION),
        _section("Commands", summaries),
        _examples(examples),
        _paragraph("Options and exit statuses of a command: profile-loader run --help"),
    )


def command_page(command: str) -> str:
    """Return the help of one command."""
    declared = COMMANDS[command]
    groups: dict[str, dict[str, str]] = {}
    for option in options_of(command):
        groups.setdefault(option.group, {})[option.flag] = _explanation(option)
    groups["General"] |= {
        "--version": "Print the version and the revision.",
        "-h, --help": "Print this help.",
    }
    statuses = {str(status): text for status, text in statuses_of(command).items()}
    return _page(
        _paragraph(f"Usage: profile-loader {command} {declared.usage}", indent="    "),
        _paragraph(declared.summary),
        _examples(declared.examples),
        *(_section(heading, entries) for heading, entries in groups.items()),
        _paragraph(ENVIRONMENT),
        _section("Exit status", statuses),
    )


def _explanation(option: Option) -> str:
    default = f" Default: {option.default_text}" if option.default_text else ""
    return option.help + default


def _width() -> int:
    return max(shutil.get_terminal_size((80, 24)).columns - 2, 30)


def _page(*parts: str) -> str:
    return "\n\n".join(parts) + "\n"


def _paragraph(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text,
        _width(),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _examples(lines: Iterable[str]) -> str:
    return "\n".join(["Examples:", *(_example(line) for line in lines)])


def _example(command: str) -> str:
    """Return an example that fits the terminal and can still be copied into a shell."""
    # The last column is reserved for the backslash.
    parts = textwrap.wrap(
        command,
        _width() - 2,
        initial_indent="  ",
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return " \\\n".join(parts)


def _section(heading: str, entries: Mapping[str, str]) -> str:
    """Return a heading and a list of terms with their explanations."""
    width = _width()
    longest = max(map(len, entries))
    column = min(longest, _TERM_COLUMNS) + 4 if width >= _NARROW - 2 else 6
    return "\n".join([f"{heading}:", *_entries(entries, column, width)])


def _entries(entries: Mapping[str, str], column: int, width: int) -> Sequence[str]:
    lines: list[str] = []
    for term, explanation in entries.items():
        term_line = f"  {term}"
        if len(term_line) + 2 > column:
            lines.append(term_line)
            term_line = ""
        lines.append(
            textwrap.fill(
                explanation,
                width,
                initial_indent=term_line.ljust(column),
                subsequent_indent=" " * column,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    return lines
