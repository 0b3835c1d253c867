"""Citations: markers of all kinds in, only spans of given passages out."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from polaris_service.answer.citations import MARKER, Cited, cite, held_back, keep, keep_markers, numbers_of
from polaris_service.answer.passages import Passage
from polaris_service.answer.prompt import NO_ANSWER
from polaris_service.answer.stream import Growing
from soak import times

pytestmark = pytest.mark.unit

STORED = {
    1: "Prefácio. Debian is a free operating system. It is kept by volunteers from all over the world.",
    2: "Os pacotes são instalados com apt. O comando é apt install. As dependências vêm junto.",
    3: "東京は日本の首都です。 Tokyo is a city.",
}
PASSAGES = [
    Passage(number, f"doc/{number}", 2, 10 * number, 10 * number + len(text), text, None, None, 0.9)
    for number, text in STORED.items()
]
GIVEN = set(STORED)


def texts(cited: Cited) -> list[tuple[int, str]]:
    return [(citation.marker, citation.text) for citation in cited.citations]


@pytest.mark.parametrize(
    ("generated", "text", "citations"),
    [
        (
            "Debian is kept by volunteers [1].",
            "Debian is kept by volunteers [1].",
            [(1, "It is kept by volunteers from all over the world.")],
        ),
        (
            "Use apt install. [2] It is free. [1]",
            "Use apt install. [2] It is free. [1]",
            [(2, "O comando é apt install."), (1, "Debian is a free operating system.")],
        ),
        ("Nothing like it [3, 9].", "Nothing like it [3].", [(3, STORED[3])]),
        ("SearchIndex up [9]. And [0] more [17][4].", "SearchIndex up. And more.", []),
        ("Both 【1】 and [^2].", "Both [1] and [2].", [(1, STORED[1]), (2, STORED[2])]),
        ("All [1-3].", "All [1][2][3].", [(n, STORED[n]) for n in (1, 2, 3)]),
        ("An array a[1] of b[x] and [ ].", "An array a[1] of b[x] and [ ].", [(1, STORED[1])]),
        ("[1]", "[1]", [(1, STORED[1])]),
        ("", "", []),
        ("No marker at all.", "No marker at all.", []),
    ],
)
def test_markers_become_citations_of_the_sentence_that_supports(
    generated: str, text: str, citations: list[tuple[int, str]]
) -> None:
    cited = cite(generated, PASSAGES)
    assert cited.text == text
    assert texts(cited) == citations


def test_a_citation_says_where_its_text_stands() -> None:
    [citation] = cite("It is free [1].", PASSAGES).citations
    begin = STORED[1].index("Debian")
    assert (citation.document, citation.version) == ("doc/1", 2)
    assert citation.start == 10 + begin
    assert citation.text == "Debian is a free operating system."
    assert citation.end == citation.start + len(citation.text)
    assert citation.sha256 == hashlib.sha256(citation.text.encode()).hexdigest()


def test_the_same_passage_and_sentence_is_cited_once() -> None:
    cited = cite("It is free [1]. Yes, free [1]. Kept by volunteers [1].", PASSAGES)
    assert texts(cited) == [
        (1, "Debian is a free operating system."),
        (1, "It is kept by volunteers from all over the world."),
    ]


@pytest.mark.parametrize(
    ("marker", "numbers"),
    [
        ("[1]", [1]),
        ("[1, 2;3]", [1, 2, 3]),
        ("[2-4]", [2, 3, 4]),
        ("[4-2]", [4, 2]),
        ("[1-999999999]", [1, 999999999]),
        ("[1,1,1]", [1]),
    ],
)
def test_numbers_of_a_marker(marker: str, numbers: list[int]) -> None:
    assert numbers_of(marker) == numbers


@pytest.mark.parametrize("text", [" " * 500_000 + "x", "[" * 100_000, "[1," * 50_000, "[1] " * 50_000])
def test_text_of_one_thing_over_and_over_takes_no_time(text: str) -> None:
    """Models do write such; by the square of its length it would take hours."""
    assert held_back(text) <= len(text)
    assert len(keep_markers(text, {1})) <= len(text)


def test_what_does_not_verify_leaves_with_its_markers() -> None:
    cited = cite("Free [1]. Apt [2]. Both [1][2].", PASSAGES)
    kept = keep(cited, {c for c in cited.citations if c.marker == 2})
    assert kept.text == "Free. Apt [2]. Both [2]."
    assert {c.marker for c in kept.citations} == {2}
    assert keep(cited, set()) == Cited("Free. Apt. Both.", ())


# --- whatever a generator writes ---

MARKERS = """
[1] [2] [3] [4] [0] [-1] [1, 2] [ ] [[1]] [1][ 【2】 【 】 [1-9] [9-1] [^3] [1;2] [\u0661]
[99999999999] [1.] [a] []
"""
SCRAPS = st.sampled_from(
    [*MARKERS.split(), " ", ". ", "\n\n", "# ", "- ", "free", "apt install", "東京", "volunteers.", "\u2028"]
)
GENERATED = st.lists(SCRAPS | st.text(max_size=5), max_size=30).map("".join)


@pytest.mark.soak
@settings(max_examples=times(500, 10_000), deadline=None)
@given(GENERATED)
@example("[1]" * 500)
@example("[" * 5000)
@example("[1," * 2000)
def test_no_citation_is_ever_of_anything_but_a_given_passage(generated: str) -> None:
    cited = cite(generated, PASSAGES)
    for citation in cited.citations:
        passage = PASSAGES[citation.marker - 1]
        assert (citation.document, citation.version) == (passage.document, passage.version)
        assert passage.start <= citation.start < citation.end <= passage.end
        assert STORED[citation.marker][citation.start - passage.start : citation.end - passage.start] == (
            citation.text
        )
    told = {number for match in MARKER.finditer(cited.text) for number in numbers_of(match[0])}
    assert told == {citation.marker for citation in cited.citations}
    assert cite(cited.text, PASSAGES).citations == cited.citations


@given(GENERATED)
def test_nothing_but_markers_is_taken_from_a_text(generated: str) -> None:
    def bare(text: str) -> str:
        return re.sub(r"\s", "", MARKER.sub("", text))

    assert bare(keep_markers(generated, GIVEN)) == bare(generated)


@pytest.mark.soak
@settings(max_examples=times(500, 10_000), deadline=None)
@given(GENERATED, st.lists(st.integers(1, 12), min_size=1, max_size=40))
@example("[9] [1]", [1])
@example("a [9] [1] b [9]c", [1])
@example("a [" + " " * 70 + "1]", [3])
@example("NO ANSWER is not what I say [1].", [2])
def test_what_is_shown_while_it_grows_is_what_is_shown_at_once(generated: str, sizes: list[int]) -> None:
    growing = Growing(GIVEN)
    shown, place, turn = "", 0, 0
    while place < len(generated):
        size = sizes[turn % len(sizes)]
        shown += growing.add(generated[place : place + size])
        place, turn = place + size, turn + 1
    shown += growing.end()
    assert growing.text == generated.strip()
    if growing.refused:
        assert shown in ("", keep_markers(generated, GIVEN).strip())
    else:
        assert shown.strip() == keep_markers(generated.strip(), GIVEN).strip()


@pytest.mark.parametrize("text", [NO_ANSWER, f"  {NO_ANSWER}\n", f"{NO_ANSWER}.", "", " \n"])
def test_a_refusal_is_never_shown_as_an_answer(text: str) -> None:
    growing = Growing(GIVEN)
    assert "".join(map(growing.add, text)) + growing.end() == ""
    assert growing.refused
