"""One lab for all tests of a node; `--keep` leaves it running for people."""

import signal

import pytest

from tests.system.node.lab import Lab
from tests.system.node.node import STARTS, Node

KEEP = """
The cluster stays. Look around with
    export KUBECONFIG={folder}/admin.kubeconfig
    {kubectl} get nodes,pods -A
and end it with
    kill -9 {pids}; rm -r {folder} {machine}
"""


def pytest_addoption(parser):
    """Add --keep."""
    parser.addoption("--keep", action="store_true", help="leave the cluster running")


def pytest_collection_modifyitems(items):
    """Let tests that need a node of another kind come last: each makes one anew."""
    items.sort(key=lambda item: "node" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def lab(request):
    """Give a control plane; nodes come as tests ask for them."""
    # What is told to stop ends what it started, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    one = Lab()
    one.__enter__()
    try:
        yield one
    finally:
        print(f"\nnode: {Node.starts} start(s) of machines, {Node.deaths} died")
        if request.config.getoption("--keep") and one.node is not None:
            processes = [*one.cluster.running.values(), one.node.machine.process]
            print(
                KEEP.format(
                    folder=one.cluster.folder,
                    kubectl=" ".join(one.cluster.program("kubectl")),
                    pids=" ".join(str(process.pid) for process in processes),
                    machine=one.node.machine.folder,
                )
            )
        else:
            one.__exit__()


@pytest.fixture
def node(lab):
    """Give a node with AppArmor on which the base of the manifests is installed."""
    one = lab.want()
    lab.install()
    return one


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """Begin a test again, with a fresh node, whose guest died by itself; at most twice in a run."""
    lab = pyfuncitem.funcargs.get("lab")
    try:
        return (yield)
    except BaseException:
        if lab is None or lab.node is None or lab.alive() or Node.deaths >= STARTS - 1:
            raise
        Node.deaths += 1
        print(f"node: died in {pyfuncitem.name}:\n{lab.node.machine.said()[-3000:]}")
        again = dict(pyfuncitem.funcargs)
        if "node" in again:
            again["node"] = lab.want()
            lab.install()
        names = pyfuncitem._fixtureinfo.argnames
        pyfuncitem.obj(**{name: again[name] for name in names})
        return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Keep logs and the states of all pods when a test fails."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and lab is not None:
        print(f"\nlogs and states: {lab.keep(item.name)}")
    return report
