"""Checks the combination of options on a command line.

The module agent.cli calls this module after the type of each option has checked its value. This
module reads no file.
"""

from collections.abc import Mapping, Sequence

from agent.config import Config
from agent.sources import source_spec


def mistakes(
    command: str, config: Config, values: Mapping[str, object], positional: Sequence[str]
) -> list[str]:
    """Return the errors in the combination of options."""
    return _output_mistakes(config) + _command_mistakes(command, config, values, positional)


def _output_mistakes(config: Config) -> list[str]:
    mistakes = []
    if config.verbose and config.quiet:
        mistakes.append("--verbose and --quiet cannot be combined. Pass only one of the two flags.")
    if config.detailed_exitcode and not config.dry_run:
        mistakes.append("--detailed-exitcode needs --dry-run, because only a dry run plans changes")
    return mistakes


def _command_mistakes(
    command: str, config: Config, values: Mapping[str, object], positional: Sequence[str]
) -> list[str]:
    """Return the errors in the options and arguments of one command."""
    match command:
        case "run":
            daemon = [] if "oneshot" in values else _daemon_mistakes(config)
            return _source_mistakes(config.source) + daemon + _cluster_mistakes(config)
        case "check":
            return _path_mistakes(positional)
        case "render":
            return _render_mistakes(values)
        case "diff":
            return _number_of_files(positional, has_baseline="baseline" in values)
        case _:
            return []


def _number_of_files(paths: Sequence[str], *, has_baseline: bool) -> list[str]:
    wanted = 1 if has_baseline else 2
    if len(paths) == wanted:
        return []
    words = "one FILE" if has_baseline else "two files A and B, or --baseline and one FILE"
    return [f"diff needs {words}: profile-loader diff old.json new.json"]


def _render_mistakes(values: Mapping[str, object]) -> list[str]:
    """Return the errors in the options for the output format."""
    mistakes = []
    if "inline" in values and "include" not in values:
        mistakes.append("--inline needs --include DIR: the directory with the included files.")
    if "include" in values and "inline" not in values:
        mistakes.append("--include needs --inline: the included files become part of the text.")
    if "inline" in values and not {"name", "namespace"} & values.keys():
        return mistakes  # Without --name, the output is a single profile.
    needs = {
        "name": "--name is required: the name of the ConfigMap",
        "namespace": "--namespace is required: the namespace of the ConfigMap",
    }
    return mistakes + [message for option, message in needs.items() if option not in values]


def _source_mistakes(texts: Sequence[str]) -> list[str]:
    mistakes = []
    for text in texts:
        try:
            source_spec.parse_source(text)
        except ValueError as error:
            mistakes.append(f"--source: {error}")
    return mistakes


def _path_mistakes(paths: Sequence[str]) -> list[str]:
    mistakes = []
    for path in paths:
        try:
            source = source_spec.parse_source(path)
        except ValueError as error:
            mistakes.append(f"PATH: {error}")
            continue
        if isinstance(source, source_spec.ConfigMapSpec):
            mistakes.append(
                f'PATH: "{path}" is in the cluster, and check reads only files. Save it first: '
                "kubectl get configmap NAME -o yaml > FILE.yaml"
            )
    return mistakes


def _daemon_mistakes(config: Config) -> list[str]:
    if config.dry_run:
        return ["--dry-run needs --oneshot. A dry run is not useful for a daemon."]
    return []


def _cluster_mistakes(config: Config) -> list[str]:
    """Return an error for each option that is set without another option that it requires."""
    mistakes = []
    if config.https_address != "off" and not config.tls_cert:
        mistakes.append("--https-address needs --tls-cert")
    if config.https_address == "off":
        if config.tls_client_ca:
            mistakes.append(
                "--tls-client-ca needs --https-address. Clients of --http-address do not present "
                "a certificate."
            )
        elif config.tls_cert or config.tls_key:
            mistakes.append("--tls-cert and --tls-key need --https-address")
    if not config.node_name:
        mistakes += ["--pod-aware needs --node-name"] * config.pod_aware
        mistakes += ["--startup-taint needs --node-name"] * bool(config.startup_taint)
    return mistakes
