"""What to change in a config whose training step does not fit into a TPU core's memory."""

from configs.errors import UserError

_SPLIT = "batch:x,heads:y,vocab:y,intermediate_expanded:y"


def of_run(config):
    """Changes to try one after the other, each with those before it: ({key: value}, the config).

    Recomputation, then microbatches of one row a replica, then the same cores as a mesh of two
    dimensions, of which more and more cores share the weights. What the config's checks refuse, or
    it has already, is left out.
    """
    batches = {"tokens_per_mb_per_replica": config.n_ctx}
    changes = [{"recompute_grad": True}, {**batches, "recompute_grad": True}]
    cores = config.mesh_size
    changes += [{**changes[-1], "mesh_shape": f"x:{cores // split},y:{split}", "layout": _SPLIT}
                for split in (2, 4, 8) if cores % split == 0]
    tried = [config]
    for change in changes:
        try:
            changed = config.replace(**change)
        except (UserError, ValueError):  # of these sizes nothing divides by that mesh, say
            continue
        if not any(_same_step(changed, other) for other in tried):
            tried.append(changed)
            yield change, changed


def _same_step(one, other):
    return all(getattr(one, key) == getattr(other, key)
               for key in ("recompute_grad", "num_microbatches", "mesh", "layout_rules"))


def flags(change):
    """A change as main.py takes it."""
    return " ".join(f"--set {key}={str(value).lower() if value is True else value}"
                    for key, value in change.items())
