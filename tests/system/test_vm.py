"""Tests of the properties of the virtual machine on which other tests rely."""

from tests.system import vm

LIMIT_SECONDS = 300  # Starting a guest takes about ten seconds.
KERNEL = "/sys/kernel/security/apparmor"


def test_the_guest_has_apparmor_its_parser_and_the_agent():
    """In the guest, AppArmor is enabled, the parser can load a profile, and Python can import the
    agent.
    """
    script = f"""set -e
echo 'profile sane {{ file, }}' | apparmor_parser -r -K
cat {KERNEL}/profiles /sys/module/apparmor/parameters/enabled
python3 -c 'import agent.core.plan, msgspec, structlog, yaml, system_calls'
exit 7
"""
    result = vm.run({}, script, timeout_seconds=LIMIT_SECONDS)
    assert (result.status, result.output.strip()) == (7, "sane (enforce)\nY"), result


def test_a_guest_can_be_a_node_without_apparmor():
    """With apparmor=0 on the kernel command line, a guest has no interface to load profiles."""
    result = vm.run(
        {}, f"test ! -e {KERNEL}/.load", timeout_seconds=LIMIT_SECONDS, append="apparmor=0"
    )
    assert result.status == 0, result


def test_a_kept_disk_survives_a_reboot_and_loaded_policy_does_not(tmp_path):
    """After a reboot with a kept disk, written files still exist, but loaded profiles do not."""
    first = """set -e
echo 'profile sane { file, }' | apparmor_parser -r -K
echo kept > /var/lib/kept
"""
    assert vm.run({}, first, timeout_seconds=LIMIT_SECONDS, keep=tmp_path).status == 0
    second = f"cat /var/lib/kept {KERNEL}/profiles"
    result = vm.run({}, second, timeout_seconds=LIMIT_SECONDS, keep=tmp_path)
    assert (result.status, result.output.strip()) == (0, "kept"), result
