"""Reads the modes of security modules for which the agent installs nothing.

The only such module is SELinux. Reports and a label of the Node show its mode. The kernel shows the
mode in selinuxfs. In a container, the directory of selinuxfs is empty until selinuxfs is mounted
there (manifests/components/selinux).
"""

from typing import Final

from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.ports import ModuleState, ModuleStates
from agent.core.vocabulary import ModuleMode
from agent.host.filesystem import Host, HostError

# The kernel creates this directory in sysfs, even in containers, if and only if SELinux was enabled
# at boot (security/selinux/selinuxfs.c: init_sel_fs).
_SELINUXFS: Final = "/sys/fs/selinux"
_MODES: Final = {b"1": ModuleMode.ENFORCING, b"0": ModuleMode.PERMISSIVE}


def states(host: Host) -> ModuleStates:
    """Return the state of each module. Nothing is loaded or changed."""
    return {"selinux": _selinux(host)}


def _selinux(host: Host) -> ModuleState:
    try:
        if not host.exists(_SELINUXFS):
            return ModuleState(mode=ModuleMode.DISABLED)
        content = host.read(f"{_SELINUXFS}/enforce")
    except HostError as error:
        return _unknown(f"The mode of SELinux cannot be read: {error}.")
    mode = _MODES.get(content.strip())
    if mode is None:
        return _unknown(f"{_SELINUXFS}/enforce contains neither 0 nor 1.")
    return ModuleState(mode=mode)


def _unknown(message: str) -> ModuleState:
    finding = Finding(
        code=FindingCode.MODULE_UNOBSERVABLE,
        location="selinux",
        message=f"{message} The Node gets no label for SELinux.",
        hint="In a cluster, mount selinuxfs with components/selinux, or with selinux.mount in the "
        "chart. No profile depends on the mode.",
    )
    return ModuleState(mode=ModuleMode.UNKNOWN, finding=finding)
