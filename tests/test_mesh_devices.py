"""mesh/devices.py: which devices a mesh gets, and that tensors really lie there."""

import os

import graphs
import numpy as np
import pytest

from configs.errors import UserError
from mesh import devices
from mesh.compat import mtf, tf


def test_cpu_devices():
    assert devices.mesh_impl(graphs.config()).devices == [""]
    split = graphs.config(mesh_shape="x:2,y:2", layout="batch:x")
    assert devices.mesh_impl(split).devices == ["cpu:0", "cpu:1", "cpu:2", "cpu:3"]
    assert devices.session_config(split).device_count["CPU"] == 4
    assert devices.session_config(graphs.config()).device_count["CPU"] == 1


def test_gpu_devices():
    split = dict(mesh_shape="x:2", layout="batch:x")
    for gpu_ids in (["0", "3"], ["device:GPU:0", "device:GPU:3"]):
        names = devices.mesh_impl(graphs.config(gpu_ids=gpu_ids, **split)).devices
        assert [tf.DeviceSpec.from_string(f"/{name}").device_type for name in names] == ["GPU"] * 2
        assert [tf.DeviceSpec.from_string(f"/{name}").device_index for name in names] == [0, 3]
    assert len(devices.mesh_impl(graphs.config(gpu_ids=["1"])).devices) == 1
    with pytest.raises(UserError, match="gpu_ids.*x:2"):
        devices.mesh_impl(graphs.config(gpu_ids=["0"], **split))


def test_slices_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "5")
    devices.prepare(graphs.config(mesh_shape="x:2", layout=""))
    assert os.environ["TF_NUM_INTRAOP_THREADS"] == "5"
    for mesh_shape, share in (("", None), ("x:2", "3"), ("x:2,y:4", "1")):
        monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
        devices.prepare(graphs.config(mesh_shape=mesh_shape, layout=""))
        assert os.environ.get("TF_NUM_INTRAOP_THREADS") == share


def test_absent_gpus_are_refused(monkeypatch):
    split = dict(mesh_shape="x:2", layout="batch:x")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    devices.prepare(graphs.config())
    devices.prepare(graphs.config(gpu_ids=["0"]))
    with pytest.raises(UserError, match="device:GPU:1 is not there; TensorFlow sees 1 GPU:"):
        devices.prepare(graphs.config(gpu_ids=["0", "1"], **split))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    with pytest.raises(UserError, match="gpu_ids: device:GPU:0 is not there; .* sees no"):
        devices.prepare(graphs.config(gpu_ids=["0"]))


def test_slices_lie_where_the_mesh_says():
    config = graphs.config(mesh_shape="x:2,y:2", layout="batch:x,embd:y")
    batch, embd = graphs.dim("batch", 4), graphs.dim("embd", 6)
    array = np.arange(24.0, dtype=np.float32).reshape(4, 6)
    with tf.Graph().as_default():
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        y = graphs.give(mesh, array, batch, embd) * 2.0
        impl = devices.mesh_impl(config)
        lowering = mtf.Lowering(graph, {mesh: impl})
        slices = lowering.tensors[y].to_laid_out_tensor().all_slices
        assert [s.device for s in slices] == [f"/device:CPU:{i}" for i in range(4)]
        with tf.Session(config=devices.session_config(config)) as session:
            assert len([d for d in session.list_devices() if d.device_type == "CPU"]) == 4
            values = session.run(slices)
    quarters = [array[i:i + 2, j:j + 3] * 2 for i in (0, 2) for j in (0, 3)]
    for value, quarter in zip(values, quarters, strict=True):
        np.testing.assert_array_equal(value, quarter)


@pytest.mark.parametrize(("mesh_shape", "layout", "parts"), [
    ("", "", 0), ("x:2", "batch:x", 0), ("x:2,y:2", "batch:x,embd:y", 2), ("x:4", "embd:x", 4)])
