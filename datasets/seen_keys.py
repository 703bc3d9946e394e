"""A set of 64-bit keys in little memory, kept in files for restarts."""

import array
import os
import sys

import tensorflow as tf

SMALLEST = 1 << 16  # slots


class SeenKeys:
    """Keys in an open hash table: 16 to 32 bytes a key, where a Python set takes 70 or more.

    Keys are hashes already, so their low bits are as good a place in the table as any.

    Args:
        directory: where the files of keys go.
        name: what their names begin with.
        parts: how many files an earlier run stored, which are read.
    """

    def __init__(self, directory, name, parts=0):
        self._directory = directory
        self._name = name
        self._parts = 0
        self._count = 0
        self._slots = array.array("Q", bytes(8 * SMALLEST))
        self._fresh = array.array("Q")
        for number in range(parts):
            with tf.io.gfile.GFile(self._path(number), "rb") as file:
                keys = array.array("Q", file.read())
            if sys.byteorder == "big":
                keys.byteswap()
            for key in keys:
                self.add(key)
        self._parts = parts
        self._fresh = array.array("Q")

    def add(self, key):
        """Adds a key; returns whether it was new."""
        key = key or 1  # 0 marks a free slot
        if not self._place(key):
            return False
        self._fresh.append(key)
        self._count += 1
        if 2 * self._count > len(self._slots):
            self._grow()
        return True

    def store(self):
        """Writes the keys that came since the last time; returns the number of files so far."""
        if self._fresh:
            keys = self._fresh[:]
            if sys.byteorder == "big":
                keys.byteswap()
            with tf.io.gfile.GFile(self._path(self._parts), "wb") as file:
                file.write(keys.tobytes())
            self._parts += 1
            self._fresh = array.array("Q")
        return self._parts

    def _path(self, number):
        return os.path.join(self._directory, f"{self._name}_keys{number}.tmp")

    def _place(self, key):
        """Puts a key into the table; returns False if it is there."""
        slots = self._slots
        mask = len(slots) - 1
        place = key & mask
        while (there := slots[place]) != key:
            if not there:
                slots[place] = key
                return True
            place = place + 1 & mask
        return False

    def _grow(self):
        """Doubles the table."""
        old = self._slots
        self._slots = array.array("Q", bytes(16 * len(old)))
        for key in old:
            if key:
                self._place(key)
