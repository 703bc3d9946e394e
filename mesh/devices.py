"""Which devices a mesh runs on: CPU cores' virtual devices or GPUs."""

from mesh.compat import mtf, tf


def device_names(config):
    """The TensorFlow devices of the mesh, one for each of its positions.

    A mesh on CPUs gets as many virtual CPU devices as it needs.
    """
    if not config.gpu_ids:
        # On one device the variables' slices are the masters themselves, if no device is named.
        return [f"cpu:{i}" for i in range(config.mesh_size)] if config.mesh_size > 1 else [""]
    return list(config.gpu_ids)


def mesh_impl(config):
    """The mtf mesh implementation that places each slice on its device."""
    shape = mtf.Shape([mtf.Dimension(name, size) for name, size in config.mesh])
    rules = mtf.LayoutRules(set(config.layout_rules))
    return mtf.placement_mesh_impl.PlacementMeshImpl(shape, rules, device_names(config))


def session_config(config):
    """A tf.ConfigProto with enough virtual CPU devices for the mesh."""
    proto = tf.ConfigProto(device_count={"CPU": config.mesh_size}, allow_soft_placement=True)
    proto.gpu_options.allow_growth = True
    return proto
