"""A node of a cluster, in the virtual machine: the agent as a daemon on a real AppArmor kernel.

It plays the kubelet's part (the boot id in the Node's status), starts the agent as the DaemonSet
does, and speaks with the test outside in lines of JSON: it does what it is told, and says on its
own whenever the kernel holds another version of the profile. Its clock is its own monotonic one.
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

from scenarios import SECURITY, parser

LOG = Path("/tmp/agent.log")  # noqa: S108 - the guest is ours alone
ABSENT = ["", ""]


def boot_id():
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def register(setting):
    """Say in the Node's status which boot this is, as its kubelet does."""
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


def held(name):
    """Return the hash and mode of what the kernel holds under a plain name."""
    for path in (SECURITY / "policy/profiles").glob(f"{name}.*"):
        try:
            content = next(path.glob("sha*")).read_text().strip()
            return [content, (path / "mode").read_text().strip()]
        except (OSError, StopIteration):
            return ABSENT  # it went in this moment; the next revision is being told already
    return ABSENT


def compiled(text):
    """Return [hash, seconds]: a text of one profile as the kernel hashes it, and the parser's time.

    The kernel leaves out the 12 bytes of the version header: security/apparmor/policy_unpack.c,
    aa_calc_profile_hash.
    """
    begin = time.monotonic()
    done = subprocess.run(
        ["/sbin/apparmor_parser", "-QKS"], input=text.encode(), capture_output=True, check=True
    )
    seconds = time.monotonic() - begin
    content = hashlib.sha1(done.stdout[12:]).hexdigest()  # noqa: S324 - the hash of Linux 6.1
    return [content, seconds]


class Line:
    """The connection to the test outside; any thread may speak."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, 300)
        self.socket.settimeout(None)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.lock = threading.Lock()

    def say(self, **content):
        with self.lock:
            self.socket.sendall(json.dumps(content).encode() + b"\n")

    def heard(self):
        with self.socket.makefile() as lines:
            for line in lines:
                yield json.loads(line)


def watch(name, line):
    """Say what the kernel holds whenever that changes, before anybody else of this node runs."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    fd = os.open(SECURITY / "revision", os.O_RDONLY | os.O_NONBLOCK)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    last = None
    while True:
        now = held(name)
        at = time.monotonic()  # it was so by this time
        if now != last:
            line.say(kernel=now, at=at)
            last = now
        poll.poll()
        os.read(fd, 64)


class Agent:
    """The agent with the arguments of the DaemonSet, and those of this test."""

    def __init__(self, setting):
        self.command = [
            sys.executable, "-m", "agent", *setting["arguments"],
            f"--node-name={setting['node']}", "--kubeconfig=agent.kubeconfig", "--log-format=json",
        ]  # fmt: skip
        self.start()

    def start(self):
        environ = dict(os.environ)
        environ.pop("PYTHONDONTWRITEBYTECODE", None)  # the guest has no bytecode: it is kept
        with LOG.open("a") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=environ)

    def kill(self):
        self.process.kill()
        self.process.wait()


def serve(agent, line):
    """Do what the test asks for, until it has enough."""
    for asked in line.heard():
        match asked["do"]:
            case "clock":
                line.say(clock=time.monotonic())
            case "compile":
                line.say(compiled=[compiled(text) for text in asked["texts"]])
            case "remove":
                status, said = parser(asked["text"], "-R")
                line.say(removed=[status, said])
            case "restart":  # with nothing in memory, and the profile gone meanwhile
                agent.kill()
                status, said = parser(asked["text"], "-R")
                agent.start()
                line.say(restarted=[status, said])
            case "end":
                line.say(ended=True)
                return


def main():
    setting = json.loads(Path("setting.json").read_text())
    register(setting)
    line = Line((setting["host"], setting["port"]))
    agent = Agent(setting)
    threading.Thread(target=watch, args=(setting["profile"], line), daemon=True).start()
    try:
        serve(agent, line)
    finally:
        agent.kill()
        print(LOG.read_text())


if __name__ == "__main__":
    main()
