"""Which core of a slice takes which position of the mesh, so that neighbours are near."""

import math

from mesh.compat import mtf, tf


def order(mesh, shape):
    """The core of each position of the mesh: a permutation of the cores' numbers.

    Cores are numbered as mesh/pjrt.py lists them: see `place`. Mesh Tensorflow's own choice is
    taken where it has one, for slices whose sides are powers of two: the mesh's last dimensions lie
    in compact tiles, and its first runs around the torus from tile to tile. Otherwise the order is
    that of the cores.

    Args:
      mesh: [(name, size)] of a config.
      shape: [x, y, z, cores on a chip] of the slice.
    """
    cores, on_chip = math.prod(shape), shape[3]
    sizes = [size for _, size in mesh if size > 1]
    if cores == 1 or any(n & (n - 1) for n in [*shape, *sizes]):
        return list(range(cores))
    # mtf reads these as command-line flags; its own default is of chips with two cores.
    tf.flags.FLAGS.mark_as_parsed()
    tf.flags.FLAGS.logical_cores_per_chip = on_chip
    simd = mtf.simd_mesh_impl
    flat = simd.physical_shape_3d_from_topology_proto_4d(list(shape))
    places = simd.auto_logical_to_physical_tpu(sizes, flat, return_coordinates=True)
    return [(row * flat[1] + column) * on_chip + core for row, column, core in places]


def place(core, shape):
    """(x, y, z, core on the chip) of a core: they are numbered along a chip, then x, y and z."""
    x, y, _, on_chip = shape
    chip, on = divmod(core, on_chip)
    return chip % x, chip // x % y, chip // (x * y), on
