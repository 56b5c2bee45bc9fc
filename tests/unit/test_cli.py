"""Tests of the command line parser, which returns checked options or a list of all errors."""

import dataclasses
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from agent import cli, version
from agent.command_help import COMMANDS, options_of
from agent.config import OPTIONS, Config
from tests.json_object import JsonObject
from tests.narrowing import instance_of

RUN = ("--oneshot", "--source", "dir:/p")


def parse(
    *argv: str,
    environ: dict[str, str] | None = None,
    file: Exception | list[str] | JsonObject | None = None,
) -> cli.Parsed:
    """Parse arguments. `file` is the parsed configuration file, or the error of a failed read."""

    def read(path: str) -> list[str] | JsonObject | None:
        if isinstance(file, Exception):
            raise file
        return file

    return cli.parse(argv, environ or {}, read)


def usage(*argv: str, **places: Any) -> cli.Usage:
    """Return the text that is shown instead of running a command."""
    return instance_of(parse(*argv, **places), cli.Usage)


def mistakes(*argv: str, **places: Any) -> list[str]:
    """Return the errors that are reported for invalid arguments."""
    parsed = usage(*argv, **places)
    assert parsed.status == 2
    return [line.removeprefix("profile-loader: ") for line in parsed.text.splitlines()[:-1]]


@pytest.mark.parametrize("argv", [RUN, ("run", *RUN)])
def test_run_is_the_default_command(argv: tuple[str, ...]) -> None:
    """Without a command name, the command is `run` with the defaults of its options."""
    assert parse(*argv) == cli.Run(config=Config(source=("dir:/p",)), oneshot=True)


def test_every_option_has_the_default_that_the_help_shows() -> None:
    """Every option has the default that the help shows, because both come from the declaration of
    the option.
    """
    shown = {name.replace("-", "_"): option.default for name, option in OPTIONS.items()}
    assert shown == dataclasses.asdict(Config())


def test_each_type_of_option_is_read_from_flags() -> None:
    """Flags, texts, lists, choices, times and comma-separated lists become typed values."""
    parsed = parse(
        *RUN,
        "--source=/q",
        "--dry-run",
        "--kinds=seccomp\nseccomp",
        "--prune=never",
        "--parser-timeout=1.5m",
        "--take-over=a",
        "--take-over=b",
    )
    expected = Config(
        source=("dir:/p", "/q"),
        dry_run=True,
        kinds=frozenset({"seccomp"}),
        prune="never",
        parser_timeout=90.0,
        take_over=("a", "b"),
    )
    assert parsed == cli.Run(config=expected, oneshot=True)


def test_a_flag_has_priority_over_a_variable_and_a_variable_over_the_file() -> None:
    """A flag has priority over an environment variable, and a variable has priority over the
    configuration file.
    """
    parsed = parse(
        "--oneshot",
        "--prune=never",
        "--config=f",
        environ={
            "PROFILE_LOADER_PRUNE": "always",
            "PROFILE_LOADER_SOURCE": "dir:/a\ndir:/b",
            "PROFILE_LOADER_DRY_RUN": "true",
            "HOME": "/root",
        },
        file={"prune": "unused", "source": ["dir:/c"], "kinds": ["apparmor"], "deny-name": "x"},
    )
    expected = Config(
        source=("dir:/a", "dir:/b"),
        prune="never",
        dry_run=True,
        kinds=frozenset({"apparmor"}),
        deny_name=("x",),
    )
    assert parsed == cli.Run(config=expected, oneshot=True)


def test_every_mistake_is_reported_at_once_with_a_suggestion() -> None:
    """Unknown or wrong flags, variables and keys are reported together."""
    assert mistakes(
        "--onshot",
        "--prune=some",
        "--parser-timeout=never",
        "--state-dir=relative",
        "--config=f",
        environ={"PROFILE_LOADER_SOURC": "x", "PROFILE_LOADER_ALLOW_EMPTY": "maybe"},
        file={"seccomp-prefx": "x", "take-over": 5},
    ) == [
        "--onshot is unknown. Did you mean --oneshot?",
        (
            "the environment variable PROFILE_LOADER_SOURC is unknown. "
            "Did you mean PROFILE_LOADER_SOURCE?"
        ),
        'f: the key "seccomp-prefx" is unknown. Did you mean seccomp-prefix?',
        '--state-dir: "relative" must be an absolute path',
        '--prune: "some" must be one of: unused, always, never.',
        'f: take-over: "5" must be a list',
        '--parser-timeout: "never" must be a time such as 30s, more than 0 and at most 60m',
        'PROFILE_LOADER_ALLOW_EMPTY: "maybe" must be true or false',
        "at least one --source is required, for example --source profiles",
    ]