def test_each_part_of_a_weight_is_there_once(mesh_shape, layout, parts):
    config = graphs.config(mesh_shape=mesh_shape, layout=layout)
    with tf.Graph().as_default():
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        weight = mtf.get_variable(mesh, "w", mtf.Shape([graphs.dim("embd", 4)])).operation
        impl = devices.mesh_impl(config)
        variable = mtf.Lowering(graph, {mesh: impl}, autostack=False).variables[weight]
        slices = variable.laid_out_tensor.all_slices
        assert len(slices) == impl.size
        assert len({id(s) for s in slices} - {id(weight.get_master())}) == parts
        assert (slices[0] is weight.get_master()) == (parts == 0)


def test_what_is_the_same_in_all_slices_is_computed_once():
    batch, embd = graphs.dim("batch", 4), graphs.dim("embd", 6)
    calls = []

    def double(x):
        calls.append(x)
        return x * 2

    with tf.Graph().as_default():
        impl = devices.CpuMesh(mtf.convert_to_shape("x:2,y:2"),
                               mtf.convert_to_layout_rules("batch:x"))
        array = np.arange(24.0, dtype=np.float32).reshape(4, 6)
        whole = impl.LaidOutTensor(impl.make_slices(tf.constant(array[0]), mtf.Shape([embd])))
        halves = impl.LaidOutTensor(impl.make_slices(tf.constant(array),
                                                     mtf.Shape([batch, embd])))
        results = []
        for x, times in ((whole, 1), (halves, 2), (impl.allreduce(halves, [0], "SUM"), 1)):
            del calls[:]
            results.append(impl.slicewise(double, x).all_slices)
            assert len(calls) == times
        with tf.Session(config=tf.ConfigProto(device_count={"CPU": 4})) as session:
            first, second, third = session.run(results)
    for number in range(4):
        half = array[:2] if number < 2 else array[2:]
        np.testing.assert_array_equal(first[number], array[0] * 2)
        np.testing.assert_array_equal(second[number], half * 2)
        np.testing.assert_array_equal(third[number], (array[:2] + array[2:]) * 2)


def test_collectives_join_slices():
    with tf.Graph().as_default():
        impl = devices.CpuMesh(mtf.convert_to_shape("x:2,y:2"), mtf.convert_to_layout_rules(""))
        values = np.float32([[1, 8], [5, 2], [3, 4], [7, 6]])
        x = impl.LaidOutTensor([tf.constant(v) for v in values])
        results = [impl.allreduce(x, [1], "MAX"), impl.allreduce(x, [0], "MIN"),
                   impl.allreduce(x, [0, 1], "SUM"), impl.allconcat(x, 0, 0)]
        with tf.Session(config=tf.ConfigProto(device_count={"CPU": 4})) as session:
            top, least, total, joined = session.run([r.all_slices for r in results])
    np.testing.assert_array_equal(top, [[5, 8], [5, 8], [7, 6], [7, 6]])
    np.testing.assert_array_equal(least, [[1, 4], [5, 2], [1, 4], [5, 2]])
    np.testing.assert_array_equal(total, [[16, 20]] * 4)
    np.testing.assert_array_equal(joined, [[1, 8, 3, 4], [5, 2, 7, 6]] * 2)


def test_alltoall_exchanges_parts_once():
    with tf.Graph().as_default():
        impl = devices.CpuMesh(mtf.convert_to_shape("x:2,y:2"), mtf.convert_to_layout_rules(""))
        first, second = (tf.constant(np.float32(v)) for v in ([[1, 2], [3, 4]], [[5, 6], [7, 8]]))
        x = impl.LaidOutTensor([first, first, second, second])
        parts = impl.alltoall(x, 0, 1, 0).all_slices
        assert parts[0] is parts[1] and parts[2] is parts[3]
        assert [tf.DeviceSpec.from_string(p.device).device_index for p in parts] == [0, 0, 2, 2]
        with tf.Session(config=tf.ConfigProto(device_count={"CPU": 4})) as session:
            values = session.run([parts[0], parts[2]])
    np.testing.assert_array_equal(values, [[[1], [3], [5], [7]], [[2], [4], [6], [8]]])
