"""Which devices a mesh runs on: CPU cores' virtual devices or GPUs."""

from configs.errors import UserError
from mesh.compat import mtf, tf


def device_names(config):
    """The TensorFlow devices of the mesh, one for each of its positions.

    A mesh on CPUs gets as many virtual CPU devices as it needs.
    """
    if not config.gpu_ids:
        # On one device the variables' slices are the masters themselves, if no device is named.
        return [f"cpu:{i}" for i in range(config.mesh_size)] if config.mesh_size > 1 else [""]
    return list(config.gpu_ids)


def check_present(config):
    """Refuses GPUs that this machine does not have.

    TensorFlow would place what belongs on them on the CPU without a word.

    Raises:
        UserError: names the first absent one.
    """
    if not config.gpu_ids:
        return
    there = len(tf.config.list_physical_devices("GPU"))
    for name in config.gpu_ids:
        if int(name.rpartition(":")[2]) >= there:
            raise UserError(f"gpu_ids: {name} is not there; TensorFlow sees {there or 'no'} GPU"
                            f"{'' if there == 1 else 's'}: see to the driver, or leave --gpu_ids "
                            "out for CPU devices")


def mesh_impl(config):
    """The mtf mesh implementation that places each slice on its device."""
    shape = mtf.Shape([mtf.Dimension(name, size) for name, size in config.mesh])
    rules = mtf.LayoutRules(set(config.layout_rules))
    return mtf.placement_mesh_impl.PlacementMeshImpl(shape, rules, device_names(config))


def session_config(config):
    """A tf.ConfigProto with enough virtual CPU devices for the mesh.

    With it, what a mesh adds up is added in the same order on every device and in every run.
    """
    counts = {"CPU": config.mesh_size}
    if not config.gpu_ids:
        counts["GPU"] = 0  # or TensorFlow would put what names no device on a GPU
    proto = tf.ConfigProto(device_count=counts, allow_soft_placement=True)
    proto.gpu_options.allow_growth = True
    if config.mesh_size > 1:
        # It joins the additions of an allreduce and of what follows to one AddN, which adds in
        # another order on each device, and in any order from run to run: copies of a weight would
        # drift apart, and a resumed run would not equal a straight one to the bit.
        rewriting = proto.graph_options.rewrite_options
        rewriting.arithmetic_optimization = rewriting.OFF
    return proto
