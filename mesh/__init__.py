"""Devices, mesh shapes, layouts and lowering: everything that knows where tensors lie."""
