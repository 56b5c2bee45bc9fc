"""Tests that the tutorials of Kubernetes and AKS work with the shipped profiles."""

import contextlib

from tests.system.node.lab import until

EXAMPLES = ("hello-apparmor", "audit-pod", "violation-pod", "fine-pod", "chmod-prevented")
NO_START = {"StartError", "RunContainerError", "CrashLoopBackOff", "CreateContainerError"}


@contextlib.contextmanager
def examples(lab):
    """Apply all example pods, and delete them at the end."""
    lab.kubectl("apply", "-f", "manifests/examples")
    try:
        yield
    finally:
        lab.delete(*EXAMPLES, wait=False)


def test_the_pods_of_the_tutorials_behave_as_documented(lab, node):
    """The nodeSelector of each pod selects the node, and the profile of each pod denies the
    documented calls.

    The pod hello-apparmor cannot write. The log of the kernel contains the calls of audit-pod. The
    pod fine-pod responds to requests. The pod violation-pod does not start. The pod chmod-prevented
    cannot change modes.
    """
    with examples(lab):
        lab.until_running("hello-apparmor")
        until(lambda: node.log("hello-apparmor") == "Hello AppArmor!\n", "its greeting")
        assert node.execute("hello-apparmor", "cat /proc/1/attr/current").strip() == (
            "k8s-apparmor-example-deny-write (enforce)"
        )
        assert "Permission denied" in node.execute("hello-apparmor", "touch /tmp/x")

        lab.until_running("chmod-prevented")
        refused = "chmod: /tmp: Operation not permitted\n"
        until(lambda: node.log("chmod-prevented") == refused, "chmod is denied in the pod")

        def response_of(name):
            address = lab.until_running(name)["status"]["podIP"]
            return node.run(f"busybox wget -q -O - http://{address}:5678/")

        for name in ("audit-pod", "fine-pod"):
            assert response_of(name) == "just made some syscalls!\n"
            assert "Seccomp:\t2" in node.run(f"cat /proc/{node.pid(name)}/status")

        def logged():
            # Without auditd, the kernel prints only a part of a burst of log lines
            # (printk_ratelimit).
            response_of("audit-pod")
            lines = node.run("dmesg | grep type=1326").splitlines()
            return [item for item in lines if ' comm="http-echo" ' in item]

        lines = until(logged, "the calls of audit-pod are in the kernel's log")
        # Only the profile of audit-pod logs system calls (SECCOMP_RET_LOG).
        assert " code=0x7ffc0000" in lines[-1]

        def stopped():
            (status,) = lab.pod("violation-pod").get("status", {}).get("containerStatuses") or [
                {"state": {}}
            ]
            reasons = {item.get("reason") for item in status["state"].values()}
            return status if reasons & NO_START and status.get("restartCount", 0) >= 1 else None

        status = until(stopped, "violation-pod fails to start")
        assert (status["ready"], status["started"]) == (False, False)
