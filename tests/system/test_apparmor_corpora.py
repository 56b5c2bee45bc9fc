"""Every profile of Debian's apparmor-profiles and apparmor-profiles-extra goes through check.

The packages are fetched with apt-get download once, into ~/.cache/profile-loader.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from agent.backends.apparmor.backend import AppArmorBackend
from agent.core.model import Profile, Rejection, SourceKey
from agent.host.filesystem import Host
from tests.inspection import inspected
from tests.system import kept

PACKAGES = ("apparmor-profiles", "apparmor-profiles-extra")
PLACES = ("etc/apparmor.d", "usr/share/apparmor/extra-profiles")

# What is special about a profile once attachments are allowed; all others are accepted without a
# remark. Debian ships these in complain mode:
COMPLAIN = [
    "bin.ping",
    "php-fpm",
    "samba-bgqd",
    "samba-dcerpcd",
    "samba-rpcd",
    "samba-rpcd-classic",
    "samba-rpcd-spoolss",
    "sbin.klogd",
    "sbin.syslog-ng",
    "sbin.syslogd",
    "usr.bin.irssi",
    "usr.sbin.avahi-daemon",
    "usr.sbin.dnsmasq",
    "usr.sbin.identd",
    "usr.sbin.mdnsd",
    "usr.sbin.nmbd",
    "usr.sbin.nscd",
    "usr.sbin.smbd",
    "usr.sbin.smbldap-useradd",
    "usr.sbin.traceroute",
]
COMPLAIN_EXTRA = [
    "usr.bin.skype",
    "usr.lib.dovecot.anvil",
    "usr.lib.dovecot.auth",
    "usr.lib.dovecot.config",
    "usr.lib.dovecot.deliver",
    "usr.lib.dovecot.dict",
    "usr.lib.dovecot.dovecot-auth",
    "usr.lib.dovecot.dovecot-lda",
    "usr.lib.dovecot.imap",
    "usr.lib.dovecot.imap-login",
    "usr.lib.dovecot.lmtp",
    "usr.lib.dovecot.log",
    "usr.lib.dovecot.managesieve",
    "usr.lib.dovecot.managesieve-login",
    "usr.lib.dovecot.pop3",
    "usr.lib.dovecot.pop3-login",
    "usr.lib.dovecot.script-login",
    "usr.lib.dovecot.ssl-params",
    "usr.lib.dovecot.stats",
    "usr.sbin.dovecot",
]
EXPECTED = {
    **{f"apparmor.d/{name}": {"complain_mode"} for name in COMPLAIN},
    **{f"extra-profiles/{name}": {"complain_mode"} for name in COMPLAIN_EXTRA},
    # English prose, no policy; a source leaves README out by its name.
    "extra-profiles/README": {"parser_rejected"},
    # These start a shell, a mailer or a script without a profile (ux, Ux, PUx).
    "apparmor.d/usr.bin.totem": {"unconfined_exec", "rule_not_enforced"},
    "extra-profiles/etc.cron.daily.logrotate": {"unconfined_exec"},
    "extra-profiles/sbin.dhclient-script": {"unconfined_exec"},
    "extra-profiles/sbin.dhcpcd": {"unconfined_exec"},
    "extra-profiles/usr.sbin.sshd": {"unconfined_exec"},
    # These have D-Bus rules, which the features that Debian's parser.conf pins do not know.
    "apparmor.d/usr.bin.irssi": {"complain_mode", "rule_not_enforced"},
    "apparmor.d/usr.bin.pidgin": {"rule_not_enforced"},
    "apparmor.d/usr.bin.totem-previewers": {"rule_not_enforced"},
    "apparmor.d/usr.sbin.apt-cacher-ng": {"rule_not_enforced"},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Fetch and unpack the packages; give one tree of them."""
    tree = tmp_path_factory.mktemp("corpus")
    for package in PACKAGES:
        (archive,) = kept.package(package).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, tree], check=True)
    return tree


@pytest.fixture(scope="module")
def includes(corpus, tmp_path_factory):
    """Give an include directory as it is once the packages are installed."""
    directory = tmp_path_factory.mktemp("apparmor.d")
    for origin in (Path("/etc/apparmor.d"), corpus / "etc/apparmor.d"):
        shutil.copytree(origin, directory, dirs_exist_ok=True)
    # The packages' post-installation scripts make an empty local file for each profile.
    for path in (corpus / "etc/apparmor.d").iterdir():
        if path.is_file():
            (directory / "local" / path.name).touch()
    return directory


def outcomes(corpus, includes, tmp_path, *, allow_attachments):
    kind = AppArmorBackend(
        host=Host(tmp_path),
        checking=True,
        include_dir=str(includes),
        allow_attachments=allow_attachments,
    )
    found = {}
    for place in PLACES:
        for path in sorted((corpus / place).iterdir()):
            if path.is_file():
                key = f"{Path(place).name}/{path.name}"
                blob = SourceKey(profile_set="corpus", key=key, content=path.read_bytes())
                (result,) = inspected(kind, blob)
                match result:
                    case Rejection(findings=findings):
                        found[key] = frozenset(finding.code for finding in findings)
                    case Profile(findings=remarks):
                        found[key] = frozenset(finding.code for finding in remarks)
    return found


def test_with_attachments_allowed_only_explained_profiles_are_special(corpus, includes, tmp_path):
    """Every packaged profile is accepted, or refused or remarked for a recorded reason."""
    found = outcomes(corpus, includes, tmp_path, allow_attachments=True)
    assert len(found) == 141
    assert {key: set(codes) for key, codes in found.items() if codes} == EXPECTED


def test_by_default_a_packaged_profile_for_host_programs_is_refused(corpus, includes, tmp_path):
    """A profile that would attach to programs of the host is refused unless that is allowed."""
    found = outcomes(corpus, includes, tmp_path, allow_attachments=False)
    assert [key for key, codes in found.items() if "attachment_refused" not in codes] == [
        "extra-profiles/README"
    ]
