"""Megabytes of text a second that one process makes TFRecords of, beside other tokenizers.

    python benchmarks/encoding.py
    python benchmarks/encoding.py --text tinyshakespeare.txt

Ours is the whole of datasets/create_tfrecords.py but for loading the encoder: reading, encoding,
counting, writing. Theirs reads the same documents, encodes them with OpenAI's SimpleTokenizer or a
fast tokenizer of transformers', and writes chunks with TensorFlow's writer, as GPT-Neo's script
does. Both run in turn in this process, on one core, and the seconds are the processor's. Without
--text the text is that of the picture-caption world. That both give the same ids is checked.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "datasets")]

from benchmarks import in_turn  # noqa: E402

CHUNK = 2048
# Of openai/CLIP on GitHub: what is fetched, and below which directory.
_OPENAI = "https://raw.githubusercontent.com/openai/CLIP/main/clip/"
_OPENAI_FILES = ("simple_tokenizer.py", "bpe_simple_vocab_16e6.txt.gz")


def parse_args(argv=None):
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--text", nargs="+", metavar="PATH", help="texts, as create_tfrecords.py takes "
                   "them (the world's)")
    p.add_argument("--megabytes", type=float, default=4.0, help="of the world's (%(default)s)")
    p.add_argument("--encoders", nargs="+", choices=["clip", "gpt2"], default=["clip", "gpt2"])
    p.add_argument("--openai", metavar="DIR", help="a directory with simple_tokenizer.py and "
                   "bpe_simple_vocab_16e6.txt.gz of openai/CLIP; without it they are fetched")
    in_turn.add_flags(p, 5, threads=1)
    return p.parse_args(argv)


def write_world(path, megabytes):
    """Writes texts and captions of the picture-caption world as JSONL."""
    from scenes_captions import captions
    from scenes_groups import scene_of
    from scenes_sample import stream
    from scenes_text import text

    size, number = 0, 0
    with open(path, "w") as file:
        while size < megabytes * 1e6:
            scene, rng = scene_of(1, "train", number, 0.0)
            for words in (text(stream(1, "train", number), "train", 0.3)[0],
                          *captions(rng, scene, 2)):
                size += len(words)
                file.write(json.dumps({"text": words}) + "\n")
            number += 1


def openai_files(given, directory):
    """The paths of OpenAI's tokenizer and merges, fetched to `directory` if there are none."""
    import downloads

    if not given:
        given = directory
        for name in _OPENAI_FILES:
            downloads.fetch(_OPENAI + name, os.path.join(given, name))
    return [os.path.join(given, name) for name in _OPENAI_FILES]


def simple_tokenizer(path, merges):
    """OpenAI's encoder as a function of texts."""
    spec = importlib.util.spec_from_file_location("simple_tokenizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    encode = module.SimpleTokenizer(merges).encode
    return lambda texts: [encode(text) for text in texts]


def fast_tokenizer(encoder):
    """transformers' fast tokenizer of the same vocabulary as a function of texts."""
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=encoder.to_tokenizers())
    return lambda texts: tokenizer(texts, add_special_tokens=False, return_attention_mask=False,
                                   return_token_type_ids=False)["input_ids"]


class Ours:
    """create_tfrecords.py on some files with a loaded encoder.

    Args:
      paths: the files.
      encoder: an encoders.Encoder.
      directory: where shards go.
    """

    def __init__(self, paths, encoder, directory):
        import create_tfrecords
        from batches import find_inputs
        from output import Output

        self._script, self._encoder = create_tfrecords, encoder
        self._args = create_tfrecords.parser().parse_args([
            "--input_dir", *paths, "--name", "ours", "--encoder", encoder.spec, "--processes", "1",
            "--chunk_size", str(CHUNK), "--output_dir", directory, "--overwrite"])
        self._inputs = find_inputs(self._args)
        self._output = Output(directory, "ours", True)
        self._settings = create_tfrecords.settings_of(self._args, *self._inputs, encoder)

    def __call__(self):
        """Makes the shards."""
        with open(os.devnull, "w") as void, contextlib.redirect_stderr(void):
            self._script.write_shards(self._args, *self._inputs, self._encoder, self._output,
                                      self._settings, None)

    def documents(self):
        """The texts, batch by batch."""
        from batches import read_batches

        for batch in read_batches(self._args, self._inputs[0], [0, 0]):
            if batch.documents:
                yield [text for some in batch.documents for text in some.texts]


