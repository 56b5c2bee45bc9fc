"""Builds the files that the system tests need and that are missing in the cache.

usage: python -m tests.system.build

scripts/test runs this module in the background, while it runs tests that need no control plane. All
other tests wait for the lock of the cache.
"""

from tests.system import charts, cluster, vm


def main():
    """Build the files of the virtual machine first, because this takes only seconds."""
    vm.tree()
    vm.libraries()
    vm.libraries(network=True)
    cluster.programs()("kube-apiserver")
    for name in charts.PACKAGES:
        charts.program(name)


if __name__ == "__main__":
    main()
