"""Build what the system tests need and this machine has not cached yet.

usage: python -m tests.system.build

scripts/test runs this module in the background: the tests that need no control plane run meanwhile,
and the others wait for the lock of its cache.
"""

from tests.system import cluster, vm


def main():
    """Build the virtual machine's files first, because that takes seconds."""
    vm.tree()
    vm.libraries()
    vm.libraries(network=True)
    cluster.programs()("kube-apiserver")


if __name__ == "__main__":
    main()
