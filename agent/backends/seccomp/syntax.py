"""The bytes of a seccomp profile, read strictly into a model; every mistake is collected.

Rule 1: bytes are UTF-8 without a byte order mark, JSON without duplicate keys, NaN or trailing
text: Go's decoder matches keys without regard to case and lets the last duplicate win, so what
is looked at must have one meaning only.
Rule 2: a key that is not in the tables below is refused; runtimes ignore it and run without it.
Rule 3: null means absent, as in Go, but a null rule or condition makes CRI-O and moby panic.
Rule 4: the walk is total: any bytes give a Document, problems, or both.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from agent.backends.seccomp import syscalls
from agent.core.findings import MAX_FINDINGS, Finding

MOST_BYTES: Final = 1 << 20
MOST_ERRNO: Final = 4095  # MAX_ERRNO of linux/err.h; libseccomp refuses or cuts more
MOST_ENTRIES: Final = 20_000  # of all lists; the kernel takes no filter of a fifth of that

# How much an action denies; runc, crun and seccomp(2) know these and SCMP_ACT_NOTIFY.
STRICTNESS: Final = {
    "SCMP_ACT_ALLOW": 0,
    "SCMP_ACT_LOG": 1,
    "SCMP_ACT_TRACE": 2,
    "SCMP_ACT_ERRNO": 3,
    "SCMP_ACT_TRAP": 4,
    "SCMP_ACT_KILL": 5,
    "SCMP_ACT_KILL_THREAD": 5,
    "SCMP_ACT_KILL_PROCESS": 6,
}

_TOP: Final = frozenset(
    {
        "defaultAction",
        "defaultErrnoRet",
        "defaultErrno",
        "architectures",
        "archMap",
        "syscalls",
        "flags",
        "listenerPath",
        "listenerMetadata",
        "comment",
    }
)
_RULE: Final = frozenset(
    {"name", "names", "action", "errnoRet", "errno", "args", "comment", "includes", "excludes"}
)
_ARG: Final = frozenset({"index", "value", "valueTwo", "op"})
_FILTER: Final = frozenset({"arches", "caps", "minKernel"})
_ARCH_MAP: Final = frozenset({"architecture", "subArchitectures"})
_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,63}")

Json = object  # what json.loads gives; every use is checked with isinstance


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One comparison of one argument (args[])."""

    index: int
    value: int
    value_two: int
    op: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Only:
    """What includes or excludes names."""

    arches: tuple[str, ...] = ()
    caps: tuple[str, ...] = ()
    min_kernel: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One entry of syscalls[]; where is its field path."""

    where: str
    names: tuple[str, ...]
    action: str
    errno_ret: int | None = None
    errno: str = ""
    args: tuple[Condition, ...] = ()
    includes: Only = field(default_factory=Only)
    excludes: Only = field(default_factory=Only)

    @property
    def depends_on_capabilities(self) -> bool:
        """Whether only some pods get this rule."""
        return bool(self.includes.caps or self.excludes.caps)

    def may_meet(self, other: "Rule") -> bool:
        """Return whether some pod has both rules, as far as capabilities decide it."""
        return set(self.includes.caps).isdisjoint(other.excludes.caps) and set(
            other.includes.caps
        ).isdisjoint(self.excludes.caps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A whole profile as it was written."""

    default_action: str
    default_errno_ret: int | None = None
    default_errno: str = ""
    architectures: tuple[str, ...] = ()
    arch_map: tuple[tuple[str, tuple[str, ...]], ...] = ()
    has_arch_map: bool = False
    flags: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()


def answer(action: str, errno_ret: int | None) -> tuple[str, int]:
    """Return what the kernel is told for an action: the same for actions that are the same."""
    if action in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        return action, 1 if errno_ret is None else errno_ret  # EPERM
    return ("SCMP_ACT_KILL_THREAD" if action == "SCMP_ACT_KILL" else action), 0


class _NotJsonError(ValueError):
    """Valid for Python's decoder, but not JSON."""