NAME_RULE = (
    'must be lower-case letters, digits and "-", in parts joined by ".", each with a letter or '
    "digit at both ends"
)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("chekc",), ['there is no command "chekc". Did you mean check?']),
        ((*RUN, "extra"), ['unexpected argument "extra"']),
        ((*RUN, "--kinds=selinux"), ['--kinds: "selinux" must be one of: apparmor, seccomp.']),
        ((*RUN, "--kinds=,"), ["--kinds: at least one value is required"]),
        ((*RUN, "--take-over=a\nb"), ["--take-over: 'a\\nb' contains control characters"]),
        (("check",), ["at least one PATH is required: profile-loader check profiles"]),
        (
            ("render",),
            [
                "a PATH is required: the directory with the profiles",
                "--name is required: the name of the ConfigMap",
                "--namespace is required: the namespace of the ConfigMap",
            ],
        ),
        (
            ("render", "web", "--inline"),
            ["--inline needs --include DIR: the directory with the included files."],
        ),
        (
            ("render", "d", "--name=n", "--namespace=n", "--include=/etc/apparmor.d"),
            ["--include needs --inline: the included files become part of the text."],
        ),
        (
            ("render", "d", "--name=n", "--inline", "--include=/etc/apparmor.d"),
            ["--namespace is required: the namespace of the ConfigMap"],
        ),
        (
            ("render", "d", "e", "--name=n", "--namespace=n"),
            ['unexpected argument "e"'],
        ),
        ((*RUN, "--config="), ["--config: the path must not be empty"]),
        ((*RUN, "--host-root="), ["--host-root: the value must not be empty"]),
        ((*RUN, "--deny-name="), ["--deny-name: the value must not be empty"]),
        (("status", "--prune=never"), ["--prune is not an option of status, only of run."]),
        (("check", "p", "--arc=x"), ["--arc is unknown. Did you mean --arch?"]),
        (("check", "p", "--sorce=x"), ["--sorce is unknown."]),
        (("status", "--foo", "bar"), ["--foo is unknown."]),
        ((*RUN, "bar", "--foo"), ["--foo is unknown.", 'unexpected argument "bar"']),
        (("check", ""), ["PATH: a source must not be empty"]),
        (
            ("check", "configmap:ns/a"),
            [
                (
                    'PATH: "configmap:ns/a" is in the cluster, and check reads only files. Save it '
                    "first: kubectl get configmap NAME -o yaml > FILE.yaml"
                )
            ],
        ),
        (
            ("render", "d", "--name=N_x", "--namespace=a.b"),
            [
                f'--name: "N_x" {NAME_RULE}',
                (
                    '--namespace: "a.b" must be lower-case letters, digits and "-", with a letter '
                    "or digit at both ends"
                ),
            ],
        ),
        (
            (*RUN, "--resync", "-5"),
            ['--resync: "-5" must be a time such as 30s, more than 0 and at most 60m'],
        ),
        (
            (*RUN, "--prune=never", "--prune", "always"),
            ['--prune has two values: "never" and "always". Pass it once.'],
        ),
    ],
)
def test_a_wrong_command_line_is_explained(argv: tuple[str, ...], expected: list[str]) -> None:
    """Each message about an invalid argument contains the argument."""
    assert mistakes(*argv) == expected


@pytest.mark.parametrize("argv", [("--oneshot", "--source=dri:/p"), ("check", "dri:/p")])
def test_an_unknown_scheme_of_a_source_is_a_mistake(argv: tuple[str, str]) -> None:
    """An unknown scheme of a source is a mistake, and the message suggests the scheme that the user
    probably meant.
    """
    (mistake,) = mistakes(*argv)
    assert 'did you mean "dir:/p"?' in mistake


