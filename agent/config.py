"""Every option, in one table, and the one frozen object it becomes.

Rule 1: pure: argv, environment and file text come in as arguments. Rule 2: a flag wins over the
environment, the environment over the file, the file over the default. Rule 3: unknown is a
mistake, with a suggestion; all mistakes are told at once.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from agent.backends.apparmor.validation import DENY_NAMES
from agent.core.labels import DOMAIN, MOST

PREFIX: Final = "PROFILE_LOADER_"
Shape = Literal[
    "flag",
    "text",
    "list",
    "choice",
    "choices",
    "seconds",
    "path",
    "prefix",
    "count",
    "name",
    "key",
    "address",
]
Value = bool | str | float | tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: its name with dashes, how its text is read, its default and its help."""

    name: str
    shape: Shape
    default: Value
    help: str
    metavar: str = ""
    choices: tuple[str, ...] = ()
    most: int = 999_999  # of a count
    group: str = "what is put where"

    @property
    def field(self) -> str:
        """Return the option's name in Settings."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """Return the option's environment variable."""
        return PREFIX + self.field.upper()


def _option(name: str, shape: Shape, default: Value, help_: str, **more: object) -> Option:
    return Option(name=name, shape=shape, default=default, help=help_, **more)  # type: ignore[arg-type] # the table below


