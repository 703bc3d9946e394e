"""mesh/fence.py: at which addresses a port answers, asked by sockets of the system."""

import contextlib
import socket
import struct

import numpy as np
import pytest

from configs.cluster import Cluster
from mesh import cluster, fence
from mesh.compat import tf

# All of Linux's loopback answers to whoever listens on all addresses.
HERE, THERE = "127.0.0.1", "127.0.0.2"


def answers(address, port):
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def everywhere():
    """A socket that listens on all addresses, and its port."""
    with socket.create_server(("", 0)) as server:
        server.setblocking(False)
        yield server, server.getsockname()[1]


@pytest.mark.parametrize("to", [[HERE], [THERE], [HERE, THERE], ["127.0.0.3", THERE]],
                         ids="-".join)
def test_a_port_answers_where_it_is_told_alone(to):
    with everywhere() as (_server, port):
        assert answers(HERE, port) and answers(THERE, port)
        fence.close(port, to)
        assert [answers(address, port) for address in (HERE, THERE)] == [
            address in to for address in (HERE, THERE)]


def test_who_has_connected_before_is_cut_off():
    with everywhere() as (server, port), socket.create_connection((THERE, port)) as waiting:
        with socket.create_connection((THERE, port)) as accepted:
            fence.close(port, [HERE])
            for early in (waiting, accepted):
                early.settimeout(30)
                with contextlib.suppress(ConnectionResetError):
                    assert early.recv(1) == b""
        with pytest.raises(BlockingIOError):
            server.accept()


def test_nothing_listens_there():
    with everywhere() as (_server, port):
        pass
    with pytest.raises(OSError, match="nothing of this process listens"):
        fence.close(port, [HERE])


def run(program, packet):
    """What a filter says of a packet that begins with an IP header, by linux/filter.h."""
    at, accumulator = 0, 0
    steps = list(struct.iter_unpack("=HBBI", program))
    while True:
        code, yes, no, value = steps[at]
        at += 1
        place = value - 0xFFF00000
        if code == 0x30:
            accumulator = packet[place]
        elif code == 0x20:
            accumulator = int.from_bytes(packet[place:place + 4], "big")
        elif code == 0x74:
            accumulator >>= value
        elif code == 0x15:
            at += yes if accumulator == value else no
        else:
            assert code == 0x06
            return value


def packet(address):
    address = fence.ip_address(address)
    before = b"\x45" + bytes(15) if address.version == 4 else b"\x60" + bytes(23)
    return before + address.packed + bytes(20)


def test_addresses_of_both_versions():
    """IPv6 is not on every machine: the filter is run here."""
    some = ["10.0.0.2", "127.0.0.1", "fd00::2", "fd00::1:2", "::1"]
    others = ["10.0.0.3", "10.0.1.2", "fd00::3", "fd00:0:0:1::2", "fd01::2", "::"]
    for count in range(len(some) + 1):
        program = fence._program([fence.ip_address(address) for address in some[:count]])
        kept = [address for address in some + others if run(program, packet(address))]
        assert kept == some[:count]
        assert run(program, bytes(40)) == 0


def test_a_server_of_tensorflow_answers_where_it_is_told():
    with everywhere() as (_server, port):
        pass
    proto = tf.ConfigProto()
    told = Cluster((f"{HERE}:{port}",), 0, "CPU", "c.json")
    server = cluster._serve(told, 1, proto)
    assert [answers(address, port) for address in (HERE, THERE)] == [True, False]
    # By the network, as another process would.
    with tf.Graph().as_default(), tf.Session(f"grpc://{HERE}:{port}") as session:
        with tf.device(f"/job:{cluster.JOB}/task:0"):
            total = tf.reduce_sum(tf.range(10))
        np.testing.assert_equal(session.run(total), 45)
    assert server.target
