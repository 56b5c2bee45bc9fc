"""Runs a cluster node in the virtual machine: the daemon on a real AppArmor kernel.

The program reports the boot ID in the status of the Node, as a kubelet does. The program starts the
agent with the arguments of the DaemonSet. The program and the test on the host exchange lines of
JSON. The program executes the commands of the test, and reports each new version of the profile in
the kernel. All times come from the monotonic clock of the guest.
"""

import hashlib
import json
import os
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from node_tools import SECURITY, parser

LOG = Path("/tmp/agent.log")  # noqa: S108 - no other user in the guest
ABSENT = ["", ""]


def boot_id():
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def register(setting):
    """Report the boot ID in the status of the Node, as a kubelet does."""
    status = {"status": {"nodeInfo": {**setting["info"], "bootID": boot_id()}}}
    request = urllib.request.Request(  # noqa: S310 - https only
        f"{setting['url']}/api/v1/nodes/{setting['node']}/status",
        data=json.dumps(status).encode(),
        method="PATCH",
        headers={
            "Authorization": f"Bearer {setting['kubelet']}",
            "Content-Type": "application/strategic-merge-patch+json",
        },
    )
    context = ssl.create_default_context(cafile="ca.crt")
    with urllib.request.urlopen(request, timeout=300, context=context) as answer:  # noqa: S310 - https only
        assert answer.status == 200, answer.status


def loaded_version(name):
    """Return the hash and the mode of a loaded profile. The profile must not be a child profile,
    whose name contains `//`.
    """
    for path in (SECURITY / "policy/profiles").glob(f"{name}.*"):
        try:
            content = next(path.glob("sha*")).read_text().strip()
            return [content, (path / "mode").read_text().strip()]
        except (OSError, StopIteration):
            # Another process removed the profile during this read. The removal also increments the
            # policy revision.
            return ABSENT
    return ABSENT


def compiled(text):
    """Return the hash that the kernel computes for a profile, and the number of seconds that the
    parser took.

    The hash does not cover the 12 bytes of the version header (security/apparmor/policy_unpack.c,
    aa_calc_profile_hash).
    """
    begin = time.monotonic()
    result = subprocess.run(
        ["/sbin/apparmor_parser", "-QKS"], input=text.encode(), capture_output=True, check=True
    )
    seconds = time.monotonic() - begin
    content = hashlib.sha1(result.stdout[12:]).hexdigest()  # noqa: S324 - the hash of Linux 6.1
    return [content, seconds]


class TestConnection:
    """The connection to the test on the host. All threads may use the connection."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, 300)
        self.socket.settimeout(None)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.lock = threading.Lock()

    def send(self, **content):
        with self.lock:
            self.socket.sendall(json.dumps(content).encode() + b"\n")

    def receive(self):
        with self.socket.makefile() as lines:
            for line in lines:
                yield json.loads(line)


def watch(name, line):
    """Report each change of the profile in the kernel. The function runs with a high priority, so
    that its times are exact.
    """
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    fd = os.open(SECURITY / "revision", os.O_RDONLY | os.O_NONBLOCK)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    last = None
    while True:
        now = loaded_version(name)
        at = time.monotonic()  # The kernel has loaded this version at the latest at this time.
        if now != last:
            line.send(kernel=now, at=at)
            last = now
        poll.poll()
        os.read(fd, 64)


class Agent:
    """The agent with the arguments of the DaemonSet and of this test."""

    def __init__(self, setting):
        self.command = [
            sys.executable, "-m", "agent", *setting["arguments"],
            f"--node-name={setting['node']}", "--kubeconfig=agent.kubeconfig", "--log-format=json",
        ]  # fmt: skip
        self.start()

    def start(self):
        environ = dict(os.environ)
        # The guest contains no Python bytecode, so the agent stores the bytecode that it compiles.
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        with LOG.open("a") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=environ)

    def kill(self):
        self.process.kill()
        self.process.wait()


def serve(agent, line):
    """Execute the commands of the test until the command `end` arrives."""
    for asked in line.receive():
        match asked["do"]:
            case "clock":
                line.send(clock=time.monotonic())
            case "compile":
                line.send(compiled=[compiled(text) for text in asked["texts"]])
            case "remove":
                status, output = parser(asked["text"], "-R")
                line.send(removed=[status, output])
            case "restart":  # The profile is removed before the new agent process starts.
                agent.kill()
                status, output = parser(asked["text"], "-R")
                agent.start()
                line.send(restarted=[status, output])
            case "end":
                line.send(ended=True)
                return


def main():
    setting = json.loads(Path("setting.json").read_text())
    register(setting)
    line = TestConnection((setting["host"], setting["port"]))
    agent = Agent(setting)
    threading.Thread(target=watch, args=(setting["profile"], line), daemon=True).start()
    try:
        serve(agent, line)
    finally:
        agent.kill()
        print(LOG.read_text())


if __name__ == "__main__":
    main()
