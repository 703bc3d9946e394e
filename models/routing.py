"""The router's choice: tokens to experts, as TensorFlow functions of a slice."""

from mesh.compat import tf


def route(logits, capacity, gating, policy, threshold, noise=None, second_place_loss=False):
    """Chooses experts for the tokens of each group, first come, first served.

    Args:
      logits: float32 [b, groups, tokens, experts].
      capacity: tokens that an expert takes from a group.
      gating: "top_1", weighted by the softmax's probability, or "top_2", weighted by the two
        probabilities over their sum.
      policy: whether a second expert is asked: "all", "none", "threshold" if its weight is above
        `threshold`, or "random" with the probability weight / threshold.
      threshold: see policy.
      noise: float32 [b, groups, tokens], uniform in [0, 1), of policy "random".
      second_place_loss: whether balance is asked of second choices too.

    Returns:
      combine: float32 [b, groups, tokens, experts, capacity]: the weight of a token at the place
        that it has with an expert, 0 elsewhere;
      balance: float32 [b]: the load-balancing loss times the tokens;
      z: float32 [b]: the sum over tokens of log²(Σ exp(logits)).
    """
    experts, tokens = logits.shape[-1], logits.shape[2]
    gates = tf.nn.softmax(logits)
    first = tf.one_hot(tf.argmax(gates, -1, output_type=tf.int32), experts)
    weight = tf.reduce_sum(gates * first, -1)
    place = tf.cumsum(first, 2, exclusive=True)
    balance = _balance(first, gates)
    if gating == "top_1":
        combine = _placed(first, place, weight, capacity)
    else:
        others = gates * (1.0 - first)
        second = tf.one_hot(tf.argmax(others, -1, output_type=tf.int32), experts)
        if second_place_loss:
            rest = others / (tf.reduce_sum(others, -1, keepdims=True) + 1e-9)
            balance += 0.5 * _balance(second, rest)
        other = tf.reduce_sum(gates * second, -1)
        total = weight + other
        weight, other = weight / total, other / total
        second *= _asked(other, policy, threshold, noise)[..., None]
        # Second choices come after all of the group's first ones.
        later = tf.cumsum(second, 2, exclusive=True) + tf.reduce_sum(first, 2, keepdims=True)
        combine = (_placed(first, place, weight, capacity)
                   + _placed(second, later, other, capacity))
    z = tf.square(tf.reduce_logsumexp(logits, -1))
    return combine, tf.reduce_sum(balance, 1) * float(tokens), tf.reduce_sum(z, [1, 2])


def _asked(weight, policy, threshold, noise):
    """Which tokens' second choices count: float32 like `weight`, 0 or 1."""
    if policy == "threshold":
        return tf.cast(weight > threshold, tf.float32)
    if policy == "random":
        return tf.cast(noise * threshold < weight, tf.float32)
    return tf.ones_like(weight) if policy == "all" else tf.zeros_like(weight)


def _balance(chosen, gates):
    """Experts × Σ over experts of the share of tokens × the mean gate: [b, groups], least 1."""
    experts = float(chosen.shape[-1])
    return experts * tf.reduce_sum(tf.reduce_mean(chosen, 2) * tf.reduce_mean(gates, 2), -1)


def _placed(chosen, place, weight, capacity):
    """Weights at (expert, place): [b, groups, tokens, experts, capacity], 0 beyond the capacity."""
    at = tf.cast(tf.reduce_sum(place * chosen, -1), tf.int32)
    return ((chosen * weight[..., None])[..., None]
            * tf.one_hot(at, capacity)[..., None, :])
