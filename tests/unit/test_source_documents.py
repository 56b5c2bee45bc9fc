"""Parsing YAML within bounds: every text has an answer, and none of them kills the reader."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.model import Unreadable
from agent.sources import documents
from agent.sources.directory import Directory
from agent.sources.manifest import Manifest

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
        ("a: &a [*a]", "the alias *a names nothing, or what it is part of"),
        ("a: *b", "the alias *b names nothing, or what it is part of"),
        ("a: 2024-13-45", "month must be in 1..12"),
        ('a: !!int ""', "string index out of range"),
        ("a: !!bool foo", "'foo'"),
        ("a: !!timestamp foo", "'NoneType' object has no attribute 'groupdict'"),
        ("a: !!python/object:os.system {}", "could not determine a constructor for the tag"),
        ("a: 1\na: 2", "duplicate or unusable key 'a'"),
    ],
    ids=lambda text: text[:24],
)
def test_a_text_beyond_the_bounds_is_not_yaml(text, why):
    """Nesting, aliases, merges and PyYAML's own mishaps end in one answer that says why."""
    with pytest.raises(documents.NotYaml) as caught:
        documents.parse(text.encode())
    assert str(caught.value).startswith(why)


def test_ordinary_aliases_and_merges_are_read():
    """Within the bounds an alias is what it names, and ends with its document."""
    text = b"a: &a {k: v}\nb: {<<: *a, l: w}\n---\n&a x: *a\n"
    assert documents.parse(text) == [{"a": {"k": "v"}, "b": {"k": "v", "l": "w"}}, {"x": "x"}]


@given(st.text("ab:{}[]&*<!?-'\"\\|>#% \n\t0.\ufeff\x85é", max_size=60))
def test_any_text_is_documents_or_not_yaml(text):
    """Nothing but NotYaml is ever raised."""
    try:
        answer = documents.parse(text.encode())
    except documents.NotYaml as error:
        answer = [str(error)]
    assert isinstance(answer, list)


def test_a_manifest_beyond_the_bounds_is_unreadable(tmp_path):
    """What cannot be parsed removes nothing."""
    path = tmp_path / "m.yaml"
    path.write_text("[" * 200_000)
    (snapshot,) = Manifest(str(path)).read()
    assert isinstance(snapshot, Unreadable)


def test_a_directory_whose_name_is_no_text_is_refused(tmp_path):
    """No key carries what cannot be printed, not in its directories either."""
    below = tmp_path / "b\udcff\n"
    below.mkdir()
    (below / "x.json").write_text("{}")
    (snapshot,) = Directory(str(tmp_path)).read()
    assert (snapshot.blobs, [key for key, _ in snapshot.refused]) == ((), ["b\\udcff\\n"])
