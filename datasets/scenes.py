# PYTHON_ARGCOMPLETE_OK
"""Makes the picture–caption world: pictures of coloured shapes, captions, texts and cloze items.

    python datasets/scenes.py --out data/scenes --pictures 50000 --texts 5000 --seed 1

The same seed gives the same bytes, and a larger number the same first ones. In --out:
pictures_{train,val,heldout}_<i>_<records>.tfrecords (tf.train.Example: image, a PNG; caption,
several, the first complete; scene, JSON), captions_train.jsonl ("text": each caption of the
pictures for training, in their order), texts_{train,val,heldout}.jsonl ("text"),
{cloze,statements,stories}_{dev,test}.jsonl, combinations.jsonl, zero_shot.jsonl with
zero_shot_val.tfrecords (image, colour, shape), probes/<relation>/world.jsonl (in the formats of
CoDa and ViComTe), contact_sheet.png and, when all is whole, manifest.json. Some combinations of
colour and shape occur in all pictures, but in no text save those of texts_heldout.jsonl and in
combinations.jsonl. Pictures come in groups of four; of those for training, --hard_groups are hard:
they differ in one attribute.
"""

import functools
import json
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from configs.command_line import Parser, add_loudness, set_loudness, status_of  # noqa: E402
from configs.errors import UserError  # noqa: E402

SPLITS = ["train", "val", "heldout"]
CLOZE_SPLITS = ["dev", "test"]
BATCH = 256  # pictures rendered at a time
COMBINATIONS = 200  # items about held-out combinations
OURS = re.compile(r"(pictures_(train|val|heldout)_\d+_\d+\.tfrecords|texts_(train|val|heldout)"
                  r"\.jsonl|(cloze|statements|stories)_(dev|test)\.jsonl|captions_train\.jsonl"
                  r"|combinations\.jsonl|zero_shot(_val\.tfrecords|\.jsonl)|contact_sheet\.png"
                  r"|manifest\.json)(\.tmp)?")
SHEET = {"train": (24, "training pictures", "the first caption is complete; texts tell of these "
                   "scenes unless a combination is held out"),
         "heldout": (12, "held-out combinations", "each picture shows a color and a shape that no "
                     "training text mentions together")}


def parser():
    """The command line."""
    p = Parser(description=__doc__)
    p.add_argument("--out", required=True, metavar="DIR", help="where the files go")
    p.add_argument("--pictures", type=int, default=20000, help="for training (default %(default)s)")
    p.add_argument("--texts", type=int, default=2000, help="for training (default %(default)s)")
    for what in ("pictures", "texts"):
        for split in ("val", "heldout"):
            p.add_argument(f"--{split}_{what}", type=int, metavar="N",
                           help="default: a twentieth of those for training")
    p.add_argument("--seed", type=int, default=1, help="default %(default)s")
    p.add_argument("--size", type=int, default=32, help="pixels a side (default %(default)s)")
    p.add_argument("--captions", type=int, default=6, help="a picture (default %(default)s)")
    p.add_argument("--hard_groups", type=float, default=0.5,
                   help="share of the groups of pictures that differ in one attribute, mostly a "
                   "shape (default %(default)s)")
    p.add_argument("--facts", type=float, default=0.03,
                   help="share of the texts that state a fact about looks (default %(default)s)")
    p.add_argument("--cloze", type=int, default=1600,
                   help="items of each cloze file, at most (default %(default)s)")
    p.add_argument("--zero_shot", type=int, default=500, metavar="N",
                   help="pictures of one thing, of val's scenes, to be told by color and by shape "
                   "(default %(default)s)")
    p.add_argument("--files_per", type=int, default=10000, metavar="RECORDS",
                   help="records a shard (default %(default)s)")
    p.add_argument("--overwrite", action="store_true", help="replace what another run left")
    add_loudness(p)
    return p


