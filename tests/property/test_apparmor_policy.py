"""Property tests of the checks of profile texts and of the reader of compiled policies."""

import struct
import tempfile
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from agent.backends.apparmor import (
    compiled_policy,
    escape_rules,
    parser_messages,
    policy_cache,
    source_checks,
)
from agent.core.model import digest
from agent.host.filesystem import Host


def named(name: bytes, rest: bytes) -> bytes:
    """Return a named element of a policy."""
    return b"\x04" + struct.pack("<H", len(name) + 1) + name + b"\0" + rest


def profile(name: str, mode: int = 0, between: bytes = b"") -> bytes:
    """Return a policy with one profile. `between` contains the fields between the profile's name
    and its flags.
    """
    encoded = name.encode()
    flags = b"".join(b"\x02" + struct.pack("<I", flag) for flag in (0, mode, 0))
    body = b"\x05" + struct.pack("<H", len(encoded) + 1) + encoded + b"\0" + between
    body += named(b"flags", b"\x07" + flags + b"\x08")
    return named(b"version", b"\x02" + struct.pack("<I", 0x200007)) + named(
        b"profile", b"\x07" + body + b"\x08"
    )


# No fields, or the fields of an attachment, are between the name of a profile and its flags.
BETWEEN = (b"", named(b"xmatch_id", b"\x02" + struct.pack("<I", 1)), b"", b"")
names = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=40)


def is_handled(blob: bytes) -> bool:
    """Return whether the reader returns profiles for these bytes or raises PolicyError."""
    try:
        compiled_policy.read(blob)
    except compiled_policy.PolicyError:
        return True
    return True


@given(st.binary(max_size=400))
def test_any_bytes_are_handled(blob: bytes) -> None:
    """For any bytes, the reader either returns profiles or raises PolicyError."""
    assert is_handled(blob)


@given(names, st.data())
def test_a_mutated_policy_is_handled(name: str, data: st.DataObject) -> None:
    """For a changed, truncated or repeated policy, the reader either returns profiles or raises
    PolicyError.
    """
    blob = bytearray(profile(name) * 2)
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    assert is_handled(bytes(blob[: data.draw(st.integers(0, len(blob)))]))


@given(st.lists(st.tuples(names, st.sampled_from(sorted(compiled_policy.MODES))), max_size=4))
def test_every_declared_profile_is_found(declared: list[tuple[str, int]]) -> None:
    """The reader returns names and modes in the order of the policy."""
    blob = b"".join(profile(name, mode) for name, mode in declared)
    declarations = [
        (profile.name, profile.mode, profile.has_attachment)
        for profile in compiled_policy.read(blob)
    ]
    assert declarations == [(name, compiled_policy.MODES[mode], False) for name, mode in declared]


@given(names)
def test_a_truncated_policy_is_an_error(name: str) -> None:
    """For a policy that ends inside a profile, the reader raises an error instead of returning
    fewer profiles.
    """
    whole = profile(name)
    header = whole.index(b"profile") - 3
    for end in range(header + 1, len(whole)):
        try:
            compiled_policy.read(whole[:end])
        except compiled_policy.PolicyError:
            continue
        raise AssertionError(end)


@given(st.text(max_size=400))
def test_any_text_is_checked(source: str) -> None:
    """The checks of a text never raise an exception."""
    source_checks.errors(source.encode("utf-8", "surrogatepass"))
    escape_rules.warnings(source)
    source_checks.variable_names(source)


@given(st.binary(max_size=2000), st.binary(max_size=200))
def test_a_parser_message_is_one_bounded_printable_line(stderr: bytes, source: bytes) -> None:
    """Every parser output is converted into one printable line of limited length."""
    quotable = parser_messages.QuotableWords(
        source=source, words={"error"}, include_dir="/etc/apparmor.d"
    )
    message = parser_messages.error_message(b"error " + stderr, quotable)
    assert message.isprintable()
    assert len(message) <= 601


@given(
    st.lists(
        st.tuples(names, st.sampled_from(sorted(compiled_policy.MODES))), min_size=1, max_size=4
    )
)
def test_the_cache_returns_the_declared_profiles_of_a_policy(
    declared: list[tuple[str, int]],
) -> None:
    """The cache returns the names, modes, attachments and hashes that the policy contains."""
    between = zip(declared, BETWEEN, strict=False)
    blob = b"".join(profile(name, mode, fields) for (name, mode), fields in between)
    with tempfile.TemporaryDirectory() as root:
        policy_cache.PolicyCache(Host(root), "/state", write=True).store(
            "key", policy_cache.ParserResult(policy=blob)
        )
        result = policy_cache.PolicyCache(Host(root), "/state", write=True).find("key")
    read = compiled_policy.read(blob)
    assert result == policy_cache.ParserResult(
        policy=blob, size=len(blob), sha256=digest(blob), declared=read
    )


@given(
    st.lists(
        st.tuples(names, st.sampled_from(sorted(compiled_policy.MODES))),
        min_size=1,
        max_size=6,
        unique_by=lambda declaration: declaration[0],
    ),
    st.data(),
)
def test_a_rewrapped_policy_declares_the_same_profiles_in_other_bytes(
    declared: list[tuple[str, int]], data: st.DataObject
) -> None:
    """A rewritten policy keeps the kernel's hash of each profile and the alignment of its
    tables.
    """
    blobs = [profile(name, mode) for name, mode in declared]
    included = data.draw(st.sets(st.sampled_from([name for name, _ in declared]), min_size=1))
    filler = data.draw(st.binary(min_size=8, max_size=40))
    rewrapped = compiled_policy.rewrap([b"".join(blobs[:3]), b"".join(blobs[3:])], included, filler)

    def hashes(
        profiles: Iterable[compiled_policy.DeclaredProfile],
    ) -> dict[str, tuple[str, set[str]]]:
        return {
            profile.name: (
                profile.mode,
                {token for token in profile.evidence if token.startswith("own:")},
            )
            for profile in profiles
            if profile.name in included
        }

    before = {
        name: value for blob in blobs for name, value in hashes(compiled_policy.read(blob)).items()
    }
    assert hashes(compiled_policy.read(rewrapped)) == before
    assert compiled_policy.names(rewrapped) == included
    # Each profile in the rewritten policy has a version header that contains the filler bytes.
    assert rewrapped.count(b"version\0" + filler) >= len(included)
    sources = b"".join(blobs[:3]), b"".join(blobs[3:])
    for name in included:
        body = next(blob for (other, _), blob in zip(declared, blobs, strict=True) if other == name)
        body = body[body.index(b"\x04\x08\x00profile\0") :]
        origin = next(source for source in sources if body in source)
        assert rewrapped.index(body) % 8 == origin.index(body) % 8
