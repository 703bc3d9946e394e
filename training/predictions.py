"""The job of --predict: samples on standard output."""

import json
import os
import sys

from configs.errors import UserError
from mesh.compat import tf
from training import checkpoints
from training.completions import encode_prompt
from training.predictor import Predictor, check_speaks

SEPARATOR = "---------------"


def predict(config, prompts, num_samples=1, max_new_tokens=None, temperature=1.0, top_k=0,
            top_p=1.0, stop=(), seed=1, interactive=False, tpu=None):
    """Prints samples on stdout, and appends them to `predict_path` as JSON lines where it is set.

    Args:
      config: the run's config.
      prompts: texts. An empty one stands for a document's beginning: after the end-of-text token
        that separates documents, or with the char encoder, whose text mostly is one document in
        which that never comes, after a line break.
      num_samples, max_new_tokens, temperature, top_k, top_p, stop, seed: see Predictor.generate.
      interactive: answer each line of stdin as a prompt, after `prompts`.
      tpu: the mesh.cloud.Tpu to sample on.

    Raises:
      UserError: there is nothing to sample from, or a prompt cannot be encoded.
    """
    check_speaks(config)  # whatever else may be missing
    checkpoints.require_latest(config)
    encoder = checkpoints.encoder_of(config)
    encoded = [encode_prompt(encoder, prompt) for prompt in prompts]
    batches = -(-len(prompts) * num_samples // config.predict_batch_size)
    steps = None if interactive else batches * (max_new_tokens or config.n_ctx)
    made = []  # the predictor
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}

    def sample_all(tokens):
        if not made:
            made.append(_predictor(config, encoder, steps, tpu))
        try:
            found = made[0].generate(tokens, num_samples, max_new_tokens, stop=stop, **settings)
            # On a TPU all of them at once: it may go away before the last, and then all come anew.
            return list(found) if tpu else found
        except tf.errors.OpError:
            made.clear()  # what it had on a TPU may be gone
            raise

    def answer(texts, tokens):
        samples = tpu.call(sample_all, tokens) if tpu else sample_all(tokens)
        for text, sample in zip((t for t in texts for _ in range(num_samples)), samples,
                                strict=True):
            head = sample.head if text else ""
            print(f"{head}{sample.text}\n{SEPARATOR}", flush=True)
            if config.predict_path:
                append(config.predict_path, {
                    "prompt": text, "text": sample.text, "sample": sample.number,
                    "ended_by": sample.reason, "new_tokens": len(sample.tokens),
                    "checkpoint": made[0].checkpoint, "stop": list(stop), **settings})

    answer(prompts, encoded)
    for line in lines() if interactive else ():
        try:
            tokens = encode_prompt(encoder, line)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
        else:
            answer([line], [tokens])
    for predictor in made:
        predictor.close()


def _predictor(config, encoder, steps, tpu):
    if tpu is None:
        return Predictor(config, encoder, steps)
    from training.tpu_predictor import TpuPredictor

    return TpuPredictor(config, encoder, tpu)


def lines():
    """Lines of stdin without their ends, asked for on a terminal."""
    while True:
        if sys.stdin.isatty():
            print("prompt> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line.rstrip("\r\n")


def append(path, entry):
    """Appends a line of JSON to a file, whose directory is made if need be."""
    try:
        if os.path.dirname(path):
            tf.io.gfile.makedirs(os.path.dirname(path))
        with tf.io.gfile.GFile(path, "a") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    except tf.errors.OpError as error:
        raise UserError(f"predict_path: {path} cannot be written ({error.message}); give another "
                        "path, or null") from error