def check(args):
    """Refuses values that no run can use, and fills in the numbers that were left out."""
    for what in ("pictures", "texts"):
        for split in ("val", "heldout"):
            if getattr(args, f"{split}_{what}") is None:
                setattr(args, f"{split}_{what}", -(-getattr(args, what) // 20))
    for name, least in [("pictures", 0), ("texts", 0), ("val_pictures", 0), ("val_texts", 0),
                        ("heldout_pictures", 0), ("heldout_texts", 0), ("cloze", 0), ("size", 8),
                        ("zero_shot", 0), ("captions", 1), ("files_per", 1)]:
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least {least}")
    for name in ("facts", "hard_groups"):
        if not 0 <= getattr(args, name) <= 1:
            raise UserError(f"--{name} {getattr(args, name)}: is a share, from 0 to 1")


def count(args, split, what):
    """How many pictures or texts a split gets."""
    return getattr(args, what if split == "train" else f"{split}_{what}")


class Directory:
    """The output directory; files get their names only when they are whole.

    Args:
        path: --out.
        overwrite: whether files of an earlier run may be removed.

    Raises:
        UserError: there are such files and they may not.
    """

    def __init__(self, path, overwrite):
        import tensorflow.compat.v1 as tf
        from run_files import make_directory
        self._tf, self._path = tf, path
        make_directory(path, "--out")
        old = sorted(name for name in tf.io.gfile.listdir(path) if OURS.fullmatch(name))
        if old and not overwrite:
            raise UserError(f"{self.path(old[0])}: exists; give another --out, or --overwrite to "
                            "replace it")
        # the manifest first: without it nobody takes the rest for a whole world
        for name in sorted(old, key=lambda name: name != "manifest.json"):
            tf.io.gfile.remove(self.path(name))

    def path(self, name):
        """The path of a file."""
        return os.path.join(self._path, name)

    def write(self, name, data):
        """Writes a file from bytes."""
        with self._tf.io.gfile.GFile(self.path(name) + ".tmp", "wb") as file:
            file.write(data)
        self._finish(name)

    def write_lines(self, name, values):
        """Writes a JSON line for each value; returns their number."""
        number = 0
        self._tf.io.gfile.makedirs(os.path.dirname(self.path(name)))
        with self._tf.io.gfile.GFile(self.path(name) + ".tmp", "w") as file:
            file.write("")  # makes the file even if there are no values
            for value in values:
                file.write(json.dumps(value) + "\n")
                number += 1
        self._finish(name)
        return number

    def write_records(self, name, records):
        """Writes a TFRecord file from serialised records."""
        with self._tf.io.TFRecordWriter(self.path(name) + ".tmp") as writer:
            for record in records:
                writer.write(record)
        self._finish(name)

    def _finish(self, name):
        self._tf.io.gfile.rename(self.path(name) + ".tmp", self.path(name), overwrite=True)


class PngEncoder:
    """tf.io.encode_png, whether or not TensorFlow runs eagerly in this process."""

    def __init__(self):
        import tensorflow.compat.v1 as tf
        with tf.Graph().as_default() as graph:
            self._images = tf.placeholder(tf.uint8, [None, None, None, 3])
            self._png = tf.io.encode_png(self._images)
        self._session = tf.Session(graph=graph)

    def __call__(self, images):
        """uint8 [pictures, height, width, 3] as a list of PNG bytes."""
        return self._session.run(self._png, {self._images: images})


def pictures(args, split, start, number):
    """Scenes, images and captions of pictures start … start + number - 1 of a split.

    Each picture depends on the seed, the split, its own number and --hard_groups alone.

    Returns:
        (list of Scene, uint8 [number, size, size, 3], list of lists of captions).
    """
    from scenes_captions import captions
    from scenes_groups import scene_of
    from scenes_render import render
    made = [scene_of(args.seed, split, start + i, args.hard_groups) for i in range(number)]
    scenes = [scene for scene, _ in made]
    return scenes, render(scenes, args.size), [
        captions(rng, scene, args.captions) for scene, rng in made]


def example(scene, png, texts):
    """A picture as a serialised tf.train.Example."""
    import tensorflow.compat.v1 as tf
    features = {"image": [png], "caption": [text.encode() for text in texts],
                "scene": [json.dumps(scene.as_json()).encode()]}
    return tf.train.Example(features=tf.train.Features(feature={
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=value))
        for name, value in features.items()})).SerializeToString(deterministic=True)


def write_pictures(args, directory, split, encode_png, bar):
    """Writes a split's shards; returns [{"file", "records"}]."""
    total, shards = count(args, split, "pictures"), []

    def records(start, end):
        for at in range(start, end, BATCH):
            number = min(BATCH, end - at)
            scenes, images, captions = pictures(args, split, at, number)
            yield from map(example, scenes, encode_png(images), captions)
            bar.update(number)

    for start in range(0, total, args.files_per):
        end = min(start + args.files_per, total)
        name = f"pictures_{split}_{len(shards)}_{end - start}.tfrecords"
        directory.write_records(name, records(start, end))
        shards.append({"file": name, "records": end - start})
    return shards


