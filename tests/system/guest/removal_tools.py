"""Helper functions that install and remove profiles with the AppArmor backend, and check the
results.
"""

import json
import os
import random
import time
from pathlib import Path

import daemon
import pace
from inspection import apparmor_backend, inspected, install
from node_tools import agent, loaded, plain, rows, source
from programs import PENDING, continue_program, label_of, program

from agent.core.model import InUse, Profile, SourceKey, UnknownUse
from agent.core.ports import Installed, Removed, StillInUse
from agent.host.filesystem import Host

OPEN = "  file,\n  signal,\n  capability,\n  change_profile,\n"
CHAINS = int(os.environ.get("CHAINS", "12"))
SHOWS_PENDING_EXEC = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 12)
PASSES = 'profile_loader_passes_total{result="converged"}'


def kind():
    """Return the AppArmor backend with the agent's configuration."""
    return apparmor_backend(Host("/"), state_dir="/var/lib/profile-loader")


def text(name, rules="", flags=""):
    """Return the text of a profile that allows nearly everything."""
    return f"profile {name} {flags} {{\n{OPEN}{rules}}}\n"


def installed(source_text, replaceable=()):
    """Install a key, and return the evidence of the installed profiles."""
    agent_kind = kind()
    blob = SourceKey(profile_set="dir test", key="key", content=source_text.encode())
    (actual,) = inspected(agent_kind, blob)
    assert isinstance(actual, Profile), actual
    result = install(agent_kind, actual, replaceable)
    assert isinstance(result, Installed), result
    return result.evidence


def removed(evidence, names=None):
    """Try once to remove the named profiles of an installed key, by default all of them."""
    return kind().remove(names or sorted(evidence), evidence, require_unused=True)


def until_removed(evidence, seconds=30.0):
    """Repeat the removal until all profiles are removed."""
    limit = pace.Limit(seconds)
    while (result := removed(evidence)) != Removed():
        assert not limit.expired(), (result, str(limit))
    assert not loaded().keys() & evidence.keys(), loaded()


def require_held(done, *names, pids=None):
    """Require that no profile was removed, and that the reported reason is possible on this
    kernel.
    """
    assert isinstance(done, StillInUse), done
    for use in done.uses.values():
        if SHOWS_PENDING_EXEC or pids is None:
            assert isinstance(use, InUse), done
        else:
            assert isinstance(use, UnknownUse), done
            assert "hides pending execs" in use.reason, use
    assert set(names) <= loaded().keys(), loaded()


def held_by_hidden_reference(done, name):
    """Require that a profile was not removed, although no thread in /proc shows its name."""
    assert isinstance(done, StillInUse), done
    assert isinstance(done.uses[name], UnknownUse), done
    assert name in loaded()


def attack(code, *arguments, label="chain"):
    """Try at random moments to remove the profile of a running chain of processes or threads."""
    unconfined = Path("/tmp/unconfined")  # noqa: S108
    unconfined.unlink(missing_ok=True)
    seed = int(os.environ.get("SEED", "13"))
    moments = random.Random(seed)  # noqa: S311
    answers = []
    evidence = installed(text("chain"))
    with program(code, *(arguments or ("current",)), label=label):
        for _ in range(CHAINS):
            time.sleep(moments.random() / 20)
            result = removed(evidence)
            assert isinstance(result, StillInUse), (result, seed)
            answers.append(type(result.uses["chain"]).__name__)
            assert "chain" in loaded()
            assert not unconfined.exists()
    counted = {name: answers.count(name) for name in sorted(set(answers))}
    print(json.dumps({"note": f"chain: {len(answers)} attempts: {counted}"}))
    assert counted.get("InUse", 0) > CHAINS // 2, counted
    until_removed(evidence)


def pending_exec_is_held_and_the_profile_is_removed(name):
    """Check that a profile is kept while an exec is pending. Return whether the profile is removed
    afterwards.
    """
    source(**{name: plain(name)}, other=plain("other"))
    agent()
    with program(PENDING, name) as child:
        source(other=plain("other"))
        report, _ = agent()
        why = "in_use" if SHOWS_PENDING_EXEC else "use_unknown"
        assert rows(report)[name][0] == "held", (why, rows(report))
        codes = [item["code"] for item in report["profiles"] for item in item["problems"]]
        assert why in codes, report
        with daemon.Daemon("--resync=3s"):
            daemon.until(lambda: daemon.ready() and daemon.metric(PASSES) >= 3, 120)
            assert name in loaded()
            continue_program(child)
            assert label_of(child.pid) == f"{name} (enforce)"
            daemon.until(lambda: daemon.metric('profile_loader_problems{code="in_use"}') == 1)
            child.kill()
            child.wait()
            limit = pace.Limit(30.0)
            while name in loaded():
                if limit.expired():
                    assert daemon.metric('profile_loader_problems{code="use_unknown"}') == 1
                    return False
                time.sleep(0.05)
            return True
