"""CLIP's image towers: a small convolutional network, and a vision transformer.

They embed pictures where models.clip embeds texts. Of the convolutional tower's dimensions only
`batch` may be split; of the transformer's also `clip_image_embd`, `clip_image_heads` and
`clip_image_intermediate`; of both's `clip_out`.
"""

import dataclasses

import numpy as np

from configs.errors import UserError
from mesh import ops
from mesh.compat import mtf, tf
from mesh.slices import local
from models import attention, clip, layers

# Features that share a mean and a variance in group normalisation.
_GROUP = 8


@dataclasses.dataclass(frozen=True)
class ImageSizes:
    """The architecture of an image tower.

    Attributes:
      kind: "conv" or "vit".
      side: pixels of a side; pictures are square.
      out: width of the embeddings, which texts share.
      channels: (conv) features after each convolution, which halves the side; multiples of 8.
      pool: (conv) what is projected: "mean" over the places of the last features, or "flatten":
        all of them, which tells where things are.
      patch: (vit) pixels of a patch's side; it divides `side`.
      width: (vit) of the residual stream.
      layers: (vit) number of blocks.
      heads: (vit) attention heads of a block; they divide the width.
      activation: (vit) "quick_gelu" or "gelu", the exact one.
      epsilon: of the norms.
    """

    kind: str = "conv"
    side: int = 32
    out: int = 512
    channels: tuple = (32, 64, 128)
    pool: str = "mean"
    patch: int = 8
    width: int = 64
    layers: int = 2
    heads: int = 4
    activation: str = "quick_gelu"
    epsilon: float = 1e-5

    def __post_init__(self):
        object.__setattr__(self, "channels", tuple(self.channels))
        if self.kind not in TOWERS:
            raise UserError(f"CLIP: image tower {self.kind!r} is not one of {', '.join(TOWERS)}")
        if self.kind == "conv" and (not self.channels or any(c % _GROUP for c in self.channels)):
            raise UserError(f"CLIP: channels {list(self.channels)} must be multiples of {_GROUP}")
        if self.pool not in ("mean", "flatten"):
            raise UserError(f"CLIP: pool {self.pool!r} is not one of mean, flatten")
        if self.kind == "vit" and self.side % self.patch:
            raise UserError(f"CLIP: patches of {self.patch} do not divide pictures of {self.side}")
        if self.kind == "vit" and self.width % self.heads:
            raise UserError(f"CLIP: {self.heads} heads do not divide the image tower's width "
                            f"{self.width}")
        if self.activation not in clip.ACTIVATIONS:
            raise UserError(f"CLIP: activation {self.activation!r} is not one of "
                            f"{', '.join(clip.ACTIVATIONS)}")

    def pixels(self):
        """A picture's dimensions: clip_image_rows, clip_image_columns, clip_image_colours."""
        return [mtf.Dimension("clip_image_rows", self.side),
                mtf.Dimension("clip_image_columns", self.side),
                mtf.Dimension("clip_image_colours", 3)]


def tower(sizes, scope="clip_image"):
    """The image tower of the given ImageSizes, with its variables in `scope`."""
    return TOWERS[sizes.kind](sizes, scope)


