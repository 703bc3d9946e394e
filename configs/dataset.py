"""What a dataset is: the JSON of configs/datasets/, and the manifest beside its shards."""

import difflib
import json
import typing

import pydantic
from typing_extensions import Self

from configs.errors import UserError

MANIFEST_FORMAT = 1
MANIFEST_SUFFIX = "_manifest.json"
RECORDS_PER_INDEX_ENTRY = 256

Count = pydantic.NonNegativeInt


class _Strict(pydantic.BaseModel):
    """A model that neither accepts unknown keys nor changes, read from JSON text."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)
    LEGACY: typing.ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Self:
        """Reads the model from JSON.

        Args:
            text: the JSON.
            where: the file's path, for messages.

        Raises:
            UserError: the text is no JSON object, or a key is unknown, missing or wrong.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON: {error}; mend the file") from error
        if not isinstance(content, dict):
            raise UserError(f"{where}: a JSON object with keys is needed, not a "
                            f"{type(content).__name__}")
        try:
            return cls.model_validate_json(text)
        except pydantic.ValidationError as error:
            # a misspelt key is also a missing one; its name says more
            first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
            raise UserError(f"{where}: {_explain(cls, first)}") from error

    def to_json(self) -> str:
        """The model as indented JSON text, unset keys left out."""
        return json.dumps(self.model_dump(exclude_none=True), indent=2, ensure_ascii=False) + "\n"


