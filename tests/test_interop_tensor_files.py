"""interop/tensor_files.py: what is read equals what PyTorch wrote; hostile files do nothing."""

import os
import zipfile

import numpy as np
import pytest

from configs.errors import UserError
from interop import tensor_files

torch = pytest.importorskip("torch", reason="writes PyTorch's files")
safetensors = pytest.importorskip("safetensors.torch", reason="writes safetensors files")

TENSORS = {
    "a": torch.arange(12.0).reshape(3, 4), "a.half": torch.linspace(-2, 2, 7).half(),
    "brain": torch.linspace(-3, 3, 5).bfloat16(), "double": torch.ones(2, 2).double() / 3,
    "long": torch.arange(5), "byte": torch.arange(4).to(torch.uint8), "scalar": torch.tensor(77),
    "bool": torch.tensor([True, False]), "none": torch.zeros(0, 3),
}


def read_all(path):
    """{name: values} of every tensor in a file."""
    return {name: stored.read() for name, stored in tensor_files.read(str(path)).tensors.items()}


def assert_equal(found, tensors):
    assert set(found) == set(tensors)
    for name, t in tensors.items():
        t = t.detach()
        expected = (t.float() if t.dtype in (torch.half, torch.bfloat16) else t).numpy()
        assert found[name].shape == expected.shape and found[name].dtype == expected.dtype, name
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