_CLUSTER = "in a cluster"
_DAEMON = "as a daemon (without --oneshot)"
_REFUSE = "what is refused"
_TELL = "what is told"
OPTIONS: Final = (
    _option(
        "source",
        "list",
        (),
        "where profiles come from: configmap:NAMESPACE/NAME, configmaps:NAMESPACE?SELECTOR, "
        "dir:PATH, manifest:FILE (ConfigMaps in YAML), or a bare path; repeatable",
        metavar="SOURCE",
    ),
    _option(
        "host-root",
        "path",
        "/",
        "directory below which every host path lies: state, seccomp, securityfs, proc",
        metavar="DIR",
    ),
    _option(
        "state-dir",
        "path",
        "/var/lib/profile-loader",
        "where the agent remembers what it put",
        metavar="DIR",
    ),
    _option(
        "seccomp-dir",
        "path",
        "/var/lib/kubelet/seccomp",
        "the kubelet's seccomp directory: <its --root-dir>/seccomp",
        metavar="DIR",
    ),
    _option(
        "seccomp-prefix",
        "prefix",
        "",
        "put before the path of every seccomp profile, for example team-a/",
        metavar="PREFIX",
    ),
    _option(
        "kinds",
        "choices",
        ("apparmor", "seccomp"),
        "kinds of profiles to handle, separated by commas",
        metavar="KINDS",
        choices=("apparmor", "seccomp"),
    ),
    _option(
        "prune",
        "choice",
        "unused",
        "remove what is no longer desired: unused (proven that nobody uses it), always (seccomp "
        "files without that proof; AppArmor as unused), never",
        choices=("unused", "always", "never"),
    ),
    _option(
        "take-over",
        "list",
        (),
        "name of a profile on the node that may be replaced although somebody else put it there; "
        "repeatable",
        metavar="NAME",
    ),
    _option("dry-run", "flag", False, "print what would be done; change nothing"),
    _option(
        "node-name",
        "name",
        "",
        "name of this machine's Node; with it the Node is labelled, and Events are made",
        metavar="NODE",
        group=_CLUSTER,
    ),
    _option(
        "kubeconfig",
        "text",
        "",
        "how to reach the API server (default: as the pod's service account)",
        metavar="FILE",
        group=_CLUSTER,
    ),
    _option(
        "label-domain",
        "name",
        DOMAIN,
        "domain of the Node's labels and of the ConfigMaps' annotations",
        metavar="DOMAIN",
        group=_CLUSTER,
    ),
    _option(
        "label-digest",
        "flag",
        False,
        "label the first 12 hex digits of each profile's digest too; a workload pinned to one "
        "cannot be scheduled after the next update",
        group=_CLUSTER,
    ),
    _option(
        "label-limit",
        "count",
        200.0,
        f"most labels on the Node, at most {MOST} (the cost limit of the admission policy)",
        metavar="NUMBER",
        most=MOST,
        group=_CLUSTER,
    ),
    _option(
        "startup-taint",
        "key",
        "",
        "taint to take off the Node once every accepted profile is in place",
        metavar="KEY",
        group=_CLUSTER,
    ),
    _option(
        "pod-aware",
        "flag",
        False,
        "a profile is in use, too, while a pod of this Node names it; with that seccomp files that "
        "no pod names are removed (needs the right to list and watch pods)",
        group=_CLUSTER,
    ),
    _option(
        "resync",
        "seconds",
        300.0,
        "longest time between two complete looks, somewhat shortened at random",
        metavar="TIME",
        group=_DAEMON,
    ),
    _option(
        "removal-grace",
        "seconds",
        60.0,
        "how long a removal waits after the label is off the Node",
        metavar="TIME",
        group=_DAEMON,
    ),
    _option(
        "http-address",
        "address",
        ":9808",
        "where /metrics, /healthz, /readyz and the status page are served; off: nowhere",
        metavar="HOST:PORT",
        group=_DAEMON,
    ),
    _option(
        "https-address",
        "address",
        "off",
        "the same over TLS, with --tls-cert",
        metavar="HOST:PORT",
        group=_DAEMON,
    ),
    _option(
        "tls-cert",
        "text",
        "",
        "certificate chain for --https-address",
        metavar="FILE",
        group=_DAEMON,
    ),
    _option(
        "tls-key", "text", "", "key of --tls-cert, if not in it", metavar="FILE", group=_DAEMON
    ),
    _option(
        "tls-client-ca",
        "text",
        "",
        "only clients with a certificate of this authority are answered over TLS",
        metavar="FILE",
        group=_DAEMON,
    ),
    _option(
        "apparmor-parser",
        "text",
        "",
        "path of apparmor_parser on this machine (default: looked for in /sbin, /usr/sbin)",
        metavar="PATH",
        group="how it is checked",
    ),
    _option(
        "parser-timeout",
        "seconds",
        30.0,
        "CPU time that apparmor_parser may use for one text, for example 30s; a run also ends "
        "after ten times that on the clock, and is then repeated later",
        metavar="TIME",
        group="how it is checked",
    ),
    _option(
        "seccomp-format",
        "choice",
        "oci",
        "oci: only fields that every runtime reads alike; docker: caps conditions too, for CRI-O "
        "only",
        choices=("oci", "docker"),
        group="how it is checked",
    ),
    _option(
        "deny-name",
        "list",
        DENY_NAMES,
        "AppArmor names (globs) that no key may provide; given once or more it replaces the "
        "default list: " + ", ".join(DENY_NAMES),
        metavar="GLOB",
        group=_REFUSE,
    ),
    _option(
        "allow-attachments",
        "flag",
        False,
        "accept AppArmor profiles that attach to paths, and so confine the host's own programs",
        group=_REFUSE,
    ),
    _option(
        "allow-unconfined-mode",
        "flag",
        False,
        "accept flags=(unconfined) and default_allow",
        group=_REFUSE,
    ),
    _option(
        "allow-unknown-syscalls",
        "flag",
        False,
        "accept system call names that libseccomp 2.5.4 does not know under an allow default",
        group=_REFUSE,
    ),
    _option(
        "allow-empty",
        "flag",
        False,
        "an emptied source is a wish: remove what it provided",
        group=_REFUSE,
    ),
    _option(
        "allow-unsupported",
        "flag",
        False,
        "exit with 0 although this node cannot have profiles of a kind",
        group=_REFUSE,
    ),
    _option(
        "output",
        "choice",
        "table",
        "the result on standard output",
        choices=("table", "json"),
        group=_TELL,
    ),
    _option(
        "log-format",
        "choice",
        "auto",
        "the log on standard error; auto is console on a terminal, else json",
        choices=("auto", "json", "console"),
        group=_TELL,
    ),
    _option(
        "log-level",
        "choice",
        "info",
        "least level that is logged",
        choices=("debug", "info", "warning", "error"),
        group=_TELL,
    ),
)
BY_NAME: Final = {option.name: option for option in OPTIONS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every option's value, checked. Times are in seconds."""

    source: tuple[str, ...] = ()
    host_root: str = "/"
    state_dir: str = "/var/lib/profile-loader"
    seccomp_dir: str = "/var/lib/kubelet/seccomp"
    seccomp_prefix: str = ""
    kinds: frozenset[str] = frozenset({"apparmor", "seccomp"})
    prune: Literal["unused", "always", "never"] = "unused"
    take_over: tuple[str, ...] = ()
    dry_run: bool = False
    node_name: str = ""
    kubeconfig: str = ""
    label_domain: str = DOMAIN
    label_digest: bool = False
    label_limit: float = 200.0
    startup_taint: str = ""
    pod_aware: bool = False
    resync: float = 300.0
    removal_grace: float = 60.0
    http_address: str = ":9808"
    https_address: str = "off"
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    apparmor_parser: str = ""
    parser_timeout: float = 30.0
    seccomp_format: Literal["oci", "docker"] = "oci"
    deny_name: tuple[str, ...] = DENY_NAMES
    allow_attachments: bool = False
    allow_unconfined_mode: bool = False
    allow_unknown_syscalls: bool = False
    allow_empty: bool = False
    allow_unsupported: bool = False
    output: Literal["table", "json"] = "table"
    log_format: Literal["auto", "json", "console"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def settings(
    flags: Mapping[str, object], environ: Mapping[str, str], file: Mapping[str, object]
) -> Config | tuple[str, ...]:
    """Join the three and check them; return the settings, or every mistake.

    flags: by option name, only those given (a list for repeatable ones, True for a flag). file:
    the parsed YAML of --config.
    """
    mistakes: list[str] = []
    values: dict[str, object] = {}
    mistakes += _unknown_variables(environ)
    mistakes += [
        _unknown(f'key "{key}" of the configuration file', key)
        for key in file
        if key not in BY_NAME
    ]
    for option in OPTIONS:
        for where, raw in _given(option, flags, environ, file):
            try:
                values[option.field] = _value(option, raw)
            except ValueError as error:
                mistakes.append(f"{where}: {error}")
            break
    if mistakes:
        return tuple(mistakes)
    if "kinds" in values:
        values["kinds"] = frozenset(_words(values["kinds"]))
    return Config(**values)  # type: ignore[arg-type] # checked one by one above


def _given(
    option: Option,
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    file: Mapping[str, object],
) -> Iterable[tuple[str, object]]:
    """Yield where an option is given and its raw value, the strongest first."""
    if option.name in flags:
        yield f"--{option.name}", flags[option.name]
    if option.variable in environ:
        raw: object = environ[option.variable]
        if option.shape == "list":
            # An empty variable is a mistake, not an empty list: a manifest that leaves it blank
            # must not take the deny list away.
            raw = [line for line in environ[option.variable].split("\n") if line] or [""]
        yield option.variable, raw
    if option.name in file:
        yield f'key "{option.name}" of the configuration file', file[option.name]


def _value(option: Option, raw: object) -> Value:
    match option.shape:
        case "choices":
            words = _words(raw)
            for word in words:
                _choice(option, word)
            if not words:
                raise ValueError("at least one is needed")
            return words
        case "choice":
            return _choice(option, raw)
        case "path":
            return _path(option, raw)
        case "count":
            return _count(option, raw)
        case _:
            return _READERS[option.shape](raw)


def _flag(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    if raw in ("true", "false", "1", "0"):
        return raw in ("true", "1")
    raise ValueError(f'"{raw}" is neither true nor false')


def _count(option: Option, raw: object) -> float:
    text = str(raw)
    if isinstance(raw, bool) or not re.fullmatch(r"[0-9]{1,6}", text) or int(text) > option.most:
        raise ValueError(f'"{raw}" must be a whole number of at most {option.most}')
    return float(text)


def _address(raw: object) -> str:
    text = _text(raw)
    if text != "off" and not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]*):[0-9]{1,5}", text):
        raise ValueError(f'"{text}" must be HOST:PORT, :PORT or off')
    if text != "off" and int(text.rpartition(":")[2]) > 65535:  # noqa: PLR2004 - the highest
        raise ValueError(f'"{text}": a port is at most 65535')
    return text


def _name(raw: object) -> str:
    """Read a name as a Node or a domain has it: an RFC 1123 subdomain."""
    text = _text(raw)
    label = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
    if not re.fullmatch(rf"(?=.{{1,253}}\Z){label}(\.{label})*", text):
        raise ValueError(f'"{text}" must be lower-case letters, digits, "-" and "."')
    return text


def _key(raw: object) -> str:
    """Read the key of a taint, which is that of a label (Kubernetes: IsQualifiedName)."""
    text = _text(raw)
    prefix, slash, name = text.rpartition("/")
    if text and not re.fullmatch(r"(?=.{1,63}\Z)[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", name):
        raise ValueError(f'"{text}" must be the key of a taint alone, without "=" and ":"')
    if slash:
        _name(prefix)
    return text


def _text(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError(f'"{raw}" must be a text')  # noqa: TRY004 - a mistake of the operator's
    if not raw.isprintable():
        raise ValueError(f"{raw!a} holds control characters")
    return raw


def _path(option: Option, raw: object) -> str:
    text = _text(raw)
    if not text:  # as --host-root it would mean the working directory
        raise ValueError("it must not be empty")
    if not text.startswith("/") and option.name != "host-root":
        raise ValueError(f'"{text}" must be an absolute path')
    return text


def _prefix(raw: object) -> str:
    text = _text(raw)
    parts = text.removesuffix("/").split("/")
    if text and not {"", ".", ".."}.isdisjoint(parts):
        raise ValueError(f'"{text}" must be a relative path without empty parts, "." and ".."')
    return text


def _list(raw: object) -> tuple[str, ...]:
    if isinstance(raw, str):
        raw = [raw]
    if not isinstance(raw, list):
        raise ValueError(f'"{raw}" must be a list')  # noqa: TRY004 - a mistake of the operator's
    if not raw or "" in raw:
        raise ValueError("it must not be empty")
    return tuple(_text(one) for one in raw)


def _words(raw: object) -> tuple[str, ...]:
    """Return the parts of a text with commas, or of a list."""
    if isinstance(raw, str):
        return tuple(word.strip() for word in re.split("[,\n]", raw) if word.strip())
    if isinstance(raw, list | tuple):
        return tuple(_text(one) for one in raw)
    raise ValueError(f'"{raw}" must be a text or a list')


def _choice(option: Option, raw: object) -> str:
    text = _text(raw)
    if text not in option.choices:
        allowed = ", ".join(option.choices)
        raise ValueError(f'"{text}" must be one of: {allowed}.{near(text, option.choices)}')
    return text


_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0}


def _seconds(raw: object) -> float:
    found = _TIME.fullmatch(str(raw))
    seconds = float(found[1]) * _UNITS[found[2] or "s"] if found else math.nan
    if isinstance(raw, bool) or not 0 < seconds <= 3600:  # noqa: PLR2004 - an hour is no parser run
        raise ValueError(f'"{raw}" must be a time such as 30s, more than 0 and at most 60m')
    return seconds


# What a kubelet puts into pods of a namespace with a Service "profile-loader": kubernetes,
# pkg/kubelet/envvars/envvars.go.
_SERVICE_LINK: Final = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_.*)?)$")


