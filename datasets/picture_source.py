"""Reads pictures with captions from TFRecords and encodes their captions, in groups."""

import itertools
from typing import NamedTuple

from configs.dataset import tower_vocabulary
from configs.errors import UserError
from records.picture_files import Decoder, features_of, image_of
from records.shard import stored


class Picture(NamedTuple):
    """A picture as it will be stored: its bytes, ids of each caption, and bytes of the captions
    before and after encoding."""
    image: bytes
    captions: list
    text_bytes: int
    decoded_bytes: int


class Pictures:
    """Reads pictures with their captions.

    Args:
        encoder: an encoders.Encoder.
        skip: whether groups with a problem are left out rather than refused.

    Attributes:
        size: pixels of a picture's side: the first picture's.
        problems: a line for each problem met.
        dropped: number of pictures left out.
    """

    def __init__(self, encoder, skip):
        self.size = None
        self.problems = []
        self.dropped = 0
        self._encoder = encoder
        self._skip = skip
        self._decoder = Decoder()

    def groups(self, paths, group, whole):
        """The pictures of some files, as one stream.

        Args:
            paths: the files.
            group: number of consecutive pictures that belong together.
            whole: whether the last group is left out if it is not full.

        Yields:
            a list of Picture for each group without a problem.

        Raises:
            UserError: a problem that is not to be skipped, or a damaged record.
        """
        stream = ((path, offset, record) for path in paths for offset, record in stored(path))
        while places := list(itertools.islice(stream, group)):
            found = [self._picture(*place) for place in places]
            if whole and len(places) < group:
                self.problems.append(f"{places[0][0]}, byte {places[0][1]}: the last "
                                     f"{len(places)} pictures are no group of {group}")
                found = [None]
            if None in found:
                self.dropped += len(places)
            else:
                yield found

    def _picture(self, path, offset, record):
        """The Picture of a stored record, None if it has a problem that is skipped."""
        try:
            features = features_of(record)
            image = image_of(features)
            side = self._decoder.side(image, self.size)
            picture = Picture(image, *self._captions(features))
        except UserError as error:
            line = f"{path}: the picture at byte {offset} {error}"
            if not self._skip:
                raise UserError(f"{line}; mend it, or leave its group out with --on_error skip"
                                ) from error
            self.problems.append(line)
            return None
        self.size = side
        return picture

    def _captions(self, features):
        """(ids of each caption, bytes of the captions, bytes of what the ids decode to)."""
        stored = features["caption"].bytes_list.value if "caption" in features else ()
        try:
            texts = [text.decode() for text in stored]
        except UnicodeDecodeError as error:
            raise UserError(f"has a caption that is no UTF-8 ({error})") from error
        try:
            encoded = self._encoder.encode_batch(texts)
        except UserError as error:
            raise UserError(f"has a caption that cannot be encoded: {error}") from error
        specials = tower_vocabulary(self._encoder.spec, self._encoder.n_vocab) - 2
        highest = max(itertools.chain(*encoded), default=0)
        if highest >= specials:
            raise UserError(f"has a caption that spells token {highest}, which begins or ends "
                            "every caption")
        kept = [(text, ids) for text, ids in zip(texts, encoded, strict=True) if ids]
        if not kept:
            raise UserError(f"has no caption ({len(texts)} empty ones)")
        texts, encoded = zip(*kept, strict=True)
        size = sum(len(text.encode()) for text in texts)
        decoded = size if self._encoder.lossless else sum(
            len(self._encoder.decode(ids).encode()) for ids in encoded)
        return list(encoded), size, decoded
