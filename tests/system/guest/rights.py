"""Runs the agent's pod with runc on a real AppArmor kernel, as root in the virtual machine.

The program prints one line of JSON for each scenario, {"without": NAME, "found": ...} for each
missing right, and {"note": ...} for measurements. If the environment variable TRACE contains an
strace command, the program also prints {"calls": ...} with the system calls of the containers.
"""

import json
import shutil
import ssl
import sys
import time
import traceback
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pace
from node_tools import SECURITY, Confined, content, loaded, parser, plain
from pods import (
    BUNDLES,
    CALLS,
    SECCOMP,
    SOURCE,
    STATE,
    TRACE,
    Container,
    audited,
    calls,
    clean,
    get,
    node,
    note,
    policy,
)

SHIPPED = Path("/job/profiles")
KEPT = Path("/run/kept-state")
LOG = '{"defaultAction": "SCMP_ACT_LOG"}'
TRY = (
    "cat /proc/self/attr/current; grep Seccomp: /proc/self/status; touch /tmp/x && echo written; "
    "touch /dev/shm/x; chmod 700 /dev/shm && echo changed"
)


# --- scenarios with every right -------------------------------------------------------------------


def one_pass_installs_the_shipped_profiles_and_they_confine(bundle):
    """One pass installs all shipped profiles. In containers, one of the profiles denies writing,
    and another profile denies chmod.
    """
    shutil.copytree(SHIPPED, SOURCE, dirs_exist_ok=True)
    begin = time.monotonic()
    status, told, output = Container(f"{bundle}-oneshot").run()
    note(f"{bundle}: one pass takes {time.monotonic() - begin:.1f} s")
    assert status == 0, (status, told, output)
    assert json.loads(told)["support"]["apparmor"]["sandboxed"] is True, told
    states = {one["name"]: one["state"] for one in json.loads(told)["profiles"]}
    assert set(states.values()) == {"installed"}, states
    assert len(states) == 5, states
    assert policy() == {"k8s-apparmor-example-deny-write": "enforce"}

    def shell(config, *, confined):
        config["process"]["args"] = ["sh", "-c", TRY]
        config["linux"].pop("seccomp", None)
        if confined:
            config["process"]["apparmorProfile"] = "k8s-apparmor-example-deny-write"
            config["linux"]["seccomp"] = json.loads((SECCOMP / "prevent-chmod").read_text())

    free = Container("base-oneshot", lambda config: shell(config, confined=False)).run()
    assert free[:2] == (0, "unconfined\nSeccomp:\t0\nwritten\nchanged\n"), free
    status, told, output = Container("base-oneshot", lambda one: shell(one, confined=True)).run()
    assert told == "k8s-apparmor-example-deny-write (enforce)\nSeccomp:\t2\n", (told, output)
    assert "touch: cannot touch '/tmp/x': Permission denied" in output, output
    assert "chmod: changing permissions of '/dev/shm': Operation not permitted" in output, output


def strictly(config):
    """Change the seccomp profile so that calls outside its list kill the agent instead of
    failing.
    """
    if "seccomp" in config["linux"] and not TRACE:
        config["linux"]["seccomp"]["defaultAction"] = "SCMP_ACT_KILL_PROCESS"


