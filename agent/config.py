"""The declarations and the validated values of all options.

The declaration of an option defines its flag, its environment variable, its YAML key, its default,
its help text and its entry in docs/reference.md. This module reads no file, environment or
argument: agent.config_loader combines these inputs. agent.config_values reads each type of value.
"""

from dataclasses import dataclass, fields
from typing import Final, Literal

from agent.backends.apparmor.validation import DENY_NAMES
from agent.backends.seccomp.releases import LOWEST
from agent.config_values import (
    ABSOLUTE_PATH,
    ACKNOWLEDGEMENTS,
    ADDRESS,
    FLAG,
    FLOOR,
    LIST,
    PATH,
    PREFIX,
    QUIET,
    SECONDS,
    SUBDOMAIN,
    TAINT,
    TEXT,
    VERBOSE,
    WEB_ADDRESS,
    choice,
    choices,
    whole_number,
)
from agent.core.labels import DOMAIN, MAX_LIMIT
from agent.core.model import KINDS
from agent.option import Option
from agent.option import declare as _option

# These constants name the commands that use an option.
_ON_NODE: Final = ("run", "restore", "status")
_INSTALL: Final = ("run", "restore")
_JUDGE: Final = ("run", "restore", "check")
# These constants are the headings of the help texts.
_PROFILES: Final = "Profiles and directories"
_CLUSTER: Final = "Cluster"
_DAEMON: Final = "Daemon (without --oneshot)"
_CHECKS: Final = "Checks of profiles"
_OUTPUT: Final = "Output"
_REPORTS: Final = ("run", "restore", "check", "status")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The validated value of every option. Times are in seconds."""

    source: tuple[str, ...] = _option(
        LIST.named("SOURCE"),
        (),
        "A source of profiles: configmap:NAMESPACE/NAME, configmaps:NAMESPACE?SELECTOR, dir:PATH, "
        "manifest:FILE (ConfigMaps in YAML), or the path of a directory or manifest. Can be "
        "repeated.",
    )
    host_root: str = _option(
        PATH,
        "/",
        "The root directory of the node's file system. All other paths on the node, such as /proc "
        "and --state-dir, are relative to this directory.",
        commands=_ON_NODE,
    )
    state_dir: str = _option(
        ABSOLUTE_PATH,
        "/var/lib/profile-loader",
        "The directory of the ledger, which records the profiles that the agent installed.",
        commands=_ON_NODE,
    )
    seccomp_dir: str = _option(
        ABSOLUTE_PATH,
        "/var/lib/kubelet/seccomp",
        "The directory from which the kubelet reads seccomp profiles (seccomp in its --root-dir).",
        commands=_ON_NODE,
    )
    seccomp_prefix: str = _option(
        PREFIX,
        "",
        "A relative path that is added in front of the path of every seccomp profile, for example "
        "team-a/.",
        commands=("run", "check"),
    )
    kinds: frozenset[str] = _option(
        choices(*KINDS).named("KINDS"),
        frozenset(KINDS),
        "The kinds of profiles to handle, separated by commas.",
        commands=(*_ON_NODE, "check"),
    )
    prune: Literal["unused", "always", "never"] = _option(
        choice("unused", "always", "never"),
        "unused",
        "Determines which profiles are removed when no source provides them any more. unused: "
        "profiles for which the agent has proved that no process uses them. always: also seccomp "
        "files without this proof. never: no profiles.",
    )
    take_over: tuple[str, ...] = _option(
        LIST.named("NAME"),
        (),
        "The name of a profile that may be replaced even if another program installed it. Can be "
        "repeated.",
    )
    dry_run: bool = _option(
        FLAG, False, "Report the planned changes without making them.", commands=_INSTALL
    )
    node_name: str = _option(
        SUBDOMAIN.named("NODE"),
        "",
        "The name of this machine's Node object. The agent then sets labels on the Node and "
        "creates Events.",
        commands=("run", "unlabel"),
        group=_CLUSTER,
    )
    kubeconfig: str = _option(
        TEXT.named("FILE"),
        "",
        "The kubeconfig file for access to the API server. Without this option the agent uses "
        "the service account of its pod.",
        commands=("run", "unlabel"),
        group=_CLUSTER,
    )
    label_domain: str = _option(
        SUBDOMAIN.named("DOMAIN"),
        DOMAIN,
        "The domain of the Node's labels and of the ConfigMaps' annotations.",
        commands=("run", "status", "render", "unlabel"),
        group=_CLUSTER,
    )
    label_digest: bool = _option(
        FLAG,
        False,
        "Also set labels with the first 12 hex digits of each profile's digest. A workload that "
        "selects such a label cannot be scheduled after the next update of the profile.",
        group=_CLUSTER,
    )
    label_limit: int = _option(
        whole_number(MAX_LIMIT),
        200,
        "The maximum number of labels that the agent sets on the Node. The admission policy "
        f"allows at most {MAX_LIMIT} labels.",
        group=_CLUSTER,
    )
    startup_taint: str = _option(
        TAINT,
        "",
        "The key of the taint to remove from the Node once every accepted profile is installed.",
        group=_CLUSTER,
    )
    pod_aware: bool = _option(
        FLAG,
        False,
        "Treat a profile as used while a pod of this Node references it, and remove seccomp files "
        "that no pod references. The agent needs the right to list and watch pods.",
        group=_CLUSTER,
    )
    resync: float = _option(
        SECONDS,
        300.0,
        "The longest time between two passes that read everything. The agent shortens this time by "
        "up to 10 % at random.",
        group=_DAEMON,
    )
    removal_grace: float = _option(
        SECONDS,
        60.0,
        "The time between the removal of a profile's label and the removal of the profile.",
        group=_DAEMON,
    )
    http_address: str = _option(
        ADDRESS,
        ":9808",
        "The address of the server for /metrics, /healthz, /readyz, /report.json and the status "
        "page. off: no server.",
        group=_DAEMON,
    )
    https_address: str = _option(
        ADDRESS,
        "off",
        "The address on which the HTTP server accepts TLS connections. This option needs "
        "--tls-cert.",
        group=_DAEMON,
    )
    tls_cert: str = _option(
        TEXT.named("FILE"),
        "",
        "The file with the certificate chain for --https-address.",
        group=_DAEMON,
    )
    tls_key: str = _option(
        TEXT.named("FILE"),
        "",
        "The file with the private key, if it is not in the file of --tls-cert.",
        group=_DAEMON,
    )
    tls_client_ca: str = _option(
        TEXT.named("FILE"),
        "",
        "The certificate authority that must have issued the certificate of each TLS client.",
        group=_DAEMON,
    )
    runbook_url: str = _option(
        WEB_ADDRESS,
        "",
        "The address of docs/runbook.md, to which the status page links the code of each finding, "
        "for example https://wiki.example.com/runbook. Without this option, the page has no such "
        "links.",
        group=_DAEMON,
    )
    apparmor_parser: str = _option(
        TEXT.named("PATH"),
        "",
        "The path of apparmor_parser. Without this option the agent looks in /sbin and /usr/sbin.",
        commands=(*_ON_NODE, "check"),
        group=_CHECKS,
    )
    parser_timeout: float = _option(
        SECONDS,
        30.0,
        "The CPU time that apparmor_parser may use for one text. The agent also stops the parser "
        "when ten times this value has elapsed, and tries again later.",
        commands=_JUDGE,
        group=_CHECKS,
    )
    seccomp_format: Literal["oci", "docker"] = _option(
        choice("oci", "docker"),
        "oci",
        "The accepted seccomp fields. oci: only fields that every runtime reads in the same way. "
        "docker: also conditions on capabilities, which only CRI-O reads.",
        commands=_JUDGE,
        group=_CHECKS,
    )
    deny_name: tuple[str, ...] = _option(
        LIST.named("GLOB"),
        DENY_NAMES,
        "A pattern of AppArmor names that no source may provide. The option can be repeated. The "
        "first use replaces the default list.",
        commands=_JUDGE,
        group=_CHECKS,
    )
    allow_attachments: bool = _option(
        FLAG,
        False,
        "Accept AppArmor profiles that attach to paths. Such a profile also confines programs on "
        "the host.",
        commands=_JUDGE,
        group=_CHECKS,
    )
    allow_unconfined_mode: bool = _option(
        FLAG,
        False,
        "Accept AppArmor profiles with flags=(unconfined) or default_allow.",
        commands=_JUDGE,
        group=_CHECKS,
    )
    allow_unknown_syscalls: bool = _option(
        FLAG,
        False,
        "Accept names of system calls that the libseccomp version in --runtime-floor does not "
        "know, in profiles whose default action allows calls.",
        commands=_JUDGE,
        group=_CHECKS,
    )
    runtime_floor: str = _option(
        FLOOR,
        str(LOWEST),
        "The oldest releases of libseccomp, runc and crun on any node, for example "
        "libseccomp=2.5.5,runc=1.2. Profiles may then contain the system calls and flags that all "
        "of these releases know.",
        commands=(*_JUDGE, "convert"),
        group=_CHECKS,
    )
    acknowledge_warning: tuple[str, ...] = _option(
        ACKNOWLEDGEMENTS,
        (),
        "A warning to accept for one version of a profile: its code, @, and at least 12 digits of "
        "the sha256 of the file or key. Tables and the log then omit the warning; JSON reports and "
        "metrics still count it. The option can be repeated.",
        commands=("run", "check"),
        group=_CHECKS,
    )
    allow_empty: bool = _option(
        FLAG,
        False,
        "Remove the profiles of a source that provides no profiles any more. Without this option, "
        "these profiles stay installed.",
        group=_CHECKS,
    )
    allow_unsupported: bool = _option(
        FLAG,
        False,
        "Exit with status 0 even if the node does not support a kind of profile.",
        commands=_JUDGE,
        group=_CHECKS,
    )
    detailed_exitcode: bool = _option(
        FLAG,
        False,
        "With --dry-run, exit with status 5 if changes are pending and there is no error.",
        commands=_INSTALL,
        group=_OUTPUT,
    )
    output: Literal["table", "json"] = _option(
        choice("table", "json"),
        "table",
        "The format of the result on standard output.",
        commands=_REPORTS,
        group=_OUTPUT,
    )
    log_format: Literal["auto", "json", "console"] = _option(
        choice("auto", "json", "console"),
        "auto",
        "The format of the log on standard error. auto: console on a terminal, otherwise json.",
        commands=_INSTALL,
        group=_OUTPUT,
    )
    log_level: Literal["auto", "debug", "info", "warning", "error"] = _option(
        choice("auto", "debug", "info", "warning", "error"),
        "auto",
        "The lowest level that is logged. auto: info for the daemon, and warning for one-shot "
        "commands. With any other value, one-shot commands also log the findings that their "
        "result contains.",
        commands=_INSTALL,
        group=_OUTPUT,
    )
    verbose: bool = _option(
        VERBOSE,
        False,
        "Show more details: changes, acknowledged warnings and the source of each profile. The "
        "log of the daemon then has the level debug.",
        commands=_REPORTS,
        group=_OUTPUT,
    )
    quiet: bool = _option(
        QUIET,
        False,
        "Show only errors. The exit status alone shows the result.",
        commands=(*_REPORTS, "convert", "unlabel"),
        group=_OUTPUT,
    )


def log_level(config: Config, *, is_daemon: bool) -> Literal["debug", "info", "warning", "error"]:
    """Return the lowest level that a command logs.

    An explicit --log-level has priority over --quiet and --verbose.
    """
    if config.log_level != "auto":
        return config.log_level
    if config.quiet:
        return "error"
    if is_daemon:
        return "debug" if config.verbose else "info"
    return "info" if config.verbose else "warning"


OPTIONS: Final = {
    option.name: option
    for option in (
        Option(name=item.name.replace("_", "-"), default=item.default, **item.metadata)
        for item in fields(Config)
    )
}
