"""The shipped seccomp profiles under real runc and crun, in a container made from busybox.

Each runtime gets what a CRI runtime would give it: the canonical file that the agent writes, as
linux.seccomp of the container's config.json.
"""

import json
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from agent import wiring
from agent.core.model import Blob, Profile
from agent.settings import Settings

SHIPPED = Path("profiles")
# What Docker and containerd grant by default.
CAPABILITIES = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
]
# crun 1.8 refuses a host that has cgroup v1 and v2 side by side; it gets a view without v2.
HYBRID = Path("/sys/fs/cgroup/unified")
WITHOUT_V2 = ["unshare", "-m", "sh", "-c", f'umount {HYBRID} && exec "$@"', "sh"]
TIMEOUT_SECONDS = 60


def canonical(key):
    """Return what the agent writes for a shipped profile."""
    content = (SHIPPED / key).read_bytes()
    kind = wiring.kinds(Settings(kinds=frozenset({"seccomp"})))["seccomp"]
    found = kind.inspect(Blob(origin="dir profiles", key=key, content=content))
    assert isinstance(found, Profile), found
    return json.loads(found.body)


@pytest.fixture
def bundle(tmp_path):
    """Return a bundle whose root holds busybox alone."""
    for name in ("bin", "proc", "sys", "dev", "tmp"):
        (tmp_path / "rootfs" / name).mkdir(parents=True)
    busybox = tmp_path / "rootfs/bin/busybox"
    shutil.copy(shutil.which("busybox"), busybox)
    for name in ("sh", "chmod", "touch", "stat", "grep", "echo", "mkdir"):
        (tmp_path / "rootfs/bin" / name).symlink_to("busybox")
    subprocess.run(["runc", "spec"], cwd=tmp_path, check=True)
    return tmp_path


def run(runtime, bundle, seccomp, script):
    """Run a shell script in a container of its own; return how it ended."""
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    process = config["process"]
    process["terminal"] = False
    process["args"] = ["/bin/sh", "-c", script]
    process["capabilities"] = dict.fromkeys(process["capabilities"], CAPABILITIES)
    config["root"]["readonly"] = False
    config["linux"].pop("seccomp", None)
    if seccomp is not None:
        config["linux"]["seccomp"] = seccomp
    path.write_text(json.dumps(config))
    name = f"profile-loader-{uuid.uuid4().hex[:12]}"
    command = ["runc"] if runtime == "runc" else ["crun", "--cgroup-manager=cgroupfs"]
    around = WITHOUT_V2 if runtime == "crun" and HYBRID.is_mount() else []
    try:
        return subprocess.run(
            [*around, *command, "run", name],
            cwd=bundle,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
    finally:
        subprocess.run(
            [*around, *command, "delete", "--force", name], check=False, capture_output=True
        )


CHMOD = "touch /tmp/x && chmod 0640 /tmp/x; echo chmod $?; stat -c %a /tmp/x"
MODE = "grep ^Seccomp: /proc/self/status; echo ran"


@pytest.mark.parametrize("runtime", ["runc", "crun"])
class TestRuntime:
    """What a container of each runtime sees of each shipped profile."""

    def test_without_a_profile_chmod_works(self, runtime, bundle):
        """The bundle itself denies nothing, so that what follows is the profiles' doing."""
        done = run(runtime, bundle, None, CHMOD)
        assert (done.returncode, done.stdout) == (0, "chmod 0\n640\n"), done

    def test_prevent_chmod_denies_chmod_and_nothing_else(self, runtime, bundle):
        """Under prevent-chmod the mode of a file stays, and everything else works."""
        done = run(runtime, bundle, canonical("prevent-chmod"), CHMOD)
        assert (done.returncode, done.stdout) == (0, "chmod 1\n644\n"), done
        assert "Operation not permitted" in done.stderr

    def test_audit_runs_filtered(self, runtime, bundle):
        """Under profiles/audit.json the container runs with a filter in force (mode 2)."""
        done = run(runtime, bundle, canonical("profiles/audit.json"), MODE)
        assert (done.returncode, done.stdout) == (0, "Seccomp:\t2\nran\n"), done

    def test_violation_does_not_start(self, runtime, bundle):
        """Under profiles/violation.json no container gets to its first command."""
        done = run(runtime, bundle, canonical("profiles/violation.json"), MODE)
        assert done.returncode != 0, done
        assert "ran" not in done.stdout, done

    def test_fine_grained_denies_what_it_does_not_list(self, runtime, bundle):
        """Under profiles/fine-grained.json a shell works, and chdir is not permitted."""
        script = "echo ran; cd /tmp; echo cd $?; echo 1 >/tmp/y; echo write $?"
        done = run(runtime, bundle, canonical("profiles/fine-grained.json"), script)
        print(f"fine-grained under {runtime}: {done.returncode} {done.stdout!r} {done.stderr!r}")
        assert (done.returncode, done.stdout) == (0, "ran\ncd 2\nwrite 0\n"), done
