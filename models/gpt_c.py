"""GPT-C's input variant: a frozen CLIP student's outputs join the input of the first block."""

import dataclasses

from mesh.compat import mtf, tf
from models import gpt, layers


class GPTWithStudent(gpt.GPT):
    """A GPT that hears at each token what the student says of the text up to it.

    The first block's input is the sum of the normalised embeddings and a projection of the
    student's outputs; neither drowns the other.

    Args:
      config: a configs.schema.RunConfig.
      n_valid: how many of the vocabulary's ids the encoder has.
      student: a models.clip_student.Student.
      stored: where its weights come from; see models.layers.Context.
    """

    def __init__(self, config, n_valid, student, stored):
        super().__init__(config, n_valid)
        self.student, self._stored = student, stored

    def states(self, ctx, tokens, join=None):
        """See GPT.states."""
        batch, sequence = tokens.shape.dims
        # The student's attention needs whole rows, which a layout may have split.
        whole = mtf.Dimension("clip_sequence", sequence.size)
        said = self.student.outputs(self._frozen(ctx),
                                    mtf.replace_dimensions(tokens, sequence, whole))
        said = mtf.replace_dimensions(said, whole, sequence)
        return super().states(ctx, tokens, self._joining(said))

    def hidden_incremental(self, ctx, tokens, index, caches, count=None, join=None):
        """See GPT.hidden_incremental."""
        own = self.config.n_layer
        said, heard = self.student.outputs_incremental(self._frozen(ctx), tokens, index,
                                                       caches[own:])
        hidden, new = super().hidden_incremental(ctx, tokens, index, caches[:own], count,
                                                 self._joining(said))
        return hidden, new + heard

    def empty_caches(self, ctx, batch, length):
        """The GPT's caches, and then the student's."""
        return (super().empty_caches(ctx, batch, length)
                + self.student.empty_caches(ctx, batch, length))

    def _frozen(self, ctx):
        return dataclasses.replace(ctx, stored=self._stored, dropout_key=None)

    def _joining(self, said):
        said = mtf.stop_gradient(said)

        def join(ctx, x):
            with tf.variable_scope("clip_input"):
                x = layers.layer_norm(ctx, x, self.embd, "norm")
                return x + layers.dense(ctx, said, [self.student.out], [self.embd], "projection",
                                        self.student.out.size ** -0.5)

        return join
