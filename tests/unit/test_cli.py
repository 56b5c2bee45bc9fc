"""Arguments, environment and file become one checked value, or every mistake at once."""

import pytest

from agent import cli
from agent.config import OPTIONS, Config


def parse(*argv, environ=None, file=None):
    def read(path):
        if isinstance(file, Exception):
            raise file
        return file

    return cli.parse(argv, environ or {}, read)


def mistakes(*argv, **more):
    parsed = parse(*argv, **more)
    assert isinstance(parsed, cli.Usage), parsed
    assert parsed.status == 2
    return [line.removeprefix("profile-loader: ") for line in parsed.text.splitlines()[:-1]]


RUN = ("--oneshot", "--source", "dir:/p")


@pytest.mark.parametrize("argv", [RUN, ("run", *RUN)])
def test_run_is_the_default_command(argv):
    """Without a command, options are those of run, and the defaults are the documented ones."""
    assert parse(*argv) == cli.Run(settings=Config(source=("dir:/p",)), oneshot=True)


def test_the_defaults_of_the_table_are_those_of_the_settings():
    """An option that is not given has the default that help prints."""
    defaults = Config()
    told = {one.field: one.default for one in OPTIONS}
    told["kinds"] = frozenset(told["kinds"])
    assert told == {name: getattr(defaults, name) for name in told}


def test_each_kind_of_option_is_read_from_flags():
    """Flags, texts, lists, choices, times and comma lists arrive as what they mean."""
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
    assert parsed == cli.Run(settings=expected, oneshot=True)


def test_a_flag_wins_over_the_environment_and_that_over_the_file():
    """Each place is asked only where the stronger ones are silent."""
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
    assert parsed == cli.Run(settings=expected, oneshot=True)


def test_every_mistake_is_told_at_once_with_a_suggestion():
    """Flags, variables and keys that are unknown or wrong are one list."""
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
        "environment variable PROFILE_LOADER_SOURC is unknown. Did you mean PROFILE_LOADER_SOURCE?",
        'key "seccomp-prefx" of the configuration file is unknown. Did you mean seccomp-prefix?',
        '--state-dir: "relative" must be an absolute path',
        '--prune: "some" must be one of: unused, always, never.',
        'key "take-over" of the configuration file: "5" must be a list',
        '--parser-timeout: "never" must be a time such as 30s, more than 0 and at most 60m',
        'PROFILE_LOADER_ALLOW_EMPTY: "maybe" is neither true nor false',
        "at least one --source is needed, for example --source profiles",
    ]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("chekc",), ['there is no command "chekc". Did you mean check?']),
        ((*RUN, "extra"), ['"extra" is one argument too many']),
        ((*RUN, "--kinds=selinux"), ['--kinds: "selinux" must be one of: apparmor, seccomp.']),
        ((*RUN, "--kinds=,"), ["--kinds: at least one is needed"]),
        ((*RUN, "--take-over=a\nb"), ["--take-over: 'a\\nb' holds control characters"]),
        (("--oneshot", "--source=dri:/p"), None),
        (("check",), ["at least one PATH is needed: profile-loader check profiles"]),
        (("render",), ["a DIR is needed", "--name is needed", "--namespace is needed"]),
        ((*RUN, "--config="), ["--config: it must not be empty"]),
        ((*RUN, "--host-root="), ["--host-root: it must not be empty"]),
        ((*RUN, "--deny-name="), ["--deny-name: it must not be empty"]),
        (("status", "--prune=never"), ["--prune is not an option of status."]),
        (("check", "p", "--arc=x"), ["--arc is unknown. Did you mean --arch?"]),
        (("check", "p", "--sorce=x"), ["--sorce is unknown."]),
        (("status", "--foo", "bar"), ["--foo is unknown."]),
        ((*RUN, "bar", "--foo"), ['"bar" is one argument too many', "--foo is unknown."]),
        (("check", ""), ["PATH: a source must not be empty"]),
        (("check", "dri:p"), None),
        (
            ("render", "d", "--name=N_x", "--namespace=a.b"),
            [
                (
                    '--name: "N_x" must be lower-case letters, digits and "-", in parts joined by '
                    '".", each with a letter or digit at both ends'
                ),
                (
                    '--namespace: "a.b" must be lower-case letters, digits and "-", with a letter '
                    "or digit at both ends"
                ),
            ],
        ),
    ],
)
def test_what_is_wrong_is_said(argv, expected):
    """A wrong call ends with 2 and names what is wrong."""
    told = mistakes(*argv)
    assert told == expected if expected is not None else "dri:" in told[0]


