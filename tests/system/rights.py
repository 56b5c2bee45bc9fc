"""Translates the agent's pod into the OCI configurations of its containers.

This module does not define any right of the agent. The user, the capabilities, privileges, root
file system, profiles, mounts, namespaces and limits come from the pod that kustomize builds. A
field that the pod does not set gets the default of containerd for pods of the kubelet (packages
pkg/oci and internal/cri of containerd). The seccomp profile that Debian packages for CRI-O and
Podman serves as RuntimeDefault. This module evaluates the conditions in the seccomp profile as
CRI-O and Podman do.
"""

import copy
import json
import re

from tests.system import kept, kustomize

ROOT = kustomize.ROOT
PACKAGE = "golang-github-containers-common"
# The group `usual` contains the default capabilities of a container. The group `other` contains the
# additional capabilities of a privileged container. The other groups contain the default masked
# paths and read-only paths.
WORDS = """
usual: CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP
usual: NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE
other: DAC_READ_SEARCH LINUX_IMMUTABLE NET_BROADCAST NET_ADMIN IPC_LOCK IPC_OWNER SYS_MODULE
other: SYS_RAWIO SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME
other: SYS_TTY_CONFIG LEASE AUDIT_CONTROL MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM
other: BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
masked: /proc/acpi /proc/asound /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list
masked: /proc/timer_stats /proc/sched_debug /proc/scsi /sys/firmware
read-only: /proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger
"""
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
PROPAGATION = {"None": "rprivate", "HostToContainer": "rslave", "Bidirectional": "rshared"}


def words(kind):
    """Return the capabilities or the paths of a group."""
    lines = [line.split() for line in WORDS.strip().splitlines()]
    return [word for line in lines if line[0] == f"{kind}:" for word in line[1:]]


def pod(*components):
    """Return the pod that kustomize builds from the base with these components."""
    return kustomize.pod(kustomize.objects(*components))


def without_api(pod, *more):
    """Return the pod with its profiles in a mounted directory, so that the pod needs no API server.

    The component mounted-volume also mounts the profiles in a directory. The rights of the pod do
    not change.
    """
    pod = copy.deepcopy(pod)
    (agent,) = pod["containers"]
    agent["args"] = ["--source=dir:/profiles", *more]
    agent["env"] = [item for item in agent["env"] if "NODE_NAME" not in item["name"]]
    agent["volumeMounts"].append({"name": "profiles", "mountPath": "/profiles", "readOnly": True})
    pod["volumes"].append({"name": "profiles", "projected": {}})
    return pod


def in_cluster(pod, token, environ):
    """Return the pod with the token and the environment that the API server and the kubelet add.

    Args:
        pod: The pod.
        token: The directory that contains the token of the service account.
        environ: The values of the environment variables that reference other fields.
    """
    pod = copy.deepcopy(pod)
    (agent,) = pod["containers"]
    known = [item for item in agent["env"] if "value" in item]
    given = [{"name": name, "value": value} for name, value in environ.items()]
    assert {item["name"] for item in agent["env"]} <= {item["name"] for item in [*known, *given]}
    # The variables in `environ` come first, because other variables reference them.
    agent["env"] = given + [item for item in known if item["name"] not in environ]
    place = "/var/run/secrets/kubernetes.io/serviceaccount"
    agent["volumeMounts"].append({"name": "token", "mountPath": place, "readOnly": True})
    pod["volumes"].append({"name": "token", "hostPath": {"path": token}})
    return pod


