"""Readers of files: text, Markdown, HTML and PDF, each from bytes or a path to `Content`.

A reader raises NotText with the end of a sentence that begins with the file's name.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from polaris_cli.load.document import Content
from polaris_cli.load.encoding import NotText, decode

Reader = Callable[[Path, "str | None"], Content]

_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_FRONT_MATTER_BYTES = 65536
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)(?:[ \t]+#+)?[ \t]*$", re.MULTILINE)
_UNDERLINED = re.compile(r"\A\s*(\S[^\n]*)\n(?:=+|-+)[ \t]*$", re.MULTILINE)
_FENCED = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
_META_CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([-\w:.]+)", re.IGNORECASE)
_XML_DECLARATION = re.compile(r"\A\s*<\?xml[^>]*\?>")
_XML_ENCODING = re.compile(rb"\A\s*<\?xml[^>]*encoding\s*=\s*[\"']([-\w:.]+)")
# By the HTML standard these names mean Windows-1252.
_WINDOWS = {"iso-8859-1", "iso8859-1", "latin1", "latin-1", "us-ascii", "ascii", "l1"}
_NO_TITLES = re.compile(
    r"(untitled|document\d*|microsoft word\b.*|.*\.(docx?|odt|indd|pptx?|tex))?", re.IGNORECASE
)


def read_text(path: Path, encoding: str | None) -> Content:
    """Read a file of plain text."""
    read = decode(path.read_bytes(), encoding)
    return Content(_lines(read.text), assumed=read.assumed)


def read_markdown(path: Path, encoding: str | None) -> Content:
    """Read Markdown; the title is the front matter's, or the first heading."""
    read = decode(path.read_bytes(), encoding)
    matter, text = _front_matter(_lines(read.text))
    attributes = matter.get("attributes") or {}
    if not isinstance(attributes, dict):
        raise NotText("has a front matter whose attributes are no mapping")
    return Content(
        text.strip("\n"),
        title=_string(matter, "title") or _first_heading(text),
        uri=_string(matter, "uri") or _string(matter, "url"),
        attributes=_plain(attributes),
        assumed=read.assumed,
    )


def read_html(path: Path, encoding: str | None) -> Content:
    """Read HTML as a person sees it, tables and lists laid out."""
    # Imported here: who loads no HTML need not wait for it.
    import lxml.html
    from inscriptis import Inscriptis
    from inscriptis.model.config import ParserConfig

    data = path.read_bytes()
    read = decode(data, encoding or _declared(data))
    text = _XML_DECLARATION.sub("", _lines(read.text))
    if not text.strip():
        return Content("")
    try:
        tree = lxml.html.document_fromstring(text)
        seen = Inscriptis(tree, ParserConfig()).get_text()
    except (lxml.etree.LxmlError, RecursionError, ValueError) as error:
        raise NotText(f"is no HTML that can be read ({type(error).__name__})") from None
    canonical = tree.xpath("string(//link[@rel='canonical']/@href)")
    return Content(
        re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", seen, flags=re.MULTILINE)).strip("\n"),
        title=_one_line(tree.xpath("string(//title)") or tree.xpath("string(//h1)")),
        uri=str(canonical) if str(canonical).startswith(("http://", "https://")) else None,
        assumed=read.assumed,
    )


def read_pdf(path: Path, encoding: str | None) -> Content:  # noqa: ARG001  a PDF knows its own
    """Read the text of a PDF, page by page."""
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # we say in one sentence what matters
    try:
        with PdfReader(path) as reader:
            locked = bool(reader.is_encrypted and not reader.decrypt(""))
            text = "" if locked else "\n\n".join(page.extract_text() for page in reader.pages)
            title = None if locked or not reader.metadata else reader.metadata.title
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001  what other programs wrote leads pypdf to any wrong turn
        raise NotText(f"is a damaged PDF, or one that pypdf can't read ({error})") from None
    if locked:
        raise NotText("is a PDF that only opens with a password")
    if not text.strip():
        raise NotText("is a PDF without text: a scan? It needs character recognition first")
    title = _one_line(title or "")
    # A NUL or half of a surrogate pair is an error of the PDF's font tables.
    return Content(_storable(text).strip(), title=None if _NO_TITLES.fullmatch(title or "") else title)


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _storable(text: str) -> str:
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", text)


def _front_matter(text: str) -> tuple[Mapping[str, Any], str]:
    """Return the front matter and the text after it; text without one comes back as it is."""
    match = _FRONT_MATTER.match(text)
    if not match or len(match.group(1)) > _FRONT_MATTER_BYTES:
        return {}, text
    try:
        matter = yaml.safe_load(match.group(1))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 2}" if mark else ""
        raise NotText(f"has a front matter that is no YAML{where}") from None
    # Between two rules of a text stands whatever it likes: only a mapping is a front matter.
    return (matter, text[match.end() :]) if isinstance(matter, dict) else ({}, text)


def _string(matter: Mapping[str, Any], key: str) -> str | None:
    value = matter.get(key)
    return _one_line(str(value)) if value is not None else None


def _first_heading(text: str) -> str | None:
    """Return the first heading; what stands in fenced code is none."""
    text = _FENCED.sub("", text)
    underlined = _UNDERLINED.match(text)
    found = underlined or _HEADING.search(text)
    return _one_line(re.sub(r"[*_`]+", "", found.group(1))) if found else None


def _one_line(text: str) -> str | None:
    return " ".join(_storable(str(text)).split())[:500] or None


def _plain(value: Any) -> Any:
    """Return YAML's values as JSON has them: dates as ISO 8601."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, date):
        return value.isoformat()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise NotText(f"has an attribute that is no JSON: {value!r}")


def _declared(data: bytes) -> str | None:
    """Return the encoding that HTML names for itself, unless it is valid UTF-8 all the same."""
    match = _XML_ENCODING.match(data[:1024]) or _META_CHARSET.search(data[:4096])
    if not match:
        return None
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        name = match.group(1).decode("ascii", "replace").lower()
        return "cp1252" if name in _WINDOWS else name
    return "utf-8"


_BY_SUFFIX: dict[str, Reader] = {
    **dict.fromkeys((".md", ".markdown", ".mdown", ".mkd"), read_markdown),
    **dict.fromkeys((".html", ".htm", ".xhtml"), read_html),
    **dict.fromkeys((".txt", ".text", ".rst", ".adoc", ".asciidoc", ".org"), read_text),
    ".pdf": read_pdf,
}
NDJSON = {".ndjson", ".jsonl"}
KNOWN = "text, Markdown, HTML, PDF and NDJSON"


def reader_of(path: Path, *, named: bool) -> Reader | None:
    """Return how to read a file, by its suffix; one that a person named is read as text if need be."""
    reader = _BY_SUFFIX.get(path.suffix.lower())
    if reader is None and (named or not path.suffix):
        with path.open("rb") as file:
            return read_pdf if file.read(5) == b"%PDF-" else read_text
    return reader
