"""The TPU compiler, libtpu, through its C interface (PJRT): compiles for TPUs that are not there.

Structures and the table of functions follow xla/pjrt/c/pjrt_c_api.h, which only ever appends to
them. TensorFlow ships version 0.34 of that file; libtpu 0.0.20 speaks 0.73.
"""

import ctypes
import importlib.util
import os
import re

# Places in the table of functions.
_FUNCTIONS = {"Error_Destroy": 0, "Error_Message": 1, "Error_GetCode": 2, "Plugin_Initialize": 3,
              "DeviceDescription_Id": 23, "DeviceDescription_Kind": 26,
              "DeviceDescription_DebugString": 27, "Executable_GetCostAnalysis": 46,
              "Executable_OptimizedProgram": 48, "TopologyDescription_Create": 82,
              "TopologyDescription_GetDeviceDescriptions": 86, "Compile": 89,
              "Executable_GetCompiledMemoryStats": 96}
_TABLE = 40  # bytes before it
OUT_OF_MEMORY = 8
_FLOAT = 3  # a kind of named value
_MEMORY = ("code", "argument", "output", "alias", "temp")

# What libtpu would else ask of the machine that it is on, or write to its disk.
SETTINGS = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
            "TPU_LOG_DIR": "disabled", "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_ACCELERATOR_TYPE": "none"}

_pointer, _size, _int64 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64


class CompileError(Exception):
    """The compiler refused. `code` is 8 where the program does not fit into memory."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def library():
    """The path of libtpu.so, or None if the package is not installed."""
    found = importlib.util.find_spec("libtpu")
    return found and os.path.join(list(found.submodule_search_locations)[0], "libtpu.so")


def _structure(**fields):
    """A structure of the interface, of which each begins with its size and a link."""
    return type("Structure", (ctypes.Structure,), {
        "_fields_": [("struct_size", _size), ("extension", _pointer), *fields.items()]})


_NamedValue = _structure(name=_pointer, name_size=_size, kind=ctypes.c_int, value=ctypes.c_uint64,
                         value_size=_size)
_Program = _structure(code=_pointer, code_size=_size, format=ctypes.c_char_p, format_size=_size)
_Text = _structure(of=_pointer, text=_pointer, size=_size)


class Compiler:
    """libtpu, loaded into this process.

    Args:
      path: of libtpu.so.
    """

    def __init__(self, path):
        os.environ.update(SETTINGS)
        loaded = ctypes.CDLL(path)
        loaded.GetPjrtApi.restype = _pointer
        self._api = loaded.GetPjrtApi()
        self.call("Plugin_Initialize", _structure()())

    def topology(self, name):
        """A Topology by libtpu's name of it, such as "v3:2x2"."""
        encoded = name.encode()
        made = self.call("TopologyDescription_Create", _structure(
            name=ctypes.c_char_p, size=_size, options=_pointer, number=_size, topology=_pointer)(
                name=encoded, size=len(encoded)))
        listed = self.call("TopologyDescription_GetDeviceDescriptions", _structure(
            topology=_pointer, devices=_pointer, number=_size)(topology=made.topology))
        devices = (_pointer * listed.number).from_address(listed.devices)
        return Topology(self, made.topology, devices)

    def compile(self, module, topology, cores):
        """Compiles a serialised HloModuleProto for the first `cores` cores of a Topology.

        Returns:
          an Executable.

        Raises:
          CompileError: the compiler's reason.
        """
        options = _compile_options(topology.ids[:cores])
        program = _Program(code_size=len(module), format=b"hlo", format_size=3,
                           struct_size=ctypes.sizeof(_Program))
        held = ctypes.create_string_buffer(module, len(module))
        program.code = ctypes.cast(held, _pointer)
        made = self.call("Compile", _structure(
            topology=_pointer, program=_pointer, options=ctypes.c_char_p, options_size=_size,
            client=_pointer, executable=_pointer)(
                topology=topology.handle, program=ctypes.addressof(program), options=options,
                options_size=len(options)))
        return Executable(self, made.executable)

    def text(self, function, of):
        """What a function of one object says of it."""
        answer = self.call(function, _Text(of=of))
        return ctypes.string_at(answer.text, answer.size).decode("utf-8", "replace")

    def number(self, function, of):
        """The number that a function gives of one object."""
        return self.call(function, _structure(of=_pointer, number=ctypes.c_int)(of=of)).number

    def call(self, name, arguments):
        """Calls a function with a structure, which it fills in.

        Raises:
          CompileError: the function's error.
        """
        error = self._run(name, arguments)
        if error:
            code = self.number("Error_GetCode", error)
            words = _Text(of=error)
            self._run("Error_Message", words)
            message = ctypes.string_at(words.text, words.size).decode("utf-8", "replace")
            self._run("Error_Destroy", _structure(of=_pointer)(of=error))
            raise CompileError(code, message)
        return arguments

    def _run(self, name, arguments):
        """The same; gives what the function returns, which is nothing of some of them."""
        arguments.struct_size = ctypes.sizeof(arguments)
        place = self._api + _TABLE + ctypes.sizeof(_pointer) * _FUNCTIONS[name]
        function = ctypes.CFUNCTYPE(_pointer, _pointer)(_pointer.from_address(place).value)
        return function(ctypes.addressof(arguments))