def write_captions(args, directory):
    """Writes the captions of the pictures for training; returns their file's facts."""
    from scenes_captions import captions
    from scenes_groups import scene_of
    made = (scene_of(args.seed, "train", number, args.hard_groups)
            for number in range(args.pictures))
    name = "captions_train.jsonl"
    return {"file": name, "captions": directory.write_lines(name, (
        {"text": text} for scene, rng in made for text in captions(rng, scene, args.captions)))}


def write_texts(args, directory, split, bar):
    """Writes a split's texts; returns their facts for the manifest."""
    from scenes_sample import stream
    from scenes_text import text
    facts = 0

    def lines():
        nonlocal facts
        for number in range(count(args, split, "texts")):
            # the stream of the picture of this number: the text tells of its scene if it may, and
            # if that is none of a hard group, which texts do not depend on
            words, _, fact = text(stream(args.seed, split, number), split, args.facts)
            facts += fact is not None
            yield {"text": words}
            bar.update()

    name = f"texts_{split}.jsonl"
    return {"file": name, "documents": directory.write_lines(name, lines()), "with_facts": facts}


def contact_sheet(args):
    """The contact sheet as PNG bytes."""
    import scenes_sheet
    sections = []
    for split, (number, heading, note) in SHEET.items():
        _, images, captions = pictures(args, split, 0, min(number, count(args, split, "pictures")))
        sections.append((heading, note, images, captions))
    return scenes_sheet.contact_sheet(sections)


def run(args):
    """Makes the world that the command line describes."""
    check(args)
    import scenes_probes
    import scenes_world
    import scenes_zero_shot
    from scenes_cloze import items
    from scenes_groups import GROUP
    from scenes_text import combination_items, story_items

    from configs.progress import tqdm
    directory = Directory(args.out, args.overwrite)
    encode_png = PngEncoder()
    made = {"pictures": {}, "texts": {}, "cloze": {}, "statements": {}, "stories": {}, "probes": {}}
    for what, write in (("pictures", lambda split, bar: write_pictures(
            args, directory, split, encode_png, bar)),
                        ("texts", lambda split, bar: write_texts(args, directory, split, bar))):
        total = sum(count(args, split, what) for split in SPLITS)
        with tqdm(total=total, desc=what, unit=f" {what}") as bar:
            for split in SPLITS:
                made[what][split] = write(split, bar)
    made["captions_train"] = write_captions(args, directory)
    for what, of in (("cloze", items), ("statements", functools.partial(items, statements=True)),
                     ("stories", story_items)):
        for split in CLOZE_SPLITS:
            name = f"{what}_{split}.jsonl"
            number = directory.write_lines(name, of(split, args.cloze))
            made[what][split] = {"file": name, "items": number}
    if args.zero_shot:
        directory.write_records(scenes_zero_shot.PICTURES, scenes_zero_shot.records(
            args.seed, args.zero_shot, args.size, encode_png))
        directory.write_lines(scenes_zero_shot.TASKS, scenes_zero_shot.tasks())
    made["combinations"] = {"file": "combinations.jsonl", "items": directory.write_lines(
        "combinations.jsonl", combination_items(min(args.cloze, COMBINATIONS)))}
    for name, values in scenes_probes.files().items():
        made["probes"][name] = directory.write_lines(name, values)
    directory.write("contact_sheet.png", contact_sheet(args))
    settings = {name: getattr(args, name)
                for name in ("seed", "size", "captions", "hard_groups", "facts")}
    group = GROUP if args.hard_groups else 1  # pictures that belong together
    words = {name: {word: entry._asdict() for word, entry in table.items()} for name, table in
             (("colours", scenes_world.COLOURS), ("shapes", scenes_world.SHAPES))}
    directory.write("manifest.json", (json.dumps({
        "format": 1, "version": scenes_world.VERSION, "group": group, **settings, **made,
        "held_out": scenes_world.held_out(), **words}, indent=1) + "\n").encode())
    print(f"wrote {directory.path('manifest.json')}: {args.pictures:,} pictures and "
          f"{args.texts:,} texts for training, " + ", ".join(
              f"{made['cloze'][split]['items']:,} cloze items ({split})" for split in CLOZE_SPLITS))


def main(argv=None):
    """Runs the command line; returns the exit status."""
    args = parser().parse_args(argv)
    set_loudness(args.quiet, args.verbose)
    return status_of(run, args, stopped="stopped; what was written is no whole world: give "
                     "--overwrite to begin again")


if __name__ == "__main__":
    sys.exit(main())
