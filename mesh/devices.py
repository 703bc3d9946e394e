"""Which devices a mesh runs on: CPU cores' virtual devices, GPUs, or TPU cores not at hand."""

import functools
import os

from configs.errors import UserError
from mesh import torus
from mesh.ahead import AheadMesh
from mesh.compat import mtf, tf
from mesh.simd import SimdMesh


class CpuMesh(mtf.placement_mesh_impl.PlacementMeshImpl):
    """A mesh of virtual CPU devices, which share one memory: no slice is ever copied.

    What is the same in several slices is there once, one tensor computed once or one variable, on
    the first of their devices. Slices that differ are computed side by side on the cores.

    Args:
      shape: an mtf.Shape.
      layout: mtf.LayoutRules.
    """

    def __init__(self, shape, layout):
        devices = [f"cpu:{i}" for i in range(shape.size)] if shape.size > 1 else [""]
        super().__init__(shape, layout, devices)

    def slicewise(self, fn, *inputs):
        """Applies `fn` to every slice, but once to slices of which all inputs are the same."""
        inputs = [x.tensor_list if isinstance(x, self.LaidOutTensor) else [x] * self.size
                  for x in mtf.convert_args_to_laid_out_tensors(inputs)]
        results, known = [], {}
        for number in range(self.size):
            arguments = [x[number] for x in inputs]
            same = tuple(map(id, arguments))
            if same not in known:
                with tf.device(self.devices[number]), tf.variable_scope(f"slice_{number}"):
                    known[same] = fn(*arguments)
            results.append(known[same])
        if isinstance(results[0], tuple):
            return tuple(self.LaidOutTensor(list(slices)) for slices in zip(*results, strict=True))
        return self.LaidOutTensor(results)

    def make_slices(self, tf_tensor, tensor_shape):
        """Cuts a tensor into a list of slices, each part once."""
        if self.tensor_layout(tensor_shape).is_fully_replicated:
            return [tf_tensor] * self.size
        size = self.slice_shape(tensor_shape)
        begins = [tuple(self.slice_begin(tensor_shape, number)) for number in range(self.size)]
        parts = {begin: tf.slice(tf_tensor, begin, size) for begin in dict.fromkeys(begins)}
        return [parts[begin] for begin in begins]

    def allreduce(self, x, mesh_axes, reduction_fn_string):
        """Reduces over mesh axes ("SUM", "MAX" or "MIN"), always in the order of the slices."""
        reduction = _REDUCTIONS[reduction_fn_string]
        return self._join(x, mesh_axes, lambda slices: functools.reduce(reduction, slices))

    def allconcat(self, x, mesh_axis, concat_axis):
        """Concatenates the slices along a mesh axis."""
        return self._join(x, [mesh_axis], lambda slices: tf.concat(slices, concat_axis))

    def alltoall(self, x, mesh_axis, split_axis, concat_axis):
        """Parts of tensor axis `split_axis` for whole parts of `concat_axis`, along a mesh axis."""
        known = {}

        def exchange(slices, group):
            same = tuple(map(id, slices))
            if same not in known:
                parts = [tf.split(s, len(slices), split_axis) for s in slices]
                known[same] = []
                for device, own in zip(group, zip(*parts, strict=True), strict=True):
                    with tf.device(device):
                        known[same].append(tf.concat(own, concat_axis))
            return known[same]

        return self._collective_with_groups(x, [mesh_axis], exchange)

    def _join(self, x, mesh_axes, fn):
        """Gives all slices that differ in `mesh_axes` alone one tensor, `fn` of their list."""
        known = {}

        def collective(slices, group):
            same = tuple(map(id, slices))
            if same not in known:
                with tf.device(group[0]):
                    known[same] = fn(slices)
            return [known[same]] * len(slices)

        return self._collective_with_groups(x, mesh_axes, collective)

    class LaidOutVariable:
        """The slices of a variable: one variable for each part, the master if that is all of it.

        Args:
          variable: an mtf.Variable.
          mesh_impl: the CpuMesh.
        """

        def __init__(self, variable, mesh_impl):
            self._variable = variable
            master, shape = variable.get_master(), variable.shape
            size = mesh_impl.slice_shape(shape)
            is_master = (size == shape.to_integer_list
                         and variable.slice_dtype == variable.master_dtype
                         and not isinstance(variable, mtf.StackedVariable))
            parts, slices = {}, []
            for number, device in enumerate(mesh_impl.devices):
                begin = tuple(mesh_impl.slice_begin(shape, number))
                if begin not in parts:
                    with tf.device(device):
                        parts[begin] = master if is_master else tf.get_variable(
                            f"{variable.name}_slice_{number}", size, variable.slice_dtype,
                            collections=[])
                slices.append(parts[begin])
            self.laid_out_tensor = mesh_impl.LaidOutTensor(slices)
            self.copy_master_to_slices = self.copy_slices_to_master = tf.no_op()
            if not is_master:
                self.copy_master_to_slices = self.assign_to_slices(
                    mtf.assign_slice, mesh_impl.make_slices(master, shape))
                whole = mesh_impl.combine_slices(
                    [tf.cast(s, variable.master_dtype) for s in slices], shape)
                self.copy_slices_to_master = variable.assign_to_master(whole)

        def assign_to_slices(self, assign_fn, values):
            """An operation that calls `assign_fn(variable, slice, value)` once for each part."""
            operations = {}
            for part, value in zip(self.laid_out_tensor.all_slices, values, strict=True):
                if id(part) not in operations:
                    with tf.device(part.device):
                        operations[id(part)] = assign_fn(self._variable, part, value)
            return tf.group(*operations.values())