def read(  # noqa: PLR0911 - one return per gate
    content: bytes,
) -> tuple[Document | None, tuple[Finding, ...]]:
    """Return the document and what is to be said about it; no document if it has no shape."""
    if len(content) > MOST_BYTES:
        what = f"The profile has {len(content)} bytes; at most {MOST_BYTES} are read."
        return None, (Finding(code="key_too_large", location="profile", message=what),)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"Byte {error.start} is not UTF-8."
        return None, (Finding(code="not_utf8", location="profile", message=what),)
    if text.startswith("\ufeff"):
        what = "The file begins with a byte order mark, which no runtime accepts."
        hint = "Save it as UTF-8 without a BOM."
        return None, (Finding(code="not_utf8", location="profile", message=what, hint=hint),)
    walk = _Walk()
    try:
        tree: Json = json.loads(text, object_pairs_hook=walk.pairs, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}"
        what = f"This is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        return None, (Finding(code="not_json", location=where, message=what),)
    except RecursionError:
        what = "The JSON is nested too deeply."
        return None, (Finding(code="not_json", location="profile", message=what),)
    except ValueError as error:
        what = f"This is not JSON: {error}."
        return None, (Finding(code="not_json", location="profile", message=what[:200]),)
    document = walk.document(tree)
    if walk.rewritten:
        what = (
            f"name was rewritten to names in {len(walk.rewritten)} rules: containerd ignores a "
            "rule that has name only."
        )
        walk.findings.append(
            Finding(code="name_rewritten", location=walk.rewritten[0], message=what)
        )
    return document, tuple(walk.findings)


def _refuse_constant(text: str) -> float:
    raise _NotJsonError(f"{text} is not a JSON number")


def shown(value: Json) -> str:
    """Return a short, printable form of a value, for messages."""
    return ascii(value)[:60]


