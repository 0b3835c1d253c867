"""Chunks end where a reader would, fit, and leave nothing out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris_service.documents.chunking import CountTokens, Span, cut
from polaris_service.documents.sentences import sentences

pytestmark = pytest.mark.unit


def words(texts: Sequence[str]) -> list[int]:
    """A word is a token for every four characters that it has."""
    return [sum(-(-len(word) // 4) for word in text.split()) for text in texts]


def uneven(texts: Sequence[str]) -> list[int]:
    """Tokens that do not add up: the whole may have more than its parts, or fewer."""
    return [len(text) // 3 + len(text) % 7 for text in texts]


def cut_texts(text: str, max_tokens: int = 40, overlap: int = 0) -> list[str]:
    return [span.of(text) for span in cut(text, words, max_tokens, overlap)]


SCRAPS = st.sampled_from(
    [
        "# Título\n",
        "Subtitle\n-----\n",
        "\n\n",
        "\n",
        "- item\n",
        "| a | b |\n",
        "```\ncode # not a heading\n```\n",
        "A sentence of some words. ",
        "O art. 5º da Constituição vale. ",
        "Custa R$ 1.234,56 ou 3.14. ",
        "Why? ",
        "palavra ",
        "x" * 300,
        "漢字かな。",
        "👩‍🔬 ",
        "\t",
        "\u3000",
        "\r\n",
    ]
)
TEXTS = st.one_of(st.text(max_size=400), st.lists(SCRAPS, max_size=40).map("".join))


@pytest.mark.parametrize("count", [words, uneven])
@given(text=TEXTS, max_tokens=st.integers(16, 60), overlap=st.integers(0, 30))
@settings(max_examples=150, deadline=None)
def test_spans_are_in_order_fit_and_cover_all_that_is_not_white(
    count: CountTokens, text: str, max_tokens: int, overlap: int
) -> None:
    overlap = min(overlap, max_tokens // 2)
    spans = cut(text, count, max_tokens, overlap)
    for span in spans:
        assert 0 <= span.start < span.end <= len(text)
        inner = span.of(text)
        assert inner == inner.strip()
        assert count([inner])[0] <= max_tokens
    for one, next_one in itertools.pairwise(spans):
        assert one.start < next_one.start
        assert one.end < next_one.end
    covered = {at for span in spans for at in range(span.start, span.end)}
    assert all(at in covered for at, character in enumerate(text) if not character.isspace())


@given(text=TEXTS)
@settings(max_examples=100, deadline=None)
def test_without_overlap_no_character_stands_in_two_chunks(text: str) -> None:
    spans = cut(text, words, 20, 0)
    assert all(one.end <= next_one.start for one, next_one in itertools.pairwise(spans))


@given(text=TEXTS)
@settings(max_examples=50, deadline=None)
def test_cutting_is_a_function_of_the_text(text: str) -> None:
    assert cut(text, words, 30, 10) == cut(text, words, 30, 10)


def test_white_text_has_no_chunks() -> None:
    assert cut(" \n\t\n ", words, 40, 0) == []


def test_a_short_text_is_one_chunk_with_its_exact_span() -> None:
    assert cut("  Olá, mundo.\n", words, 40, 0) == [Span(2, 13)]


def test_spans_count_code_points_not_bytes_nor_utf16() -> None:
    text = "🇧🇷 Olá! " + "ção " * 60
    spans = cut(text, words, 16, 0)
    assert text[spans[0].start : spans[0].end].startswith("🇧🇷 Olá!")
    assert len(spans) > 1


def test_a_section_begins_a_chunk() -> None:
    body = "Uma frase de algumas palavras. " * 4
    text = f"# Um\n\n{body}\n\n# Dois\n\n{body}"
    chunks = cut_texts(text, max_tokens=100)
    assert [chunk.splitlines()[0] for chunk in chunks] == ["# Um", "# Dois"]


def test_short_sections_share_a_chunk() -> None:
    text = "".join(f"## Q{n}\n\nYes.\n\n" for n in range(4))
    assert len(cut_texts(text, max_tokens=100)) == 1


def test_a_heading_stays_with_what_it_is_about() -> None:
    text = "Some words that fill the chunk. " * 6 + "\n\n## About cats\n\n" + "Cats sleep a lot. " * 10
    for chunk in cut_texts(text, max_tokens=60):
        assert not chunk.endswith("About cats")


def test_a_title_without_markup_counts_as_a_heading() -> None:
    body = "Esta resposta tem algumas palavras e um ponto final. " * 3
    text = f"Como instalo?\n\n{body}\n\nComo removo?\n\n{body}"
    chunks = cut_texts(text, max_tokens=80)
    assert [chunk.splitlines()[0] for chunk in chunks] == ["Como instalo?", "Como removo?"]


def test_a_number_sign_in_code_is_no_heading() -> None:
    text = "```\n# comment\nrun\n```\n"
    assert cut_texts(text) == ["```\n# comment\nrun\n```"]


def test_a_chunk_rather_ends_with_a_paragraph_than_in_it() -> None:
    one = "One sentence here. " * 5
    text = f"{one.strip()}\n\n{one.strip()}\n\n{one.strip()}"
    for chunk in cut_texts(text, max_tokens=70):
        assert chunk.endswith(".")
        assert len(re.findall("One", chunk)) % 5 == 0


def test_overlap_repeats_whole_sentences() -> None:
    text = " ".join(f"Sentence number {n} is here." for n in range(20))
    chunks = cut_texts(text, max_tokens=40, overlap=10)
    for one, next_one in itertools.pairwise(chunks):
        repeated = next_one[: next_one.index(".") + 1]
        assert one.endswith(repeated)


def test_nothing_is_repeated_across_a_heading() -> None:
    body = "A sentence of this section. " * 4
    text = f"# One\n\n{body}\n\n# Two\n\n{body}"
    chunks = cut_texts(text, max_tokens=60, overlap=20)
    assert chunks[1].startswith("# Two")


@pytest.mark.parametrize("scrap", ["# a\n", ".", ". ", "- ", "\n", "a", " ", "```\n", "-", "(", "—"])
def test_a_text_of_one_thing_over_and_over_is_cut_in_linear_time(scrap: str) -> None:
    """Ten times as long may take long, but not a hundred times: a quadratic one would not end."""
    text = scrap * (100_000 // len(scrap))
    assert "".join("".join(s.of(text).split()) for s in cut(text, words, 400, 0)) == "".join(text.split())


def test_a_word_longer_than_a_chunk_is_cut_hard() -> None:
    text = "a" * 10_000
    spans = cut(text, words, 16, 0)
    assert "".join(span.of(text) for span in spans) == text


def test_a_sentence_longer_than_a_chunk_is_cut_at_clauses_and_words() -> None:
    text = ", ".join(f"item number {n}" for n in range(60))
    for chunk in cut_texts(text, max_tokens=30):
        assert re.match(r"item|number|\d", chunk)


@pytest.mark.parametrize(
    "text",
    [
        "O Dr. Silva chegou.",
        "Conforme o art. 5º da Constituição.",
        "Conforme o art. 5º. 2 O parágrafo.",
        "A Sra. Ana e o Sr. José saíram.",
        "Ver a fig. 3 e a pág. 12.",
        "Custa R$ 1.234,56 à vista.",
        "Pi is 3.14 or so.",
        "See e.g. Smith on this.",
        "J. R. R. Tolkien wrote.",
        "The no. 5 bus.",
        "Em set. 2026 foi lançado.",
        "A Av. Paulista é longa.",
        "1. First of all.",
        "Well... yes.",
    ],
)
def test_this_is_one_sentence(text: str) -> None:
    assert [text[a:b] for a, b in sentences(text, 0, len(text))] == [text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Um. Dois.", ["Um.", "Dois."]),
        ("Why? Because! Fine.", ["Why?", "Because!", "Fine."]),
        ('He said "no." Then left.', ['He said "no."', "Then left."]),
        ("Ele disse não. Saiu.", ["Ele disse não.", "Saiu."]),
        ("It was 2025. Then came 2026.", ["It was 2025.", "Then came 2026."]),
        ("Sim (claro). «Não» disse.", ["Sim (claro).", "«Não» disse."]),
        ("これは文。次の文。", ["これは文。", "次の文。"]),
    ],
)
def test_these_are_several_sentences(text: str, expected: list[str]) -> None:
    assert [text[a:b].strip() for a, b in sentences(text, 0, len(text))] == expected
