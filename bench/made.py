"""Creates the profiles that the benchmark uses.

The profiles resemble real profiles, and no two of them are equal.
"""

import json
from pathlib import Path
from typing import Final

SYSCALLS: Final = 400
APPARMOR: Final = """abi <abi/3.0>,
include <tunables/global>

profile {name} flags=(attach_disconnected,mediate_deleted) {{
  include <abstractions/base>

  network inet stream,
  capability net_bind_service,
  capability setuid,
  deny @{{PROC}}/sys/kernel/** wklx,
  deny /sys/firmware/** rwklx,
  deny mount,
  /usr/sbin/{name} mr,
  /usr/lib/{name}/** mr,
  /usr/share/{name}/** r,
  /etc/{name}/** r,
  /var/lib/{name}/** rwk,
  /var/log/{name}/*.log w,
  /run/{name}.pid rw,
  /tmp/{name}-* rwk,
  owner /home/*/.{name}/** r,
  /{{,usr/}}bin/dash ix,
}}
"""


def apparmor(name: str) -> str:
    """Return a realistic AppArmor profile: 16 rules after the usual includes."""
    return APPARMOR.format(name=name)


def small(name: str, rule: str = "") -> str:
    """Return a small AppArmor profile."""
    return f"profile {name} {{\n  file,\n  signal,\n  {rule}\n}}\n"


def seccomp(number: int, syscalls: int = SYSCALLS) -> str:
    """Return a seccomp profile that allows a number of system calls, in the usual format."""
    names = _names()[:syscalls]
    start = number % len(names)
    rule = {"names": names[start:] + names[:start], "action": "SCMP_ACT_ALLOW"}
    other = {
        "names": ["personality"],
        "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": number, "op": "SCMP_CMP_EQ"}],
    }
    document = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [rule, other],
    }
    return json.dumps(document, indent=2)


def _names() -> list[str]:
    from agent.backends.seccomp import syscalls

    left = {"personality", "socketcall", "ipc"}
    return sorted(syscalls.KNOWN - left)


def fill_apparmor(directory: Path, count: int) -> Path:
    """Write the given number of realistic AppArmor profiles."""
    directory.mkdir(parents=True)
    for number in range(count):
        (directory / f"app{number}.profile").write_text(apparmor(f"app{number}"))
    return directory


def fill_seccomp(directory: Path, count: int, syscalls: int = SYSCALLS) -> Path:
    """Write the given number of seccomp profiles."""
    directory.mkdir(parents=True)
    for number in range(count):
        (directory / f"app{number}.json").write_text(seccomp(number, syscalls))
    return directory
