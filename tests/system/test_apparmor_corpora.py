"""Tests with all profiles of Debian's packages apparmor-profiles and apparmor-profiles-extra.

`apt-get download` stores the packages once in ~/.cache/profile-loader.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from agent.core.model import Profile, Rejection, SourceKey
from agent.host.filesystem import Host
from tests.inspection import apparmor_backend, inspected
from tests.system import kept

PACKAGES = ("apparmor-profiles", "apparmor-profiles-extra")
DIRECTORIES = ("etc/apparmor.d", "usr/share/apparmor/extra-profiles")

# The expected findings when attachments are allowed. All other profiles are accepted without a
# finding. Debian ships the following profiles in complain mode:
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
    # This file contains English text. A source would ignore the file because of the name README.
    "extra-profiles/README": {"parser_rejected"},
    # The following profiles start a shell, a mailer or a script without a profile (ux, Ux, PUx).
    "apparmor.d/usr.bin.totem": {"unconfined_exec", "rule_not_enforced"},
    "extra-profiles/etc.cron.daily.logrotate": {"unconfined_exec"},
    "extra-profiles/sbin.dhclient-script": {"unconfined_exec"},
    "extra-profiles/sbin.dhcpcd": {"unconfined_exec"},
    "extra-profiles/usr.sbin.sshd": {"unconfined_exec"},
    # The following profiles have D-Bus rules. The features in Debian's parser.conf do not include
    # D-Bus.
    "apparmor.d/usr.bin.irssi": {"complain_mode", "rule_not_enforced"},
    "apparmor.d/usr.bin.pidgin": {"rule_not_enforced"},
    "apparmor.d/usr.bin.totem-previewers": {"rule_not_enforced"},
    "apparmor.d/usr.sbin.apt-cacher-ng": {"rule_not_enforced"},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Download and unpack the packages into one tree."""
    tree = tmp_path_factory.mktemp("corpus")
    for package in PACKAGES:
        (archive,) = kept.package(package).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, tree], check=True)
    return tree


@pytest.fixture(scope="module")
def includes(corpus, tmp_path_factory):
    """Create an include directory like the directory of a machine with these packages."""
    directory = tmp_path_factory.mktemp("apparmor.d")
    for origin in (Path("/etc/apparmor.d"), corpus / "etc/apparmor.d"):
        shutil.copytree(origin, directory, dirs_exist_ok=True)
    # The scripts of the packages create an empty local file for each profile.
    for path in (corpus / "etc/apparmor.d").iterdir():
        if path.is_file():
            (directory / "local" / path.name).touch()
    return directory


def outcomes(corpus, includes, tmp_path, *, allow_attachments):
    """Return the codes of the findings about each profile."""
    backend = apparmor_backend(
        Host(tmp_path),
        checking=True,
        include_dir=str(includes),
        allow_attachments=allow_attachments,
    )
    codes_by_key = {}
    for directory in DIRECTORIES:
        for path in sorted((corpus / directory).iterdir()):
            if path.is_file():
                key = f"{Path(directory).name}/{path.name}"
                source_key = SourceKey(profile_set="corpus", key=key, content=path.read_bytes())
                (result,) = inspected(backend, source_key)
                match result:
                    case Rejection(findings=findings):
                        codes_by_key[key] = frozenset(finding.code for finding in findings)
                    case Profile(findings=findings):
                        codes_by_key[key] = frozenset(finding.code for finding in findings)
    return codes_by_key


def test_with_attachments_allowed_every_finding_is_expected(corpus, includes, tmp_path):
    """With --allow-attachments, each profile in the packages has exactly the expected findings."""
    codes_by_key = outcomes(corpus, includes, tmp_path, allow_attachments=True)
    assert len(codes_by_key) == 141
    assert {key: set(codes) for key, codes in codes_by_key.items() if codes} == EXPECTED


def test_by_default_a_profile_for_programs_of_the_host_is_rejected(corpus, includes, tmp_path):
    """By default, the agent rejects profiles that would confine programs of the host."""
    codes_by_key = outcomes(corpus, includes, tmp_path, allow_attachments=False)
    assert [key for key, codes in codes_by_key.items() if "attachment_refused" not in codes] == [
        "extra-profiles/README"
    ]