def test_the_same_value_twice_is_not_a_mistake() -> None:
    """A repeated flag with the same value is not an error."""
    parsed = instance_of(parse(*RUN, "--prune=never", "--prune=never"), cli.Run)
    assert parsed.config.prune == "never"


def test_arguments_after_two_dashes_are_paths() -> None:
    """A file whose name begins with a dash can be checked."""
    assert instance_of(parse("check", "--", "-a.json"), cli.Check).paths == ("-a.json",)


def test_variables_of_a_service_with_the_same_name_are_ignored() -> None:
    """Environment variables that Kubernetes sets for a Service with the agent's name are
    ignored.
    """
    links = {
        "PROFILE_LOADER_SERVICE_HOST": "10.0.0.1",
        "PROFILE_LOADER_SERVICE_PORT": "9808",
        "PROFILE_LOADER_SERVICE_PORT_METRICS": "9808",
        "PROFILE_LOADER_PORT": "tcp://10.0.0.1:9808",
        "PROFILE_LOADER_PORT_9808_TCP_ADDR": "10.0.0.1",
    }
    assert isinstance(parse(*RUN, environ=links), cli.Run)


def test_an_unknown_machine_is_a_mistake() -> None:
    """The option `--arch` of `check` accepts only known machines."""
    (mistake,) = mistakes("check", "p", "--arch=x86-64")
    assert mistake.startswith('--arch: "x86-64" must be one of: aarch64, ')
    assert mistake.endswith("Did you mean x86_64?")


def test_without_oneshot_the_command_is_a_daemon() -> None:
    """Without --oneshot, the command is a daemon."""
    expected = cli.Run(config=Config(source=("configmap:ns/a",)), oneshot=False)
    assert parse("--source", "configmap:ns/a") == expected


def test_oneshot_can_only_be_passed_as_a_flag() -> None:
    """The option oneshot can only be passed as a flag. For a key or a variable, the message
    contains this flag.
    """
    result = mistakes(
        "--source=/p", "--config=f", file={"oneshot": True}, environ={"PROFILE_LOADER_ARCH": "x"}
    )
    assert result == [
        (
            "the environment variable PROFILE_LOADER_ARCH has no effect. Unset it, and pass the "
            "flag --arch instead."
        ),
        (
            'f: "oneshot" cannot be a key of this file. Remove it, and pass the flag --oneshot '
            "instead."
        ),
    ]


def test_options_that_contradict_each_other_are_reported() -> None:
    """A dry run as a daemon is an error. An option without the option that it requires is also an
    error.
    """
    assert mistakes("--source=/p", "--dry-run", "--startup-taint=fresh", "--tls-key=k") == [
        "--dry-run needs --oneshot. A dry run is not useful for a daemon.",
        "--tls-cert and --tls-key need --https-address",
        "--startup-taint needs --node-name",
    ]


@pytest.mark.parametrize(
    "text", ["a.org/b=:NoSchedule", "b:NoSchedule", "a.org/", "A/b", "b=", "/b"]
)
def test_a_startup_taint_must_be_the_key_of_a_taint(text: str) -> None:
    """A startup taint must be a valid taint key, because no other text can match a taint."""
    (mistake,) = mistakes(*RUN, "--node-name=n", f"--startup-taint={text}")
    assert mistake.startswith("--startup-taint: ")


def test_a_mistake_refers_to_the_help_of_its_command() -> None:
    """A message about a mistake refers to the help of its command, because only this help lists the
    command's options.
    """
    assert usage("status", "--prune=never").text.endswith("\nSee profile-loader status --help.\n")
    assert usage("--prune=x").text.endswith("\nSee profile-loader run --help.\n")
    assert usage("chekc").text.endswith("\nSee profile-loader --help.\n")


@pytest.mark.parametrize(
    "text",
    ["configmap:ns", "configmap:ns/", "configmap:NS/a", "configmaps:/", "configmaps:ns?a in b"],
)
def test_a_configmap_source_must_have_a_valid_name(text: str) -> None:
    """An invalid ConfigMap name is reported before any request is sent to the API server."""
    (mistake,) = mistakes("--oneshot", "--source", text)
    assert mistake.startswith(f'--source: "{text}"')