def test_variables_that_a_service_of_the_same_name_brings_are_no_mistake():
    """The kubelet tells each pod of the Services beside it, under names that begin as ours do."""
    links = {
        "PROFILE_LOADER_SERVICE_HOST": "10.0.0.1",
        "PROFILE_LOADER_SERVICE_PORT": "9808",
        "PROFILE_LOADER_SERVICE_PORT_METRICS": "9808",
        "PROFILE_LOADER_PORT": "tcp://10.0.0.1:9808",
        "PROFILE_LOADER_PORT_9808_TCP_ADDR": "10.0.0.1",
    }
    assert isinstance(parse(*RUN, environ=links), cli.Run)


def test_a_machine_that_nobody_knows_is_a_mistake():
    """A check for it could say nothing."""
    (mistake,) = mistakes("check", "p", "--arch=x86-64")
    assert mistake.startswith('--arch: "x86-64" must be one of: aarch64, ')
    assert mistake.endswith("Did you mean x86_64?")


def test_without_oneshot_it_is_a_daemon():
    """--oneshot alone makes the difference between one pass and passes for ever."""
    expected = cli.Run(settings=Config(source=("configmap:ns/a",)), oneshot=False)
    assert parse("--source", "configmap:ns/a") == expected


def test_options_that_do_not_go_together_are_told():
    """A daemon that changes nothing, and a taint of an unknown Node, are mistakes."""
    assert mistakes("--source=/p", "--dry-run", "--startup-taint=fresh", "--tls-key=k") == [
        "--dry-run needs --oneshot: a daemon that changes nothing is of no use",
        "--tls-cert and --tls-key need --https-address",
        "--startup-taint needs --node-name",
    ]


@pytest.mark.parametrize(
    "text", ["a.org/b=:NoSchedule", "b:NoSchedule", "a.org/", "A/b", "b=", "/b"]
)
def test_a_startup_taint_that_no_node_can_have_is_a_mistake(text):
    """The key alone is compared: anything else would wait on the Node for ever."""
    (mistake,) = mistakes(*RUN, "--node-name=n", f"--startup-taint={text}")
    assert mistake.startswith("--startup-taint: ")


def test_a_mistake_leads_to_the_help_of_its_command():
    """What a command knows, only its own help lists."""
    assert parse("status", "--prune=never").text.endswith("\nSee profile-loader status --help.\n")
    assert parse("--prune=x").text.endswith("\nSee profile-loader --help.\n")


@pytest.mark.parametrize(
    "text",
    ["configmap:ns", "configmap:ns/", "configmap:NS/a", "configmaps:/", "configmaps:ns?a in b"],
)
def test_a_configmap_source_that_cannot_exist_is_told(text):
    """The names are checked before the API server is asked."""
    (mistake,) = mistakes("--oneshot", "--source", text)
    assert mistake.startswith(f'--source: "{text}"')


@pytest.mark.parametrize(
    ("argv", "given"),
    [
        (["--node-name=n1"], {}),
        ([], {"environ": {"PROFILE_LOADER_NODE_NAME": "n1"}}),
        (["--config=c"], {"file": {"node-name": "n1"}}),
    ],
)
def test_unlabel_takes_its_node_from_wherever_options_come(argv, given):
    """In the agent's pod the environment names the Node."""
    assert parse("unlabel", *argv, **given).settings.node_name == "n1"
    assert mistakes("unlabel") == ["--node-name is needed"]


def test_a_flag_without_its_value_hides_no_other_mistake():
    """A missing value, and one too many, are told beside everything else."""
    assert mistakes("--onshot", "--dry-run=yes", "--source", "--prune") == [
        "--dry-run takes no value",
        "--source: a value is needed",
        "--prune: a value is needed",
        "--onshot is unknown. Did you mean --oneshot?",
    ]


