"""Builds workloads for the node tests: busybox pods with a profile."""

from tests.system.node.lab import DOMAIN

SLEEP = "sleep 1000000"


def pod(name, command=SLEEP, *, apparmor="", seccomp="", selector=None, **spec):
    """Return a pod with one busybox container, which runs a shell command as the user nobody."""
    security = {
        "allowPrivilegeEscalation": False,
        "runAsUser": 65534,
        "capabilities": {"drop": ["ALL"]},
    }
    if apparmor:
        security["appArmorProfile"] = {"type": "Localhost", "localhostProfile": apparmor}
    if seccomp:
        security["seccompProfile"] = {"type": "Localhost", "localhostProfile": seccomp}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            # The setup of a separate network would take one more second in the emulated guest.
            "hostNetwork": True,
            "nodeSelector": selector or {},
            "containers": [
                {
                    "name": name,
                    "image": "busybox:1.28",
                    "command": ["sh", "-c", command],
                    "securityContext": security,
                }
            ],
            **spec,
        },
    }


def enforced(name):
    """Return the nodeSelector for an AppArmor profile."""
    return {f"apparmor.{DOMAIN}/{name}": "enforce"}


def installed(name):
    """Return the nodeSelector for a seccomp file."""
    return {f"seccomp.{DOMAIN}/{name.replace('/', '__')}": "installed"}


def text(name, *rules):
    """Return an AppArmor profile that allows files and signals and contains additional rules."""
    lines = "".join(f"  {rule},\n" for rule in rules)
    return f"profile {name} flags=(attach_disconnected) {{\n  file,\n  signal,\n{lines}}}\n"


def refusing_mkdir(errno):
    """Return a seccomp profile that denies mkdir with an error number."""
    return (
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], '
        f'"action": "SCMP_ACT_ERRNO", "errnoRet": {errno}}}]}}'
    )
