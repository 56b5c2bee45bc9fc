"""Reads the bytes of a seccomp profile strictly, and collects all errors.

`decoding` decodes the JSON. Go ignores the case of keys and uses the last of several duplicate
keys. Because of this, duplicate and unknown keys are errors. As in Go, a null value means that the
field is absent. For any input, the module returns a Document, findings, or both. `fields` checks
the values, and `wrapped` recognises files that contain a profile in another format.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from agent.backends.seccomp import comment_keys, decoding, syscalls, wrapped
from agent.backends.seccomp.decoding import Json
from agent.backends.seccomp.document import (
    FIELDS,
    LISTENER_FIELDS,
    Condition,
    Document,
    Only,
    Rule,
)
from agent.core.finding_codes import FindingCode
from agent.core.findings import MAX_FINDINGS, Finding

# The largest error number is MAX_ERRNO in linux/err.h. libseccomp rejects or truncates larger
# numbers.
MOST_ERRNO: Final = 4095
# The limit applies to the entries of all lists together. The kernel already rejects the filter for
# a fifth of this number.
MOST_ENTRIES: Final = 20_000

_RULE: Final = frozenset(
    {"name", "names", "action", "errnoRet", "errno", "args", "comment", "includes", "excludes"}
)
_ARG: Final = frozenset({"index", "value", "valueTwo", "op"})
_FILTER: Final = frozenset({"arches", "caps", "minKernel"})
_ARCH_MAP: Final = frozenset({"architecture", "subArchitectures"})
# The absence of these keys is an error.
_REQUIRED: Final = frozenset({"defaultAction", "names", "action", "index", "value", "op"})
_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,63}")


def read(content: bytes) -> tuple[Document | None, tuple[Finding, ...]]:
    """Return the document of a profile and the findings. The document is None if the JSON is not a
    profile.
    """
    walk = _Walk()
    decoded = decoding.decode(content, walk.pairs)
    if isinstance(decoded, Finding):
        return None, (decoded,)
    (tree,) = decoded
    wrapper = wrapped.finding(tree)
    if wrapper is not None:
        return None, (wrapper,)
    document = walk.document(tree)
    return document, (*walk.findings, *walk.notices())


def shown(value: Json) -> str:
    """Return a short, printable form of a value, for messages."""
    return ascii(value)[:60]


class _Walk:
    """Visits the values of the decoded JSON, and collects the errors."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.rewritten: list[str] = []  # The rules that have `name` instead of `names`.
        self.remarks: list[str] = []  # The JSON keys that contain comments.
        self.entries = 0

    @property
    def is_full(self) -> bool:
        """Whether the error limit has been reached, so that no more errors are reported."""
        return len(self.findings) > MAX_FINDINGS

    def report(self, code: FindingCode, where: str, message: str, hint: str) -> None:
        if not self.is_full:
            self.findings.append(Finding(code=code, location=where, message=message, hint=hint))

    def notices(self) -> Iterator[Finding]:
        """Return notices about changes in the canonical form that do not change the meaning."""
        if self.rewritten:
            message = (
                f"`name` was rewritten to `names` in {len(self.rewritten)} rules: containerd "
                "ignores a rule that has only `name`."
            )
            yield Finding(
                code=FindingCode.NAME_REWRITTEN, location=self.rewritten[0], message=message
            )
        if self.remarks:
            keys = ", ".join(self.remarks[:8]) + (", ..." if self.remarks[8:] else "")
            message = f"Comment keys were removed, because no runtime reads them: {keys}."
            yield Finding(
                code=FindingCode.COMMENTS_REMOVED, location=self.remarks[0], message=message
            )

    def pairs(self, pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        """Return an object as a dictionary, and report duplicate keys."""
        built = dict(pairs)
        if len(built) != len(pairs):
            for key, times in Counter(key for key, _ in pairs).items():
                if times > 1:
                    self.report(
                        FindingCode.DUPLICATE_KEY,
                        shown(key),
                        f"One object contains the key {shown(key)} more than once, and runtimes "
                        "use the last one.",
                        "Remove the duplicates.",
                    )
        return built

    # --- values ----------------------------------------------------------------------------------

    def object(self, value: Json, where: str, keys: frozenset[str]) -> Mapping[str, Json] | None:
        if not isinstance(value, dict):
            self.report(
                FindingCode.BAD_VALUE,
                where or "profile",
                f"An object is expected here, not {shown(value)}.",
                "Write an object: {...}.",
            )
            return None
        prefix = f"{where}." if where else ""
        corrected = dict(value)
        for key in value:
            if key in keys or self.is_full:
                continue
            place = f"{prefix}{shown(key)[1:-1]}"
            if comment_keys.is_comment(key, keys):
                self.remarks.append(place)
                continue
            match = syscalls.closest(key, keys)
            message = (
                "No seccomp profile has this key. Runtimes ignore it, and the profile would have "
                "another effect than it states."
            )
            if match and match.lower() == key.lower():
                message = "Programs in Go read this key in spite of its case; others ignore it."
            hint = syscalls.nearest(key, keys) or "Remove the key."
            self.report(FindingCode.UNKNOWN_FIELD, place, message, hint)
            # The rest of the check reads the correct key, so that no message reports it as missing.
            if match in _REQUIRED:
                corrected.setdefault(match, value[key])
        return corrected

    def items(self, value: Json, where: str) -> Iterator[tuple[str, Json]]:
        if value is None:
            return
        if not isinstance(value, list):
            message = f"A list is expected here, not {shown(value)}."
            self.report(FindingCode.BAD_VALUE, where, message, "Write a list: [...].")
            return
        for index, item in enumerate(value):
            if self.entries == MOST_ENTRIES:
                message = f"The lists have more than {MOST_ENTRIES} entries, too many for a filter."
                self.findings.append(
                    Finding(
                        code=FindingCode.FILTER_TOO_LARGE,
                        location=where,
                        message=message,
                        hint="Remove entries from the lists.",
                    )
                )
            self.entries += 1
            if self.entries > MOST_ENTRIES:
                return
            yield f"{where}[{index}]", item

    def text(self, value: Json, where: str) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            message = f"A string is expected here, not {shown(value)}."
            self.report(FindingCode.BAD_VALUE, where, message, "Write the value in quotes.")
            return ""
        return value

    def texts(self, value: Json, where: str) -> tuple[str, ...]:
        texts = []
        for place, item in self.items(value, where):
            if isinstance(item, str) and item:
                texts.append(item)
            else:
                message = f"A name is expected here, not {shown(item)}."
                self.report(FindingCode.BAD_VALUE, place, message, "Write a name in quotes.")
        return tuple(texts)

    def number(self, value: Json, where: str, most: int) -> int | None:
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            message = f"A whole number from 0 to {most} is expected here, not {shown(value)}."
            hint = f"Write a decimal number from 0 to {most}, without quotes."
            self.report(FindingCode.BAD_VALUE, where, message, hint)
            return None
        return value

    # --- parts -----------------------------------------------------------------------------------

    def document(self, tree: Json) -> Document | None:
        if tree is None:
            self.report(
                FindingCode.FAILS_OPEN,
                "profile",
                "The profile is null, and runtimes run the container unconfined.",
                "Write a profile with a defaultAction.",
            )
            return None
        top = self.object(tree, "", FIELDS)
        if top is None:
            return None
        self.listener(top)
        default = self.text(top.get("defaultAction"), "defaultAction")
        if top.get("defaultAction") in (None, ""):
            self.report(
                FindingCode.FAILS_OPEN,
                "defaultAction",
                "Without a default action, runc and CRI-O run the container unconfined.",
                "Add a defaultAction, for example SCMP_ACT_ERRNO.",
            )
        return Document(
            default_action=default,
            default_errno_ret=self.number(
                top.get("defaultErrnoRet"), "defaultErrnoRet", MOST_ERRNO
            ),
            default_errno=self.text(top.get("defaultErrno"), "defaultErrno"),
            architectures=self.texts(top.get("architectures"), "architectures"),
            arch_map=tuple(self.arch_map(top.get("archMap"))),
            has_arch_map=bool(top.get("archMap")),
            flags=self.texts(top.get("flags"), "flags"),
            rules=tuple(self.rules(top.get("syscalls"))),
        )

    def listener(self, top: Mapping[str, Json]) -> None:
        """Report the fields of a seccomp listener that no rule uses. The module `fields` reports
        listeners that a rule uses.
        """
        keys = [key for key in LISTENER_FIELDS if top.get(key) not in (None, "")]
        rules = top.get("syscalls")
        needs_it = isinstance(rules, list) and any(
            isinstance(rule, dict) and rule.get("action") == "SCMP_ACT_NOTIFY" for rule in rules
        )
        if keys and not needs_it:
            self.report(
                FindingCode.NOTIFY_REFUSED,
                keys[0],
                f"{' and '.join(keys)} references a listener. Without the listener, no "
                "container starts.",
                f"Remove {' and '.join(keys)}: no rule of this profile uses the listener.",
            )

    def arch_map(self, value: Json) -> Iterator[tuple[str, tuple[str, ...]]]:
        for where, item in self.items(value, "archMap"):
            if (entry := self.object(item, where, _ARCH_MAP)) is not None:
                subs = f"{where}.subArchitectures"
                yield (
                    self.text(entry.get("architecture"), f"{where}.architecture"),
                    self.texts(entry.get("subArchitectures"), subs),
                )

    def rules(self, value: Json) -> Iterator[Rule]:
        for where, item in self.items(value, "syscalls"):
            if item is None:
                self.report(
                    FindingCode.RUNTIME_CRASH,
                    where,
                    "A null rule makes CRI-O and Docker crash.",
                    "Remove the null.",
                )
            elif (rule := self.object(item, where, _RULE)) is not None:
                self.text(rule.get("comment"), f"{where}.comment")
                if rule.get("action") in (None, ""):
                    message = "The rule has no action."
                    self.report(FindingCode.BAD_VALUE, f"{where}.action", message, "Add an action.")
                yield Rule(
                    where=where,
                    names=self.names(rule, where),
                    action=self.text(rule.get("action"), f"{where}.action"),
                    errno_ret=self.number(rule.get("errnoRet"), f"{where}.errnoRet", MOST_ERRNO),
                    errno=self.text(rule.get("errno"), f"{where}.errno"),
                    args=tuple(self.args(rule.get("args"), f"{where}.args")),
                    includes=self.only(rule.get("includes"), f"{where}.includes"),
                    excludes=self.only(rule.get("excludes"), f"{where}.excludes"),
                )

    def names(self, rule: Mapping[str, Json], where: str) -> tuple[str, ...]:
        """Return the list `names`, or a list with the value of `name`, which containerd does not
        support.
        """
        old = rule.get("name")
        entries = list(self.items(rule.get("names"), f"{where}.names"))
        if old not in (None, ""):
            if entries:
                message = "The rule has both `name` and `names`, which CRI-O rejects."
                self.report(FindingCode.BAD_VALUE, f"{where}.name", message, "Remove `name`.")
            else:
                self.rewritten.append(f"{where}.name")
            entries.append((f"{where}.name", old))
        if not entries and rule.get("names") in (None, []):
            message = "The rule has no names, and runtimes ignore the rule."
            hint = "List the system calls in `names`, or remove the rule."
            self.report(FindingCode.FAILS_OPEN, f"{where}.names", message, hint)
        names: dict[str, None] = {}
        for place, name in entries:
            if isinstance(name, str) and _NAME.fullmatch(name):
                names[name] = None
            else:
                self.report(
                    FindingCode.FAILS_OPEN,
                    place,
                    f"{shown(name)} is not the name of a system call, and runtimes ignore or "
                    "truncate it.",
                    "Use lower-case letters, digits and underscores, at most 64 characters.",
                )
        return tuple(names)

    def args(self, value: Json, where: str) -> Iterator[Condition]:
        for place, item in self.items(value, where):
            if item is None:
                self.report(
                    FindingCode.RUNTIME_CRASH,
                    place,
                    "A null condition makes CRI-O and Docker crash.",
                    "Remove the null.",
                )
            elif (arg := self.object(item, place, _ARG)) is not None:
                for key in ("index", "value", "op"):
                    if arg.get(key) is None:
                        message = f"A condition needs {key}."
                        self.report(FindingCode.BAD_VALUE, f"{place}.{key}", message, f"Add {key}.")
                yield Condition(
                    index=self.number(arg.get("index"), f"{place}.index", 5) or 0,
                    value=self.number(arg.get("value"), f"{place}.value", 2**64 - 1) or 0,
                    value_two=self.number(arg.get("valueTwo"), f"{place}.valueTwo", 2**64 - 1) or 0,
                    op=self.text(arg.get("op"), f"{place}.op"),
                )

    def only(self, value: Json, where: str) -> Only:
        if value is None:
            return Only()
        tree = self.object(value, where, _FILTER)
        if tree is None:
            return Only()
        return Only(
            arches=self.texts(tree.get("arches"), f"{where}.arches"),
            caps=self.texts(tree.get("caps"), f"{where}.caps"),
            min_kernel=self.text(tree.get("minKernel"), f"{where}.minKernel"),
        )
