"""Documents to token ids, in this process or in several, always in the documents' order.

Nothing here imports TensorFlow: every worker process imports this module.
"""

import dataclasses
import hashlib
import itertools
import typing

import numpy as np
import parallel
import wikitext

import encoders
from configs.errors import UserError

SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class Job:
    """All that decides which tokens a document becomes, and in which split they are.

    Attributes:
        encoder: the encoder's spec.
        separator: ids put behind each document.
        minimum_size: documents with fewer tokens (separator apart) are dropped.
        ftfy: whether ftfy.fix_text goes over each text first.
        wikitext: whether the tokenised form of WikiText is undone then.
        val_fraction: share of the documents, or with val_tail of each document's characters, that
            goes to validation.
        val_tail: whether each document is cut, rather than the documents shared out.
        seed: decides with a document's place which split it belongs to.
        min_unique_tokens: documents with a window of fewer different tokens are dropped; 0 is none.
        window: tokens of such a window; a document's first begins where it does, and the last
            tokens that fill none are not looked at.
    """

    encoder: str
    separator: tuple
    minimum_size: int
    ftfy: bool
    wikitext: bool
    val_fraction: float
    val_tail: bool
    seed: int
    min_unique_tokens: int = 0
    window: int = 0


class Documents(typing.NamedTuple):
    """Texts that follow each other in a file, which has a number in natural order.

    `first` is the number in the file of the first of them.
    """

    path: str
    file: int
    first: int
    texts: list


class Encoded(typing.NamedTuple):
    """The documents of one split: tokens [sum of lengths], the rest [documents].

    `lengths` counts tokens with the separator; `text_bytes` are UTF-8 bytes of the texts and
    `decoded_bytes` those of decode(encode(text)).
    """

    tokens: np.ndarray
    lengths: list
    text_bytes: list
    decoded_bytes: list


class Result(typing.NamedTuple):
    """What became of a batch of documents; `tokens_in` counts every encoded token and separator."""

    splits: dict
    documents: int
    tokens_in: int
    dropped_documents: int
    dropped_tokens: int


def texts_of(job, documents):
    """The texts of Documents as they are encoded: as they are, or mended as the job says."""
    texts = [text for some in documents for text in some.texts]
    if job.ftfy:
        import ftfy
        texts = list(map(ftfy.fix_text, texts))
    return list(map(wikitext.detokenize, texts)) if job.wikitext else texts


def _in_validation(job, file, number):
    """Whether a whole document belongs to validation: a hash of the seed and its place."""
    place = f"{job.seed}:{file}:{number}".encode()
    value = int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "big")
    return value < job.val_fraction * 2 ** 64


def _parts(job, documents):
    """What is encoded of documents: (texts, the number in SPLITS of each).

    With val_tail a document has two, one behind the other, either of which may be empty.
    """
    texts = texts_of(job, documents)
    if job.val_tail:
        cuts = [int(len(text) * (1 - job.val_fraction)) for text in texts]
        texts = [part for text, cut in zip(texts, cuts, strict=True)
                 for part in (text[:cut], text[cut:])]
        return texts, np.arange(len(texts)) % 2
    if not job.val_fraction:
        return texts, np.zeros(len(texts), np.int64)
    return texts, np.array([_in_validation(job, file, number)
                            for _, file, number in _places(documents)], np.int64)


def _places(documents):
    """Yields (path, the file's number, the document's in it) of each document."""
    for some in documents:
        for number in range(some.first, some.first + len(some.texts)):
            yield some.path, some.file, number


def encode_documents(job, encoder, documents):
    """Encodes a batch, a list of Documents.

    Returns:
        Result.

    Raises:
        UserError: the encoder has no ids for a document; names its place.
    """
    texts, of = _parts(job, documents)
    parts = 2 if job.val_tail else 1
    tokens, lengths = _encode(encoder, documents, texts, parts)
    tokens, lengths = np.asarray(tokens), np.array(lengths, np.int64)
    sizes = lengths.reshape(-1, parts).sum(1)
    small = sizes < max(job.minimum_size, 1)
    if job.min_unique_tokens:
        small |= _repetitive(job, tokens, sizes)
    kept = (lengths > 0) & ~np.repeat(small, parts)
    splits = {split: _selected(job, encoder, texts, tokens, lengths, kept & (of == number))
              for number, split in enumerate(SPLITS)}
    return Result(splits, len(sizes), int(sizes.sum() + kept.sum() * len(job.separator)),
                  int(small.sum()), int(sizes[small].sum()))


def _repetitive(job, tokens, sizes):
    """Which documents hold a window of too few different tokens: bool [documents]."""
    found = np.zeros(len(sizes), bool)
    for number, (end, size) in enumerate(zip(np.cumsum(sizes), sizes, strict=True)):
        windows = size // job.window
        rows = np.sort(tokens[end - size:][:windows * job.window].reshape(windows, job.window))
        unique = 1 + (np.diff(rows) != 0).sum(1)
        found[number] = (unique < job.min_unique_tokens).any()
    return found


def _selected(job, encoder, texts, tokens, lengths, chosen):
    """The Encoded of some of the texts, each with the separator behind it."""
    tokens, lengths = tokens[np.repeat(chosen, lengths)], lengths[chosen]
    texts = list(itertools.compress(texts, chosen))
    text_bytes = [len(text if text.isascii() else text.encode("utf-8")) for text in texts]
    width, number = len(job.separator), len(lengths)
    separated = np.insert(tokens, np.repeat(np.cumsum(lengths), width),
                          np.tile(np.array(job.separator, tokens.dtype), number))
    return Encoded(separated, (lengths + width).tolist(), text_bytes,
                   text_bytes if encoder.lossless else encoder.decoded_sizes(tokens, lengths))


def _encode(encoder, documents, texts, parts):
    """Packed ids of texts, so many parts of each document; a failure names the document."""
    try:
        return encoder.encode_packed(texts)
    except UserError:
        places = (place for place in _places(documents) for _ in range(parts))
        for (path, _, number), text in zip(places, texts, strict=True):
            try:
                encoder.encode(text)
            except UserError as error:
                raise UserError(f"{path}, document {number} (the first is 0): {error}") from error
        raise


def encode_in_order(job, encoder, batches, processes):
    """Encodes batches on several processes; the order of results never depends on them.

    Args:
        job: Job.
        encoder: the job's encoder, loaded.
        batches: an iterable of objects with `documents`; read only as far ahead as keeps the
            processes busy.
        processes: how many; 1 encodes in this process.

    Yields:
        (batch, Result).
    """
    if processes == 1:
        for batch in batches:
            yield batch, encode_documents(job, encoder, batch.documents)
        return
    yield from parallel.in_order(_encode_by, job, batches, lambda batch: batch.documents, processes)


def _encode_by(job):
    """The job as a function of documents, with an encoder of its own: what a process works with."""
    encoder = encoders.load(job.encoder)
    return lambda documents: encode_documents(job, encoder, documents)