class ConvolutionalTower:
    """Convolutions of 3×3 with stride 2, each with a norm and a ReLU; pooled and projected.

    Group normalisation (Wu & He 2018, section 3.1) looks at one picture at a time: batch
    normalisation's statistics would depend on the mesh.

    Args:
      sizes: an ImageSizes.
      scope: the scope of its variables.
    """

    def __init__(self, sizes, scope="clip_image"):
        self.sizes, self.scope = sizes, scope
        self.out = mtf.Dimension("clip_out", sizes.out)

    def embed(self, ctx, images):
        """Embeddings of pictures, not normalised.

        Args:
          ctx: a models.layers.Context.
          images: floating point [batch, clip_image_rows, clip_image_columns, clip_image_colours],
            centred around 0.

        Returns:
          [batch, clip_out].
        """
        x = mtf.cast(images, ctx.dtype)
        with tf.variable_scope(self.scope, reuse=tf.AUTO_REUSE):
            for layer, channels in enumerate(self.sizes.channels):
                with tf.variable_scope(f"conv{layer}"):
                    x = self._convolution(ctx, x, channels)
                    x = self._norm_and_relu(ctx, x)
            x = self._pool(x)
            return _project(ctx, x, x.shape.dims[-1], self.out)

    def _convolution(self, ctx, x, channels):
        """[batch, rows, columns, features] -> half the rows and columns, `channels` features."""
        batch, rows, columns, features = x.shape.dims
        kernel = ctx.variable(
            "kernel", [mtf.Dimension("clip_image_kernel_rows", 3),
                       mtf.Dimension("clip_image_kernel_columns", 3), features,
                       mtf.Dimension("clip_image_new_features", channels)],
            layers.normal((2 / (9 * features.size)) ** 0.5))
        shape = [batch, *(mtf.Dimension(d.name, -(-d.size // 2)) for d in (rows, columns)),
                 mtf.Dimension("clip_image_features", channels)]
        return local(lambda v, w: tf.nn.conv2d(v, w, strides=2, padding="SAME"), [x, kernel],
                     (shape, x.dtype), name="convolution")

    def _norm_and_relu(self, ctx, x):
        features = x.shape.dims[-1]
        gain = ctx.variable("gain", [features], layers.constant(1.0))
        bias = ctx.variable("bias", [features], layers.constant(0.0))

        def one_slice(v, g, b):
            n, rows, columns, channels = v.shape.as_list()
            grouped = tf.reshape(tf.cast(v, tf.float32),
                                 [n, rows * columns, channels // _GROUP, _GROUP])
            mean, variance = tf.nn.moments(grouped, [1, 3], keepdims=True)
            y = tf.reshape((grouped - mean) * tf.rsqrt(variance + self.sizes.epsilon), v.shape)
            return tf.nn.relu(tf.cast(y * tf.cast(g, tf.float32) + tf.cast(b, tf.float32), v.dtype))

        return local(one_slice, [x, gain, bias], (x.shape, x.dtype), name="norm_and_relu")


    def _pool(self, x):
        """[batch, rows, columns, features] -> [batch, features]."""
        batch, rows, columns, features = x.shape.dims
        if self.sizes.pool == "mean":
            return local(lambda v: tf.reduce_mean(v, [1, 2]), [x], ([batch, features], x.dtype),
                         name="pool")
        everything = mtf.Dimension(features.name, rows.size * columns.size * features.size)
        return local(lambda v: tf.reshape(v, [-1, everything.size]), [x],
                     ([batch, everything], x.dtype), name="flatten")


class VisionTransformer:
    """OpenAI's vision transformer: patches and a class token, read at the class token.

    Args:
      sizes: an ImageSizes.
      scope: the scope of its variables.
    """

    def __init__(self, sizes, scope="clip_image"):
        self.sizes, self.scope = sizes, scope
        self.embd = mtf.Dimension("clip_image_embd", sizes.width)
        self.out = mtf.Dimension("clip_out", sizes.out)
        self.blocks = clip.transformer(
            self.embd, sizes.heads, mtf.Dimension("clip_image_intermediate", 4 * sizes.width),
            sizes.layers, clip.ACTIVATIONS[sizes.activation], sizes.epsilon, "clip_image")

    def embed(self, ctx, images):
        """As ConvolutionalTower.embed."""
        n_patches = (self.sizes.side // self.sizes.patch) ** 2
        everyone = np.ones([n_patches + 1, n_patches + 1], bool)
        deviation = layers.normal(self.sizes.width ** -0.5)
        with tf.variable_scope(self.scope, reuse=tf.AUTO_REUSE):
            x = self._patches(ctx, mtf.cast(images, ctx.dtype), deviation)
            sequence = mtf.Dimension("clip_image_sequence", n_patches + 1)
            first = ctx.variable("class", [self.embd], deviation)
            batch = x.shape.dims[0]
            x = local(
                lambda v, c: tf.concat([tf.tile(c[None, None], [v.shape[0], 1, 1]), v], 1),
                [x, first], ([batch, sequence, self.embd], x.dtype), name="with_class")
            x += ctx.variable("wpe", [sequence, self.embd], deviation)
            x = layers.layer_norm(ctx, x, self.embd, "norm_0", self.sizes.epsilon)
            for layer in range(self.sizes.layers):
                x = self.blocks(ctx, x, layer,
                                lambda ctx, qkv, layer: attention.masked(qkv, everyone))
            x = local(lambda v: v[:, 0], [x], ([batch, self.embd], x.dtype), name="read")
            x = layers.layer_norm(ctx, x, self.embd, "norm_f", self.sizes.epsilon)
            return _project(ctx, x, self.embd, self.out)

    def _patches(self, ctx, images, deviation):
        """Pictures -> [batch, clip_image_patches, clip_image_embd]."""
        side, patch = self.sizes.side // self.sizes.patch, self.sizes.patch
        shape = [images.shape.dims[0], mtf.Dimension("clip_image_patches", side * side),
                 mtf.Dimension("clip_image_patch", patch * patch * 3)]

        def cut(v):
            v = tf.reshape(v, [-1, side, patch, side, patch, 3])
            v = tf.transpose(v, [0, 1, 3, 2, 4, 5])
            return tf.reshape(v, [-1, side * side, patch * patch * 3])

        x = local(cut, [images], (shape, images.dtype), name="cut")
        kernel = ctx.variable("patch", [shape[-1], self.embd], deviation)
        return ops.dense(x, kernel, None, shape[-1:], name="patch")


def _project(ctx, x, features, out):
    kernel = ctx.variable("projection", [features, out], layers.normal(features.size ** -0.5))
    return ops.dense(x, kernel, None, [features], name="projection")


TOWERS = {"conv": ConvolutionalTower, "vit": VisionTransformer}
