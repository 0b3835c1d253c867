"""From files to documents: formats, encodings, ids, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polaris_cli.load.document import Line, Options, Refused, Skipped
from polaris_cli.load.encoding import WINDOWS, Binary, NotText, decode
from polaris_cli.load.files import Item, count_documents, documents

PORTUGUESE = (
    "A informação é necessária: não há exceções. Você já leu o índice às pressas?"
    " A ação do coração, três vezes, nº 5, 1ª vez."
)


def load(*paths: Path, **options: Any) -> list[Item]:
    return list(documents(paths, Options(**options)))


def only(*paths: Path, **options: Any) -> dict[str, Any]:
    """The one document of these paths."""
    [item] = load(*paths, **options)
    assert isinstance(item, Line), item
    document: dict[str, Any] = json.loads(item.data)
    return document


def refusal(*paths: Path, **options: Any) -> str:
    [item] = load(*paths, **options)
    assert isinstance(item, Refused), item
    return str(item)


def write(file: Path, content: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def pdf(text: str, title: str = "") -> bytes:
    """A PDF of one page with one line of text (Windows-1252)."""
    drawn = b"BT /F1 12 Tf 72 720 Td (" + text.encode("cp1252") + b") Tj ET" if text else b""
    resources = b"<< /Font << /F1 5 0 R >> >>"
    parts = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 /MediaBox [0 0 612 792] >>",
        b"<< /Type /Page /Parent 2 0 R /Contents 4 0 R /Resources %s >>" % resources,
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(drawn), drawn),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        b"<< /Title (" + title.encode("cp1252") + b") >>",
    ]
    made, places = b"%PDF-1.4\n", []
    for number, part in enumerate(parts, 1):
        places.append(len(made))
        made += b"%d 0 obj\n%s\nendobj\n" % (number, part)
    table = b"xref\n0 7\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"trailer << /Size 7 /Root 1 0 R /Info 6 0 R >>\nstartxref\n%d\n%%%%EOF\n" % len(made)
    return made + table + trailer


# --- formats -----------------------------------------------------------------------------------


def test_text_is_taken_as_it_is(tmp_path: Path) -> None:
    file = write(tmp_path / "nota.txt", "Olá,\r\nmundo.\n")
    assert only(file) == {"id": "nota.txt", "text": "Olá,\nmundo.\n"}


def test_markdown_has_a_title_from_its_first_heading(tmp_path: Path) -> None:
    file = write(tmp_path / "a.md", "```\n# no heading\n```\n\n## O *título* `certo` ##\n\nTexto.\n")
    assert only(file)["title"] == "O título certo"


def test_markdown_with_an_underlined_heading_has_a_title(tmp_path: Path) -> None:
    assert only(write(tmp_path / "a.md", "Título\n======\n\nTexto.\n"))["title"] == "Título"


def test_a_front_matter_gives_title_uri_and_attributes(tmp_path: Path) -> None:
    matter = (
        "title: Outro\nuri: https://example.org/a\nattributes: {lang: pt, day: 2026-01-31, n: 1}\ntags: [x]"
    )
    document = only(write(tmp_path / "a.md", f"---\n{matter}\n---\n# Título\n\nTexto.\n"))
    assert document["title"] == "Outro"
    assert document["uri"] == "https://example.org/a"
    assert document["attributes"] == {"lang": "pt", "day": "2026-01-31", "n": 1}
    assert document["text"] == "# Título\n\nTexto."


def test_a_rule_at_the_beginning_is_no_front_matter(tmp_path: Path) -> None:
    text = "---\nEra uma vez\n---\nTexto."
    assert only(write(tmp_path / "a.md", text))["text"] == text


@pytest.mark.parametrize(
    ("matter", "why"),
    [
        ("a: [", "has a front matter that is no YAML in line 3"),
        ("attributes: 3", "has a front matter whose attributes are no mapping"),
        ("attributes: {a: .nan}", "has an attribute that is no JSON: nan"),
    ],
)
def test_a_broken_front_matter_is_refused(tmp_path: Path, matter: str, why: str) -> None:
    file = write(tmp_path / "a.md", f"---\n{matter}\n---\nTexto.\n")
    assert refusal(file) == f"{file} {why}"


def test_html_is_read_as_a_person_sees_it(tmp_path: Path) -> None:
    html = (
        "<html><head><title> Preços \n de 2026</title><style>p {color: red}</style>"
        "<link rel=canonical href='https://example.org/precos'></head>"
        "<body><script>alert(1)</script><h1>Preços</h1><p>Um &amp; dois</p></body></html>"
    )
    document = only(write(tmp_path / "a.html", html))
    assert document["title"] == "Preços de 2026"
    assert document["uri"] == "https://example.org/precos"
    assert "Um & dois" in document["text"]
    assert "alert" not in document["text"]
    assert "color" not in document["text"]


@pytest.mark.parametrize(
    ("said", "encoding"),
    [
        ("<meta charset='iso-8859-1'>", "cp1252"),
        ("<meta http-equiv='Content-Type' content='text/html; charset=windows-1252'>", "cp1252"),
        ("<meta charset='iso-8859-1'>", "utf-8"),
        ("<?xml version='1.0' encoding='ISO-8859-1'?>", "cp1252"),
        ("", "utf-8"),
    ],
)
def test_html_says_its_encoding_and_utf8_is_believed_first(tmp_path: Path, said: str, encoding: str) -> None:
    html = f"{said}<html><body><p>{PORTUGUESE}</p></body></html>"
    assert PORTUGUESE in " ".join(only(write(tmp_path / "a.html", html.encode(encoding)))["text"].split())


def test_html_that_nests_without_end_is_read_or_refused(tmp_path: Path) -> None:
    [item] = load(write(tmp_path / "a.html", "<div>" * 100_000 + "fim"))
    assert isinstance(item, Line | Refused)


def test_pdf_has_text_and_a_title(tmp_path: Path) -> None:
    document = only(write(tmp_path / "a.pdf", pdf("Relatório de ações", "Relatório")))
    assert document["text"] == "Relatório de ações"
    assert document["title"] == "Relatório"


def test_a_pdf_named_by_the_program_that_made_it_has_no_title(tmp_path: Path) -> None:
    assert "title" not in only(write(tmp_path / "a.pdf", pdf("Texto", "Microsoft Word - final2.docx")))


def test_a_pdf_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    assert only(write(tmp_path / "download", pdf("Texto")))["text"] == "Texto"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (pdf(""), "is a PDF without text: a scan?"),
        (b"%PDF-1.7\ngarbage", "is a damaged PDF"),
        (pdf("Texto")[:300], "is a damaged PDF"),
        (b"", "is a damaged PDF"),
    ],
)
def test_a_pdf_without_text_or_sense_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    assert why in refusal(write(tmp_path / "a.pdf", data))


def test_lines_of_ndjson_pass_as_they_are(tmp_path: Path) -> None:
    file = write(tmp_path / "a.ndjson", '{"id": "1", "text": "a"}\n\n  {"id":"2"}\nnonsense')
    items = load(file)
    assert [item.data for item in items if isinstance(item, Line)] == [
        b'{"id": "1", "text": "a"}',
        b'{"id":"2"}',
        b"nonsense",
    ]
    assert [item.source for item in items if isinstance(item, Line)] == [f"{file}:{n}" for n in (1, 3, 4)]


# --- encodings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_is_read_without_assuming_anything(encoding: str) -> None:
    assert decode(PORTUGUESE.encode(encoding)).text == PORTUGUESE
    assert decode(PORTUGUESE.encode(encoding)).assumed is None


@pytest.mark.parametrize(
    "text",
    [PORTUGUESE, "coração", "É isso aí", "AÇÃO E REAÇÃO", "¿Qué? ¡Sí!", "Straße über", "“aspas” R$ 10 €"],
)
def test_old_western_files_are_read_and_that_is_said(text: str) -> None:
    read = decode(text.encode("cp1252"))
    assert (read.text, read.assumed) == (text, WINDOWS)


@pytest.mark.parametrize("encoding", ["cp850", "mac_roman", "cp437"])
def test_other_encodings_are_refused_rather_than_guessed(encoding: str) -> None:
    with pytest.raises(NotText, match="say which encoding it has with --encoding"):
        decode(PORTUGUESE.replace("ª", "a").replace("º", "o").encode(encoding, "ignore"))


def test_another_alphabet_is_refused() -> None:
    with pytest.raises(NotText, match="neither"):
        decode("Привет, как дела?".encode("cp1251"))


def test_utf8_that_was_damaged_is_not_taken_for_an_old_encoding() -> None:
    with pytest.raises(NotText, match="damaged UTF-8: byte"):
        decode(PORTUGUESE.encode()[:-2] + b"\xff")


def test_bytes_with_nul_are_binary() -> None:
    with pytest.raises(Binary):
        decode(b"\x7fELF\0\0")


def test_a_person_may_say_the_encoding(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", PORTUGUESE.replace("ª", "a").replace("º", "o").encode("cp850"))
    assert only(file, encoding="cp850")["text"] == PORTUGUESE.replace("ª", "a").replace("º", "o")
    assert "is said to be in ascii, and byte 9 is not" in refusal(file, encoding="ascii")


def test_what_had_to_be_assumed_is_told(tmp_path: Path) -> None:
    [item] = load(write(tmp_path / "a.txt", PORTUGUESE.encode("cp1252")))
    assert isinstance(item, Line)
    assert item.assumed == WINDOWS


# --- folders and ids ---------------------------------------------------------------------------


def test_the_id_is_the_folders_name_and_the_path_below_it_wherever_it_lies(tmp_path: Path) -> None:
    for place in ("here", "there/deeper"):
        write(tmp_path / place / "docs" / "pt" / "a b.md", "x")
    ids = {only(tmp_path / place / "docs")["id"] for place in ("here", "there/deeper")}
    assert ids == {"docs/pt/a b.md"}


def test_a_prefix_stands_for_the_folders_name(tmp_path: Path) -> None:
    write(tmp_path / "docs" / "a.md", "x")
    assert only(tmp_path / "docs", prefix="team/")["id"] == "team/a.md"
    assert only(tmp_path / "docs", prefix="")["id"] == "a.md"


def test_uris_and_attributes_can_be_given_to_all(tmp_path: Path) -> None:
    write(tmp_path / "docs" / "é a.txt", "x")
    document = only(tmp_path / "docs", uri_base="https://example.org/", attributes={"lang": "pt"})
    assert document["uri"] == "https://example.org/%C3%A9%20a.txt"
    assert document["attributes"] == {"lang": "pt"}


def test_a_folder_is_walked_in_order_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c/d.md", ".git/config.txt", ".hidden.md"):
        write(tmp_path / "docs" / name, "x")
    ids = [item.id for item in load(tmp_path / "docs") if isinstance(item, Line)]
    assert ids == ["docs/a.txt", "docs/b.txt", "docs/c/d.md"]


def test_a_link_back_into_the_folder_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "docs" / "a.txt", "x")
    (tmp_path / "docs" / "again").symlink_to(tmp_path / "docs")
    assert len(load(tmp_path / "docs")) == 1


def test_files_of_other_kinds_are_skipped_with_a_sentence(tmp_path: Path) -> None:
    write(tmp_path / "docs" / "photo.png", b"\x89PNG\0")
    write(tmp_path / "docs" / "noise.txt", b"a\0b")
    write(tmp_path / "docs" / "program", b"\x7fELF\0")
    skipped = load(tmp_path / "docs")
    assert all(isinstance(item, Skipped) for item in skipped)
    assert {item.why for item in skipped if isinstance(item, Skipped)} == {
        "is none of text, Markdown, HTML, PDF and NDJSON",
        "is binary",
    }


def test_a_file_that_was_named_is_refused_where_a_folder_would_skip_it(tmp_path: Path) -> None:
    assert "is binary" in refusal(write(tmp_path / "photo.png", b"\x89PNG\0"))
    assert only(write(tmp_path / "script.py", "x = 1"))["text"] == "x = 1"


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html"])
def test_a_file_without_text_is_refused(tmp_path: Path, name: str) -> None:
    assert "holds no text" in refusal(write(tmp_path / name, " \n"))


def test_two_files_with_one_id_are_not_loaded_over_each_other(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder / "docs" / "x.txt", folder)
    first, second = load(tmp_path / "a" / "docs", tmp_path / "b" / "docs")
    assert isinstance(first, Line)
    assert isinstance(second, Refused)
    assert "has the id of another file of this load, docs/x.txt" in str(second)


def test_a_name_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    file = Path(str(tmp_path).encode().decode() + "/a\udcff.txt")
    file.write_text("x")
    assert "has a name that is no Unicode" in refusal(file)


def test_a_file_that_vanishes_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "docs" / "gone.txt"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "nowhere")
    assert "can't be read: No such file or directory" in refusal(tmp_path / "docs")


def test_documents_are_counted_beforehand(tmp_path: Path) -> None:
    write(tmp_path / "docs" / "a.md", "x")
    lines = write(tmp_path / "lines.jsonl", '{"id": "1"}\n{"id": "2"}\n')
    assert count_documents([tmp_path / "docs", lines]) == 3
