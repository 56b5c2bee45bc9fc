"""Builds the files for the system tests that the cache does not contain yet.

usage: python -m tests.system.build

scripts/test runs this module in the background while it runs the tests that need no control plane.
All other tests wait until they can lock the cache.
"""

from tests.system import charts, cluster, vm


def main():
    """Build the files of the virtual machine first, because this build takes only a few seconds."""
    vm.tree()
    vm.libraries()
    vm.libraries(network=True)
    cluster.programs()("kube-apiserver")
    for name in charts.PACKAGES:
        charts.program(name)


if __name__ == "__main__":
    main()
