"""Decoding: filling the caches with a prompt, and sampling new tokens in a loop on the mesh.

A token's randomness is a hash of (seed, sample number, how many tokens came before it, token id): a
sample depends neither on the other rows of its batch, nor on how decoding is cut into runs, nor on
the mesh.
"""

import dataclasses

import tensorflow.compat.v1 as tf

from mesh import entmax, loops, random
from mesh.compat import mtf
from mesh.slices import local

# Most positions of a prompt that go through the model at once: enough for a TPU's matrix unit.
_PROMPT_BLOCK = 128

# The dimension of tokens on their way into the caches. It is not `sequence`, which a layout may
# split: there is one token at a time, or a block of a prompt.
_NEW_TOKENS = "new_tokens"

_LOWEST = tf.float32.min


@dataclasses.dataclass(frozen=True)
class Settings:
    """How tokens are chosen: mtf tensors, so that one graph serves any settings.

    Each is a scalar, or [batch] where rows have settings of their own.

    Attributes:
      temperature: float32, divides the logits; 0 takes the likeliest token.
      top_k: int32: only the k likeliest tokens, the lower id first among equals; 0 for all.
      top_p: float32: of these, the fewest likeliest that hold this probability (Holtzman et al.
        2019, section 3.1), at least one; 1 for all.
      seed: int32.
    """

    temperature: mtf.Tensor
    top_k: mtf.Tensor
    top_p: mtf.Tensor
    seed: mtf.Tensor


def sample_token(logits, n_valid, settings, number, count):
    """Chooses a token for each row.

    Args:
      logits: [batch, vocab]; `vocab` may be split.
      n_valid: ids at or above it are never chosen.
      settings: a Settings.
      number: int32 [batch]: the number of the row's sample.
      count: int32, a scalar or [batch]: how many tokens were sampled before this one.

    Returns:
      int32 [batch].
    """
    batch, vocab = logits.shape.dims
    whole = mtf.replace_dimensions(logits, vocab, mtf.Dimension("whole_vocab", vocab.size))

    key = local(lambda seed, number, count: random.mix(random.mix(seed, number), count),
                [settings.seed, number, count], ([batch], tf.int32), name="key")
    # Of a large vocabulary the hash takes as long as a layer, unless it is compiled.
    noise = local(_gumbel, [whole, key], (whole.shape, tf.float32), elementwise=True, name="noise")

    def choose(x, noise, temperature, top_k, top_p):
        x = tf.cast(x[:, :n_valid], tf.float32)
        x -= tf.reduce_max(x, -1, keepdims=True)
        temperature, top_k, top_p = (tf.reshape(t, [-1, 1]) for t in (temperature, top_k, top_p))
        warm = temperature > 0.0
        x /= tf.where_v2(warm, tf.maximum(temperature, 1e-6), 1.0)
        truncates = tf.reduce_any(tf.logical_or(top_k > 0, top_p < 1.0))
        x = tf.cond(truncates, lambda: _truncated(x, top_k, top_p), lambda: tf.identity(x))
        # The largest of logits with Gumbel noise is a sample of their softmax. Two passes find its
        # place: into an argmax XLA fuses the noise, and makes it one number at a time.
        x += tf.where_v2(warm, noise[:, :n_valid], 0.0)
        top = tf.reduce_max(x, -1, keepdims=True)
        return tf.reduce_min(tf.where_v2(x < top, n_valid, tf.range(n_valid)), -1)

    inputs = [whole, noise, settings.temperature, settings.top_k, settings.top_p]
    return local(choose, inputs, ([batch], tf.int32), name="sample_token")


def entmax_logits(logits, n_valid, alpha):
    """Logits [batch, vocab] whose softmax is the α-entmax of the given ones, float32.

    `alpha` of 1, whose entmax is the softmax itself, stands for 1.3, which is GPT-Neo's.
    """
    p = entmax.probabilities(logits, logits.shape.dims[-1], n_valid, alpha if alpha > 1 else 1.3)
    return local(lambda p: tf.where_v2(p > 0.0, tf.log(p), -1e9), [p], (p.shape, p.dtype),
                 name="log")


def _truncated(x, top_k, top_p):
    """Logits [batch, ids] with all but the top_k, and of these top_p's nucleus, at the lowest."""
    size = x.shape[-1]
    # Of equal elements the lower index comes first.
    values, ids = tf.math.top_k(x, size)
    rank = tf.range(size)
    among_k = rank < tf.where_v2(top_k > 0, top_k, size)
    p = tf.nn.softmax(tf.where_v2(among_k, values, _LOWEST))
    # Float32 sums may reach 1 before the last token.
    in_nucleus = tf.logical_or(tf.cumsum(p, -1, exclusive=True) < top_p, top_p >= 1.0)
    n_kept = tf.reduce_sum(tf.cast(tf.logical_and(among_k, in_nucleus), tf.int32), -1)
    last = tf.maximum(n_kept - 1, 0)
    least, least_id = (tf.gather(t, last, batch_dims=1)[:, None] for t in (values, ids))
    kept = tf.logical_or(x > least, tf.logical_and(tf.equal(x, least), rank <= least_id))
    return tf.where_v2(kept, x, _LOWEST)


