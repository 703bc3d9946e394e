"""Has a port of this process answer at the addresses that it is told, and at no other.

TensorFlow's server binds to all of a machine's addresses, whatever it is given. Linux lets any
program attach a filter to its own sockets, which sees each packet before TCP does and drops it or
not: socket(7), SO_ATTACH_FILTER; its instructions are those of linux/filter.h.
"""

import contextlib
import ctypes
import os
import socket
import struct
import sys
from ipaddress import ip_address

SO_ATTACH_FILTER = 26  # on all machines that TensorFlow 2.15 has a wheel for
# Where the header of IPv4 or IPv6 is, from a filter that a socket of TCP has.
_HEADER = 0xFFF00000
# Instructions: load a byte or four, shift to the right, compare, return how much to keep.
_BYTE, _WORD, _SHIFT, _EQUAL, _RETURN = 0x30, 0x20, 0x74, 0x15, 0x06


def addresses(host):
    """The addresses of this machine that a name or an address stands for, as a bind takes them.

    Raises:
      OSError: there is no such name, or this machine has no such address.
    """
    found = {entry[4][0] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    for address in found:
        kind = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    return sorted(found)


def close(port, to):
    """Drops what comes to a port of this process at other addresses than some.

    To be called when it listens and serves nobody yet: who has connected before is cut off.

    Args:
      port: its number.
      to: addresses that stay open.

    Raises:
      OSError: this system has no such filters, or nothing of this process listens there.
    """
    if sys.platform != "linux":
        raise OSError("only Linux can close a port to other addresses")
    program = _program([ip_address(address) for address in to])
    code = ctypes.create_string_buffer(program)
    attached = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    listening = 0
    for number in os.listdir("/proc/self/fd"):
        with _socket_at(int(number)) as own:
            if not own or own.getsockname()[1:2] != (port,):
                continue
            own.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, attached)
            if own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                listening += 1
                _drain(own)
    if not listening:
        raise OSError(f"nothing of this process listens on port {port}")


@contextlib.contextmanager
def _socket_at(number):
    """A context with a socket.socket for what is at a file descriptor; None if it is no socket."""
    try:
        number = os.dup(number)
    except OSError:  # closed meanwhile
        yield None
        return
    try:
        own = socket.socket(fileno=number)
    except OSError:
        os.close(number)
        yield None
        return
    with own:
        yield own if own.family in (socket.AF_INET, socket.AF_INET6) else None


def _drain(listening):
    """Cuts off who has connected before the filter was there."""
    while True:
        try:
            listening.accept()[0].close()
        except BlockingIOError:
            return


def _program(to):
    """The filter's instructions: keep a packet to one of the addresses whole, drop all others."""
    parts = [_step(_BYTE, _HEADER), _step(_SHIFT, 4)]
    for version, begins in ((4, 16), (6, 24)):  # where the destination's address begins
        tests = b""
        for address in to:
            if address.version == version:
                words = struct.unpack(f"!{len(address.packed) // 4}I", address.packed)
                for place, word in enumerate(words):
                    left = 2 * (len(words) - place) - 1  # instructions of this address after these
                    tests += _step(_WORD, _HEADER + begins + 4 * place)
                    tests += _step(_EQUAL, word, no=left)
                tests += _step(_RETURN, 0xFFFFFFFF)
        tests += _step(_RETURN, 0)
        parts += [_step(_EQUAL, version, no=len(tests) // 8), tests]
    return b"".join([*parts, _step(_RETURN, 0)])


def _step(code, value, no=0):
    """One instruction; a comparison that fails leaves `no` instructions out."""
    return struct.pack("=HBBI", code, 0, no, value)
