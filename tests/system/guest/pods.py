"""Prepares the node, and runs the pods of the manifests with runc in the virtual machine.

On the host, tests/system/rights.py writes the OCI configurations /job/bundles/NAME.json. /image
contains the file system of the image. If the environment variable TRACE contains an strace command,
strace traces each container.
"""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pace
from node_tools import SECURITY, loaded, parser

BUNDLES = Path("/job/bundles")
SOURCE = Path("/run/profiles")
STATE = Path("/var/lib/profile-loader")
SECCOMP = Path("/var/lib/kubelet/seccomp")
TRACE = os.environ.get("TRACE", "").split()
CALLS = Path("/job/calls")
WAIT_SECONDS = 400.0 if TRACE else 90.0
# These rules are the relevant part of the profile that containerd loads
# (contrib/apparmor/template.go).
RUNTIME = "cri-containerd.apparmor.d"
DEFAULT = f"""profile {RUNTIME} flags=(attach_disconnected,mediate_deleted) {{
  network,
  capability,
  file,
  umount,
  signal,
  ptrace (trace,read) peer={RUNTIME},
  deny mount,
  deny /proc/* w,
  deny /sys/[^f]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"""


def node():
    """Prepare the control groups, the image and the network namespace of the pod."""
    for line in (
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        "mkdir /image /run/netns",
        "mount /dev/nvme1n1 /image",
        "touch /run/netns/pod",
        "mount --bind /proc/self/ns/net /run/netns/pod",
        "busybox ip link set lo up",
    ):
        subprocess.run(line.split(), check=True)
    assert parser(DEFAULT, "-a")[0] == 0


class Container:
    """A container of a modified bundle, which runs until the block ends."""

    def __init__(self, bundle, change=lambda config: None):
        self.name = f"{bundle}-{time.monotonic_ns()}".replace(" ", "-").replace(",", "")
        self.folder = Path("/run/containers") / self.name
        self.folder.mkdir(parents=True)
        config = json.loads((BUNDLES / f"{bundle}.json").read_text())
        for path in config["annotations"]["create"].split():
            Path(path).mkdir(parents=True, exist_ok=True)
        seccomp = config["linux"].get("seccomp", {})
        if "localhost" in seccomp:
            config["linux"]["seccomp"] = json.loads((SECCOMP / seccomp["localhost"]).read_text())
        change(config)
        config["linux"]["cgroupsPath"] = f"/{self.name}"
        (self.folder / "config.json").write_text(json.dumps(config))
        trace = [*TRACE, "-o", str(CALLS / self.name)] if TRACE else []
        self.command = [*trace, "runc", "run", "--bundle", str(self.folder), self.name]

    def run(self):
        """Run the container until it ends, and return its exit status and its output."""
        result = subprocess.run(
            self.command, capture_output=True, text=True, timeout=3000, check=False
        )
        return result.returncode, result.stdout, result.stderr

    def __enter__(self):
        self.log = self.folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        return self

    def __exit__(self, *_):
        subprocess.run(["runc", "delete", "--force", self.name], capture_output=True, check=False)
        self.process.wait(300)

    def wait_for(self, condition, what):
        """Wait until a condition is true.

        If the container exits before the condition is true, the test fails immediately.
        """

        def described():
            return f"{what}\n{self.log.read_text()[-3000:]}"

        def is_true():
            assert self.process.poll() is None, f"the container ended before: {described()}"
            return condition()

        pace.until(is_true, described, WAIT_SECONDS, 0.05)

    def stop(self):
        """Stop the container as the kubelet does. Return its exit status and the number of seconds
        that this took.
        """
        subprocess.run(["runc", "kill", self.name, "TERM"], check=True)
        return pace.ended(self.process)

    def peak(self):
        """Return the peak memory use of the container's control group in MiB."""
        return int(Path(f"/sys/fs/cgroup/{self.name}/memory.peak").read_text()) / 2**20


def get(path):
    """Return the response of the agent's HTTP server, or "" if it does not respond."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:9808{path}", timeout=50) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def policy():
    """Return the mode of each loaded profile by name. The profile of the runtime itself is
    omitted.
    """
    return {name: mode for name, mode in loaded().items() if name != RUNTIME}


def clean():
    """Remove all profiles from the kernel, and empty the agent's directories."""
    for path in (STATE, SECCOMP, SOURCE):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    for name in sorted(policy(), key=len, reverse=True):
        (SECURITY / ".remove").write_bytes(name.encode())
    assert policy() == {}, policy()


def audited():
    """Return the last denials by seccomp and AppArmor in the kernel log."""
    result = subprocess.run(["busybox", "dmesg"], capture_output=True, text=True, check=False)
    lines = [line for line in result.stdout.splitlines() if "audit" in line]
    return "\n".join(lines[-5:])


def note(text):
    print(json.dumps({"note": text}), flush=True)


# --- recorded calls ------------------------------------------------------------------------------

FILTER = re.compile(r"(seccomp\(SECCOMP_SET_MODE|prctl\(PR_SET_SECCOMP, SECCOMP_MODE)_FILTER")


def calls():
    """Return the calls of the agent, and the calls of runc after it loaded the filter."""
    result = set()
    for path in CALLS.iterdir():
        if "/bin/profile-loader" not in path.read_text(errors="replace"):
            continue
        children = set()
        # A child process may make system calls before its parent receives its PID.
        for _ in range(2):
            inside = set(children)
            for line in path.open(errors="replace"):
                pid, _, text = line.strip().partition(" ")
                text = text.lstrip()
                name = re.match(r"(?:<\.\.\. )?([a-z]\w+)[( ]", text)
                if name is None:
                    continue
                # Programs pass NULL to test whether the system call exists.
                if FILTER.match(text) and "NULL" not in text:
                    inside.add(pid)
                elif pid in inside:
                    result.add(name[1])
                    made = re.search(r" = (\d+)$", text)
                    if name[1] in ("clone", "clone3", "vfork", "fork") and made:
                        children.add(made[1])
                        inside.add(made[1])
    return sorted(result)
