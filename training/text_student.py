"""The objective of a student of texts alone: a control, which sees neither a picture nor CLIP.

It asks whether a GPT-C gains by what CLIP knows of looks, or by what any student would have read in
the same texts. The student is a language model whose scores are made of its outputs.
"""

from models import losses
from training.language import Language


class TextStudent(Language):
    """Next-token prediction, from outputs that are standardised per dimension.

    Outputs of a student of CLIP have a mean of 0 and a variance of 1 over the text, since its
    targets have, and a GPT-C compares angles between them, or hears them, as they are. The term
    `moments` asks the same of this one. It costs the prediction nothing, since the head that
    follows can undo any scale and shift of a dimension.
    """

    shown = (*Language.shown, "loss/moments")
    positions = "clip_sequence"

    def terms(self, ctx, inputs):
        """{"lm": in nats, "moments": by which mean and variance are off}."""
        self.model.student.statistics(ctx, 0.0, 1.0)  # for who brings outputs back to embeddings
        outputs = self.model.hidden(ctx, inputs["tokens"])
        return {"lm": losses.language_model(self.model, ctx, outputs, inputs["targets"],
                                            inputs["mask"]),
                "moments": losses.moments(outputs, inputs["mask"], self.model.student.out)}

    def features(self, mesh, features, step):
        """See Language."""
        given, counts = super().features(mesh, features, step)
        return given, counts | {"moments": counts["lm"]}

    def scores(self, ctx, inputs):
        """The same as the terms."""
        return {name: (total, name) for name, total in self.terms(ctx, inputs).items()}

    def report(self, means, facts):
        """Language's, and the loss of the moments, which is no part of eval_loss."""
        return {**super().report(means, facts), "loss/moments": float(means["moments"])}
