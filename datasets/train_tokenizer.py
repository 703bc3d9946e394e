# PYTHON_ARGCOMPLETE_OK
"""Trains a tokenizer on a corpus and writes a tokenizer.json that `encoders.load` takes.

    python datasets/train_tokenizer.py corpus/ --vocab_size 8192 --out bbpe.json

Four kinds: bbpe, byte-level BPE (lossless, any text); bpe, BPE over the corpus's characters, where
others become <unk>; clip, BPE over bytes of lower-cased words, as CLIP's (any text, but capitals
and white space are lost); char, one id per character of the corpus.
"""

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from configs import old_flags  # noqa: E402
from configs.command_line import Parser, add_loudness, set_loudness, status_of  # noqa: E402
from configs.errors import UserError  # noqa: E402

EOS, UNKNOWN = "<|endoftext|>", "<unk>"
# CLIP's end of a word, and its words (Radford et al. 2021, section 2.4): English contractions,
# letters, single digits, anything else.
WORD_END = "</w>"
CLIP_WORDS = r"(?i)'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
SAMPLE_CHARS = 1 << 20  # text on which the tokens are counted
PIECE_CHARS = 1 << 16  # the trainer takes text in pieces, so that its queue stays small


def parse_args(argv=None):
    """The command line."""
    parser = Parser(description=__doc__, former=old_flags.TRAIN_TOKENIZER)
    parser.add_argument("corpus", nargs="+",
                        help="files (.txt .jsonl .tar, also compressed), directories or globs")
    parser.add_argument("--out", required=True, metavar="FILE.json", help="the file to write")
    parser.add_argument("--tokenizer", choices=("bbpe", "bpe", "clip", "char"), default="bbpe",
                        help="the kind (default: %(default)s)")
    parser.add_argument("--vocab_size", type=int,
                        help="number of ids, the special ones included; for char an upper bound")
    parser.add_argument("--min_frequency", type=int, default=2,
                        help="merge only pairs seen this often (default: %(default)s)")
    parser.add_argument("--text_key", default="text",
                        help="key of a JSON line's text (default: %(default)s)")
    parser.add_argument("--maximum_size", type=int, default=1 << 30, metavar="BYTES",
                        help="refuse documents, and .json files, that unpack to more (default: "
                             "%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    add_loudness(parser)
    return parser.parse_args(argv)


class Corpus:
    """The corpus's documents, with a progress bar and a sample of what went by.

    Attributes:
        sample: texts from all over the corpus, about SAMPLE_CHARS characters.
    """

    def __init__(self, paths, text_key, largest):
        import sources

        self._files = sources.list_files(paths)
        self._documents = lambda file: sources.documents(file, text_key, largest=largest)
        self.sample = []

    def __iter__(self):
        from configs.progress import tqdm

        share = SAMPLE_CHARS // len(self._files) + 1  # of each file, so that all kinds count
        with tqdm(unit="B", unit_scale=True, desc="reading") as bar:
            for file in self._files:
                taken = 0
                for text in self._documents(file):
                    bar.update(len(text) if text.isascii() else len(text.encode("utf-8")))
                    if taken < share:
                        self.sample.append(text[:share - taken])
                        taken += len(self.sample[-1])
                    yield text


def pieces(texts):
    """The texts, long ones cut before a line break, at which no kind of tokenizer joins words."""
    for text in texts:
        start = 0
        while len(text) - start > PIECE_CHARS:
            cut = text.rfind("\n", start + 1, start + PIECE_CHARS)
            if cut < 0:
                cut = start + PIECE_CHARS
            yield text[start:cut]
            start = cut
        yield text[start:]


def byte_level_bpe():
    """An untrained byte-level BPE, as GPT-2's, and the symbols it starts from."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, pre_tokenizers.ByteLevel.alphabet(), [EOS]


def character_bpe():
    """An untrained BPE over characters, words led by "▁", line breaks apart."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split("\n", "isolated"),
        pre_tokenizers.Metaspace(prepend_scheme="never")])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    return tokenizer, [], [EOS, UNKNOWN]