_REDUCTIONS = {"SUM": tf.add, "MAX": tf.maximum, "MIN": tf.minimum}


def prepare(config):
    """Refuses GPUs that this machine does not have, and shares out the cores of a CPU mesh.

    To be called before TensorFlow runs anything: all of a process uses one pool of threads, which
    it makes at the first use, by the environment. A session's ConfigProto would come too late.

    Raises:
        UserError: names the first absent GPU.
    """
    if not config.gpu_ids:
        if config.mesh_size > 1:
            # Slices run side by side. One that took more would wait for the others' threads.
            share = max(1, _cores() // config.mesh_size)
            os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(share))
        return
    # TensorFlow would place what belongs on absent ones on the CPU without a word.
    there = len(tf.config.list_physical_devices("GPU"))
    for name in config.gpu_ids:
        if int(name.rpartition(":")[2]) >= there:
            raise UserError(f"gpu_ids: {name} is not there; TensorFlow sees {there or 'no'} GPU"
                            f"{'' if there == 1 else 's'}: see to the driver, or leave --gpu_ids "
                            "out for CPU devices")


def _cores():
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def mesh_impl(config):
    """The mtf mesh implementation that places each slice on its device."""
    if config.gpu_ids:
        return mtf.placement_mesh_impl.PlacementMeshImpl(*_mesh(config), list(config.gpu_ids))
    return CpuMesh(*_mesh(config))


def hosts_mesh_impl(config, names):
    """The mtf mesh implementation on devices of several hosts, by their names.

    Nothing is shared: each device has its own copies, and mtf's own allreduce sums over them.
    """
    return mtf.placement_mesh_impl.PlacementMeshImpl(*_mesh(config), names)


def ahead_mesh_impl(config, torus_shape=None):
    """The mtf mesh implementation of a program that is made for TPUs without one.

    Args:
      config: the run's config.
      torus_shape: [x, y, z, cores on a chip] of the slice; without it the mesh's positions lie on
        the cores in their order.
    """
    order = torus_shape and torus.order(config.mesh, torus_shape)
    return AheadMesh(*_mesh(config), logical_to_physical=order)


def tpu_mesh_impl(config, assignment):
    """The mtf mesh implementation of TPU cores; `assignment` is TPUEstimator's of devices."""
    shape = [int(n) for n in assignment.topology.mesh_shape]
    # TensorFlow numbers replicas in rings where a chip has one core.
    replica = {tuple(map(int, assignment.coordinates(number, 0))): number
               for number in range(assignment.num_replicas)}
    order = [replica[torus.place(core, shape)] for core in torus.order(config.mesh, shape)]
    return SimdMesh(*_mesh(config), device_assignment=assignment, logical_to_physical=order)


def master_placer(context):
    """What places variables on a TPU's hosts, each where the least lies.

    Args:
      context: TPUEstimator's, of a model function.
    """
    place = context.tpu_host_placement_function
    return mtf.utils.BalancedVariablePlacer([place(host_id=n) for n in range(context.num_hosts)])


def _mesh(config):
    """A config's mesh and layout: (mtf.Shape, mtf.LayoutRules)."""
    shape = mtf.Shape([mtf.Dimension(name, size) for name, size in config.mesh])
    return shape, mtf.LayoutRules(set(config.layout_rules))


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
        # another order on each device, and in any order from run to run: copies of a weight on GPUs
        # would drift apart, and a resumed run would not equal a straight one to the bit.
        rewriting = proto.graph_options.rewrite_options
        rewriting.arithmetic_optimization = rewriting.OFF
    return proto