def rewrite(source, target, change):
    """Copies a PyTorch file with other contents: change(name, data) -> data."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename.partition("/")[2], old.read(info)))


class Scripted(torch.nn.Module):
    """A module inside of a module."""

    def __init__(self, depth):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(3.0) + depth)
        self.register_buffer("count", torch.tensor(depth))
        self.inner = Scripted(depth - 1) if depth else torch.nn.Identity()

    def forward(self, x: torch.Tensor):
        return self.inner(x) * self.weight


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_every_type_reads_as_it_was_written(tmp_path, kind):
    if kind == "torch":
        torch.save(TENSORS, tmp_path / "file")
    else:
        safetensors.save_file(TENSORS, tmp_path / "file")
    file = tensor_files.read(str(tmp_path / "file"))
    assert (file.kind, file.nested) == (kind, False)
    assert {name: s.shape for name, s in file.tensors.items()} == {
        name: tuple(t.shape) for name, t in TENSORS.items()}
    assert_equal(read_all(tmp_path / "file"), TENSORS)


def test_views_parameters_and_shared_storages(tmp_path):
    whole = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {"whole": whole, "turned": whole.permute(2, 0, 1), "row": whole[1, 2],
               "steps": whole.flatten()[1::5], "parameter": torch.nn.Parameter(whole[0])}
    torch.save(tensors, tmp_path / "file")
    assert_equal(read_all(tmp_path / "file"), tensors)


def test_a_training_checkpoint_and_a_torchscript_archive(tmp_path):
    torch.save({"epoch": 1, "state_dict": TENSORS, "optimizer": {0: torch.ones(1)}},
               tmp_path / "file")
    assert tensor_files.read(str(tmp_path / "file")).nested
    assert_equal(read_all(tmp_path / "file"), TENSORS)
    module = Scripted(2).eval()
    torch.jit.save(torch.jit.script(module), str(tmp_path / "archive"))
    assert tensor_files.read(str(tmp_path / "archive")).kind == "torchscript"
    assert_equal(read_all(tmp_path / "archive"), module.state_dict())


def test_a_big_endian_machines_file(tmp_path):
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2).bfloat16() / 3}
    torch.save(tensors, tmp_path / "little")
    sizes = {"data/0": 4, "data/1": 2}

    def swap(name, data):
        if name == "byteorder":
            return b"big"
        return (np.frombuffer(data, f"<u{sizes[name]}").byteswap().tobytes() if name in sizes
                else data)

    rewrite(tmp_path / "little", tmp_path / "big", swap)
    assert_equal(read_all(tmp_path / "big"), tensors)


class Hostile:
    """Runs a command when it is unpickled without care."""

    def __init__(self, marker):
        self._marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self._marker),)


def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path):
    marker = tmp_path / "ran"
    torch.save({**TENSORS, "x": Hostile(marker)}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"bad.pt: refused: it asks to load (posix|nt).mkdir"):
        tensor_files.read(str(tmp_path / "bad.pt"))
    assert not marker.exists()
    # The same file does run the command where pickles are trusted.
    torch.load(tmp_path / "bad.pt", weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("name", ["builtins eval", "torch load", "torch._utils _import_dotted_name",
                                  "torch.storage _load_from_bytes", "collections Counter"])
def test_only_what_tensors_are_made_of_can_be_named(tmp_path, name):
    module, _, attribute = name.partition(" ")
    code = b"c" + f"{module}\n{attribute}\n".encode() + b"(X\x01\x00\x00\x001tR."
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        archive.writestr("bad/data.pkl", code)
    with pytest.raises(UserError, match=f"asks to load {module}.{attribute}"):
        tensor_files.read(str(tmp_path / "bad.pt"))


@pytest.mark.parametrize("claimed, message", [
    (1599, "outside of its storage"), (65535, "data/0 is too short")])
def test_a_tensor_outside_of_its_storage_is_refused(tmp_path, claimed, message):
    """A view of it would show other memory."""
    torch.save({"a": torch.ones(50, 32)}, tmp_path / "good")
    size, other = (b"M" + np.uint16(n).tobytes() for n in (1600, claimed))

    def claim(name, data):
        assert name != "data.pkl" or data.count(size) == 1
        return data.replace(size, other) if name == "data.pkl" else data

    rewrite(tmp_path / "good", tmp_path / "bad", claim)
    with pytest.raises(UserError, match=f"bad: damaged: .*{message}"):
        read_all(tmp_path / "bad")


@pytest.mark.parametrize("kind", ["torch", "safetensors", "archive"])
def test_every_truncation_is_one_line(tmp_path, kind):
    whole = tmp_path / "whole"
    if kind == "torch":
        torch.save(TENSORS, whole)
    elif kind == "safetensors":
        safetensors.save_file(TENSORS, whole)
    else:
        torch.jit.save(torch.jit.script(Scripted(1).eval()), str(whole))
    data = whole.read_bytes()
    random = np.random.RandomState(0)
    for size in [0, 1, 7, 8, 20, *random.randint(21, len(data), 12), len(data) - 1]:
        (tmp_path / "short").write_bytes(data[:size])
        with pytest.raises(UserError) as caught:
            read_all(tmp_path / "short")
        assert "short" in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_values_are_noticed(tmp_path):
    torch.save(TENSORS, tmp_path / "good")
    data = (tmp_path / "good").read_bytes()
    where = data.index(torch.arange(12.0).numpy().tobytes())
    (tmp_path / "bad").write_bytes(data[:where] + b"\xff" + data[where + 1:])
    with pytest.raises(UserError, match="bad: damaged: Bad CRC-32"):
        read_all(tmp_path / "bad")


def test_random_damage_to_the_pickle_never_escapes(tmp_path):
    """Whatever a byte becomes, the file is read or refused by one line."""
    torch.save(TENSORS, tmp_path / "good")
    random, refused = np.random.RandomState(1), 0

    def damage(name, data):
        data = bytearray(data)
        if name == "data.pkl":
            data[random.randint(len(data))] = random.randint(256)
        return bytes(data)

    for _ in range(200):
        rewrite(tmp_path / "good", tmp_path / "bad", damage)
        try:
            read_all(tmp_path / "bad")
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


def test_files_of_other_kinds(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(UserError, match="file: no such file"):
        tensor_files.read(str(path))
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="file: holds no state dict but a list"):
        tensor_files.read(str(path))
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="file: written by PyTorch before 1.6"):
        tensor_files.read(str(path))
    path.write_bytes(b"\x80\x04N.")
    with pytest.raises(UserError, match="file: neither a PyTorch zip file nor safetensors"):
        tensor_files.read(str(path))
    torch.save(TENSORS, tmp_path / "good")
    with zipfile.ZipFile(tmp_path / "good") as good:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
            for info in good.infolist():
                bomb.writestr(info.filename, good.read(info))
    with pytest.raises(UserError, match="file: byteorder is compressed"):
        tensor_files.read(str(path))