def theirs(batches, encode, eos_id, path):
    """Encodes documents and writes chunks of them as GPT-Neo's create_tfrecords.py does."""
    import tensorflow as tf

    held = []

    def write(writer, tokens):
        feature = tf.train.Feature(int64_list=tf.train.Int64List(value=tokens))
        writer.write(tf.train.Example(features=tf.train.Features(
            feature={"text": feature})).SerializeToString())

    with tf.io.TFRecordWriter(path) as writer:
        for texts in batches:
            for ids in encode(texts):
                held += ids
                held.append(eos_id)
            whole = len(held) // CHUNK * CHUNK
            for begin in range(0, whole, CHUNK):
                write(writer, held[begin:begin + CHUNK])
            held = held[whole:]
        if held:
            write(writer, held)


def peers_of(name, args, directory):
    """(the encoder of a name, {peer's name: a function from texts to their ids})."""
    import encoders

    if name != "clip":
        encoder = encoders.load(name)
        return encoder, {"transformers' fast tokenizer": fast_tokenizer(encoder)}
    code, merges = openai_files(args.openai, os.path.join(directory, "openai"))
    encoder = encoders.load(f"clip:{merges}")
    return encoder, {"OpenAI's SimpleTokenizer": simple_tokenizer(code, merges),
                     "transformers' fast tokenizer": fast_tokenizer(encoder)}


def measure(args, name, paths, directory):
    """A dict of figures for each peer of an encoder."""
    encoder, peers = peers_of(name, args, directory)
    ours = Ours(paths, encoder, os.path.join(directory, name))
    texts = [text for batch in ours.documents() for text in batch]
    size, documents = sum(len(text.encode()) for text in texts), len(texts)
    ids = encoder.encode_batch(texts)
    same = {peer: sum(map(list.__eq__, ids, encode(texts))) / documents
            for peer, encode in peers.items()}
    del texts, ids  # what is timed has no more in memory than it needs
    target = os.path.join(directory, "theirs.tfrecords")
    seconds = in_turn.timed({"ours": ours, **{
        peer: lambda encode=encode: theirs(ours.documents(), encode, encoder.eos_id, target)
        for peer, encode in peers.items()}}, args.rounds, name, clock=time.process_time)
    if args.profile:
        with in_turn.profiled(os.path.join(args.profile, name)):
            ours()
    one = statistics.median(seconds["ours"])
    return [{"encoder": name, "peer": peer, "bytes": size, "documents": documents,
             "megabytes_per_second": size / one / 1e6,
             "their_megabytes_per_second": size / statistics.median(seconds[peer]) / 1e6,
             "ratio": statistics.median(seconds[peer]) / one, "same_documents": same[peer],
             "rounds": seconds["ours"], "their_rounds": seconds[peer]} for peer in peers]


def main(argv=None):
    """Measures and prints."""
    args = parse_args(argv)
    load = in_turn.begin(args.threads)
    from configs.command_line import quiet_libraries

    quiet_libraries()
    with tempfile.TemporaryDirectory() as directory:
        paths = args.text or [os.path.join(directory, "world.jsonl")]
        if not args.text:
            write_world(paths[0], args.megabytes)
        found = [figures for name in args.encoders
                 for figures in measure(args, name, paths, directory)]
    in_turn.show(
        ["encoder", "MB/s", "beside", "its MB/s", "ratio", "same documents"],
        [[f["encoder"], f"{f['megabytes_per_second']:.2f}", f["peer"],
          f"{f['their_megabytes_per_second']:.2f}", f"{f['ratio']:.1f}×",
          f"{f['same_documents']:.1%}"] for f in found],
        {"threads": args.threads, "load_before": load, "text": args.text, "results": found})


if __name__ == "__main__":
    main()
