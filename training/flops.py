"""Model FLOPs of a training step, and what devices could do of them."""

import re

from mesh.compat import tf

# FLOP/s of dense bfloat16 or float16 products with float32 sums, by part of the device's name:
# NVIDIA's data sheets. The first that fits counts.
_PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "A40": 149.7e12,
          "A30": 165e12, "A10G": 70e12, "A10": 125e12, "L40S": 362e12, "L4": 121e12,
          "V100": 125e12, "T4": 65e12, "RTX 4090": 165.2e12, "RTX 3090": 71e12}


def of_token(config, variables):
    """FLOPs of a training step for each token, recomputation left out: 6N + 12·layers·seen·width.

    Chowdhery et al. 2022 (PaLM), appendix B; the second term is attention's, with the tokens that a
    layer's kind of attention sees: n_ctx, the radius of local layers, none of linear ones. Of a
    layer's experts N counts those that a token is routed to, and shared weights as often as they
    are used. A table that rows are but looked up in is no product, and counts nothing: that of
    positions, and that of tokens where the head has a kernel of its own.

    Args:
      config: the run's config.
      variables: the step's mtf.Variables; those that are not trained count nothing.
    """
    moe = config.moe_params
    routed = (1 if moe.gating == "top_1" else 2) / moe.num_experts
    tied = config.model in ("GPT", "gpt_c") and not config.no_weight_tie
    parameters = 0
    for variable in variables:
        looked_up = re.search(r"(^|/)(wpe|wte)$", variable.name)
        if variable.trainable and not (looked_up and not (tied and looked_up[2] == "wte")):
            used = routed if "experts" in variable.shape.dimension_names else 1
            if config.share_parameters and re.search(r"(^|/)h/", variable.name):
                used *= config.n_layer
            parameters += used * variable.shape.size
    seen = {"global": config.n_ctx, "local": min(config.local_attention_radius, config.n_ctx)}
    reach = sum(seen.get(kind, 0) for kind in config.attention_types)
    return 6 * parameters + 12 * reach * config.n_embd


def peak(config):
    """FLOP/s that all devices of a run's mesh could do together, or None where it is not known.

    That is `peak_flops` for each device, or else what is published of the first of `gpu_ids`.
    """
    each = config.peak_flops
    if not each and config.gpu_ids:
        gpu = tf.config.list_physical_devices("GPU")[0]
        name = tf.config.experimental.get_device_details(gpu).get("device_name", "")
        each = peak_of(name)
    return each and each * max(config.mesh_size, 1)


def peak_of(name):
    """The peak of a device that calls itself `name`, or None."""
    return next((peak for part, peak in _PEAKS.items() if re.search(rf"\b{part}\b", name)), None)
