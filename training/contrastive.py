"""The objective of CLIP: pictures and their captions find each other in a batch."""

from configs.schema import RunConfig
from mesh.compat import tf
from models import clip, clip_image, similarity
from training.objective import Objective


def text_sizes(config):
    """The models.clip.ClipSizes of a config of model clip."""
    names = {value: key for key, value in clip.ACTIVATIONS.items()}
    return clip.ClipSizes(
        width=config.n_embd, layers=config.n_layer, heads=config.n_head, context=config.n_ctx,
        vocab=config.n_vocab_padded, out=config.clip_out,
        activation=names[config.activation_function], epsilon=config.layer_norm_epsilon,
        start_id=config.n_vocab - 2, end_id=config.n_vocab - 1)


def config_of(sizes, about, model_path):
    """The RunConfig of a text tower alone, of models.clip.ClipSizes; its keys of training are there
    because they have to be.
    """
    return RunConfig.model_validate(dict(
        about=about, model="clip", n_layer=sizes.layers, n_head=sizes.heads, n_embd=sizes.width,
        n_ctx=sizes.context, n_vocab=sizes.vocab, layer_norm_epsilon=sizes.epsilon,
        activation_function=clip.ACTIVATIONS[sizes.activation], clip={"out": sizes.out},
        train_batch_size=1, train_steps=1, lr=0.0, model_path=model_path))


def image_sizes(config):
    """The models.clip_image.ImageSizes of a config of model clip."""
    keys = config.clip
    return clip_image.ImageSizes(
        kind=keys.image_tower, side=keys.image_size, out=config.clip_out,
        channels=tuple(keys.image_channels), pool=keys.image_pool, patch=keys.image_patch,
        width=keys.image_width, layers=keys.image_layers, heads=keys.image_heads)


def centred(images):
    """Pictures of uint8 as the image tower takes them: float32 from −1 to 1."""
    return tf.cast(images, tf.float32) / 127.5 - 1.0


class Contrastive(Objective):
    """Symmetric InfoNCE over a batch, with a learned temperature (Radford et al. 2021, 2.3)."""

    shown = ("caption_to_picture", "picture_to_caption")

    def __init__(self, config, facts, frozen=None):
        super().__init__(config, facts, frozen)
        self.text = clip.TextTower(text_sizes(config), recompute=config.recompute_grad)
        self.image = clip_image.tower(image_sizes(config))

    def features(self, mesh, features, step):
        """images, tokens, ends and mask; counts {"contrastive"}: pictures."""
        del step
        valid = tf.cast(features["valid"], tf.float32)
        pixels = [dim.name for dim in self.image.sizes.pixels()]
        inputs = self.import_rows(mesh, {
            "images": (centred(features["images"]), ["batch", *pixels]),
            "tokens": (features["tokens"], ["batch", "clip_sequence"]),
            "ends": (features["ends"], ["batch"]), "mask": (valid, ["batch"])})
        return inputs, {"contrastive": tf.reduce_sum(valid)}

    def terms(self, ctx, inputs):
        """{"contrastive": in nats}."""
        pictures, texts = self._embeddings(ctx, inputs)
        return {"contrastive": clip.contrastive_loss(pictures, texts, clip.logit_scale(ctx),
                                                     inputs["mask"])}

    def scores(self, ctx, inputs):
        """The loss, and how often each finds its own among all of the batch."""
        pictures, texts = self._embeddings(ctx, inputs)
        mask = inputs["mask"]
        loss = clip.contrastive_loss(pictures, texts, clip.logit_scale(ctx), mask)
        return {"contrastive": (loss, "contrastive"),
                "caption_to_picture": (similarity.found(texts, pictures, mask), "contrastive"),
                "picture_to_caption": (similarity.found(pictures, texts, mask), "contrastive")}

    def report(self, means, facts):
        """eval_loss, and retrieval@1 among eval_batch_size pairs in both directions."""
        del facts
        loss = float(means["contrastive"])
        return {"eval_loss": loss, "loss/contrastive": loss,
                **{name: float(means[name]) for name in self.shown}}

    def _embeddings(self, ctx, inputs):
        return (self.image.embed(ctx, inputs["images"]),
                self.text.embed(ctx, inputs["tokens"], inputs["ends"]))
