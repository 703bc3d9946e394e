"""From what an archive holds to clean text and its hash: what each process of openwebtext.py does.

Nothing here imports TensorFlow: every worker process imports this module.
"""

import codecs
import dataclasses
import hashlib
import io
import itertools
import re
import typing
import unicodedata

import warc
from unpacking import DAMAGED, refuse_tar
from web_documents import items, reason

from configs.errors import UserError

# Resiliparse's time to find the main text grows with the depth times the size of a page; pages
# that people made are nested far less.
DEEPEST = 500
# Elements without an end, and those whose end may be left out, say nothing of the depth.
TAGS = re.compile(rb"<(/?)(?!(?:area|base|body|br|col|dd|dt|embed|head|hr|html|img|input|li|link|"
                  rb"meta|option|p|source|tbody|td|tfoot|th|thead|tr|track|wbr)\b)[a-z]", re.I)
# An inner archive of at most HELD_ARCHIVE bytes whose documents have more bytes is a bomb.
EXPANDED = 1 << 27
HTML = ("text/html", "application/xhtml+xml", "")
MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_BE: "utf-16-be",
         codecs.BOM_UTF16_LE: "utf-16-le"}
BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")


@dataclasses.dataclass(frozen=True)
class Job:
    """All that decides which text a document becomes.

    Attributes:
        minimum_size: characters of text; documents with fewer are left out.
        maximum_size: bytes of a document as stored, decompressed; larger ones are left out.
        ftfy: whether ftfy.fix_text goes over each text.
        whole_pages: whether menus, footers and the like are part of a page's text.
        txt_pages: whether .txt files hold pages, as OpenWebText's scraper stores them raw.
    """

    minimum_size: int
    maximum_size: int
    ftfy: bool
    whole_pages: bool
    txt_pages: bool = False


class Document(typing.NamedTuple):
    """A clean text with the key by which duplicates are known; `size` is in bytes of UTF-8."""

    text: str
    url: str | None
    key: int
    size: int


@dataclasses.dataclass
class Texts:
    """What became of some items.

    Attributes:
        documents: those of sufficient length.
        count: how many documents were read.
        size: their bytes before cleaning.
        too_short: how many were left out for their length.
        other: responses that are no pages of text, such as pictures and errors.
        problems: (kind, line) of what is unreadable or too large.
    """

    documents: list = dataclasses.field(default_factory=list)
    count: int = 0
    size: int = 0
    too_short: int = 0
    other: int = 0
    problems: list = dataclasses.field(default_factory=list)


def key_of(text):
    """A text's hash as an integer of 64 bits; how white space and accents are written is no matter.

    Among 8 million texts, the chance that any two have the same hash is 2e-6.
    """
    normal = " ".join(unicodedata.normalize("NFC", text).split())
    digest = hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def maker(job):
    """The job as a function of items, which returns Texts."""
    return lambda found: texts(job, found)


def texts(job, found):
    """Makes text of items.

    Args:
        job: Job.
        found: an iterable of Item.

    Returns:
        Texts.
    """
    result = Texts()
    for item in found:
        if item.kind != "archive":
            _add(job, item, result)
            continue
        before = result.size
        try:
            for inner in items(item.where, io.BytesIO(item.data), job.maximum_size, False):
                _add(job, inner, result)
                if result.size - before > EXPANDED:
                    raise EOFError(f"{len(item.data)} bytes that expand to more than {EXPANDED}: "
                                   "the rest is left out")
        except DAMAGED as error:
            result.problems.append(("unreadable", f"{item.where}: {reason(error)}"))
    return result


def _add(job, item, result):
    """Adds the document of one item."""
    if item.kind in ("unreadable", "too large"):
        result.problems.append((item.kind, f"{item.where}: {reason(item.data)}"))
        return
    try:
        text, size = _text(job, item)
    except (*DAMAGED, ValueError) as error:
        result.problems.append(("unreadable", f"{item.where}: {reason(error)}"))
        return
    if text is None:
        if size:
            result.problems.append(("too large", f"{item.where}: more than {size} bytes"))
        else:
            result.other += 1
        return
    if job.ftfy:
        import ftfy
        text = ftfy.fix_text(text)
    result.count += 1
    result.size += size
    if len(text.strip()) < max(job.minimum_size, 1):
        result.too_short += 1
        return
    result.documents.append(Document(text, item.url, key_of(text), len(text.encode("utf-8"))))


def _text(job, item):
    """(text, bytes of the document); (None, limit) if it is too large, (None, 0) if no text."""
    if item.kind == "plain" or item.kind == "text" and not job.txt_pages:
        refuse_tar(item.data)
        return item.data.decode("utf-8-sig"), len(item.data)
    if item.kind in ("html", "text"):
        return html_text(item.data, None, job.whole_pages), len(item.data)
    status, fields, body = warc.http_response(item.data)
    media, _, rest = fields.get("content-type", "").partition(";")
    media = media.strip().lower()
    if status != 200 or media not in (*HTML, "text/plain"):
        return None, 0
    data = warc.decoded_body(fields, body, job.maximum_size)
    if len(data) > job.maximum_size:
        return None, job.maximum_size
    charset = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", rest, re.I)
    charset = charset and charset[1]
    if _binary(data, charset):
        return None, 0
    if media == "text/plain":
        return _decoded(data, charset), len(data)
    return html_text(data, charset, job.whole_pages), len(data)


def _binary(data, charset):
    """Whether a body is no text, whatever its server called it.

    By control characters that no text has, as https://mimesniff.spec.whatwg.org (section 7.2) tells
    them apart; documents of PDF may begin without any.
    """
    wide = (data.startswith(tuple(MARKS))
            or re.match("(utf|ucs).?(16|32|2|4)", charset or "", re.I))
    return not wide and (data.startswith(b"%PDF-") or BINARY.search(data[:1445]) is not None)


def _decoded(data, charset):
    """A page's characters: by its byte order mark (https://encoding.spec.whatwg.org, section 6), or
    the charset that its server named, its own, or the most likely.
    """
    for mark, name in MARKS.items():
        if data.startswith(mark):
            return data[len(mark):].decode(name, "replace")
    parse = resiliparse("parse.encoding")
    if charset:
        try:
            codecs.lookup(charset).decode(b"")
        except (LookupError, ValueError, TypeError, AttributeError):
            charset = None
    charset = charset or parse.detect_encoding(data, from_html_meta=True)
    text = parse.bytes_to_str(data, charset, errors="replace")
    return text.encode("utf-8", "replace").decode("utf-8")


def html_text(data, charset, whole):
    """The text of a page.

    Args:
        data: the page's bytes.
        charset: what its server said of them, or None.
        whole: all of the text; otherwise the main text, without menus and the like, for pages that
            are not nested so deep that finding it would take too long.

    Returns:
        str, paragraphs divided by empty lines.
    """
    extract = resiliparse("extract.html2text").extract_plain_text
    main = not whole and _depth(data) <= DEEPEST
    return extract(_decoded(data, charset), main_content=main, alt_texts=False, links=False).strip()


def _depth(data):
    """An upper bound of a page's depth, as far as elements count whose end is written."""
    steps = (-1 if tag[1] else 1 for tag in TAGS.finditer(data))
    return max(itertools.accumulate(steps), default=0)


def resiliparse(module):
    """A module of resiliparse, which is needed for pages alone.

    Raises:
        UserError: it is not installed.
    """
    import importlib
    try:
        return importlib.import_module(f"resiliparse.{module}")
    except ModuleNotFoundError as error:
        raise UserError("text from HTML needs the package resiliparse; pip install -r "
                        "requirements.txt") from error
