"""Mistakes of this field that no other test keeps out; docs/pitfalls.md lists all of them."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from agent.backends.apparmor import backend, kernel_access
from agent.core.findings import Finding
from agent.core.model import SourceKey
from agent.host.filesystem import Host
from agent.kube import events
from agent.reporting import json_report, logs, table
from tests.inspection import inspected
from tests.reports import report, row

MANIFESTS = Path("manifests")
PROBES = kernel_access.Probes(
    filesystem=lambda _: kernel_access.SECURITYFS_MAGIC, rights=lambda: ""
)


def test_a_reader_never_sees_a_part_of_a_profile(tmp_path):
    """A runtime that opens a file while it is replaced reads one whole version of it."""
    host = Host(tmp_path)
    versions = [b"{}" * 8, b'{"a": 1}' * 8000]
    host.write_file("/d", "a.json", versions[0])
    done, seen = threading.Event(), set()

    def read():
        while not done.is_set():
            seen.add((tmp_path / "d/a.json").read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(300):
            host.write_file("/d", "a.json", versions[number % 2])
    finally:
        done.set()
        reader.join()
    assert seen <= set(versions)


WRITER = """
import sys
from agent.host.filesystem import Host
host = Host(sys.argv[1])
for number in range(150):
    host.write_file("/d", "a.json", sys.argv[2].encode() * 20_000, durable=False)
"""


def test_a_reader_sees_whole_versions_of_two_agents_that_share_a_directory(tmp_path):
    """Two processes that write the same file at once never publish a part of it, nor fail."""
    Host(tmp_path).write_file("/d", "a.json", b"a" * 20_000)
    seen = set()
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, letter], stderr=subprocess.PIPE) for letter in "ab"]
    while any(one.poll() is None for one in writers):
        seen.add((tmp_path / "d/a.json").read_bytes())
    assert [one.communicate()[1] for one in writers] == [b"", b""]
    assert seen <= {b"a" * 20_000, b"b" * 20_000}
    assert [one.name for one in (tmp_path / "d").iterdir()] == ["a.json"]


def test_an_older_file_of_the_same_name_is_compiled_anew(tmp_path):
    """Neither a key's name nor any time says what its policy is: only its content does."""
    for name in ("revision", ".load", ".replace", ".remove", "features/policy/versions"):
        file = tmp_path / kernel_access.ROOT.lstrip("/") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("7\n")
    parser = tmp_path / "parser"
    parser.write_text(f"#!/bin/sh\ncat >> {tmp_path}/compiled\n")
    parser.chmod(0o755)
    includes = tmp_path / "includes"
    includes.mkdir()
    agent = backend.AppArmorBackend(
        host=Host(tmp_path), probes=PROBES, parser=str(parser), include_dir=str(includes)
    )
    texts = ["profile x { file, }", "profile x { deny /** w, }", "profile x { file, }"]
    for text in texts:
        inspected(agent, SourceKey(profile_set="dir test", key="x", content=text.encode()))
        os.utime(includes, (0, 0))
    assert (tmp_path / "compiled").read_text() == "".join(texts[:2])


def test_what_the_parser_said_is_told_everywhere(capsys):
    """The table, the document, the log and the Event have its message and its line."""
    said = Finding(
        code="parser_rejected",
        location="line 7",
        message="syntax error, unexpected TOK_ID.",
        hint="Mend.",
    )
    bad = row("web", state="rejected", kind="apparmor", action="reject", findings=(said,))
    found = report(bad)
    logs.configure("json", "info")
    logs.log(found)
    (event,) = events.transitions(None, found)
    texts = {
        "table": table.table(found, width=200),
        "document": json_report.document(found, exit_status=1),
        "log": capsys.readouterr().err,
        "Event": event.note,
    }
    assert [
        place
        for place, text in texts.items()
        if said.message not in text or said.location not in text
    ] == []


ENDS = {  # kinds whose objects end with the namespace or are named by `kubectl delete -k`
    "Namespace", "ConfigMap", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role",
    "RoleBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
    "ResourceQuota", "DaemonSet", "Kustomization", "PodMonitor", "PrometheusRule", "Pod",
}  # fmt: skip


@pytest.mark.parametrize("path", sorted(MANIFESTS.rglob("*.yaml")), ids=str)
def test_nothing_in_the_manifests_outlives_an_uninstall(path):
    """No custom resource, no webhook, no finalizer: nothing that waits for a program that is gone.

    The admission policy asks no program, and only about the agent's own requests.
    """
    documents = [one for one in yaml.safe_load_all(path.read_text()) if one and "kind" in one]
    assert {one["kind"] for one in documents} <= ENDS
    assert [one for one in documents if "finalizers" in one.get("metadata", {})] == []
    for one in documents:
        if one["kind"] == "ValidatingAdmissionPolicy":
            assert [match["name"] for match in one["spec"]["matchConditions"]] == ["the-agent"]
