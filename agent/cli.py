"""The command line: arguments become one value that says what to run.

Rule 1: nothing runs here and nothing is printed. Rule 2: a wrong call is told completely, with
what would be right, in one go.
"""

import argparse
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from agent import config as options
from agent.config import Config
from agent.reporting import table
from agent.sources import source_spec

EXIT_STATUSES = {
    "0": "everything desired is in place (a removal that waits for its users does not count)",
    "1": "something was rejected, is foreign, failed or is unsupported, or a source is emptied",
    "2": "usage or configuration",
    "3": "a source is missing or unreadable (what was there stays and is restored), or the API "
    "server did not do what was asked",
    "4": "another agent holds the lock",
    "70": "a bug",
    "130": "interrupted (Ctrl-C)",
}
EXAMPLES = """\
examples:
  profile-loader --oneshot --source profiles --dry-run
  profile-loader --oneshot --source dir:/etc/profiles --source manifest:more.yaml
  profile-loader --source configmap:profile-loader/node-profiles --node-name "$NODE_NAME"
  profile-loader check profiles
  profile-loader status --output json
"""
ENVIRONMENT = (
    "Each option{but} is also an environment variable (PROFILE_LOADER_STATE_DIR; lists have one "
    "value a line) and a key of the same name in the --config file. A flag wins over the "
    "environment, the environment over the file."
)
_OWN = {  # flags of one command, and whether each takes a value
    "run": {"--oneshot": False},
    "check": {"--arch": True},
    "render": {"--name": True, "--namespace": True},
}
COMMANDS = {
    "run": "install profiles (the default): as a daemon, or once with --oneshot",
    "check": "check profiles without touching the host",
    "status": "tell what is installed here, from the ledger and the kernel",
    "restore": "put back what the ledger holds, without any source",
    "render": "print ConfigMaps made from a directory",
    "unlabel": "take the agent's labels off the Node, for an uninstall",
}
_SETTINGS_OF = {
    "run": {option.name for option in options.OPTIONS},
    "status": {
        "host-root", "state-dir", "seccomp-dir", "kinds", "output", "apparmor-parser",
        "label-domain",
    },
    "restore": {
        "host-root", "state-dir", "seccomp-dir", "kinds", "output", "dry-run", "apparmor-parser",
        "parser-timeout", "seccomp-format", "log-format", "log-level", "allow-unsupported",
        "deny-name", "allow-attachments", "allow-unconfined-mode", "allow-unknown-syscalls",
    },
    "check": {
        "output", "kinds", "apparmor-parser", "parser-timeout", "seccomp-format", "seccomp-prefix",
        "deny-name", "allow-attachments", "allow-unconfined-mode", "allow-unknown-syscalls",
        "allow-unsupported",
    },
    "render": {"label-domain"},
    "unlabel": {"node-name", "kubeconfig", "label-domain"},
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Install profiles, once or again and again."""

    settings: Config
    oneshot: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Check files, directories and manifests. arch: as `uname -m` prints it, empty: this one."""

    settings: Config
    paths: tuple[str, ...]
    arch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Tell what is installed."""

    settings: Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """Put back what the ledger holds."""

    settings: Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Render:
    """Print ConfigMaps."""

    directory: str
    name: str
    namespace: str
    domain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlabel:
    """Take the labels off the Node."""

    settings: Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Print a text and end: help and version on standard output, mistakes on standard error."""

    text: str
    status: int


Parsed = Run | Check | Status | Restore | Render | Unlabel | Usage


class _UsageError(Exception):
    pass


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(message)


def parse(
    argv: Sequence[str], environ: Mapping[str, str], read_config: Callable[[str], object]
) -> Parsed:
    """Return what the arguments ask for.

    read_config returns the parsed YAML of a path; it raises OSError or ValueError.
    """
    command, rest = _command(argv)
    if command not in COMMANDS:
        near = options.near(command, COMMANDS)
        return _usage([f'there is no command "{command}".{near}'], "run")
    parser = _parser(command)
    if any(word in ("-h", "--help") for word in rest):
        return Usage(text=parser.format_help(), status=0)
    if "--version" in rest:
        from importlib import metadata

        return Usage(text=f"profile-loader {metadata.version('profile-loader')}\n", status=0)
    words, odd = _well_formed(rest, _flags(command))
    mistakes = list(odd.values())
    try:
        found, unknown = parser.parse_known_args(words)
    except _UsageError as error:
        return _usage([str(error)], command)
    mistakes += [
        options.unknown_flag(word, command, _flags(command))
        if word.startswith("-")
        else f'"{word}" is one argument too many'
        for word in unknown
        if not _is_value(word, rest, unknown)
    ]
    given = {name.replace("_", "-"): one for name, one in vars(found).items() if one is not None}
    told = frozenset(odd) | {name for name, one in given.items() if one not in ([], "")}
    file, wrong = _file(given.pop("config", environ.get(options.PREFIX + "CONFIG")), read_config)
    mistakes += wrong
    joined = options.settings(
        {name: one for name, one in given.items() if name in options.BY_NAME}, environ, file
    )
    told = told.union(file, (one.name for one in options.OPTIONS if one.variable in environ))
    mistakes += joined if not isinstance(joined, Config) else ()
    mistakes += _needed(command, told)
    if not isinstance(joined, Config):
        return _usage(mistakes, command)
    mistakes += _no_sources("--source", joined.source) if command == "run" else []
    mistakes += _no_sources("PATH", _paths(given))
    mistakes += _no_daemon(joined, given) if command == "run" else []
    mistakes += _no_names(given) if command == "render" else []
    mistakes += _no_arch(str(given["arch"])) if "arch" in given else []
    return _usage(mistakes, command) if mistakes else _parsed(command, joined, given)


def _command(argv: Sequence[str]) -> tuple[str, Sequence[str]]:
    if argv and not argv[0].startswith("-"):
        return argv[0], argv[1:]
    return "run", argv


def _flags(command: str) -> dict[str, bool]:
    """Return the flags of a command, and whether each takes a value."""
    flags = {
        f"--{one.name}": one.shape != "flag"
        for one in options.OPTIONS
        if one.name in _SETTINGS_OF[command]
    }
    own = _OWN.get(command, {})
    return flags | own | {"--config": True, "--help": False, "--version": False}


def _is_value(word: str, rest: Sequence[str], unknown: Sequence[str]) -> bool:
    """Return whether a word was meant as the value of a flag that is unknown itself."""
    before = rest[rest.index(word) - 1] if word in rest[1:] else ""
    return not word.startswith("-") and before.startswith("--") and before in unknown


def _well_formed(
    rest: Sequence[str], flags: Mapping[str, bool]
) -> tuple[list[str], dict[str, str]]:
    """Return the arguments without flags that lack a value or have one too many, and those.

    argparse ends at the first of them, and would hide every other mistake.
    """
    words: list[str] = []
    mistakes: dict[str, str] = {}
    for index, word in enumerate(rest):
        if word == "--":
            return words + list(rest[index:]), mistakes
        name, equals, _ = word.partition("=")
        after = rest[index + 1 : index + 2]
        if flags.get(name) is False and equals:
            mistakes[name[2:]] = f"{name} takes no value"
        elif flags.get(word) and (not after or after[0].startswith("-")):
            mistakes[word[2:]] = f"{word}: a value is needed"
        else:
            words.append(word)
    return words, mistakes


def _needed(command: str, given: frozenset[str]) -> list[str]:
    """Return what a command needs and was not given, as flag, in the environment or the file."""
    needs = {
        "run": {
            "at least one --source is needed, for example --source profiles": "source" in given,
        },
        "unlabel": {"--node-name is needed": "node-name" in given},
        "check": {
            "at least one PATH is needed: profile-loader check profiles": "paths" in given,
        },
        "render": {
            "a DIR is needed": "directory" in given,
            "--name is needed": "name" in given,
            "--namespace is needed": "namespace" in given,
        },
    }
    return [text for text, there in needs.get(command, {}).items() if not there]


def _paths(given: Mapping[str, object]) -> tuple[str, ...]:
    paths = given.get("paths")
    return tuple(map(str, paths)) if isinstance(paths, list) else ()


def _no_sources(where: str, texts: Sequence[str]) -> list[str]:
    """Return what is wrong with the texts of --source, or the paths to check."""
    mistakes = []
    for text in texts:
        try:
            found = source_spec.open_source(text)
        except ValueError as error:
            mistakes.append(f"{where}: {error}")
            continue
        if where == "PATH" and isinstance(found, source_spec.ConfigMapSpec):
            mistakes.append(f'{where}: "{text}" is in the API server; only files are checked')
    return mistakes


def _no_arch(arch: str) -> list[str]:
    """Return why nothing can be checked for a machine of that name."""
    from agent.backends.seccomp.canonical import MACHINES

    if arch in MACHINES:
        return []
    near = options.near(arch, MACHINES)
    return [f'--arch: "{arch}" must be one of: {", ".join(sorted(MACHINES))}.{near}']


def _no_daemon(joined: Config, given: Mapping[str, object]) -> list[str]:
    """Return which options do not go together."""
    mistakes = []
    if joined.dry_run and "oneshot" not in given:
        mistakes.append("--dry-run needs --oneshot: a daemon that changes nothing is of no use")
    if joined.https_address != "off" and not joined.tls_cert:
        mistakes.append("--https-address needs --tls-cert")
    if joined.tls_client_ca and joined.https_address == "off":
        mistakes.append("--tls-client-ca needs --https-address: --http-address answers everybody")
    elif (joined.tls_cert or joined.tls_key) and joined.https_address == "off":
        mistakes.append("--tls-cert and --tls-key need --https-address")
    if joined.pod_aware and not joined.node_name:
        mistakes.append("--pod-aware needs --node-name")
    if joined.startup_taint and not joined.node_name:
        mistakes.append("--startup-taint needs --node-name")
    return mistakes


# What an API server accepts: kubernetes, apimachinery/pkg/util/validation/validation.go,
# IsDNS1123Subdomain and IsDNS1123Label.
_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
_NAMESPACE = re.compile(rf"(?=.{{1,63}}\Z){_LABEL}")


def _no_names(given: Mapping[str, object]) -> list[str]:
    """Return which names no ConfigMap can have."""
    rules = {"name": _SUBDOMAIN, "namespace": _NAMESPACE}
    return [
        f'--{name}: "{given[name]}" must be lower-case letters, digits and "-"'
        + (", with" if name == "namespace" else ', in parts joined by ".", each with')
        + " a letter or digit at both ends"
        for name, rule in rules.items()
        if name in given and not rule.fullmatch(str(given[name]))
    ]


def _parsed(command: str, joined: Config, given: Mapping[str, object]) -> Parsed:
    match command:
        case "check":
            return Check(settings=joined, paths=_paths(given), arch=str(given.get("arch", "")))
        case "status":
            return Status(settings=joined)
        case "restore":
            return Restore(settings=joined)
        case "unlabel":
            return Unlabel(settings=joined)
        case "render":
            return Render(
                directory=str(given["directory"]),
                name=str(given["name"]),
                namespace=str(given["namespace"]),
                domain=joined.label_domain,
            )
        case _:
            return Run(settings=joined, oneshot="oneshot" in given)


def _file(
    path: object, read_config: Callable[[str], object]
) -> tuple[Mapping[str, object], list[str]]:
    if path is None:
        return {}, []
    if not path:
        return {}, ["--config: it must not be empty"]
    try:
        content = read_config(str(path))
    except OSError as error:
        return {}, [f"--config {path}: {error.strerror}"]
    except ValueError as error:
        return {}, [f"--config {path}: {' '.join(str(error).split())}"]
    content = {} if content is None else content
    if not isinstance(content, dict):
        return {}, [f"--config {path}: it must map options to values"]
    return {str(key): value for key, value in content.items()}, []


def _usage(mistakes: Sequence[str], command: str) -> Usage:
    lines = [f"profile-loader: {table.clean(one)}" for one in mistakes]
    see = f"See {_program(command)} --help."
    return Usage(text="\n".join([*lines, see]) + "\n", status=2)


def _program(command: str) -> str:
    return "profile-loader" if command == "run" else f"profile-loader {command}"


def _parser(command: str) -> argparse.ArgumentParser:
    about = {
        "run": "Install AppArmor and seccomp profiles on this node, prove that they are there, "
        "and say so.",
    }.get(command, f"{COMMANDS[command][0].upper()}{COMMANDS[command][1:]}.")
    parser = _Parser(
        prog=_program(command),
        usage={
            "run": "profile-loader [run] [--oneshot] --source SOURCE... [options]",
            "unlabel": "profile-loader unlabel --node-name NODE [options]",
            "check": "profile-loader check PATH... [options]",
            "render": "profile-loader render DIR --name NAME --namespace NAMESPACE [options]",
        }.get(command, f"profile-loader {command} [options]"),
        description=textwrap.fill(about, max(shutil.get_terminal_size((80, 24)).columns - 2, 30)),
        epilog=_epilog(command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    _positional(parser, command)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in options.OPTIONS:
        if option.name not in _SETTINGS_OF[command]:
            continue
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        _add(groups[option.group], option)
    general = parser.add_argument_group("general")
    general.add_argument("--config", metavar="FILE", help="options from a YAML file")
    general.add_argument("--version", action="store_true", default=None, help="print the version")
    general.add_argument("-h", "--help", action="store_true", default=None, help="print this")
    return parser


def _epilog(command: str) -> str:
    """Return what help says below the options, as wide as the terminal."""
    width = max(shutil.get_terminal_size((80, 24)).columns - 2, 30)
    but = f" but {', '.join(_OWN[command])}" if command in _OWN else ""
    parts = [textwrap.fill(ENVIRONMENT.format(but=but), width)]
    if command == "run":
        parts.insert(0, f"commands:\n{_listed(COMMANDS, width)}")
        parts.append(EXAMPLES.rstrip())
    parts.append(f"exit status:\n{_listed(EXIT_STATUSES, width)}")
    return "\n\n".join(parts)


def _listed(entries: Mapping[str, str], width: int) -> str:
    indent = max(map(len, entries)) + 4
    return "\n".join(
        textwrap.fill(
            text,
            width,
            initial_indent=f"  {name}".ljust(indent),
            subsequent_indent=" " * indent,
        )
        for name, text in entries.items()
    )


def _positional(parser: argparse.ArgumentParser, command: str) -> None:
    if command == "run":
        parser.add_argument(
            "--oneshot", action="store_true", default=None, help="make one pass and exit"
        )
    if command == "check":
        parser.add_argument("paths", metavar="PATH", nargs="*", help="file, directory or manifest")
        parser.add_argument(
            "--arch", metavar="ARCH", help="check for this machine (x86_64, aarch64), not this one"
        )
    if command == "render":
        parser.add_argument("directory", metavar="DIR", nargs="?", help="directory of profiles")
        parser.add_argument("--name", metavar="NAME", help="name of the ConfigMap")
        parser.add_argument("--namespace", metavar="NAMESPACE", help="its namespace")


def _add(group: argparse._ArgumentGroup, option: options.Option) -> None:
    name = f"--{option.name}"
    help_ = option.help.replace("%", "%%")
    if option.shape == "flag":
        group.add_argument(name, action="store_true", default=None, help=help_)
        return
    if option.shape != "list" and option.default:
        default = option.default
        shown = ",".join(default) if isinstance(default, tuple) else str(default)
        if isinstance(default, float):
            shown = f"{default:g}" + "s" * (option.shape == "seconds")
        help_ += f" (default: {shown})"
    metavar = option.metavar or "{" + ",".join(option.choices) + "}"
    action = "append" if option.shape == "list" else "store"
    group.add_argument(name, metavar=metavar, action=action, help=help_)