class Topology:
    """The cores of a TPU slice, in the order of their coordinates.

    Attributes:
      kind: such as "TPU v3".
      ids: of the cores, by which the compiler knows them.
      coordinates: (x, y, z, number on its chip) of each.
    """

    def __init__(self, compiler, handle, devices):
        self.handle = handle
        self.kind = compiler.text("DeviceDescription_Kind", devices[0])
        found = []
        for device in devices:
            # TPU_5(process=0,(0,1,0,1))
            text = compiler.text("DeviceDescription_DebugString", device)
            x, y, z, core = map(int, re.search(r"\((\d+),(\d+),(\d+),(\d+)\)", text).groups())
            found.append((z, y, x, core, compiler.number("DeviceDescription_Id", device)))
        self.ids = [row[-1] for row in sorted(found)]
        self.coordinates = [(x, y, z, core) for z, y, x, core, _ in sorted(found)]


class Executable:
    """A compiled program."""

    def __init__(self, compiler, handle):
        self._compiler, self._handle = compiler, handle

    def memory(self):
        """Bytes in a core's memory: {"argument": …, "output", "alias", "temp", "code"}."""
        fields = dict.fromkeys(_MEMORY, _int64) | dict.fromkeys(
            (f"host_{name}" for name in _MEMORY), _int64)
        found = self._compiler.call("Executable_GetCompiledMemoryStats",
                                    _structure(of=_pointer, **fields)(of=self._handle))
        return {name: getattr(found, name) for name in _MEMORY}

    def costs(self):
        """The compiler's own analysis, of one core: {"flops": …, "bytes accessed": …, …}."""
        found = self._compiler.call("Executable_GetCostAnalysis", _structure(
            of=_pointer, number=_size, values=_pointer)(of=self._handle))
        costs = {}
        for value in (_NamedValue * found.number).from_address(found.values):
            if value.kind == _FLOAT:
                name = ctypes.string_at(value.name, value.name_size).decode()
                costs[name] = ctypes.c_float.from_buffer_copy(
                    value.value.to_bytes(8, "little")).value
        return costs

    def optimized(self):
        """The program as it will run: a serialised HloModuleProtoWithConfig."""
        program = _Program(struct_size=ctypes.sizeof(_Program))
        ask = _structure(of=_pointer, program=_pointer)(of=self._handle,
                                                        program=ctypes.addressof(program))
        self._compiler.call("Executable_OptimizedProgram", ask)
        held = ctypes.create_string_buffer(program.code_size)
        program.code = ctypes.cast(held, _pointer)
        self._compiler.call("Executable_OptimizedProgram", ask)
        return held.raw


def _compile_options(devices):
    """A serialised xla.CompileOptionsProto: one replica of the program on each of the devices."""
    replicas = len(devices)
    assignment = (_field(1, replicas) + _field(2, 1)
                  + _field(3, _field(1, b"".join(map(_varint, devices)))))
    build = _field(1, -1) + _field(4, replicas) + _field(5, 1) + _field(9, assignment)
    return _field(3, build)


def _field(number, value):
    """A field of a protocol buffer: an integer, or bytes."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(number):
    number &= (1 << 64) - 1
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes(found + bytes([number]))
