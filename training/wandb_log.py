"""A run's scalars for Weights & Biases, beside TensorBoard's: main.py --wandb."""

import json
import os
import secrets

from configs.errors import UserError
from mesh.compat import tf
from training import checkpoints

# In the run's directory: the id under which wandb knows the run, so that it is gone on with.
FILE = "wandb.json"


class Log:
    """A run of a project at Weights & Biases, offline where WANDB_MODE says so.

    Args:
      config: the run's config, which becomes the run's there.
      project: the project's name.

    Raises:
      UserError: wandb is not installed, or does not let one in.
    """

    def __init__(self, config, project):
        try:
            import wandb
        except ImportError as error:
            raise UserError("--wandb: wandb is not installed; pip install -r "
                            "requirements-wandb.txt") from error
        local = None if "://" in config.model_path else config.model_path
        try:
            self._run = wandb.init(
                project=project, id=_id(config.model_path), resume="allow", dir=local,
                name=os.path.basename(config.model_path.rstrip("/")),
                config=json.loads(config.to_json()),
                settings=wandb.Settings(silent=True, console="off"))
        except wandb.errors.Error as error:
            line = (str(error).splitlines() or ["refused"])[0]
            raise UserError(f"--wandb {project}: {line}; run `wandb login`, or set "
                            "WANDB_MODE=offline and `wandb sync` later") from error

    def under(self, name):
        """A function of (dict of numbers, step) that logs them as `name`/..."""
        return lambda values, step: self._run.log(
            {f"{name}/{key}": value for key, value in values.items()}, step=int(step))

    def close(self):
        """Ends the run there."""
        self._run.finish()


def _id(model_path):
    """The run's id: that of an earlier leg, or a new one."""
    path = os.path.join(model_path, FILE)
    if tf.io.gfile.exists(path):
        with tf.io.gfile.GFile(path) as file:
            return json.loads(file.read())["id"]
    made = secrets.token_hex(8)
    checkpoints.write_text(path, json.dumps({"id": made}) + "\n")
    return made