def every_function_works(bundle, change=lambda config: None):
    """The daemon installs, replaces, rejects, restores, keeps and removes profiles of both kinds.

    The daemon also loads a profile after another program has blocked the policy interface of the
    kernel, and responds to probes and SIGTERM.
    """
    (SOURCE / "web.profile").write_text(plain("web"))
    (SOURCE / "audit.json").write_text(LOG)
    begin = time.monotonic()
    with Container(f"{bundle}-daemon", change) as pod:
        wait = pod.wait_for
        wait(lambda: get("/readyz"), "ready")
        note(f"{bundle}: ready after {time.monotonic() - begin:.1f} s")
        assert get("/healthz"), "alive"
        wait(lambda: policy() == {"web": "enforce"}, "loaded")
        assert (SECCOMP / "audit.json").exists()
        assert 'parser_sandboxed{kind="apparmor"} 1.0' in get("/metrics"), "the sandbox is active"
        first, file = content("web"), (SECCOMP / "audit.json").read_bytes()
        # The source now provides an update, a rejected update and a new profile. Another program
        # also blocks the policy interface of the kernel.
        (SOURCE / "web.profile").write_text(plain("web", "deny /etc/shadow r,"))
        wait(lambda: content("web") != first, "replaced")
        good = content("web")
        (SOURCE / "bad.profile").write_text("profile bad { nonsense }\n")
        (SOURCE / "bad.json").write_text("{}")
        wait(lambda: 'problems{code="parser_rejected"} 1.0' in get("/metrics"), "refused")
        assert parser(plain("j" * 300 + str(time.monotonic_ns())), "-a")[0] != 0
        assert parser(plain("stranger"), "-a")[0] != 0, "the kernel is not jammed"
        (SOURCE / "next.profile").write_text(plain("next"))
        wait(lambda: "next" in loaded(), "loaded into a jammed kernel")
        # Another program changes the node.
        for flags, text in ((("-R",), plain("web")), (("-r",), plain("web", "deny /x r,"))):
            assert parser(text, *flags)[0] == 0
            wait(lambda: content("web") == good, f"repaired after {flags}")
        (SECCOMP / "audit.json").write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
        wait(lambda: (SECCOMP / "audit.json").read_bytes() == file, "the file is unchanged")
        (SECCOMP / "audit.json").unlink()
        wait((SECCOMP / "audit.json").exists, "the file is back")
        # The agent does not remove the profile before the process has exited.
        with Confined("web") as process:
            for name in ("web.profile", "bad.profile", "bad.json", "audit.json"):
                (SOURCE / name).unlink()
            wait(lambda: not (SECCOMP / "audit.json").exists(), "the file is removed")
            wait(lambda: f"first PIDs: {process.pid}" in pod.log.read_text(), "in use")
            assert "web" in loaded()
        wait(lambda: "web" not in loaded(), "removed")
        note(f"{bundle}: at most {pod.peak():.0f} MiB of memory")
        status, seconds = pod.stop()
        assert (status, pace.in_time(seconds, 5)) == (0, True), (
            status,
            seconds,
            pod.log.read_text()[-2000:],
        )
    assert policy() == {"next": "enforce"}
    note(f"{bundle}: every function in {time.monotonic() - begin:.1f} s")


def the_init_container_installs_the_agents_own_profile():
    """On a new node, the init container installs the seccomp file of the agent before the agent
    starts.
    """
    status, told, output = Container("own-seccomp-init").run()
    assert status == 0, (told, output)
    installed = json.loads((SECCOMP / "profile-loader/agent.json").read_text())
    expected = json.loads(Path("own/agent.json").read_text())
    assert installed["defaultAction"] == expected["defaultAction"]


def the_shipped_pod_labels_its_node():
    """The shipped pod labels its Node through a real API server, with the arguments of the
    manifests and a strict profile.
    """
    api = json.loads(Path("api.json").read_text())
    node = f"{api['url']}/api/v1/nodes/node"
    tls = ssl.create_default_context(cafile="token/ca.crt")

    def ask(url, body=None):
        headers = {"Authorization": "Bearer admin"}
        headers["Content-Type"] = "application/strategic-merge-patch+json"
        content = None if body is None else json.dumps(body).encode()
        method = "GET" if body is None else "PATCH"
        request = urllib.request.Request(url, content, headers, method=method)  # noqa: S310 - TLS
        with urllib.request.urlopen(request, timeout=600, context=tls) as answer:  # noqa: S310
            return json.load(answer)

    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    ask(f"{node}/status", {"status": {"nodeInfo": {**api["info"], "bootID": boot}}})
    the_init_container_installs_the_agents_own_profile()
    begin = time.monotonic()

    def labels():
        return {
            key: value
            for key, value in ask(node)["metadata"].get("labels", {}).items()
            if api["domain"] in key
        }

    with Container("own-seccomp-cluster", strictly) as pod:
        pod.wait_for(lambda: get("/readyz"), "ready")
        pod.wait_for(lambda: len(labels()) >= api["labels"], "labelled")
        note(f"as it ships: labelled after {time.monotonic() - begin:.1f} s")
        events = ask(f"{api['url']}/apis/events.k8s.io/v1/events")["items"]
        print(json.dumps({"labels": labels(), "events": len(events)}), flush=True)
        note(f"as it ships: at most {pod.peak():.0f} MiB of memory")
        assert pod.stop()[0] == 0, pod.log.read_text()[-2000:]