def config(pod, container, image, places):
    """Return the OCI configuration of one container of a pod.

    A Localhost seccomp profile becomes {"localhost": PATH}, because the node reads the file when it
    creates the container.

    Args:
        pod: The pod.
        container: One of the containers of the pod.
        image: The configuration of the container's image.
        places: The directory of each volume that the kubelet would fill, by the name of the volume.
    """
    context = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
    privileged = context.get("privileged", False)
    names = _capabilities(context.get("capabilities", {}), privileged=privileged)
    arguments = [*container.get("command", image["Entrypoint"]), *expanded(container)]
    process = {
        "user": {"uid": context.get("runAsUser", 0), "gid": context.get("runAsGroup", 0)},
        "args": arguments,
        "env": [*image["Env"], *_environment(container)],
        "cwd": image.get("WorkingDir") or "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), names),
        "noNewPrivileges": not privileged and context.get("allowPrivilegeEscalation") is False,
    }
    apparmor = context.get("appArmorProfile", {"type": "RuntimeDefault"})
    if not privileged and apparmor["type"] != "Unconfined":
        process["apparmorProfile"] = apparmor.get("localhostProfile", "cri-containerd.apparmor.d")
    volumes = {item["name"]: item for item in pod.get("volumes", ())}
    mounts, create = _system(privileged=privileged), []
    for item in sorted(
        container.get("volumeMounts", ()), key=lambda it: it["mountPath"].count("/")
    ):
        volume = volumes[item["name"]]
        mounts.append(_mount(item, volume, places))
        if volume.get("hostPath", {}).get("type") == "DirectoryOrCreate":
            create.append(volume["hostPath"]["path"])
    kinds = ["mount", "uts", "ipc", "cgroup"] + ["pid"] * (not pod.get("hostPID", False))
    namespaces = [{"type": kind} for kind in kinds]
    if not pod.get("hostNetwork", False):
        namespaces.append({"type": "network", "path": "/run/netns/pod"})
    linux = {
        "namespaces": namespaces,
        "maskedPaths": [] if privileged else words("masked"),
        "readonlyPaths": [] if privileged else words("read-only"),
        "resources": {"devices": [{"allow": privileged, "access": "rwm"}], **_limits(container)},
    }
    seccomp = context.get("seccompProfile", {"type": "Unconfined"})
    if not privileged and seccomp["type"] == "RuntimeDefault":
        linux["seccomp"] = runtime_default(names)
    elif not privileged and seccomp["type"] == "Localhost":
        linux["seccomp"] = {"localhost": seccomp["localhostProfile"]}
    return {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": "/image", "readonly": context.get("readOnlyRootFilesystem", False)},
        "hostname": "pod",
        "mounts": mounts,
        "annotations": {"create": "\n".join(create)},
        "linux": linux,
    }


def runtime_default(capabilities):
    """Return the runtime's default seccomp profile for amd64 and these capabilities."""
    profile = json.loads(_packaged().read_text())
    held = set(capabilities)

    def applies(rule):
        yes, no = rule.get("includes") or {}, rule.get("excludes") or {}
        if "arches" in yes and "amd64" not in yes["arches"]:
            return False
        return held.issuperset(yes.get("caps", ())) and held.isdisjoint(no.get("caps", ()))

    keys = ("names", "action", "errnoRet", "args")
    rules = [
        {key: rule[key] for key in keys if rule.get(key) is not None}
        for rule in profile["syscalls"]
        if applies(rule)
    ]
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    }


def _packaged():
    return kept.package(PACKAGE) / "usr/share/containers/seccomp.json"


def _capabilities(wanted, *, privileged):
    names = words("usual")
    if privileged:
        names += words("other")
    elif "ALL" in wanted.get("drop", ()):
        names = []
    return [f"CAP_{item}" for item in [*names, *wanted.get("add", ())]]


def expanded(container):
    """Return the arguments of a container after its environment variables were expanded."""
    values = environment(container)
    return [_expanded(argument, values) for argument in container.get("args", ())]


def environment(container):
    """Return the environment of a container. A value may reference earlier variables."""
    values = {}
    for variable in container.get("env", ()):
        if "value" in variable:
            values[variable["name"]] = _expanded(variable["value"], values)
    return values


def _expanded(text, values):
    return re.sub(r"\$\((\w+)\)", lambda match: values.get(match[1], match[0]), text)


def _environment(container):
    return [f"{name}={value}" for name, value in environment(container).items()]


def _limits(container):
    limit = container.get("resources", {}).get("limits", {}).get("memory")
    return {"memory": {"limit": _bytes(limit), "swap": _bytes(limit)}} if limit else {}


def _bytes(quantity):
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def _mount(mount, volume, places):
    """Return the OCI mount of one volume. A hostPath volume is mounted from the same path on the
    node.
    """
    access = "ro" if mount.get("readOnly") else "rw"
    if "emptyDir" in volume:
        size = _bytes(volume["emptyDir"]["sizeLimit"])
        options = ["mode=0777", f"size={size}", access]
        return _special(mount["mountPath"], "tmpfs", "tmpfs", options)
    source = volume["hostPath"]["path"] if "hostPath" in volume else places[volume["name"]]
    options = ["rbind", PROPAGATION[mount.get("mountPropagation", "None")], access]
    return _special(mount["mountPath"], "bind", source, options)


def _special(place, kind, source, options):
    return {"destination": place, "type": kind, "source": source, "options": options}


def _system(*, privileged):
    """Return the mounts of all containers."""
    access = "rw" if privileged else "ro"
    common = ["nosuid", "noexec", "nodev"]
    return [
        _special("/proc", "proc", "proc", common),
        _special("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _special(
            "/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666"]
        ),
        _special("/dev/mqueue", "mqueue", "mqueue", common),
        _special("/sys", "sysfs", "sysfs", [*common, access]),
        _special("/sys/fs/cgroup", "cgroup", "cgroup", [*common, access]),
        _special("/dev/shm", "tmpfs", "shm", [*common, "mode=1777", "size=65536k"]),  # noqa: S108
    ]
