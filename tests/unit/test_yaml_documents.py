"""Tests of agent.sources.yaml_documents, which parses or rejects every text with limited time and
memory.
"""

import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.model import Read, Unreadable
from agent.sources import yaml_documents
from agent.sources.directory import DirectorySource
from agent.sources.manifest import ManifestSource
from tests.narrowing import instance_of

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {k: v}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12)
)
COPIES = f"big: &big {'x' * (1 << 20)}\nall: [{', '.join(['*big'] * 100)}]\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 200_000, "it nests more than 100 levels deep"),
        ("{a: " * 100_000, "it nests more than 100 levels deep"),
        (LAUGHS, "it expands to more than"),
        (MERGES, "it expands to more than"),
        (COPIES, "it expands to more than"),
        ("[x, " * 50 + "x, " * 200_000, "it expands to more than"),
        ("a: &a [*a]", "the alias *a has no anchor, or is part of its own anchor"),
        ("a: *b", "the alias *b has no anchor, or is part of its own anchor"),
        ("a: !!bool foo", "line 1: a value does not match its tag"),
        ("a: !!map foo", "line 1: a value does not match its tag"),
        ("a: !!str [b]", "line 1: a value does not match its tag"),
        ("a: !!set {b}", "line 1: the tag 'tag:yaml.org,2002:set' is not supported"),
        ("a: !!binary YQ==", "line 1: the tag 'tag:yaml.org,2002:binary' is not supported"),
        ("a: !!python/object:os.system {}", "line 1: the tag 'tag:yaml.org,2002:python/object:os"),
        ("a: 1\na: 2", "line 2: the key 'a' occurs twice"),
        ("\n1: a", "line 2: the key '1' is not a string; quote it"),
        ("true: a", "line 1: the key 'true' is not a string; quote it"),
        ("[a]: b", "line 1: the key is not a string; quote it"),
        ("a: {<<: {1: b}}", "line 1: a merged key is not a string; quote it"),
    ],
    ids=lambda text: text[:24],
)
def test_a_text_over_the_limits_is_rejected(text: str, why: str) -> None:
    """A text above a limit is rejected with the reason."""
    with pytest.raises(yaml_documents.InvalidYamlError) as caught:
        yaml_documents.parse(text.encode())
    assert str(caught.value).startswith(why)


SLOW = {
    "a number in base 60": "a: " + "1:" * 400_000 + "1",
    "a long number": "a: " + "1" * 1_000_000,
    "a number with underscores": "a: 1" + "_1" * 400_000,
}


@pytest.mark.parametrize("text", SLOW.values(), ids=SLOW)
def test_a_number_that_is_slow_to_convert_is_not_converted(text: str) -> None:
    """A number of any length and any base stays text, because its conversion could be slow."""
    assert yaml_documents.parse(text.encode()) == [{"a": yaml_documents.NotAString(text[3:])}]


def test_integer_keys_with_equal_hashes_are_rejected() -> None:
    """Integer keys, whose hashes could be equal, are rejected: the keys of a mapping are always
    strings.
    """
    modulus = sys.hash_info.modulus
    text = "{" + ", ".join(f"{number * modulus}: a" for number in range(50_000)) + "}"
    with pytest.raises(yaml_documents.InvalidYamlError, match="the key '0' is not a string"):
        yaml_documents.parse(text.encode())


def test_only_a_few_types_are_constructed() -> None:
    """Only strings, lists, mappings, booleans and null are constructed. Numbers and dates stay
    text.
    """
    text = b"{a: b, c: [true, No, null, ~, ], d: 1, e: 1.5, f: 2024-13-45, g: =, 'h': '1'}"
    unquoted = [yaml_documents.NotAString(text) for text in ("1", "1.5", "2024-13-45")]
    assert yaml_documents.parse(text) == [
        {"a": "b", "c": [True, False, None, None], "g": "=", "h": "1"}
        | dict(zip("def", unquoted, strict=True))
    ]


def test_ordinary_aliases_and_merges_are_read() -> None:
    """An alias within the limits expands to its anchor, and is only valid in its document."""
    text = b"a: &a {k: v}\nb: {<<: *a, l: w}\n---\n&a x: *a\n"
    assert yaml_documents.parse(text) == [{"a": {"k": "v"}, "b": {"k": "v", "l": "w"}}, {"x": "x"}]


@given(st.text("ab:{}[]&*<!?-'\"\\|>#% \n\t0.\ufeff\x85é", max_size=60))
def test_any_text_is_parsed_or_rejected(text: str) -> None:
    """Any text is either parsed or rejected with InvalidYamlError."""
    try:
        answer = yaml_documents.parse(text.encode())
    except yaml_documents.InvalidYamlError as error:
        answer = [str(error)]
    assert isinstance(answer, list)


def test_a_manifest_over_the_limits_is_unreadable(tmp_path: Path) -> None:
    """A manifest that exceeds the limits counts as unreadable, so no profile is removed."""
    path = tmp_path / "m.yaml"
    path.write_text("[" * 200_000)
    (snapshot,) = ManifestSource(str(path)).read()
    assert isinstance(snapshot, Unreadable)


def test_a_directory_with_an_unprintable_name_is_rejected(tmp_path: Path) -> None:
    """A directory with an unprintable name is rejected, so that no key contains unprintable
    characters.
    """
    below = tmp_path / "b\udcff\n"
    below.mkdir()
    (below / "x.json").write_text("{}")
    (snapshot,) = DirectorySource(str(tmp_path), clock_ns=time.time_ns).read()
    assert (
        instance_of(snapshot, Read).source_keys,
        [key for key, _ in instance_of(snapshot, Read).rejected_keys],
    ) == (
        (),
        ["b\\udcff\\n"],
    )
