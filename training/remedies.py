"""What to change in a config whose training step does not fit into a TPU core's memory."""

from configs import layouts
from configs.errors import UserError

# Among how many cores the weights may be shared.
_WAYS = (2, 4, 8, 16, 32)


def of_run(config):
    """Changes to try one after the other, each with those before it: ({key: value}, the config).

    Recomputation, then microbatches of one row a replica, then the same cores as a mesh of two
    dimensions, of which more and more cores share the weights, more than do already. What the
    config's checks refuse, or it has already, is left out.
    """
    batches = {"tokens_per_mb_per_replica": config.n_ctx}
    changes = [{"recompute_grad": True}, {**batches, "recompute_grad": True}]
    cores, shared = config.mesh_size, config.mesh_size // config.batch_split
    ways = [[change] for change in changes]
    ways += [[{**changes[-1], "mesh_shape": f"x:{cores // way},y:{way}", "layout": layout}
              for layout in _layouts(config)]
             for way in _WAYS if cores % way == 0 and way > shared]
    tried = [config]
    for alternatives in ways:
        change, changed = _first_valid(config, alternatives)
        if changed and not any(_same_step(changed, other) for other in tried):
            tried.append(changed)
            yield change, changed


def _layouts(config):
    """Layouts in which the cores of y share the weights, the best one first."""
    if config.model not in layouts.DIMENSIONS["heads"].models:
        return ["batch:x,clip_heads:y,clip_vocab:y,clip_intermediate:y"]
    experts = ",experts:x" if "experts" in dict(config.layout_rules) else ""
    return [f"batch:x,{heads}:y,vocab:y,intermediate_expanded:y{experts}"
            for heads in ("heads", "features_per_head")]


def _first_valid(config, changes):
    """(the first of the changes that the config's checks let through, the config with it)."""
    for change in changes:
        try:
            return change, config.replace(**change)
        except (UserError, ValueError):  # of these sizes nothing divides by that mesh, say
            pass
    return None, None


def _same_step(one, other):
    return all(getattr(one, key) == getattr(other, key)
               for key in ("recompute_grad", "num_microbatches", "mesh", "layout_rules"))


def flags(change):
    """A change as main.py takes it."""
    return " ".join(f"--set {key}={str(value).lower() if value is True else value}"
                    for key, value in change.items())
