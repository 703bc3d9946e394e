"""What the TPU compiler says of a config's training step: compiled whole, or told by a few layers.

With each layer of a kind a step's time, memory and collectives grow by the same. So models with one
layer of each kind, and with one more of one kind, say what one of all layers needs: an estimate,
which leaves out what the compiler does differently when memory is short.
"""

import dataclasses
import logging
from typing import NamedTuple

from mesh import preflight
from mesh.estimate import Traffic
from training import ahead, flops, proxies


class Found(NamedTuple):
    """What is known of a step.

    Attributes:
      memory, seconds, traffic: see mesh.preflight.Compiled.
      moved: {"count", "bytes"} of gathers and scatters.
      flops: the model's, for each token.
      arguments, buffers, peak: see mesh.preflight.Compiled; of the largest model that was compiled.
      layers: how many layers the models had that were compiled, if not all.
    """

    memory: dict
    seconds: dict
    traffic: list
    moved: dict
    flops: float
    arguments: list
    buffers: list
    peak: int
    layers: tuple = ()

    @property
    def used(self):
        """Bytes of a core's memory."""
        return sum(self.memory.values())


def of_config(config, tpu, batch=None, taken=None, few=False):
    """A Found of a config's step on a slice, or the mesh.preflight.TooLarge of the compiler.

    Args:
      config: a RunConfig. tpu: a mesh.tpus.Slice of as many cores as its mesh.
      batch: (an inputs.Facts, {name: tf.TensorSpec}) of its data; by default of what stands for it.
      taken: the frozen weights of another run, by default proxies.frozen_of(config).
      few: compile models of few layers.
    """
    models = _of_few(config) if few else [(1, config)]
    found = []
    for number, (times, model) in enumerate(models, 1):
        logging.info("compiling for %s (%s)%s; this takes minutes for a large model", tpu.name,
                     tpu.topology, f": {model.n_layer} of {config.n_layer} layers, {number} of "
                     f"{len(models)}" if model.n_layer < config.n_layer else "")
        one = _compiled(model, tpu, batch, taken)
        if isinstance(one, preflight.TooLarge):
            return dataclasses.replace(
                one, layers=model.n_layer if model.n_layer < config.n_layer else None)
        found.append((times, one))
    if len(found) == 1:
        return found[0][1]
    layers = tuple(sorted({model.n_layer for _, model in models}))
    return _added(found)._replace(layers=layers)


def _of_few(config):
    """[(how often, a config of few layers)] that add up to the whole; or the whole, once."""
    kinds = {}
    for layer, kind in enumerate(config.attention_types):
        kinds.setdefault((kind, layer in (config.moe_layers or ())), []).append(layer)
    base = [layers[0] for layers in kinds.values()]
    more = [layers for layers in kinds.values() if len(layers) > 1]
    if config.n_layer <= len(base) + len(more):
        return [(1, config)]
    return [(1 - sum(len(layers) - 1 for layers in more), proxies.of_layers(config, sorted(base))),
            *((len(layers) - 1, proxies.of_layers(config, sorted([*base, layers[1]])))
              for layers in more)]


def _compiled(config, tpu, batch, taken):
    program, of_token = _program(config, tpu, batch, taken)
    found = preflight.compile_for(program, tpu, config.mesh)
    if isinstance(found, preflight.TooLarge):
        return found
    moved = found.schedule.moved
    return Found(found.memory, found.seconds, found.traffic,
                 {"count": sum(x.times for x in moved),
                  "bytes": sum(x.bytes * x.times for x in moved)},
                 of_token, found.arguments, found.buffers, found.peak)


def _program(config, tpu, batch, taken):
    """(a mesh.ahead.Program, the model's FLOPs for each token) of a step; the graph is let go."""
    facts, specs = batch or proxies.facts_and_specs(config)
    objective = proxies.objective(config, facts, taken or proxies.frozen_of(config))
    program, impl = ahead.program(config, objective, specs, tpu.torus)
    return program, flops.of_token(config, (variable for variable, *_ in impl.variables.values()))


def _added(found):
    """The sum of Founds, each so often."""
    def dicts(name):
        return {key: sum(times * getattr(one, name).get(key, 0) for times, one in found)
                for key in getattr(found[-1][1], name)}

    rows = {}
    for times, one in found:
        for row in one.traffic:
            old = rows.get((row.axes, row.kind), (0, 0, 0))
            rows[row.axes, row.kind] = tuple(
                a + times * b for a, b in zip(old, row[2:], strict=True))
    traffic = [Traffic(*key, *row) for key, row in rows.items() if row[0] > 0]
    largest = max((one for _, one in found), key=lambda one: one.used)
    return largest._replace(
        memory=dicts("memory"), seconds=dicts("seconds"), moved=dicts("moved"),
        traffic=sorted(traffic, key=lambda row: -row.seconds),
        flops=sum(times * one.flops for times, one in found))