@pytest.mark.parametrize(
    ("argv", "places"),
    [
        (["--node-name=n1"], {}),
        ([], {"environ": {"PROFILE_LOADER_NODE_NAME": "n1"}}),
        (["--config=c"], {"file": {"node-name": "n1"}}),
    ],
)
def test_unlabel_reads_the_node_name_from_every_source_of_options(
    argv: list[str], places: JsonObject
) -> None:
    """`unlabel` reads the name of the Node from flags, variables and the configuration file."""
    parsed = instance_of(parse("unlabel", *argv, **places), cli.Unlabel)
    assert parsed.config.node_name == "n1"
    assert mistakes("unlabel") == ["--node-name is required: the name of the Node object"]


def test_a_flag_without_a_value_does_not_hide_other_mistakes() -> None:
    """Missing and superfluous values are reported together with all other errors."""
    assert mistakes("--onshot", "--dry-run=yes", "--source", "--prune") == [
        "--onshot is unknown. Did you mean --oneshot?",
        "--dry-run takes no value. Pass --dry-run alone.",
        "--source needs a value: --source SOURCE",
        "--prune needs a value: --prune {unused,always,never}",
    ]


@pytest.mark.parametrize("value", ["", "\n"])
@pytest.mark.parametrize("name", ["DENY_NAME", "SOURCE", "TAKE_OVER"])
def test_a_blank_variable_does_not_empty_a_list(name: str, value: str) -> None:
    """If a manifest sets a blank variable, the deny list does not become empty."""
    variable = f"PROFILE_LOADER_{name}"
    assert mistakes(*RUN[:1], "--host-root=/", environ={variable: value})[0] == (
        f"{variable}: the value must not be empty"
    )


def test_a_blank_config_variable_is_a_mistake() -> None:
    """A blank environment variable for the configuration file is an error."""
    environ = {"PROFILE_LOADER_CONFIG": ""}
    assert mistakes(*RUN, environ=environ) == ["--config: the path must not be empty"]


@pytest.mark.parametrize("prefix", ["../x", "/abs", "a//b", "./a", "/"])
def test_a_seccomp_prefix_must_stay_in_the_seccomp_directory(prefix: str) -> None:
    """A seccomp prefix that leaves the seccomp directory is an error."""
    assert mistakes(*RUN, f"--seccomp-prefix={prefix}") == [
        f'--seccomp-prefix: "{prefix}" must be a relative path without empty parts, "." and ".."'
    ]


@pytest.mark.parametrize("address", ["9808", "a b:1", ":65536", "::1:9808"])
def test_an_address_must_have_a_port(address: str) -> None:
    """An address must have a port, which is at most 65535. An IPv6 address needs brackets."""
    (mistake,) = mistakes("--source=/p", f"--http-address={address}")
    assert mistake.startswith(f'--http-address: "{address}" must be HOST:PORT, :PORT or off')


def test_messages_contain_no_control_characters() -> None:
    """Messages contain no control characters, because keys, values and flags are escaped before
    they reach the terminal.
    """
    parsed = parse(*RUN, "--\x1b[31m", "--config=f", file={"a\x1b": 1, "dry-run": "\x1b[2J"})
    assert isinstance(parsed, cli.Usage)
    assert all(character.isprintable() or character == "\n" for character in parsed.text)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            OSError(2, "No such file or directory"),
            "No such file or directory. Pass the path of a readable file.",
        ),
        (ValueError("line 1:\n  bad"), "line 1: bad. Correct the file."),
        (["x"], "the file must map options to values, as in `prune: never`"),
    ],
)
def test_an_unreadable_configuration_file_is_one_mistake(
    file: Exception | list[str], text: str
) -> None:
    """If the configuration file is unreadable, only this mistake is reported, and not the missing
    sources.
    """
    assert mistakes("--oneshot", "--config=f", file=file) == [f"--config f: {text}"]


def test_an_empty_configuration_file_is_valid() -> None:
    """A configuration file without keys does not change any option."""
    assert parse(*RUN, "--config=f", file=None) == parse(*RUN)


