"""mesh/devices.py: which devices a mesh gets, and that tensors really lie there."""

import graphs
import numpy as np
import pytest

from configs.errors import UserError
from mesh import devices
from mesh.compat import mtf, tf


def test_cpu_devices():
    assert devices.device_names(graphs.config()) == [""]
    split = graphs.config(mesh_shape="x:2,y:2", layout="batch:x")
    assert devices.device_names(split) == ["cpu:0", "cpu:1", "cpu:2", "cpu:3"]
    assert devices.session_config(split).device_count["CPU"] == 4
    assert devices.session_config(graphs.config()).device_count["CPU"] == 1


def test_gpu_devices():
    split = dict(mesh_shape="x:2", layout="batch:x")
    for gpu_ids in (["0", "3"], ["device:GPU:0", "device:GPU:3"]):
        names = devices.device_names(graphs.config(gpu_ids=gpu_ids, **split))
        assert [tf.DeviceSpec.from_string(f"/{name}").device_type for name in names] == ["GPU"] * 2
        assert [tf.DeviceSpec.from_string(f"/{name}").device_index for name in names] == [0, 3]
    assert len(devices.device_names(graphs.config(gpu_ids=["1"]))) == 1
    with pytest.raises(UserError, match="gpu_ids.*x:2"):
        devices.device_names(graphs.config(gpu_ids=["0"], **split))


def test_absent_gpus_are_refused(monkeypatch):
    split = dict(mesh_shape="x:2", layout="batch:x")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    devices.check_present(graphs.config())
    devices.check_present(graphs.config(gpu_ids=["0"]))
    with pytest.raises(UserError, match="device:GPU:1 is not there; TensorFlow sees 1 GPU:"):
        devices.check_present(graphs.config(gpu_ids=["0", "1"], **split))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    with pytest.raises(UserError, match="gpu_ids: device:GPU:0 is not there; .* sees no"):
        devices.check_present(graphs.config(gpu_ids=["0"]))


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


def test_one_device_has_no_second_copy_of_the_weights():
    config = graphs.config()
    with tf.Graph().as_default():
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        weight = mtf.get_variable(mesh, "w", mtf.Shape([graphs.dim("embd", 4)])).operation
        impl = devices.mesh_impl(config)
        variable = mtf.Lowering(graph, {mesh: impl}).variables[weight]
        assert variable.laid_out_tensor.all_slices == [weight.get_master()]
