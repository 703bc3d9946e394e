"""What TensorBoard's projector plugin serves to a browser of a run."""

import io
import json
import types
import urllib.parse

import numpy as np
from PIL import Image
from tensorboard.plugins import base_plugin
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from werkzeug.test import Client


class _Runs:
    """A data provider that knows the directory itself."""

    def list_runs(self, *context, **keys):
        del context, keys
        return [types.SimpleNamespace(run_name=".")]


class Space:
    """One embedding of a run's directory.

    Attributes:
      listed: what TensorBoard says of each: {name: dict}.
      vectors: float32 [points, width].
      labels: rows of texts, the first of them headings.
      pictures: uint8 [points, side, side, 3], or None.
    """

    def __init__(self, model_path, name):
        plugin = ProjectorPlugin(base_plugin.TBContext(logdir=str(model_path),
                                                       data_provider=_Runs()))
        self._apps = plugin.get_plugin_apps()
        assert json.loads(self._ask("/runs")) == ["."]
        self.listed = {x["tensorName"]: x
                       for x in json.loads(self._ask("/info", run="."))["embeddings"]}
        found = self.listed[name]
        self.vectors = np.frombuffer(self._ask("/tensor", run=".", name=name), np.float32)
        self.vectors = self.vectors.reshape(found["tensorShape"])
        text = self._ask("/metadata", run=".", name=name).decode()
        self.labels = [line.split("\t") for line in text.rstrip("\n").split("\n")]
        self.pictures = None
        if "sprite" in found:
            width, height = found["sprite"]["singleImageDim"]
            sheet = np.array(Image.open(io.BytesIO(
                self._ask("/sprite_image", run=".", name=name))).convert("RGB"))
            tiles = [sheet[y:y + height, x:x + width] for y in range(0, len(sheet), height)
                     for x in range(0, len(sheet), width)]
            self.pictures = np.stack(tiles[:len(self.vectors)])

    def _ask(self, route, **query):
        answer = Client(self._apps[route]).get("/?" + urllib.parse.urlencode(query))
        assert answer.status_code == 200, answer.data
        return answer.data
