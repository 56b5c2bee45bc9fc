"""Builds the findings about the parser, the compiled policy and the kernel.

Every function of this module builds one finding. The modules that check a profile text build the
findings about the text: source_checks.py, character_checks.py, escape_rules.py and validation.py.
"""

from agent.backends.apparmor import compiled_policy
from agent.backends.apparmor.parser import ParserRun, RunFailure
from agent.backends.apparmor.policy_cache import ParserResult
from agent.backends.apparmor.policy_writer import meaning
from agent.core import common_findings
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import KeyId, Unchecked
from agent.host.filesystem import HostError

UNREADABLE_INCLUDE = (
    "The file exists, but the parser may not open it. Replace a link that points outside the "
    "include directory with a copy of its file, and make the file readable."
)
INSTALL_PARSER = (
    "Install the package apparmor, or pass the path of apparmor_parser with --apparmor-parser."
)
INSTALL_FEATURES = "Install the package apparmor, which contains this directory."
BOOT_APPARMOR = "Boot a kernel with AppArmor, or leave the kind out with --kinds."
MAKE_FEATURES_READABLE = (
    "Run as root with the host's securityfs, so that the features of the kernel can be read."
)
START_PARSER = (
    "Run `apparmor_parser --version` as the same user. Make the parser and its libraries readable; "
    "if processes or memory are missing, raise their limits."
)
_SIMPLIFY = "Simplify the rules (alternations, or many ** in one rule)"
_RAISE_MEMORY = (
    "raise the memory limit of the agent's container, because the parser may use the memory"
    " that is left there"
)


def cannot_check(id_: KeyId, message: str, hint: str) -> Unchecked:
    """Return the outcome for a key that this node cannot check."""
    return Unchecked(
        id=id_,
        finding=common_findings.kind_unsupported(id_.key, message, hint),
    )


def not_checkable(id_: KeyId, reason: str, hint: str) -> Unchecked:
    """Return the outcome for a key that this node cannot check for a reason."""
    return cannot_check(id_, f"The profile cannot be checked: {reason}.", hint)


def parser_rejected(id_: KeyId, *, line: str, message: str, hint: str) -> Finding:
    """Return the finding for an error that the parser reported.

    Args:
        id_: the key of the text.
        line: the line of the text that the message is about, or "".
        message: the message of the parser.
        hint: how to correct the text, or "" if no correction is known.
    """
    return Finding(
        code=FindingCode.PARSER_REJECTED,
        location=line or id_.key,
        message=message,
        hint=hint or "Correct the text; `apparmor_parser -Q -K FILE` reports the same error.",
    )


def no_profile(id_: KeyId) -> Finding:
    """Return the error about a profile text that compiles but declares no profile."""
    return Finding(
        code=FindingCode.NO_PROFILE,
        location=id_.key,
        message="The text compiles, but declares no profile.",
        hint="Begin a profile with: profile NAME {",
    )


def parser_killed(result: ParserResult) -> Finding:
    """Return the error about a profile text that exceeds the limits of the parser."""
    alternative = "raise --parser-timeout"
    if result.is_memory_exceeded:
        alternative = _RAISE_MEMORY
    return Finding(
        code=FindingCode.PARSER_KILLED,
        location="apparmor_parser",
        message=f"apparmor_parser exceeded a limit: {result.exceeded_limit}. The text is not "
        "compiled again until it changes.",
        hint=f"{_SIMPLIFY}, or {alternative}.",
    )


def compiled_again_later(id_: KeyId, run: ParserRun) -> Finding:
    """Return the error about a parser run that did not produce a result."""
    match run.outcome:
        case RunFailure.NO_MEMORY:
            step = _RAISE_MEMORY
        case RunFailure.SIGNAL:
            step = "run `apparmor_parser -Q -K FILE` by hand, and change a text that crashes it"
        case _:
            step = _SIMPLIFY.lower()
    return Finding(
        code=FindingCode.PARSER_KILLED,
        location=id_.key,
        message=f"apparmor_parser did not produce a result: {run.detail}. The text is compiled "
        "again later.",
        hint=f"If this error persists: {step}.",
    )


def parser_not_sandboxed(reason: str) -> Finding:
    """Return the notice that the parser runs without a sandbox."""
    return Finding(
        code=FindingCode.PARSER_NOT_SANDBOXED,
        location="apparmor_parser",
        message=f"apparmor_parser runs without a sandbox: {reason}. Only the check of each text "
        "prevents the parser from opening other files, so a text that the check cannot decide is "
        "rejected.",
        hint="The sandbox needs Linux 5.13 or newer with `landlock` in lsm=, the landlock_* system "
        "calls in the agent's seccomp profile, and a parser that is an ELF program.",
    )


def rule_not_enforced(id_: KeyId, line: str, warning: str) -> Finding:
    """Return the parser's warning that a rule is missing from the policy, or is weaker than
    written.
    """
    return Finding(
        code=FindingCode.RULE_NOT_ENFORCED,
        location=line or id_.key,
        message="The policy is weaker than the text, because the kernel or the abi rule does not "
        f"know some of its rules. apparmor_parser: {warning}",
        hint="Do not rely on those rules on this node, or use an abi and a kernel that know them.",
    )


def policy_unreadable(id_: KeyId, error: compiled_policy.PolicyError) -> Finding:
    """Return the error about a compiled policy that the agent cannot read."""
    return Finding(
        code=FindingCode.POLICY_UNREADABLE,
        location=id_.key,
        message=f"The compiled policy has an unknown layout: {error}. It is not installed.",
        hint="Use apparmor_parser 3.0 to 5.0. If the parser has such a version, report this error "
        "as a defect, with the version of the parser.",
    )


def kernel_refused(id_: KeyId, error: HostError) -> Finding:
    """Return the kernel's error for a policy load."""
    return Finding(
        code=FindingCode.KERNEL_REFUSED,
        location=id_.key,
        message=f"The kernel rejected the compiled policy ({meaning(error)}). The previous "
        "version stays loaded.",
        hint="Read the kernel log of the node for details.",
    )


def kernel_jammed(id_: KeyId) -> Finding:
    """Return the error that data from an earlier failed load block all later loads (Linux 6.1 to
    7.2).
    """
    return Finding(
        code=FindingCode.KERNEL_JAMMED,
        location=id_.key,
        message="The kernel reports that the profile exists, although none of its names is loaded. "
        "An earlier load by some program failed and left data behind in the kernel.",
        hint="Replace any loaded profile with the same text (apparmor_parser -r -K FILE), or "
        "reboot the node.",
    )


def content_unverifiable() -> Finding:
    """Return the warning that the kernel does not reveal the content of loaded profiles."""
    return Finding(
        code=FindingCode.CONTENT_UNVERIFIABLE,
        location="/sys/module/apparmor/parameters",
        message="The content of AppArmor profiles cannot be verified on this node, because the "
        "kernel shows neither hashes nor the loaded policy. The agent treats a profile as "
        "unchanged while its mode is correct and no other program has replaced or reloaded the "
        "profile.",
        hint="Boot without apparmor.hash_policy=0, or without apparmor.export_binary=0.",
    )