def test_each_command_has_its_own_arguments() -> None:
    """The arguments of check, status, restore and render become typed values."""
    assert parse("check", "a", "b", "--arch=aarch64") == cli.Check(
        config=Config(), paths=("a", "b"), arch="aarch64"
    )
    assert parse("status", "--output=json") == cli.Status(config=Config(output="json"))
    assert parse("restore") == cli.Restore(config=Config())
    assert parse("render", "d", "--name=n", "--namespace=ns") == cli.Render(
        path="d",
        name="n",
        namespace="ns",
        domain="profile-loader.node-restriction.kubernetes.io",
    )


def test_include_directories_are_repeatable() -> None:
    """The commands check and render accept several include directories."""
    include = ("--include=/etc/apparmor.d", "--include", "more")
    assert parse("check", "a", *include) == cli.Check(
        config=Config(), paths=("a",), arch="", include=("/etc/apparmor.d", "more")
    )
    assert parse("render", "web", "--inline", *include) == cli.Render(
        path="web",
        name="",
        namespace="",
        domain="profile-loader.node-restriction.kubernetes.io",
        include=("/etc/apparmor.d", "more"),
    )


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
@pytest.mark.parametrize("columns", [40, 50, 80])
def test_help_fits_the_terminal(
    command: list[str], columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The help fits a narrow terminal, except for option names, long words and examples."""
    monkeypatch.setenv("COLUMNS", str(columns))
    parsed = usage(*command, "--help")
    assert parsed.status == 0
    wide = [line for line in parsed.text.splitlines() if len(line) > columns]
    assert [line for line in wide if "profile-loader" not in line and "--" not in line] == []


def test_the_first_help_fits_one_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first help fits one screen. This help lists the commands, and refers to the help of each
    command.
    """
    monkeypatch.setenv("COLUMNS", "80")
    lines = usage("--help").text.splitlines()
    assert len(lines) <= 23
    assert lines.index("Commands:") < 6
    assert parse("-h") == parse("--help")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_lists_exactly_its_options(command: str) -> None:
    """A command accepts every option that its help lists."""
    text = usage(command, "--help").text
    own = {f"--{option.name}" for option in options_of(command)}
    others = {f"--{name}" for name in OPTIONS} - own
    listed = set(re.findall(r"^  (?:-[a-z], )?(--[a-z-]+)", text, re.MULTILINE)) - {"--help"}
    assert listed == own | {"--version"}
    assert not listed & others


def test_the_version_comes_from_the_distribution() -> None:
    """--version prints the name, the version and the revision. In a checkout, the revision
    is unknown.
    """
    expected = f"profile-loader {metadata.version('profile-loader')} (revision unknown)\n"
    assert usage("--version").text == expected


def test_the_build_of_the_image_writes_the_revision(tmp_path: Path) -> None:
    """The build of the image writes the revision into a file. If the file is empty, the revision is
    unknown.
    """
    path = tmp_path / "revision.txt"
    path.write_text("0123abc\n")
    assert version.read_revision(path) == "0123abc"
    path.write_text("\n")
    assert version.read_revision(path) == version.UNKNOWN_REVISION


def test_a_client_authority_needs_tls() -> None:
    """A client CA needs TLS, because plain HTTP would accept all clients."""
    message = (
        "--tls-client-ca needs --https-address. Clients of --http-address do not present a "
        "certificate."
    )
    assert mistakes("--source=dir:/p", "--tls-client-ca=/ca.pem") == [message]
    safe = ("--https-address=:9809", "--tls-cert=/tls.pem", "--tls-client-ca=/ca.pem")
    assert isinstance(parse("--source=dir:/p", *safe), cli.Run)
    assert mistakes("--source=dir:/p", "--https-address=:9809", "--tls-key=k") == [
        "--https-address needs --tls-cert"
    ]


@pytest.mark.parametrize(("text", "is_valid"), [("800", True), ("801", False), ("x", False)])
def test_the_label_limit_is_below_the_cost_limit_of_the_policy(text: str, is_valid: bool) -> None:
    """A label limit above the cost limit of the admission policy is an error."""
    argv = (*RUN, f"--label-limit={text}")
    if is_valid:
        parsed = instance_of(parse(*argv), cli.Run)
        assert parsed.config.label_limit == int(text)
    else:
        message = f'--label-limit: "{text}" must be a whole number from 0 to 800, for example 200'
        assert mistakes(*argv) == [message]
