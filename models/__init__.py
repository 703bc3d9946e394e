"""Mesh TensorFlow models: functions of mtf tensors that know no device, file or session."""
