"""Tests of the Helm chart on a real node, after an installation with kustomize and without one."""

from tests.system import charts
from tests.system.cluster import NAMESPACE
from tests.system.node.lab import BASE, until
from tests.system.node.pods import enforced, pod, text

WAIT = ("--atomic", "--timeout", "10m")


def test_the_chart_installs_the_agent_and_keeps_pods_confined(lab, node, tmp_path):
    """Helm takes over an existing installation, uninstalls it and installs it again. A pod stays
    confined throughout.
    """
    chart = charts.without_version(tmp_path)

    def helm(*words):
        kubeconfig = lab.cluster.folder / "admin.kubeconfig"
        charts.helm(*words, "--namespace", NAMESPACE, kubeconfig=kubeconfig)

    lab.config_map("chart", {"pl-chart": text("pl-chart")})
    lab.cluster.apply(pod("of-chart", apparmor="pl-chart", selector=enforced("pl-chart")))
    lab.until_running("of-chart")
    pid = node.pid("of-chart")
    before = lab.labels()
    try:
        helm("install", charts.RELEASE, chart, *WAIT, "--take-ownership")
        lab.until_agent()
        assert (node.attribute(pid), lab.labels()) == ("pl-chart (enforce)", before)
        helm("uninstall", charts.RELEASE, "--wait")
        assert (node.attribute(pid), lab.labels()) == ("pl-chart (enforce)", before)
        helm("install", charts.RELEASE, chart, *WAIT)
        lab.until_agent()
        lab.config_map("chart", {"pl-chart": text("pl-chart"), "pl-new": text("pl-new")})
        until(lambda: {**before, **enforced("pl-new")} == lab.labels(), lab.labels)
        assert node.attribute(pid) == "pl-chart (enforce)"
    finally:
        lab.delete("of-chart")
        helm("uninstall", charts.RELEASE, "--wait")
        lab.install(BASE)
    # A set whose ConfigMap is deleted keeps its profiles, and the agent reports an error.
    lab.config_map("chart", {}, allow_empty="true")
    until(lambda: not (node.loaded("pl-chart") or node.loaded("pl-new")), "the profiles go")
    lab.kubectl("-n", NAMESPACE, "delete", "configmap", "chart")
