"""What an evaluation measures beside the objective's scores: items, zero-shot, probe words."""

from configs.errors import UserError
from training import checkpoints, embedder, probe, projector, tasks, zero_shot


class Gauges:
    """Everything of the kind that a config asks for, read and checked at once.

    Graphs and sessions are made when scores are first asked for, and last.

    Args:
      config: the run's config.
      encoder_facts: what is known of the data's encoder, a dict with spec and hash.
      taken: the training.frozen.Frozen weights of a student's teacher, or None.

    Raises:
      UserError: a file of `eval_tasks` or `clip.zero_shot` cannot be used, or a probe word not be
        encoded.
    """

    def __init__(self, config, encoder_facts, taken):
        self._config, self._taken = config, taken
        self._embedder = self._probe = self._pairs = None
        keys = config.clip
        # A GPT-C that nothing supervises has nothing to say of them.
        self._words = keys.probe_words if config.model != "gpt_c" or config.supervised else []
        needed = bool(config.eval_tasks or keys.zero_shot or self._words)
        self._encoder = checkpoints.encoder_of(config, encoder_facts, needed)
        self._tasks = tasks.Tasks(config, self._encoder) if config.eval_tasks else None
        self._zero_shot = (zero_shot.ZeroShot(keys.zero_shot, keys.image_size)
                           if keys.zero_shot else None)
        self._longest = max((len(self._encoded(text)) for text in self._texts()), default=0)

    def scores(self):
        """Scores of the newest checkpoint: {"tasks": {…}, "zero_shot/<task>": …, …}."""
        found = {"tasks": self._tasks.scores()} if self._tasks else {}
        if self._texts():
            self._load()
            if self._zero_shot:
                found |= self._zero_shot.scores(self._embedder)
            if self._probe:
                found |= self._probe.scores(self._embedder)
        return found

    def project(self):
        """Writes what TensorBoard's projector shows of the newest checkpoint, after `scores`."""
        points, config = list(self._probe.points) if self._probe else [], self._config
        if config.model == "clip" and self._encoder:
            if not self._texts():
                self._load()
            points += self._pairs.points(self._embedder)
        projector.write(config, checkpoints.require_latest(config), self._encoder, points)

    @property
    def shown(self):
        """The scores that a line on the terminal names."""
        return ((self._zero_shot.names if self._zero_shot else [])
                + (["probe/correlation"] if self._probe else []))

    @property
    def pictures(self):
        """By name, PNGs of what `scores` has just looked at."""
        return {"probe": self._probe.drawn} if self._probe else {}

    def _texts(self):
        """(key, text) of every text that will be embedded for its scores."""
        zero_shot_texts = self._zero_shot.prompts if self._zero_shot else []
        return ([("clip.zero_shot", text) for text in zero_shot_texts]
                + [("clip.probe_words", text) for text in self._words])

    def _encoded(self, keyed):
        """The ids of one of `_texts`."""
        key, text = keyed
        config = self._config
        try:
            ids = self._encoder.encode(text)
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
        least, most = {"clip": (1, config.n_ctx - 2), "clip_student": (1, config.clip.window),
                       "gpt_c": (1 + config.clip.target, config.n_ctx)}[config.model]
        if not least <= len(ids) <= most:
            raise UserError(f"{key}: {text!r} has {len(ids)} tokens, and the model reads "
                            f"{least} to {most}")
        return ids

    def _load(self):
        """Makes an Embedder, or has it take the newest weights."""
        if self._embedder:
            self._embedder.reload()
            return
        longest = self._longest
        if self._config.model == "clip":
            self._pairs = projector.Pairs(self._config)
            longest = max(longest, self._pairs.longest)
        self._embedder = embedder.Embedder(self._config, self._encoder, longest)
        if self._words:
            self._probe = probe.Probe(self._config, self._taken, self._encoder)
