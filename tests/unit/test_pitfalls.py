"""Tests of the pitfalls in docs/pitfalls.md that no other test covers."""

import dataclasses
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from agent.backends.apparmor import kernel_access
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import SourceKey
from agent.host.filesystem import Host
from agent.kube import events
from agent.reporting import json_report, logs, table
from tests.inspection import apparmor_backend, inspected
from tests.reports import report, row

MANIFESTS = Path("manifests")
PROBES = dataclasses.replace(
    kernel_access.SYSTEM_PROBES,
    filesystem=lambda _: kernel_access.SECURITYFS_MAGIC,
    rights=lambda: "",
)


def test_a_reader_never_gets_a_partial_profile(tmp_path: Path) -> None:
    """If the agent replaces a file while a reader opens it, the reader gets one complete
    version.
    """
    host = Host(tmp_path)
    versions = [b"{}" * 8, b'{"a": 1}' * 8000]
    host.write_file("/d", "a.json", versions[0])
    result, contents = threading.Event(), set()

    def read() -> None:
        while not result.is_set():
            contents.add((tmp_path / "d/a.json").read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(300):
            host.write_file("/d", "a.json", versions[number % 2])
    finally:
        result.set()
        reader.join()
    assert contents <= set(versions)


WRITER = """
import sys
from agent.host.file_role import FileRole
from agent.host.filesystem import Host
host = Host(sys.argv[1])
for number in range(150):
    host.write_file("/d", "a.json", sys.argv[2].encode() * 20_000, role=FileRole.TRANSIENT)
"""


def test_a_reader_gets_complete_versions_if_two_agents_share_a_directory(tmp_path: Path) -> None:
    """If two agents write the same file at the same time, a reader gets only complete versions."""
    Host(tmp_path).write_file("/d", "a.json", b"a" * 20_000)
    contents = set()
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, letter], stderr=subprocess.PIPE) for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        contents.add((tmp_path / "d/a.json").read_bytes())
    assert [writer.communicate()[1] for writer in writers] == [b"", b""]
    assert contents <= {b"a" * 20_000, b"b" * 20_000}
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["a.json"]


def test_a_changed_text_with_the_same_name_is_compiled_again(tmp_path: Path) -> None:
    """If the content of a text changes, the text is compiled again, even with the same name and the
    same file times.
    """
    for name in ("revision", ".load", ".replace", ".remove", "features/policy/versions"):
        file = tmp_path / kernel_access.ROOT.lstrip("/") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("7\n")
    parser = tmp_path / "parser"
    parser.write_text(f"#!/bin/sh\ncat >> {tmp_path}/compiled\n")
    parser.chmod(0o755)
    includes = tmp_path / "includes"
    includes.mkdir()
    agent = apparmor_backend(
        Host(tmp_path), probes=PROBES, parser=str(parser), include_dir=str(includes)
    )
    texts = ["profile x { file, }", "profile x { deny /** w, }", "profile x { file, }"]
    for text in texts:
        inspected(agent, SourceKey(profile_set="dir test", key="x", content=text.encode()))
        os.utime(includes, (0, 0))
    assert (tmp_path / "compiled").read_text() == "".join(texts[:2])


def test_the_message_of_the_parser_is_in_every_output(capsys: pytest.CaptureFixture[str]) -> None:
    """The table, the JSON document, the log and the Event contain the parser's message with its
    line.
    """
    finding = Finding(
        code=FindingCode.PARSER_REJECTED,
        location="line 7",
        message="syntax error, unexpected TOK_ID.",
        hint="Correct it.",
    )
    rejected = row("web", state="rejected", kind="apparmor", action="reject", findings=(finding,))
    result = report(rejected)
    logs.configure("json", "info")
    logs.log(result)
    (event,) = events.transitions(None, result)
    texts = {
        "table": table.table(result, width=200),
        "document": json_report.document(result, exit_status=1),
        "log": capsys.readouterr().err,
        "Event": event.note,
    }
    assert [
        place
        for place, text in texts.items()
        if finding.message not in text or finding.location not in text
    ] == []


# The templates of the chart are not YAML. test_chart.py compares the rendered templates with the
# other manifests.
PLAIN_MANIFESTS = sorted(
    path for path in MANIFESTS.rglob("*.yaml") if "templates" not in path.parts
)
# An uninstallation deletes objects of these kinds with the namespace, or with `kubectl delete -k`.
REMOVED_KINDS = {
    "Namespace", "ConfigMap", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role",
    "RoleBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
    "ResourceQuota", "DaemonSet", "Kustomization", "Component", "PodMonitor", "PrometheusRule",
    "NetworkPolicy", "Pod",
}  # fmt: skip


@pytest.mark.parametrize("path", PLAIN_MANIFESTS, ids=str)
def test_nothing_in_the_manifests_outlives_an_uninstall(path: Path) -> None:
    """The manifests contain no custom resource, no webhook and no finalizer.

    The admission policy calls no program, and applies only to requests from the agent.
    """
    documents = [
        document
        for document in yaml.safe_load_all(path.read_text())
        if document and "kind" in document
    ]
    assert {document["kind"] for document in documents} <= REMOVED_KINDS
    assert [
        document for document in documents if "finalizers" in document.get("metadata", {})
    ] == []
    for document in documents:
        if document["kind"] == "ValidatingAdmissionPolicy":
            assert [match["name"] for match in document["spec"]["matchConditions"]] == ["the-agent"]
