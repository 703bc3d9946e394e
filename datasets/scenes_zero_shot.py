"""Zero-shot classification in the picture–caption world: pictures of one thing, and prompts.

The classes are the basic words of colours and shapes; the scenes are val's, so none was trained on.
"""

from scenes_captions import article
from scenes_render import render
from scenes_sample import Wish, sample, split_of, stream
from scenes_world import BASIC_COLOURS, BASIC_SHAPES

PICTURES, TASKS = "zero_shot_val.tfrecords", "zero_shot.jsonl"
PROMPTS = ["{}", "a picture of {}", "this shows {}"]


def scenes(seed, number):
    """The scenes of pictures 0 … number - 1, every pair of a colour and a shape equally likely.

    Each picture depends on the seed and its own number alone.
    """
    for i in range(number):
        rng = stream(seed, "zero_shot", i)
        while True:
            wish = Wish(colours=(rng.choice(BASIC_COLOURS),), shapes=(rng.choice(BASIC_SHAPES),),
                        count=1)
            scene = sample(rng, wish)
            # Some pairs have no scene in val: then another pair takes the place.
            if split_of(scene) == "val":
                yield scene
                break


def records(seed, number, size, encode_png):
    """Serialised tf.train.Examples with image, colour and shape.

    Args:
        seed, number: of the world, and of pictures.
        size: pixels of a side.
        encode_png: makes a list of PNG bytes of uint8 [pictures, size, size, 3].
    """
    import tensorflow.compat.v1 as tf
    for scene in scenes(seed, number):
        (image,), (thing,) = encode_png(render([scene], size)), scene.things
        yield tf.train.Example(features=tf.train.Features(feature={
            name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
            for name, value in (("image", image), ("colour", thing.colour.encode()),
                                ("shape", thing.shape.encode()))
        })).SerializeToString(deterministic=True)


def tasks():
    """The lines of the file of tasks: which colour it is, and which shape.

    A class has a prompt for each word of the other kind, since captions name both.
    """
    def prompts(one, pairs):
        return [PROMPTS[i % len(PROMPTS)].format(article(" ".join(pair)))
                for i, pair in enumerate(pairs(one))]

    return [
        {"name": "colour", "pictures": PICTURES, "label": "colour", "prompts": {
            colour: prompts(colour, lambda c: [(c, shape) for shape in BASIC_SHAPES])
            for colour in BASIC_COLOURS}},
        {"name": "shape", "pictures": PICTURES, "label": "shape", "prompts": {
            shape: prompts(shape, lambda s: [(colour, s) for colour in BASIC_COLOURS])
            for shape in BASIC_SHAPES}}]
