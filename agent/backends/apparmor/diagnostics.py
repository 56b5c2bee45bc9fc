"""The problems that the AppArmor kind reports, in words.

Rule 1: pure; each says what, what follows and what to do next.
"""

from agent.backends.apparmor import compiled_policy, kernel
from agent.backends.apparmor.policy_cache import ParserResult
from agent.core.findings import Finding
from agent.core.model import KeyId, Unchecked
from agent.host.filesystem import HostError


def cannot_check(id_: KeyId, message: str) -> Unchecked:
    """Return the finding that this node cannot check a key."""
    hint = "Install apparmor (apparmor_parser) and boot a kernel with AppArmor."
    return Unchecked(
        id=id_,
        finding=Finding(code="kind_unsupported", location=id_.key, message=message, hint=hint),
    )


def parser_killed(compiled: ParserResult) -> Finding:
    """Return the finding that compiling a text exceeds a limit of the parser."""
    more = "raise --parser-timeout"
    if compiled.exceeded_limit.endswith("memory"):
        more = "raise the memory limit of the agent's container: the parser may use what is left"
    return Finding(
        code="parser_killed",
        location="apparmor_parser",
        message=f"apparmor_parser exceeded a limit: {compiled.exceeded_limit}. "
        "The text is not compiled again until it changes.",
        hint=f"Simplify the rules (alternations, many ** in one rule), or {more}.",
    )


def parser_not_sandboxed(why: str) -> Finding:
    """Return that the parser runs without a sandbox."""
    return Finding(
        code="parser_not_sandboxed",
        location="apparmor_parser",
        message=f"apparmor_parser runs without a sandbox: {why}. Only the check of each text keeps "
        "the parser from opening other files, so a text that the check cannot decide is rejected.",
        hint="The sandbox needs Linux 5.13 or newer with `landlock` in lsm=, the landlock_* system "
        "calls in the agent's seccomp profile, and a parser that is an ELF program.",
    )


def compiled_again_later(id_: KeyId, failure: str) -> Finding:
    """Return the finding that a text has no result yet and is compiled again later."""
    return Finding(
        code="parser_killed",
        location=id_.key,
        message=f"apparmor_parser gave no result: {failure}. The text is compiled again later.",
        hint="If this stays, simplify the rules (alternations, many ** in one rule).",
    )


def rule_not_enforced(id_: KeyId, note: str) -> Finding:
    """Return that the parser left rules out, in its own words."""
    return Finding(
        code="rule_not_enforced",
        location=id_.key,
        message="The policy lacks rules of the text, since the kernel or the abi rule does not "
        "know "
        f"them. apparmor_parser: {note}",
        hint="What those rules restrict is not restricted here.",
    )


def policy_unreadable(id_: KeyId, error: compiled_policy.PolicyError) -> Finding:
    """Return that the compiled policy cannot be understood."""
    return Finding(
        code="policy_unreadable",
        location=id_.key,
        message=f"The compiled policy has a layout that is not known: {error}. It is not put.",
        hint="Use an apparmor_parser version that profile-loader was tested with.",
    )


def kernel_refused(id_: KeyId, error: HostError) -> Finding:
    """Return what the kernel said to a write."""
    return Finding(
        code="kernel_refused",
        location=id_.key,
        message=f"The kernel refused the compiled policy, {kernel.meaning(error)}.",
        hint="What was loaded before stays loaded.",
    )


def kernel_jammed(id_: KeyId) -> Finding:
    """Return that a leaked raw_data directory blocks loads (facts of 6.1 to 7.2)."""
    return Finding(
        code="kernel_jammed",
        location=id_.key,
        message="The kernel says that the profile exists, though none of its names is loaded: an "
        "earlier failed load of somebody left its data behind.",
        hint="Replace any loaded profile by the same text (apparmor_parser -r -K FILE), or reboot.",
    )


def foreign_name(id_: KeyId, names: list[str]) -> Finding:
    """Return that a name is loaded that is not ours."""
    return Finding(
        code="foreign_name",
        location=names[0],
        message=f'The name "{names[0]}" of key "{id_.key}" is loaded, and not by this agent.',
        hint="Rename the profile, or hand the name over with --take-over.",
    )


def foreign_content(names: list[str]) -> Finding:
    """Return that content to remove is not ours."""
    return Finding(
        code="foreign_name",
        location=names[0],
        message=f'The name "{names[0]}" holds content that this agent did not put. '
        "Nothing is removed.",
        hint="Remove it by hand if nobody needs it.",
    )


def verify_failed(id_: KeyId, why: str) -> Finding:
    """Return that a write cannot be seen."""
    return Finding(
        code="verify_failed",
        location=id_.key,
        message=f"The policy was written, but the kernel does not show it: {why}.",
        hint="Look for another program that loads the same name.",
    )


def content_unverifiable() -> Finding:
    """Return that the kernel shows nothing of the content of loaded profiles."""
    return Finding(
        code="content_unverifiable",
        location="/sys/module/apparmor/parameters",
        message="The content of AppArmor profiles cannot be verified on this node: the kernel "
        "shows "
        "neither hashes nor the loaded policy. A profile counts as unchanged while its mode is "
        "right and no other program replaced it or loaded it again.",
        hint="Boot without apparmor.hash_policy=0, or without apparmor.export_binary=0.",
    )


def remove_failed(name: str, why: str) -> Finding:
    """Return that a removal did not happen."""
    return Finding(
        code="remove_failed",
        location=name,
        message=f'The profile "{name}" was not removed: {why}.',
        hint="The next pass tries again.",
    )
