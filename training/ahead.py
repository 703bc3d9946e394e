"""A run's training step as one XLA program for TPU cores, made without a TPU."""

from mesh import ahead, devices
from mesh.compat import mtf, tf
from training import model_fn


def program(config, objective, specs, torus_shape=None):
    """The training step of a run, for as many cores as its mesh has.

    Args:
      config: the run's config.
      objective: a training.objective.Objective.
      specs: {name: tf.TensorSpec} of a batch of the input function; every core gets all of it.
      torus_shape: of the slice that it is for; see devices.ahead_mesh_impl.

    Returns:
      (a mesh.ahead.Program, the mesh.ahead.AheadMesh that knows its variables).
    """
    with tf.Graph().as_default() as graph:
        features = {name: tf.placeholder(spec.dtype, spec.shape, name)
                    for name, spec in specs.items()}
        impl = devices.ahead_mesh_impl(config, torus_shape)

        def lower(config, mesh):
            del config
            return mtf.Lowering(mesh.graph, {mesh: impl}, autostack=False)

        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        step = model_fn.train_step(config, objective, mesh, features, lower)
    return ahead.program(graph, impl, features, step.scalars, step.update), impl
