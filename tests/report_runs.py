"""Directories as runs leave them, made by the program's own writers, without training."""

import math

import graphs
import numpy as np

import encoders
from configs import schema
from mesh.compat import tf
from training import board, checkpoints, heat_map, metrics, projector


def write(directory, offset=0.0, **keys):
    """Makes a run of 40 steps with two evaluations; returns its directory.

    Args:
      directory: a pathlib.Path. offset: is added to every loss.
    """
    keys = dict(train_steps=40, model_path=str(directory), mesh_shape="x:2", layout="batch:x",
                **keys)
    config = schema.RunConfig(**{**graphs.config().model_dump(exclude_unset=True), **keys})
    directory.mkdir(parents=True)
    checkpoints.write_text(str(directory / "config.json"), config.to_json())
    facts = type("Facts", (), dict(tokens=1000, bytes=3000, decoded_bytes=3000, windows=100,
                                   datasets=[{"id": "made"}], encoder="byte", n_vocab=61))
    writer = metrics.Writer(str(directory))
    writer.start(0)
    board.begin(writer, config, facts, 0)
    meter = metrics.Meter(config, facts, writer)
    meter.start_clock(0)
    evaluations = metrics.Writer(str(directory / "eval"))
    for step in range(1, 41):
        loss = 3 * math.exp(-step / 20) + 1 + offset
        norms = {f"gradient_norm/{group}": loss / n for n, group in enumerate(("mlp", "norms"), 1)}
        meter.log(step, {"loss": loss, "loss/lm": loss, "gradient_norm": loss, **norms,
                         "learning_rate": 1e-3 * min(1, step / 10)})
        if step % 20 == 0:
            scores = {"eval_loss": loss + 0.2, "loss/lm": loss + 0.2,
                      **metrics.language_scores(loss + 0.2, facts)}
            tasks = {"cloze": {"items": 4, "acc": 0.5 + offset, "chance": 0.25},
                     "coda:colours": {"items": 4, "spearman": 0.3 - offset, "acc": 0.5}}
            metrics.append_line(str(directory), {"step": step, **scores, "tasks": tasks,
                                                 "tokens_per_sec": 100.0})
            evaluations.scalars({name.replace("eval_loss", "loss"): value
                                 for name, value in scores.items()}, step)
            writer.text("sample", metrics.fenced(f"<b>A sample</b> of step {step}\n  & more"), step)
    picture = heat_map.png(heat_map.figure({"made": np.eye(3)}, ["red", "green", "dog"], "words"))
    evaluations.picture("probe", picture, 40)
    for one in (writer, evaluations):
        one.close()
    meter.close()
    return directory


def project(directory):
    """Adds what the projector shows: the tokens, and coloured squares beside their names."""
    config = schema.load(str(directory / "config.json"))
    random = np.random.RandomState(0)
    with tf.Graph().as_default(), tf.Session() as session:
        table = tf.get_variable("gpt/wte", initializer=random.randn(257, 16).astype(np.float32))
        session.run(table.initializer)
        checkpoint = tf.train.Saver().save(session, f"{directory}/model.ckpt", global_step=40)
    colours = random.randint(0, 256, [300, 3]).astype(np.uint8)
    names = ["#" + bytes(colour).hex() for colour in colours]
    squares = np.tile(colours[:, None, None], [1, 32, 32, 1])
    projector.write(config, checkpoint, encoders.load("byte"), [
        projector.named("picture", names, colours / 255, squares),
        projector.named("text", names, colours / 255 + [1, 1, 1])])
