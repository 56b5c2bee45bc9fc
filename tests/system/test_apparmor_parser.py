"""Tests of the AppArmor backend with the real apparmor_parser, without an AppArmor kernel."""

import random

import pytest

from agent.backends.apparmor import compiled_policy, parser
from agent.backends.apparmor.compile_queue import MAX_WAIT_SECONDS, CompileQueue
from agent.backends.apparmor.policy_cache import ParserResult
from agent.core.model import Profile, Rejection, SourceKey, Unchecked
from agent.host.filesystem import Host
from tests.inspection import apparmor_backend, compiled, inspected
from tests.system import apparmor_releases


def inspect(tmp_path, text, *, checking=True, **options):
    """Return the result of the inspection of one text."""
    content = text if isinstance(text, bytes) else text.encode()
    backend = apparmor_backend(Host(tmp_path), checking=checking, **options)
    (result,) = inspected(backend, SourceKey(profile_set="dir test", key="key", content=content))
    return result


@pytest.mark.parametrize(
    ("text", "code", "location"),
    [
        ("profile x {\n  nonsense here\n}\n", "parser_rejected", "line 2"),
        ("profile x {\n  include <abstractions/nope>\n}\n", "parser_rejected", "line 2"),
        ("profile x {\n  capability frobnicate,\n}\n", "parser_rejected", "line 2"),
        ("profile x flags=(bogus) {}\n", "parser_rejected", "line 1"),
        ("profile x {\n  /a r,\n", "parser_rejected", "line 3"),
        ("profile x {} \0", "text_unsafe", "line 1"),
        ("\ufeffprofile x {}", "not_utf8", "line 1"),
        ("profile x {\n  @{NOPE}/a r,\n}\n", "parser_rejected", "key"),
        ("profile x {}\nprofile x {}\n", "parser_rejected", "key"),
        ("", "no_profile", "key"),
        ("# comments only\n", "no_profile", "key"),
        ("\nprofile docker-default {}\n", "name_denied", "line 2"),
        ("@{P}=docker-default\nprofile @{P} {}\n", "name_variable", "line 2"),
        ("profile :ns:x {}\n", "namespace_refused", "line 1"),
        ('profile "a\tb" {}\n', "name_unsafe", "line 1"),
        ('profile "a\\nb" {}\n', "name_unsafe", '"a\nb"'),
        (f"profile {'n' * 201} {{}}\n", "name_unsafe", "line 1"),
        ('profile "a//b" {}\n', "name_unsafe", "line 1"),
        ("profile a {\n profile b {\n  profile c {}\n }\n}\n", "name_unsafe", "line 3"),
        ("\nprofile x /usr/bin/foo {}\n", "attachment_refused", "line 2"),
        ("\n/usr/bin/foo {}\n", "attachment_refused", "line 2"),
        ("\nprofile x /usr/{a,b}* {}\n", "attachment_refused", "line 2"),
        ("profile x flags=(unconfined) {}\n", "unconfined_refused", "line 1"),
        ('#include "/etc/shadow"\n', "include_refused", "line 1"),
    ],
)  # fmt: skip
def test_each_mistake_has_a_code_a_line_and_a_hint(tmp_path, text, code, location):
    """Each mistake causes a finding with a code, a line and a hint. Without a line from the parser,
    the finding contains only the key.
    """
    result = inspect(tmp_path, text)
    assert isinstance(result, Rejection)
    first = result.findings[0]
    assert (first.code, first.location) == (code, location)
    assert first.hint


def test_a_variable_in_a_name_does_not_bypass_the_deny_list(tmp_path):
    """A variable in a profile name does not bypass the deny list, which applies to the compiled
    name.
    """
    result = inspect(tmp_path, "@{P}=docker-default\nprofile @{P} {}\n")
    assert isinstance(result, Rejection)
    assert [finding.code for finding in result.findings] == ["name_variable", "name_denied"]


def test_names_and_modes_are_read_from_the_compiled_policy(tmp_path):
    """The names and modes of all profiles, hats and child profiles in a key are read from the
    compiled policy.
    """
    text = (
        "profile web flags=(complain) {\n  ^HAT { file, }\n  profile kid /bin/ls { file, }\n}\n"
        'profile "two words" { file, signal, }\r\n'
    )
    result = inspect(tmp_path, text)
    assert isinstance(result, Profile)
    assert result.version.names == ("two words", "web", "web//HAT", "web//kid")
    assert result.version.modes == {
        "web": "complain", "web//HAT": "enforce", "web//kid": "enforce", "two words": "enforce",
    }  # fmt: skip
    assert [(finding.code, finding.location) for finding in result.findings] == [
        ("complain_mode", "line 1")
    ]


def test_rules_that_the_parser_omits_cause_a_warning(tmp_path):
    """If the parser omits rules of a text from the policy, the text is accepted with the parser's
    warning.
    """
    result = inspect(tmp_path, "profile x {\n  signal, file,\n  dbus,\n  dbus send,\n}\n")
    assert isinstance(result, Profile)
    assert [(finding.code, finding.location) for finding in result.findings] == [
        ("rule_not_enforced", "line 3")
    ]
    assert result.findings[0].message.endswith("profile x: dbus rules not enforced")