# --- scenarios with a missing right ---------------------------------------------------------------

BEFORE = {
    "changed.profile": plain("changed"),
    "gone.profile": plain("gone"),
    "used.profile": plain("used"),
    "lost.profile": plain("lost"),
    "old.json": LOG,
}
AFTER = {
    "changed.profile": plain("changed", "deny /x r,"),
    "fresh.profile": plain("fresh"),
    "lost.profile": plain("lost"),
    "new.json": LOG,
}


def source(keys):
    shutil.rmtree(SOURCE, ignore_errors=True)
    SOURCE.mkdir()
    for name, text in keys.items():
        (SOURCE / name).write_text(text)


def install_before():
    """Install the profiles in BEFORE in a pass with all rights.

    The guest must not load these profiles itself, because the agent owns only profiles that it has
    loaded.
    """
    source(BEFORE)
    status, told, output = Container("base-oneshot").run()
    assert status == 0, (told, output)


def keep_state():
    """Keep the state directory of a pass over the profiles in BEFORE, so that later passes need not
    compile these profiles.
    """
    install_before()
    shutil.copytree(STATE, KEPT)


def prepare_row():
    """Let the agent install the profiles in BEFORE on a clean node. Then remove the profile "lost",
    and provide the profiles in AFTER.
    """
    clean()
    shutil.copytree(KEPT, STATE, dirs_exist_ok=True)
    install_before()
    (SECURITY / ".remove").write_bytes(b"lost")
    source(AFTER)


def without(bundle):
    """Run a pass that replaces BEFORE by AFTER, without one right. Return the result of the pass
    and the state of the node.
    """
    prepare_row()
    first = content("changed")
    with Confined("used"):
        status, told, output = Container(bundle).run()
        node = sorted(policy())
        node += ["changed: replaced"] * (content("changed") != first)
        node += sorted(item.name for item in SECCOMP.glob("*.json"))
    result = {"status": status, "node": node, "rows": {}}
    try:
        report = json.loads(told)
    except ValueError:
        return {**result, "problems": [], "said": (told + output)[-600:]}
    for item in report["profiles"]:
        codes = {p["code"] for p in item["problems"] if p["severity"] == "error"}
        words = [item["state"], *sorted(codes)]
        result["rows"][item["name"] or item["key"]] = " ".join(words)
    result["problems"] = sorted({item["code"] for item in report["problems"]})
    return result


# --- everything ----------------------------------------------------------------------------------

SCENARIOS = {
    "base one pass": lambda: one_pass_installs_the_shipped_profiles_and_they_confine("base"),
    "base daemon": lambda: every_function_works("base"),
    "privileged daemon": lambda: every_function_works("privileged"),
    "own seccomp daemon": lambda: (
        the_init_container_installs_the_agents_own_profile(),
        every_function_works("own-seccomp", strictly),
    ),
    "own seccomp as it ships": the_shipped_pod_labels_its_node,
}


def main():
    """Run all scenarios or only the named scenarios. Then run one pass for each missing right."""
    node()
    CALLS.mkdir()
    expected = sys.argv[1:]
    for name, scenario in SCENARIOS.items():
        if expected and name not in expected:
            continue
        begin, error = time.monotonic(), None
        try:
            clean()
            scenario()
        except BaseException:  # noqa: BLE001 - told to the test outside
            error = traceback.format_exc() + audited()
        seconds = round(time.monotonic() - begin, 1)
        print(json.dumps({"scenario": name, "error": error, "seconds": seconds}), flush=True)
    if TRACE:
        print(json.dumps({"calls": calls()}), flush=True)
    bundles = sorted(item.stem for item in BUNDLES.glob("without *.json"))
    bundles = [item for item in bundles if item in expected or not expected]
    if bundles:
        clean()
        keep_state()
    for bundle in bundles:
        begin = time.monotonic()
        try:
            result = without(bundle)
        except Exception:  # noqa: BLE001 - told to the test outside
            result = {"error": traceback.format_exc()}
        seconds = round(time.monotonic() - begin, 1)
        print(json.dumps({"without": bundle, "found": result, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