def _explain(cls, error):
    """One sentence for a pydantic error: the key, what is wrong and what to do."""
    # pydantic adds the branch of a union ("str", "list[str]") to the place
    key = ".".join(str(part) for part in error["loc"] if part not in ("str", "list[str]"))
    if error["type"] == "extra_forbidden":
        known = _known_keys(cls, error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    if error["type"] == "missing":
        return f"key {key!r} is missing; add it"
    message = error["msg"].removeprefix("Value error, ")
    if not key:
        return message
    value = json.dumps(error.get("input"), default=str)
    return f"key {key!r} is {value[:80]}: {message[0].lower()}{message[1:]}; mend the value"


def _known_keys(cls, location):
    """The keys known at a place inside a model; the place's own model is found by its name."""
    models: dict[str, type[_Strict]] = {
        "encoder": EncoderFacts, "dropped": Dropped, "splits": Shard}
    model = next((models[part] for part in location if part in models), cls)
    return sorted([*model.model_fields, *model.LEGACY])


class DatasetConfig(_Strict):
    """One JSON of configs/datasets/: where a dataset's shards are and which encoder made them.

    Keys of GPT-Neo's dataset configs are accepted: `tokenizer_path` (with
    `tokenizer_is_pretrained`) becomes `encoder`; an empty `eval_path` means none;
    `lambada_tokens_path` says where `eval_tasks: ["lambada"]` finds its texts.
    """

    LEGACY: typing.ClassVar[tuple[str, ...]] = ("tokenizer_path", "tokenizer_is_pretrained")

    path: str | list[str] = pydantic.Field(
        description="Training shards: a glob, an index file that lists shards one a line (any name "
        "that does not end in .tfrecords), or a list of these.")
    eval_path: str | list[str] | None = pydantic.Field(
        None, description="Validation shards, given like path.")
    encoder: str | None = pydantic.Field(
        None, description="The encoder: byte, clip, gpt2, char:FILE, a tokenizer.json, …")
    encoder_hash: str | None = pydantic.Field(
        None, pattern="^[0-9a-f]{16}$", description="The encoder's hash, checked if given.")
    n_vocab: pydantic.PositiveInt = pydantic.Field(
        description="Number of token ids, the end-of-text id included.")
    eos_id: Count | None = pydantic.Field(None, description="Id that ends each document.")
    padding_id: Count | None = pydantic.Field(None, description="Id that fills up short rows.")
    separator: Count | None = pydantic.Field(
        None, description="Id to be put after each record, for shards whose documents end without "
        "one: ConnorJL's, and GPT-Neo's of whole documents.")
    held_out_shards: list[Count] | None = pydantic.Field(
        None, description="Numbers of shards of path that are for validation: 3 is "
        "NAME_3.tfrecords or NAME_3_<records>.tfrecords.")
    lambada_tokens_path: str | None = pydantic.Field(
        None, description="LAMBADA, for eval_tasks: GPT-Neo's JSON of token ids, or a JSONL of "
        "texts.")
    about: str | None = pydantic.Field(None, description="Free text for people.")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_gpt_neo(cls, values: dict) -> dict:
        """Maps GPT-Neo's tokenizer keys to `encoder` and its empty paths to none."""
        values = dict(values)
        tokenizer = values.pop("tokenizer_path", None)
        pretrained = values.pop("tokenizer_is_pretrained", False)
        if tokenizer:
            if values.get("encoder"):
                raise ValueError("keys 'encoder' and 'tokenizer_path' name the same thing; "
                                 "remove 'tokenizer_path'")
            values["encoder"] = cls._encoder_of(tokenizer, pretrained)
        elif pretrained:
            raise ValueError("key 'tokenizer_is_pretrained' needs 'tokenizer_path'; add it, or "
                             "write \"encoder\": \"gpt2\" for both")
        for key in ("eval_path", "encoder"):
            if values.get(key) in ("", []):
                values[key] = None
        return values

    @staticmethod
    def _encoder_of(tokenizer: str, pretrained: bool) -> str:
        """The encoder that GPT-Neo's two keys mean; nothing is ever loaded from a hub here."""
        if not pretrained:
            return tokenizer
        if tokenizer not in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2"):
            raise ValueError(f"key 'tokenizer_path' is {tokenizer!r}: only \"gpt2\" is known as a "
                             "pretrained tokenizer; give \"encoder\": a tokenizer.json instead")
        return "gpt2"

    @pydantic.field_validator("path", "eval_path")
    @classmethod
    def _paths_given(cls, value: str | list[str] | None) -> str | list[str] | None:
        """Refuses empty paths; an absent `eval_path` is null."""
        if value is not None and not all(value if isinstance(value, list) else [value]):
            raise ValueError("an empty path matches no shards")
        if value == []:
            raise ValueError("an empty list names no shards")
        return value

    @pydantic.model_validator(mode="after")
    def _eos_in_vocabulary(self):
        """GPT-Neo's padding_id may be n_vocab (it never was embedded); an end-of-text may not."""
        for key, value in (("eos_id", self.eos_id), ("separator", self.separator)):
            if value is not None and value >= self.n_vocab:
                raise ValueError(f"key {key!r} is {value}, and ids end at n_vocab - 1 = "
                                 f"{self.n_vocab - 1}; mend one of them")
        return self

    @property
    def paths(self) -> list[str]:
        """`path` as a list."""
        return [self.path] if isinstance(self.path, str) else self.path

    @property
    def eval_paths(self) -> list[str]:
        """`eval_path` as a list, empty where there is none."""
        if self.eval_path is None:
            return []
        return [self.eval_path] if isinstance(self.eval_path, str) else self.eval_path


def tower_vocabulary(encoder: str | None, n_vocab: int) -> int:
    """Ids of a CLIP text tower: the encoder's and, last, a start and an end token.

    Args:
        encoder: the encoder's spec, or None; OpenAI's counts the two among its ids.
        n_vocab: the encoder's number of ids.
    """
    return n_vocab if (encoder or "").partition(":")[0] == "clip" else n_vocab + 2


class EncoderFacts(_Strict):
    """The encoder that made a dataset."""

    spec: str
    hash: str
    n_vocab: pydantic.PositiveInt
    eos_id: Count
    lossless: bool


class Dropped(_Strict):
    """What was left out of a dataset."""

    documents: Count = 0
    tokens: Count = 0
    why: str = ""
    problems: list[str] = []


class Shard(_Strict):
    """The facts of one shard.

    `bytes` counts the UTF-8 bytes of the documents that begin in the shard, `decoded_bytes` those
    of decode(encode(text)). `index` has an entry for every 256 records: the byte offset in the
    file of record 256·i and the number of tokens in the shard before it.
    """

    file: str
    records: Count
    documents: Count
    tokens: Count
    bytes: Count
    decoded_bytes: Count
    shortest: Count
    longest: Count
    encoder_hash: str
    index: list[tuple[Count, Count]]

    @pydantic.model_validator(mode="after")
    def _index_fits(self):
        """An index of the wrong length would send readers to wrong offsets."""
        wanted = -(-self.records // RECORDS_PER_INDEX_ENTRY)
        if len(self.index) != wanted:
            raise ValueError(f"index of {self.file} has {len(self.index)} entries, and "
                             f"{self.records} records need {wanted}")
        return self


class Manifest(_Strict):
    """`<output_dir>/<name>_manifest.json`: what create_tfrecords or encode_captions made.

    Of mode "pictures" a record is a picture with its captions, its tokens are those of all its
    captions, and there are two facts more: `image_size`, the pixels of a picture's side, and
    `group`, the number of consecutive pictures that belong together.
    """

    format: int
    name: str
    mode: str = pydantic.Field(pattern="^(chunks|documents|pictures)$")
    image_size: pydantic.PositiveInt | None = None
    group: pydantic.PositiveInt | None = None
    chunk_size: Count
    separator: list[Count]
    seed: int
    encoder: EncoderFacts
    dropped: Dropped
    splits: dict[str, list[Shard]]

    @pydantic.field_validator("format")
    @classmethod
    def _known_format(cls, value: int) -> int:
        """Refuses manifests of another format."""
        if value != MANIFEST_FORMAT:
            raise ValueError(f"format {MANIFEST_FORMAT} is what this version reads")
        return value

    @pydantic.model_validator(mode="after")
    def _facts_of_pictures(self):
        """Pictures cannot be read without their facts, and text has none."""
        if {self.image_size is None, self.group is None} != {self.mode != "pictures"}:
            raise ValueError("keys 'image_size' and 'group' belong to mode \"pictures\"; make the "
                             "dataset anew")
        return self

    def total(self, split: str, fact: str) -> int:
        """The sum of a fact ("tokens", "bytes", …) over the shards of a split."""
        return sum(getattr(shard, fact) for shard in self.splits.get(split, []))

    def to_json(self) -> str:
        """The manifest as JSON text with one line a shard, so that large ones stay readable."""
        content = self.model_dump(exclude_none=True)
        splits = content.pop("splits")
        head = json.dumps(content, indent=1, ensure_ascii=False)
        body = ",\n".join(
            f'  "{split}": [' + ",".join("\n   " + json.dumps(shard) for shard in shards) + "]"
            for split, shards in splits.items())
        return head.removesuffix("\n}") + ',\n "splits": {\n' + body + "\n }\n}\n"
