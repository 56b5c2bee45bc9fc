"""Properties of the reader of compiled policy."""

import struct
import tempfile

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


def named(name, rest):
    return b"\x04" + struct.pack("<H", len(name) + 1) + name + b"\0" + rest


def profile(name, mode=0, between=b""):
    encoded = name.encode()
    flags = b"".join(b"\x02" + struct.pack("<I", one) for one in (0, mode, 0))
    body = b"\x05" + struct.pack("<H", len(encoded) + 1) + encoded + b"\0" + between
    body += named(b"flags", b"\x07" + flags + b"\x08")
    return named(b"version", b"\x02" + struct.pack("<I", 0x200007)) + named(
        b"profile", b"\x07" + body + b"\x08"
    )


# What stands between a name and its flags: nothing, or an attachment.
BETWEEN = (b"", named(b"xmatch_id", b"\x02" + struct.pack("<I", 1)), b"", b"")
names = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=40)


def answered(blob):
    try:
        compiled_policy.read(blob)
    except compiled_policy.PolicyError:
        return True
    return True


@given(st.binary(max_size=400))
def test_any_bytes_are_answered(blob):
    """Arbitrary bytes give profiles or one PolicyError, never another exception."""
    assert answered(blob)


@given(names, st.data())
def test_mutated_policy_is_answered(name, data):
    """Policy with bytes changed, cut or repeated is answered too."""
    blob = bytearray(profile(name) * 2)
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    assert answered(bytes(blob[: data.draw(st.integers(0, len(blob)))]))


@given(st.lists(st.tuples(names, st.sampled_from(sorted(compiled_policy.MODES))), max_size=4))
def test_every_declared_profile_is_found(declared):
    """Names and modes come back as they were written, in their order."""
    blob = b"".join(profile(name, mode) for name, mode in declared)
    found = [(one.name, one.mode, one.has_attachment) for one in compiled_policy.read(blob)]
    assert found == [(name, compiled_policy.MODES[mode], False) for name, mode in declared]


@given(names)
def test_a_name_is_hidden_by_no_cut(name):
    """A blob cut anywhere inside a profile is refused rather than read as fewer profiles."""
    whole = profile(name)
    header = whole.index(b"profile") - 3
    for end in range(header + 1, len(whole)):
        try:
            compiled_policy.read(whole[:end])
        except compiled_policy.PolicyError:
            continue
        raise AssertionError(end)


@given(st.text(max_size=400))
def test_any_text_is_scanned(source):
    """The checks on text answer every text."""
    source_checks.errors(source.encode("utf-8", "surrogatepass"))
    escape_rules.warnings(source)
    source_checks.variable_names(source)


@given(st.binary(max_size=2000), st.binary(max_size=200))
def test_a_parser_message_is_one_bounded_printable_line(stderr, source):
    """Whatever the parser prints becomes one printable line of bounded length."""
    known = parser_messages.QuotableWords(
        source=source, words={"error"}, include_dir="/etc/apparmor.d"
    )
    said = parser_messages.error_message(b"error " + stderr, known)
    assert said.isprintable()
    assert len(said) <= 601


@given(
    st.lists(
        st.tuples(names, st.sampled_from(sorted(compiled_policy.MODES))), min_size=1, max_size=4
    )
)
def test_what_the_cache_says_of_a_policy_is_what_is_read_from_it(declared):
    """Names, modes, attachments and hashes."""
    between = zip(declared, BETWEEN, strict=False)
    blob = b"".join(profile(name, mode, more) for (name, mode), more in between)
    with tempfile.TemporaryDirectory() as root:
        policy_cache.PolicyCache(Host(root), "/state", write=True).store(
            "key", policy_cache.ParserResult(policy=blob)
        )
        found = policy_cache.PolicyCache(Host(root), "/state", write=True).find("key")
    read = compiled_policy.read(blob)
    assert found == policy_cache.ParserResult(
        policy=blob, size=len(blob), sha256=digest(blob), declared=read
    )


@given(
    st.lists(
        st.tuples(names, st.sampled_from(sorted(compiled_policy.MODES))),
        min_size=1,
        max_size=6,
        unique_by=lambda one: one[0],
    ),
    st.data(),
)
def test_a_rewrapped_policy_declares_the_same_in_other_bytes(declared, data):
    """The kernel's hash of each profile stays, and so does the alignment of its tables."""
    blobs = [profile(name, mode) for name, mode in declared]
    wanted = data.draw(st.sets(st.sampled_from([name for name, _ in declared]), min_size=1))
    filler = data.draw(st.binary(min_size=8, max_size=40))
    made = compiled_policy.rewrap([b"".join(blobs[:3]), b"".join(blobs[3:])], wanted, filler)

    def own(found):
        return {
            one.name: (one.mode, {token for token in one.evidence if token.startswith("own:")})
            for one in found
            if one.name in wanted
        }

    before = {
        name: value for blob in blobs for name, value in own(compiled_policy.read(blob)).items()
    }
    assert own(compiled_policy.read(made)) == before
    assert compiled_policy.names(made) == wanted
    # One version header each, with the filler in it.
    assert made.count(b"version\0" + filler) >= len(wanted)
    sources = b"".join(blobs[:3]), b"".join(blobs[3:])
    for name in wanted:
        body = next(blob for (one, _), blob in zip(declared, blobs, strict=True) if one == name)
        body = body[body.index(b"\x04\x08\x00profile\0") :]
        origin = next(source for source in sources if body in source)
        assert made.index(body) % 8 == origin.index(body) % 8