def _unknown_variables(environ: Mapping[str, str]) -> list[str]:
    known = {option.variable: option.name for option in OPTIONS} | {PREFIX + "CONFIG": "config"}
    return [
        f"environment variable {name} is unknown.{near(name, known)}"
        for name in sorted(environ)
        if name.startswith(PREFIX) and name not in known and not _SERVICE_LINK.search(name)
    ]


def _unknown(what: str, name: str) -> str:
    return f"{what} is unknown.{near(str(name), BY_NAME)}"


_READERS: Final[Mapping[str, Callable[[object], Value]]] = {
    "flag": _flag,
    "list": _list,
    "seconds": _seconds,
    "prefix": _prefix,
    "name": _name,
    "key": _key,
    "address": _address,
    "text": _text,
}


def unknown_flag(text: str, command: str, known: Iterable[str]) -> str:
    """Say that a flag does not exist, or not here, with the nearest that the command knows."""
    name = text.split("=", 1)[0]
    if name.removeprefix("--") in BY_NAME:
        return f"{name} is not an option of {command}."
    return f"{name} is unknown.{near(name, known)}"


def near(text: str, known: Iterable[str]) -> str:
    """Return a suggestion to append to a mistake, or nothing."""
    bare = {_bare(one): one for one in known}
    near = difflib.get_close_matches(_bare(text), list(bare), n=1)
    return f" Did you mean {bare[near[0]]}?" if near else ""


def _bare(name: str) -> str:
    """Return a name without what all flags, or all variables, begin with."""
    return name.removeprefix("--").removeprefix(PREFIX)
