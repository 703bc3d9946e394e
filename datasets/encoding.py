"""Documents to token ids, in this process or in several, always in the documents' order.

Nothing here imports TensorFlow: every worker process imports this module.
"""

import dataclasses
import hashlib
import typing

import numpy as np
import parallel

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
        val_fraction: share of the documents, or with val_tail of each document's characters, that
            goes to validation.
        val_tail: whether each document is cut, rather than the documents shared out.
        seed: decides with a document's place which split it belongs to.
    """

    encoder: str
    separator: tuple
    minimum_size: int
    ftfy: bool
    val_fraction: float
    val_tail: bool
    seed: int


class Document(typing.NamedTuple):
    """A text and its place: the file, its number in natural order, the document's in the file."""

    path: str
    file: int
    number: int
    text: str


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


def normalise(job, text):
    """The text that is encoded: the document itself, or what ftfy makes of it."""
    if not job.ftfy:
        return text
    import ftfy
    return ftfy.fix_text(text)


def _in_validation(job, document):
    """Whether a whole document belongs to validation: a hash of the seed and its place."""
    if not job.val_fraction:
        return False
    place = f"{job.seed}:{document.file}:{document.number}".encode()
    value = int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "big")
    return value < job.val_fraction * 2 ** 64


def split_document(job, document):
    """Cuts a document into its parts: [(split, text), …], parts without text left out."""
    text = normalise(job, document.text)
    if not job.val_tail:
        return [(SPLITS[_in_validation(job, document)], text)]
    cut = int(len(text) * (1 - job.val_fraction))
    return [(split, part) for split, part in zip(SPLITS, (text[:cut], text[cut:]), strict=True)
            if part]


def encode_documents(job, encoder, documents):
    """Encodes a batch of documents.

    Returns:
        Result.

    Raises:
        UserError: the encoder has no ids for a document; names its place.
    """
    parts = [split_document(job, document) for document in documents]
    texts = [text for pieces in parts for _, text in pieces]
    tokens, lengths = _encode(encoder, documents, parts)
    tokens, lengths = np.asarray(tokens), np.array(lengths, np.int64)
    owners = np.repeat(np.arange(len(parts)), np.array(list(map(len, parts)), np.int64))
    sizes = np.bincount(owners, lengths, len(parts)).astype(np.int64)
    small = sizes < max(job.minimum_size, 1)
    kept = (lengths > 0) & ~small[owners]
    of = np.array([SPLITS.index(split) for pieces in parts for split, _ in pieces], np.int64)
    splits = {split: _selected(job, encoder, texts, tokens, lengths, kept & (of == number))
              for number, split in enumerate(SPLITS)}
    return Result(splits, len(documents), int(sizes.sum() + kept.sum() * len(job.separator)),
                  int(small.sum()), int(sizes[small].sum()))


def _selected(job, encoder, texts, tokens, lengths, chosen):
    """The Encoded of some of the texts, each with the separator behind it."""
    tokens, lengths = tokens[np.repeat(chosen, lengths)], lengths[chosen]
    texts = [text for text, is_chosen in zip(texts, chosen, strict=True) if is_chosen]
    text_bytes = [len(text if text.isascii() else text.encode("utf-8")) for text in texts]
    width, number = len(job.separator), len(lengths)
    separated = np.insert(tokens, np.repeat(np.cumsum(lengths), width),
                          np.tile(np.array(job.separator, tokens.dtype), number))
    return Encoded(separated, (lengths + width).tolist(), text_bytes,
                   text_bytes if encoder.lossless else encoder.decoded_sizes(tokens, lengths))


def _encode(encoder, documents, parts):
    """Packed ids of all parts in order; on a failure finds the document that caused it."""
    try:
        return encoder.encode_packed([text for pieces in parts for _, text in pieces])
    except UserError:
        for document, pieces in zip(documents, parts, strict=True):
            try:
                encoder.encode_batch([text for _, text in pieces])
            except UserError as error:
                raise UserError(f"{document.path}, document {document.number} (the first is 0): "
                                f"{error}") from error
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