def test_comments_change_the_source_and_not_the_policy(tmp_path):
    """If only the comments of a text change, the digest of the source changes, but the policy does
    not.
    """
    one = inspect(tmp_path, "profile x { file, }")
    two = inspect(tmp_path, "# a comment\nprofile x {\n file, }")
    assert isinstance(one, Profile)
    assert isinstance(two, Profile)
    assert one.version.body_digest == two.version.body_digest
    assert one.version.source_digest != two.version.source_digest


@pytest.mark.parametrize("release", apparmor_releases.RELEASES)
def test_a_policy_for_each_features_file_can_be_read(tmp_path, release):
    """The agent can read policies for all kernels, even for kernels that load compressed policies
    (5.0-interface).
    """
    options = apparmor_releases.backend_options(release, tmp_path)
    program = parser.Parser(options.get("parser", ""), include_dir=options["include_dir"])
    for path in program.features_files():
        text = f"abi <abi/{path.name}>,\nprofile x {{ file, network, }}\n"
        result = compiled(program, text.encode(), ("--kernel-features", str(path)))
        assert isinstance(result, ParserResult)
        assert compiled_policy.names(result.policy) == {"x"}


def test_a_node_without_apparmor_rejects_only_texts_with_errors(tmp_path):
    """On a node without AppArmor, a text without errors is reported as unsupported."""
    good = inspect(tmp_path, "profile x { file, }", checking=False)
    assert isinstance(good, Unchecked)
    assert good.finding.code == "kind_unsupported"
    assert isinstance(inspect(tmp_path, "profile x {", checking=False), Rejection)


def test_the_command_check_writes_no_file(tmp_path):
    """The command `check` writes no file, so that it does not change the machine of a CI job."""
    inspect(tmp_path, "profile x { file, }")
    assert list(tmp_path.iterdir()) == []


def test_mutated_texts_are_accepted_or_rejected(tmp_path):
    """If bytes of a text are changed or removed, the inspection raises no exception."""
    seed = (
        b"#include <tunables/global>\nprofile web flags=(attach_disconnected) {\n"
        b"  #include <abstractions/base>\n  file,\n  deny /** w,\n  ^hat { network, }\n}\n"
    )
    random_ = random.Random(7)  # noqa: S311 - the same texts in every run
    for _ in range(100):
        text = bytearray(seed)
        for _ in range(random_.randint(1, 6)):
            text[random_.randrange(len(text))] = random_.randrange(256)
        result = inspect(tmp_path, bytes(text[: random_.randint(1, len(text))]))
        assert isinstance(result, Profile | Rejection)


SLOW = "".join(
    f"  /**/{a}*b*/**{b}* r,\n" for a, b in zip("abcdefghijklmn", "defghijklmnopq", strict=True)
)


@pytest.mark.parametrize("is_quick", [True, False])
def test_the_cpu_limit_of_the_parser_is_reported(is_quick):
    """The agent reports the CPU limit, although the parser itself reports only that its child
    process ended (status 10).
    """
    made = parser.Parser("", include_dir="/etc/apparmor.d")
    run = made.run(
        f"profile slow {{\n{3 * SLOW}}}\n".encode(),
        ("--kernel-features", made.newest_features_file()),
        limits=parser.ParserLimits(cpu_seconds=1.0, memory_bytes=1 << 30),
        is_quick=is_quick,
        is_cancelled=lambda: False,
    )
    assert (run.outcome, run.detail) == (parser.RunFailure.CPU_TIME, "more than 1 s of CPU time")


def test_a_stream_of_new_texts_does_not_starve_a_slow_text():
    """A text that compiles slowly is compiled completely, even if a new text arrives during each
    run of the parser.
    """
    made = parser.Parser("", include_dir="/etc/apparmor.d")
    queue = CompileQueue(cpu_limit=3.0, pauses_slow_texts=True)
    features = ("--kernel-features", made.newest_features_file())

    def submit(key, text):
        queue.submit(
            key=key, text=text.encode(), features=features, context="", origin=key.partition(":")[0]
        )

    def submit_new():
        name = f"new:{queue.submitted}"
        submit(name, f'profile "{name}" {{}}\n')

    submit("a:slow", f"profile slow {{\n{3 * SLOW}}}\n")
    submit_new()
    now, results = 0.0, {}
    while "a:slow" not in results:
        assert now < 4 * MAX_WAIT_SECONDS, results.keys()
        task = queue.take(now)
        submit_new()
        run = made.run(
            task.text,
            task.features,
            limits=parser.ParserLimits(cpu_seconds=queue.slice_seconds(task), memory_bytes=1 << 30),
            is_quick=task.is_quick,
            is_cancelled=lambda task=task, now=now: queue.is_cancelled(task, now),
        )
        # These calls have the same effect as new texts that take a second each.
        now += max(1.0, run.seconds)
        result = queue.record_run(task, run, now)
        if result is not None:
            results[task.key] = result
    assert results.pop("a:slow").exceeded_limit == "more than 3 s of CPU time"
    assert len(results) >= MAX_WAIT_SECONDS / 2
    assert all(result.policy for result in results.values())
