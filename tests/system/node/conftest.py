"""Fixtures for the node tests. All tests use one cluster. `--keep` leaves the cluster running at
the end.
"""

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
    """Add the option --keep."""
    parser.addoption("--keep", action="store_true", help="leave the cluster running")


def pytest_collection_modifyitems(items):
    """Move the tests that need a special node to the end, because each of them creates a node."""
    items.sort(key=lambda item: "node" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def lab(request):
    """Yield a control plane. The node is created when a test needs a node."""
    one = Lab()
    one.__enter__()
    kept = False
    try:
        yield one
        print(f"\nnode: {Node.starts} start(s) of machines, {Node.deaths} died")
        if request.config.getoption("--keep"):
            # With `--keep`, the remaining cluster has a standard node with the agent, whichever
            # test ran last.
            one.ensure_node()
            one.install()
            kept = True
    finally:
        if not kept:
            one.__exit__()
    if kept:
        processes = [*one.cluster.running.values(), one.node.machine.process]
        for process in processes:
            # Without this call, Python would warn about processes that still run.
            process.returncode = 0
        print(
            KEEP.format(
                folder=one.cluster.folder,
                kubectl=" ".join(one.cluster.program("kubectl")),
                pids=" ".join(str(process.pid) for process in processes),
                machine=one.node.machine.folder,
            )
        )


@pytest.fixture
def node(lab):
    """Return a node with AppArmor and the installed manifests/base."""
    one = lab.ensure_node()
    lab.install()
    return one


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """If the guest of a test crashed, repeat the test with a new node. A run contains at most two
    repetitions.
    """
    lab = pyfuncitem.funcargs.get("lab")
    try:
        return (yield)
    except Exception:
        machine = lab.node.machine if lab is not None and lab.node is not None else None
        if machine is None or machine.process.poll() is None or Node.deaths >= STARTS - 1:
            raise
        Node.deaths += 1
        print(f"node: died in {pyfuncitem.name}:\n{machine.console_output()[-3000:]}")
        again = dict(pyfuncitem.funcargs)
        if "node" in again:
            again["node"] = lab.ensure_node()
            lab.install()
        names = pyfuncitem._fixtureinfo.argnames
        pyfuncitem.obj(**{name: again[name] for name in names})
        return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """If a test fails, save the logs and the states of all pods."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and lab is not None:
        print(f"\nlogs and states: {lab.save_state(item.name)}")
    return report
