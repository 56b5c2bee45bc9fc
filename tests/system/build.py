"""Build the files that the system tests need and that the cache does not contain yet.

usage: python -m tests.system.build

scripts/test runs this module in the background while it runs the tests that need no control plane.
The other tests wait for the lock of the cache.
"""

from tests.system import charts, cluster, vm


def main():
    """Build the virtual machine's files first, because that takes seconds."""
    vm.tree()
    vm.libraries()
    vm.libraries(network=True)
    cluster.programs()("kube-apiserver")
    for name in charts.PACKAGES:
        charts.program(name)


if __name__ == "__main__":
    main()
