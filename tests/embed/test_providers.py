"""The contract of a provider, kept by the double, the local model and a client of the real server."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from polaris.errors import EmbedderRefused
from polaris_service.embed.models import KNOWN, final_texts, known
from polaris_service.embed.provider import Kind, Provider

pytestmark = pytest.mark.anyio

SENTENCES = [
    "Como instalo o Debian no meu computador?",
    "How do I install Debian on my computer?",
    "Bolo de cenoura leva ovos, farinha e açúcar.",
    "The parliament passes the budget in autumn.",
    "x",
]


async def only(provider: Provider) -> str:
    """Return the one model that the provider has."""
    (offered,) = await provider.models()
    return offered.model


class TestEveryProvider:
    async def test_offers_a_model_with_its_dimension_revision_and_limit(self, provider: Provider) -> None:
        (offered,) = await provider.models()
        vectors = await provider.embed(offered.model, ["a"], Kind.PASSAGE)
        assert vectors.shape == (1, offered.dimension)
        assert (offered.revision, offered.max_tokens) == ("1", 512)

    @pytest.mark.parametrize("kind", list(Kind))
    async def test_gives_one_vector_of_length_1_a_text(self, provider: Provider, kind: Kind) -> None:
        vectors = await provider.embed(await only(provider), SENTENCES, kind)
        assert vectors.dtype == np.float32
        assert len(vectors) == len(SENTENCES)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

    async def test_gives_the_same_vector_alone_and_in_company(self, provider: Provider) -> None:
        model = await only(provider)
        together = await provider.embed(model, SENTENCES, Kind.PASSAGE)
        alone = [await provider.embed(model, [text], Kind.PASSAGE) for text in SENTENCES]
        np.testing.assert_allclose(np.concatenate(alone), together, atol=1e-5)

    async def test_keeps_apart_who_asks_at_the_same_time(self, provider: Provider) -> None:
        model = await only(provider)
        texts = [f"{sentence} {number}" for number in range(8) for sentence in SENTENCES]
        alone = await provider.embed(model, texts, Kind.QUERY)
        together = await asyncio.gather(*(provider.embed(model, [text], Kind.QUERY) for text in texts))
        np.testing.assert_allclose(np.concatenate(together), alone, atol=1e-5)

    async def test_puts_texts_that_share_words_nearer_than_strangers(self, provider: Provider) -> None:
        texts = ["installing Debian from a USB stick", "Debian installs from an USB stick", SENTENCES[2]]
        one, near, far = await provider.embed(await only(provider), texts, Kind.PASSAGE)
        assert one @ near > one @ far + 0.05

    async def test_gives_no_vectors_for_no_texts(self, provider: Provider) -> None:
        model = await only(provider)
        await provider.embed(model, ["a"], Kind.PASSAGE)
        assert (await provider.embed(model, [], Kind.PASSAGE)).shape[0] == 0
        assert await provider.count_tokens(model, []) == []

    async def test_gives_an_empty_text_a_vector_too(self, provider: Provider) -> None:
        vectors = await provider.embed(await only(provider), ["", " \n "], Kind.PASSAGE)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

    async def test_cuts_a_text_at_the_limit_of_the_model(self, provider: Provider) -> None:
        model = await only(provider)
        head = "palavra " * 600
        one, other = await provider.embed(model, [head, head + "outra coisa " * 90], Kind.PASSAGE)
        np.testing.assert_allclose(one, other, atol=1e-5)

    async def test_takes_a_text_of_a_megabyte(self, provider: Provider) -> None:
        text = "Uma frase que se repete muitas vezes. " * 27_000
        model = await only(provider)
        assert (await provider.embed(model, [text], Kind.PASSAGE)).shape[0] == 1
        assert (await provider.count_tokens(model, [text]))[0] > 100_000

    @pytest.mark.parametrize(
        ("text", "what"),
        [("a\x00b", "NUL"), ("a\ud800b", "a lone surrogate"), ("a\udfff", "a lone surrogate")],
    )
    async def test_refuses_what_is_no_text(self, provider: Provider, text: str, what: str) -> None:
        model = await only(provider)
        with pytest.raises(EmbedderRefused, match=f"text 1 holds {what} at character 1"):
            await provider.embed(model, ["fine", text], Kind.PASSAGE)
        with pytest.raises(EmbedderRefused, match=what):
            await provider.count_tokens(model, ["fine", text])

    async def test_takes_text_of_any_script_and_oddity(self, provider: Provider) -> None:
        odd = [
            "日本語の文章",
            "نص عربي",
            "😀" * 50,
            "e\u0301",
            "\u200b\u200f\ufeff",
            "\x07\x1b[0m",
            "<s></s><mask>",
            "a" * 5000,
        ]
        vectors = await provider.embed(await only(provider), odd, Kind.RAW)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

    async def test_refuses_a_model_that_it_has_not(self, provider: Provider) -> None:
        with pytest.raises(EmbedderRefused, match="bert-of-1850"):
            await provider.embed("bert-of-1850", ["a"], Kind.PASSAGE)

    async def test_counts_tokens_that_add_up(self, provider: Provider) -> None:
        model = await only(provider)
        counts = await provider.count_tokens(model, [*SENTENCES, "", " ".join(SENTENCES)])
        assert counts[-2] == 0
        assert all(count > 0 for count in counts[: len(SENTENCES)])
        assert abs(sum(counts[: len(SENTENCES)]) - counts[-1]) <= len(SENTENCES)


def test_a_prefix_is_put_before_a_text_once_and_not_before_a_final_one() -> None:
    def of(model: str, kind: Kind) -> list[str]:
        return final_texts(model, ["a"], kind)

    assert of("multilingual-e5-small", Kind.QUERY) == ["query: a"]
    assert of("intfloat/multilingual-e5-large", Kind.PASSAGE) == ["passage: a"]
    assert of("nomic-embed-text:latest", Kind.QUERY) == ["search_query: a"]
    assert of("multilingual-e5-small", Kind.RAW) == ["a"]
    assert of("nobody/knows-it", Kind.QUERY) == ["a"]


def test_a_model_is_known_by_its_name_however_servers_write_it() -> None:
    for written in ("bge-m3", "BAAI/bge-m3", "bge-m3:latest", "BGE-M3"):
        assert known(written) == KNOWN["bge-m3"]
    assert known("my-bge-m3") is None
