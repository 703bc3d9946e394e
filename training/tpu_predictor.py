"""Sampling on a TPU: one program for all cores, which reads the prompts and samples new tokens.

Between its runs nothing but the weights stays on the TPU. Each run fills the caches anew from the
rows' tokens, of which a forward pass costs a TPU little beside the new tokens, one by one.
"""

from mesh import devices
from mesh.compat import mtf, tf
from models import layers, sampling
from training import language_models
from training.predictor import CHUNK, Predictor, feeds, on_mesh


class TpuPredictor(Predictor):
    """A Predictor whose model is on a TPU.

    Args:
      config: the run's config.
      encoder: the encoder of its weights.
      tpu: a mesh.cloud.Tpu.
    """

    def __init__(self, config, encoder, tpu):
        self._master, self._session_config = tpu.resolver.master(), tf.ConfigProto(
            allow_soft_placement=True, isolate_session_state=True)
        self._session_config.cluster_def.CopyFrom(tpu.resolver.cluster_spec().as_cluster_def())
        with tf.Graph().as_default(), self._open_session() as session:
            topology = session.run(tf.tpu.initialize_system())
        self._assignment = tf.tpu.experimental.DeviceAssignment.build(topology,
                                                                      num_replicas=tpu.cores)
        super().__init__(config, encoder)

    def _open_session(self):
        return tf.Session(self._master, config=self._session_config)

    def _build(self):
        self._feeds = feeds(self.config, self._rows)
        lowerings = []

        def program(*given):
            mesh = mtf.Mesh(mtf.Graph(), "mesh")
            tokens = new_tokens(self.config, self.encoder, mesh,
                                dict(zip(self._feeds, given, strict=True)))
            lowerings.append(mtf.Lowering(mesh.graph, {
                mesh: devices.tpu_mesh_impl(self.config, self._assignment)}, autostack=False))
            return lowerings[0].export_to_tf_tensor(tokens)

        cores = self._assignment.num_replicas
        outputs = tf.tpu.replicate(program, [list(self._feeds.values())] * cores,
                                   device_assignment=self._assignment)
        self._new_tokens, self._keep_op = outputs[0][0], tf.no_op()
        self._start_op = tf.group(lowerings[0].copy_masters_to_slices())
        self._frozen_op, self._clear_op = tf.local_variables_initializer(), tf.no_op()
        return tf.global_variables()

    def _fill(self, values):
        self._prompts = values

    def _run_decoder(self, values):
        return super()._run_decoder({**self._prompts, **values})

    def _reach(self, used):
        return {}

    def _prefill_due(self, slides):
        return True


def new_tokens(config, encoder, mesh, given):
    """Up to CHUNK new tokens of each row: int32 [batch, chunk], -1 where there is none.

    Args:
      config: the run's config.
      encoder: the encoder of its weights.
      mesh: an mtf.Mesh, of which nothing is built yet.
      given: {name: tf tensor} of all that predictor.feeds has.
    """
    ctx = layers.Context(mesh, config, fixed=True)
    model = language_models.build(config, encoder.n_vocab)
    values = on_mesh(mesh, given)
    caches = sampling.prefill(model, ctx, values.pop("tokens"), values.pop("lengths"))
    settings = sampling.Settings(*(values.pop(name) for name in
                                   ("temperature", "top_k", "top_p", "seed")))
    return sampling.decode(model, ctx, caches=caches, size=CHUNK, eos_id=encoder.eos_id,
                           n_valid=encoder.n_vocab, settings=settings, **values)[0]