def _gumbel(logits, key):
    """Standard Gumbel noise like logits [batch, ids], a hash of (key, id); precise where large."""
    bits = tf.bitcast(random.mix(key[:, None], tf.range(logits.shape[-1])[None]), tf.uint32)
    uniform = (tf.cast(bits, tf.float32) + 0.5) * 2.0**-32
    return -tf.log(-tf.log1p(-tf.minimum(uniform, 1.0 - 2.0**-24)))


def prompt_block(prompt, most=_PROMPT_BLOCK):
    """How many of `prompt` positions go through the model at once: whole blocks make it up."""
    # Whole ones, since the sums of linear attention take each token once.
    return max(size for size in range(1, most + 1) if prompt % size == 0)


def prefill(model, ctx, tokens, lengths, caches=None, block=None):
    """The caches of prompts, block by block.

    Keys and values at and after a row's own length are written again before they are looked at.

    Args:
      model: a models.gpt.GPT.
      ctx: a models.layers.Context.
      tokens: int32 [batch, prompt], rows filled up with any token; no layout splits `prompt`.
      lengths: int32 [batch]: how many tokens of each row belong to the caches.
      caches: to write to, instead of empty ones; keys and values there may be any finite ones.
      block: how many positions go through the model at once, by default of `prompt_block`.

    Returns:
      caches as `model.empty_caches` makes them, with room for `prompt` tokens.
    """
    batch, prompt = tokens.shape.dims
    block = mtf.Dimension(_NEW_TOKENS, block or prompt_block(prompt.size))
    longest = mtf.reduce_max(lengths)

    def more(start, *_):
        return mtf.less(start, longest)

    def body(start, *flat):
        piece = local(lambda t, at: tf.slice(t, [0, at], [-1, block.size]), [tokens, start],
                      ([batch, block], tf.int32), name="block")
        index = mtf.broadcast(start, [batch])
        _, new = model.hidden_incremental(ctx, piece, index, _like(caches, flat), lengths - index)
        return [start + block.size, *tf.nest.flatten(new)]

    caches = caches or model.empty_caches(ctx, batch, prompt.size)
    if not tf.nest.flatten(caches):  # no layer looks back
        return caches
    start = mtf.constant(ctx.mesh, 0, dtype=tf.int32)
    return _like(caches, mtf.while_loop(more, body, [start, *tf.nest.flatten(caches)])[1:])


def decode(model, ctx, token, position, done, caches, steps, size, eos_id, n_valid, settings,
           number, count, compiled=False):
    """Samples tokens one by one, until `steps` are made or each row has met its end.

    Args:
      model: a models.gpt.GPT.
      ctx: a models.layers.Context.
      token: int32 [batch]: the last token of each row, which the caches do not hold yet.
      position: int32 [batch]: its position.
      done: int32 [batch]: 1 for rows that want no tokens; they are computed and come to nothing.
      caches: of the tokens before, as `prefill` or `decode` returns them.
      steps: int32 scalar, at most `size`; no row may pass the caches' end.
      size: room for new tokens.
      eos_id: the token that ends a row.
      n_valid: ids at or above it are never sampled.
      settings: a Settings.
      number: int32 [batch]: the numbers of the rows' samples.
      count: int32, a scalar or [batch]: how many tokens of these samples were made before.
      compiled: whether the loop is compiled; see mesh.loops.while_loop.

    Returns:
      (int32 [batch, chunk], -1 where none was made, and the new caches). `eos_id` is included.
    """
    batch = token.shape.dims[0]
    one, chunk = mtf.Dimension(_NEW_TOKENS, 1), mtf.Dimension("chunk", size)

    def more(step, token, position, done, *_):
        return mtf.logical_and(mtf.less(step, steps), mtf.less(mtf.reduce_min(done), 1))

    def body(step, token, position, done, out, *flat):
        hidden, new = model.hidden_incremental(
            ctx, mtf.reshape(token, [batch, one]), position, _like(caches, flat))
        logits = mtf.reshape(model.logits(ctx, hidden), [batch, model.vocab])
        if ctx.config.entmax_sampling:
            logits = entmax_logits(logits, n_valid, ctx.config.entmax_alpha)
        chosen = sample_token(logits, n_valid, settings, number, count + step)

        def advance(step, chosen, token, position, done, out):
            live = tf.equal(done, 0)
            here = tf.logical_and(live[:, None], tf.equal(tf.range(size), step)[None])
            goes_on = tf.logical_and(live, tf.not_equal(chosen, eos_id))
            return (tf.where_v2(goes_on, chosen, token), position + tf.cast(goes_on, tf.int32),
                    tf.cast(tf.logical_not(goes_on), tf.int32),
                    tf.where_v2(here, chosen[:, None], out))

        row = mtf.Shape([batch])
        state = local(advance, [step, chosen, token, position, done, out],
                      [(row, tf.int32)] * 3 + [(out.shape, tf.int32)], name="advance")
        return [step + 1, *state, *tf.nest.flatten(new)]

    step = mtf.constant(ctx.mesh, 0, dtype=tf.int32)
    out = mtf.constant(ctx.mesh, -1, shape=mtf.Shape([batch, chunk]), dtype=tf.int32)
    results = loops.while_loop(
        more, body, [step, token, position, done, out, *tf.nest.flatten(caches)], compiled)
    return results[4], _like(caches, results[5:])


def _like(caches, flat):
    """Caches of the structure of others, from a list of their tensors."""
    return tf.nest.pack_sequence_as(caches, flat)