class _Walk:
    """The walk over the decoded JSON, with the mistakes found so far."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.rewritten: list[str] = []
        self.entries = 0

    @property
    def full(self) -> bool:
        """Whether nobody will be told what is found from here on."""
        return len(self.findings) > MAX_FINDINGS

    def say(self, code: str, where: str, what: str, hint: str = "") -> None:
        if not self.full:
            self.findings.append(Finding(code=code, location=where, message=what, hint=hint))

    def pairs(self, pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        """Build an object, and refuse a key that is there twice."""
        found = dict(pairs)
        if len(found) != len(pairs):
            for key, times in Counter(key for key, _ in pairs).items():
                if times > 1:
                    self.say(
                        "duplicate_key",
                        shown(key),
                        f"The key {shown(key)} is in one object more than once; the last one wins.",
                        "Keep one of them.",
                    )
        return found

    # --- values ----------------------------------------------------------------------------------

    def object(self, value: Json, where: str, keys: frozenset[str]) -> Mapping[str, Json] | None:
        if not isinstance(value, dict):
            self.say("bad_value", where or "profile", f"An object is wanted, not {shown(value)}.")
            return None
        prefix = f"{where}." if where else ""
        for key in value:
            if key not in keys and not self.full:
                self.say(
                    "unknown_field",
                    f"{prefix}{shown(key)[1:-1]}",
                    "Runtimes ignore this key, and then the profile does not mean what it says.",
                    syscalls.nearest(key, keys),
                )
        return value

    def items(self, value: Json, where: str) -> Iterator[tuple[str, Json]]:
        if value is None:
            return
        if not isinstance(value, list):
            self.say("bad_value", where, f"A list is wanted, not {shown(value)}.")
            return
        for index, one in enumerate(value):
            if self.entries == MOST_ENTRIES:
                what = f"The lists have more than {MOST_ENTRIES} entries; no kernel takes that."
                self.findings.append(Finding(code="filter_too_large", location=where, message=what))
            self.entries += 1
            if self.entries > MOST_ENTRIES:
                return
            yield f"{where}[{index}]", one

    def text(self, value: Json, where: str) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            self.say("bad_value", where, f"A string is wanted, not {shown(value)}.")
            return ""
        return value

    def texts(self, value: Json, where: str) -> tuple[str, ...]:
        found = []
        for place, one in self.items(value, where):
            if isinstance(one, str) and one:
                found.append(one)
            else:
                self.say("bad_value", place, f"A name is wanted, not {shown(one)}.")
        return tuple(found)

    def number(self, value: Json, where: str, most: int) -> int | None:
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            what = f"A whole number from 0 to {most} is wanted, not {shown(value)}."
            self.say("bad_value", where, what)
            return None
        return value

    # --- parts -----------------------------------------------------------------------------------

    def document(self, tree: Json) -> Document | None:
        if tree is None:
            self.say("fails_open", "profile", "null is a profile that confines nothing.")
            return None
        top = self.object(tree, "", _TOP)
        if top is None:
            return None
        for key in ("listenerPath", "listenerMetadata"):
            if top.get(key) not in (None, ""):
                what = "A listener decides outside the profile; without it nothing starts."
                self.say("notify_refused", key, what)
        self.text(top.get("comment"), "comment")
        default = self.text(top.get("defaultAction"), "defaultAction")
        if not default:
            what = "Without a default action, runc and CRI-O run the container unconfined."
            self.say("fails_open", "defaultAction", what, "Say what happens to all other calls.")
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

    def arch_map(self, value: Json) -> Iterator[tuple[str, tuple[str, ...]]]:
        for where, one in self.items(value, "archMap"):
            if (entry := self.object(one, where, _ARCH_MAP)) is not None:
                subs = f"{where}.subArchitectures"
                yield (
                    self.text(entry.get("architecture"), f"{where}.architecture"),
                    self.texts(entry.get("subArchitectures"), subs),
                )

    def rules(self, value: Json) -> Iterator[Rule]:
        for where, one in self.items(value, "syscalls"):
            if one is None:
                what = "A null rule makes the profile readers of CRI-O and moby panic."
                self.say("runtime_crash", where, what)
            elif (rule := self.object(one, where, _RULE)) is not None:
                self.text(rule.get("comment"), f"{where}.comment")
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
        """Return names, or name as names: containerd knows only the former."""
        old = rule.get("name")
        given = list(self.items(rule.get("names"), f"{where}.names"))
        if old not in (None, ""):
            if given:
                what = "The rule has both name and names; CRI-O refuses that."
                self.say("bad_value", f"{where}.name", what, "Keep names.")
            else:
                self.rewritten.append(f"{where}.name")
            given.append((f"{where}.name", old))
        if not given:
            what = "A rule without names applies to nothing, and runtimes run it so."
            self.say("fails_open", f"{where}.names", what)
        found: dict[str, None] = {}
        for place, name in given:
            if isinstance(name, str) and _NAME.fullmatch(name):
                found[name] = None
            else:
                self.say(
                    "fails_open",
                    place,
                    f"{shown(name)} is no system call name: a runtime skips it, or cuts it short.",
                    "Names have small letters, digits and underscores, at most 64.",
                )
        return tuple(found)

    def args(self, value: Json, where: str) -> Iterator[Condition]:
        for place, one in self.items(value, where):
            if one is None:
                what = "A null condition makes the profile readers of CRI-O and moby panic."
                self.say("runtime_crash", place, what)
            elif (arg := self.object(one, place, _ARG)) is not None:
                for key in ("index", "value", "op"):
                    if arg.get(key) is None:
                        self.say("bad_value", f"{place}.{key}", f"A condition needs {key}.")
                yield Condition(
                    index=self.number(arg.get("index"), f"{place}.index", 5) or 0,
                    value=self.number(arg.get("value"), f"{place}.value", 2**64 - 1) or 0,
                    value_two=self.number(arg.get("valueTwo"), f"{place}.valueTwo", 2**64 - 1) or 0,
                    op=self.text(arg.get("op"), f"{place}.op"),
                )

    def only(self, value: Json, where: str) -> Only:
        if value is None:
            return Only()
        found = self.object(value, where, _FILTER)
        if found is None:
            return Only()
        return Only(
            arches=self.texts(found.get("arches"), f"{where}.arches"),
            caps=self.texts(found.get("caps"), f"{where}.caps"),
            min_kernel=self.text(found.get("minKernel"), f"{where}.minKernel"),
        )