def clip_bpe():
    """An untrained BPE like CLIP's: lower case, words ended by "</w>", over bytes; lossy."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(CLIP_WORDS), "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    blank = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(" ")[0][0]
    tokenizer.decoder = decoders.Sequence([decoders.Replace(WORD_END, blank),
                                           decoders.ByteLevel()])
    return tokenizer, pre_tokenizers.ByteLevel.alphabet(), [EOS]


def word_ends(suffix):
    """What may end a word: each byte that a character can end in, with the suffix."""
    from encoders.bpe import byte_symbols

    return [symbol + suffix for symbol in byte_symbols()[:192]]


def train_bpe(kind, texts, vocab_size, min_frequency):
    """Trains a BPE.

    Args:
        kind: a name in KINDS.
        texts: iterable of str.
        vocab_size: number of ids at most.
        min_frequency: pairs seen less often are not merged.

    Returns:
        A `tokenizers.Tokenizer`.

    Raises:
        UserError: the vocabulary is too small for the symbols to start from.
    """
    from tokenizers import trainers

    tokenizer, alphabet, specials = KINDS[kind]()
    suffix = tokenizer.model.end_of_word_suffix or ""
    ends = word_ends(suffix) if suffix else []
    least = len(alphabet) + len(specials) + 1 + len(ends)
    if vocab_size < least:
        raise UserError(f"--vocab_size {vocab_size} is too small: {kind} needs {least} or more")
    trainer = trainers.BpeTrainer(
        # A trainer gives ids to words' ends as it comes across them, which is at random.
        vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=specials + ends,
        initial_alphabet=alphabet, show_progress=sys.stderr.isatty(),
        **({"end_of_word_suffix": suffix} if suffix else {}))
    tokenizer.train_from_iterator(pieces(texts), trainer)
    if tokenizer.get_vocab_size() > vocab_size:
        raise UserError(f"--vocab_size {vocab_size} is too small: the corpus has "
                        f"{tokenizer.get_vocab_size() - len(specials)} characters")
    return without_special(tokenizer, ends) if ends else tokenizer


def without_special(tokenizer, tokens):
    """The tokenizer with these special tokens as ordinary ones, of the same ids."""
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"]
                               if token["content"] not in set(tokens)]
    return Tokenizer.from_str(json.dumps(content))


KINDS = {"bbpe": byte_level_bpe, "bpe": character_bpe, "clip": clip_bpe}


def train(args):
    """Trains as the command line says, writes the file and prints what became of it."""
    import tensorflow.compat.v1 as tf

    import encoders
    from encoders import char

    if not args.out.endswith(".json"):
        raise UserError(f"--out {args.out}: the name must end in .json")
    if tf.io.gfile.exists(args.out) and not args.overwrite:
        raise UserError(f"--out {args.out} exists: give another name, or --overwrite")
    if args.tokenizer != "char" and args.vocab_size is None:
        raise UserError(f"--tokenizer {args.tokenizer} needs --vocab_size")
    corpus = Corpus(args.corpus, args.text_key, args.maximum_size)
    if args.tokenizer == "char":
        tokenizer = char.train(corpus)
        if args.vocab_size is not None and tokenizer.get_vocab_size() > args.vocab_size:
            raise UserError(f"--vocab_size {args.vocab_size} is too small: the corpus's characters "
                            f"and {EOS} are {tokenizer.get_vocab_size()}")
    else:
        tokenizer = train_bpe(args.tokenizer, corpus, args.vocab_size, args.min_frequency)
    if not any(corpus.sample):
        raise UserError(f"there is no text in {', '.join(args.corpus)}")
    write(args.out, tokenizer.to_str(pretty=True))
    report(encoders.load(args.out), corpus.sample, args.vocab_size)


def write(path, text):
    """Writes a file under another name first, so that a crash leaves no half of it."""
    import tensorflow.compat.v1 as tf

    directory = os.path.dirname(path)
    if directory:
        tf.io.gfile.makedirs(directory)
    with tf.io.gfile.GFile(path + ".tmp", "w") as file:
        file.write(text)
    tf.io.gfile.rename(path + ".tmp", path, overwrite=True)


def report(encoder, sample, asked):
    """Prints the vocabulary's size and how much text a token holds."""
    tokens = sum(map(len, encoder.encode_batch(sample)))
    size = sum(len(text.encode("utf-8")) for text in sample)
    print(f"{encoder.spec}: {encoder.name}, {encoder.n_vocab} ids, end of text {encoder.eos_id}, "
          f"{'lossless' if encoder.lossless else 'lossy'}, hash {encoder.hash}")
    print(f"{size / tokens:.3f} bytes per token on a sample of {size} bytes of the corpus")
    if asked is not None and encoder.n_vocab < asked and encoder.name != "char":
        print(f"the corpus gave no more than {encoder.n_vocab} of the {asked} ids asked for")


def main(argv=None):
    """The program; a user's mistake is one line and exit status 2."""
    args = parse_args(argv)
    set_loudness(args.quiet, args.verbose)
    from records import retrying

    return status_of(retrying.call, args.out, train, args)


if __name__ == "__main__":
    sys.exit(main())