@pytest.mark.parametrize("value", ["", "\n"])
@pytest.mark.parametrize("name", ["DENY_NAME", "SOURCE", "TAKE_OVER"])
def test_a_blank_variable_empties_no_list(name, value):
    """A variable that a manifest leaves blank does not take the deny list away."""
    variable = f"PROFILE_LOADER_{name}"
    assert mistakes(*RUN[:1], "--host-root=/", environ={variable: value})[0] == (
        f"{variable}: it must not be empty"
    )


def test_a_blank_config_variable_is_a_mistake():
    """A configuration that was meant is never left out in silence."""
    environ = {"PROFILE_LOADER_CONFIG": ""}
    assert mistakes(*RUN, environ=environ) == ["--config: it must not be empty"]


@pytest.mark.parametrize("prefix", ["../x", "/abs", "a//b", "./a", "/"])
def test_a_prefix_that_leads_elsewhere_is_a_mistake(prefix):
    """What every key would be refused for is said once, before anything is read."""
    assert mistakes(*RUN, f"--seccomp-prefix={prefix}") == [
        f'--seccomp-prefix: "{prefix}" must be a relative path without empty parts, "." and ".."'
    ]


def test_no_control_character_of_a_mistake_reaches_the_terminal():
    """Keys and values of a file, and flags, are escaped where they are repeated."""
    parsed = parse(*RUN, "--\x1b[31m", "--config=f", file={"a\x1b": 1, "dry-run": "\x1b[2J"})
    assert isinstance(parsed, cli.Usage)
    assert all(one.isprintable() or one == "\n" for one in parsed.text)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (OSError(2, "No such file or directory"), "--config f: No such file or directory"),
        (ValueError("line 1:\n  bad"), "--config f: line 1: bad"),
        (["x"], "--config f: it must map options to values"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_a_mistake(file, text):
    """A missing, broken or odd file is never an empty one."""
    assert mistakes(*RUN, "--config=f", file=file) == [text]


def test_an_empty_configuration_is_one():
    """A file without any key changes nothing."""
    assert parse(*RUN, "--config=f", file=None) == parse(*RUN)


def test_the_other_commands_have_arguments_of_their_own():
    """check, status, restore and render are told apart."""
    assert parse("check", "a", "b", "--arch=aarch64") == cli.Check(
        settings=Config(), paths=("a", "b"), arch="aarch64"
    )
    assert parse("status", "--output=json") == cli.Status(settings=Config(output="json"))
    assert parse("restore") == cli.Restore(settings=Config())
    assert parse("render", "d", "--name=n", "--namespace=ns") == cli.Render(
        directory="d",
        name="n",
        namespace="ns",
        domain="profile-loader.node-restriction.kubernetes.io",
    )


@pytest.mark.parametrize("command", ["run", "check", "status", "restore", "render"])
@pytest.mark.parametrize("columns", ["40", "80"])
def test_help_fits_the_terminal(command, columns, monkeypatch):
    """Help ends with 0; only option names and examples are wider than a small terminal."""
    monkeypatch.setenv("COLUMNS", columns)
    parsed = parse(command, "--help")
    assert (type(parsed), parsed.status) == (cli.Usage, 0)
    wide = [line for line in parsed.text.splitlines() if len(line) > int(columns)]
    assert [line for line in wide if "profile-loader" not in line and "--" not in line] == []


def test_the_version_is_the_distributions():
    """--version prints name and version."""
    assert parse("--version").text.startswith("profile-loader 0.")


def test_a_client_authority_without_tls_is_a_mistake():
    """Whoever gives one means that not everybody is answered; plain HTTP answers everybody."""
    told = ["--tls-client-ca needs --https-address: --http-address answers everybody"]
    assert mistakes("--source=dir:/p", "--tls-client-ca=/ca.pem") == told
    safe = ("--https-address=:9809", "--tls-cert=/tls.pem", "--tls-client-ca=/ca.pem")
    assert isinstance(parse("--source=dir:/p", *safe), cli.Run)


@pytest.mark.parametrize(("text", "fine"), [("800", True), ("801", False), ("x", False)])
def test_the_label_limit_is_below_the_cost_limit_of_the_policy(text, fine):
    """With more labels in one request the API server would deny all of them."""
    argv = (*RUN, f"--label-limit={text}")
    if fine:
        assert parse(*argv).settings.label_limit == float(text)
    else:
        wrong = f'--label-limit: "{text}" must be a whole number of at most 800'
        assert mistakes(*argv) == [wrong]
