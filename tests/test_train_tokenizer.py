"""Tokenizers trained on a corpus: what they can do, and what the script refuses."""

import importlib
import json
import os
import subprocess
import sys
import unicodedata

import pytest
import regex

import encoders

TEXT = ("The quick brown fox jumps over the lazy dog.\n"
        "  She said: \u201cna\u00efve caf\u00e9\u201d, 3.14 times!\n\n") * 40


@pytest.fixture(scope="module")
def script(root):
    directory = os.path.join(root, "datasets")
    sys.path.insert(0, directory)
    try:
        yield importlib.import_module("train_tokenizer")
    finally:
        sys.path.remove(directory)


@pytest.fixture
def corpus(tmp_path):
    """A directory with a text file and a JSONL file."""
    directory = tmp_path / "corpus"
    directory.mkdir()
    (directory / "a.txt").write_text(TEXT, encoding="utf-8")
    lines = [json.dumps({"text": "Zebras graze.", "body": "Quartz \u00a7"}) for _ in range(9)]
    (directory / "b.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return str(directory)


def run(script, corpus, out, *flags):
    return script.main([corpus, "--out", str(out), *flags])


def test_bbpe_is_lossless_and_ends_texts(script, corpus, tmp_path, capsys):
    out = tmp_path / "new" / "bbpe.json"
    assert run(script, corpus, out, "--vocab_size", "300") == 0
    encoder = encoders.load(str(out))
    assert (encoder.name, encoder.n_vocab, encoder.lossless) == ("tokenizers", 300, True)
    for text in (TEXT, " \u4f60\u597d\U0001f600 <|endoftext|>\x00"):
        ids = encoder.encode(text)
        assert encoder.decode(ids) == text and encoder.eos_id not in ids
    assert encoder.decode([encoder.eos_id]) == ""
    printed = capsys.readouterr().out
    size = len(TEXT.encode()) + 9 * len("Zebras graze.")
    tokens = len(encoder.encode(TEXT)) + 9 * len(encoder.encode("Zebras graze."))
    assert "300 ids" in printed and f"{size / tokens:.3f} bytes per token" in printed
    assert size / tokens > 1.5  # bytes alone would give 1


def test_bpe_knows_unknown_characters(script, corpus, tmp_path):
    out = tmp_path / "bpe.json"
    assert run(script, corpus, out, "--vocab_size", "100", "--tokenizer", "bpe") == 0
    encoder = encoders.load(str(out))
    assert (encoder.n_vocab, encoder.lossless) == (100, False)
    assert encoder.decode(encoder.encode(TEXT)) == TEXT
    fox = encoder.encode("fox")
    assert encoder.encode("\u4f60fox") == [json.loads(out.read_text())["model"]["vocab"]["<unk>"],
                                           *fox]
    assert encoder.eos_id not in encoder.encode("<|endoftext|>")


def test_char_holds_the_corpus(script, corpus, tmp_path):
    out = tmp_path / "char.json"
    assert run(script, corpus, out, "--tokenizer", "char") == 0
    encoder = encoders.load(f"char:{out}")
    assert encoder.n_vocab == len(set(TEXT + "Zebras graze.")) + 1
    assert encoder.decode(encoder.encode(TEXT)) == TEXT
    assert encoders.load(str(out)).hash == encoder.hash


def test_text_key(script, corpus, tmp_path):
    out = tmp_path / "char.json"
    jsonl = os.path.join(corpus, "b.jsonl")
    assert run(script, jsonl, out, "--tokenizer", "char", "--text_key", "body") == 0
    assert encoders.load(f"char:{out}").n_vocab == len(set("Quartz \u00a7")) + 1


@pytest.mark.parametrize("flags, message", [
    (["--vocab_size", "100"], "258 or more"),
    (["--vocab_size", "20", "--tokenizer", "bpe"], "too small: the corpus has"),
    (["--vocab_size", "20", "--tokenizer", "char"], "too small: the corpus's characters"),
    ([], "needs --vocab_size"),
])
def test_mistakes(script, corpus, tmp_path, capsys, flags, message):
    assert run(script, corpus, tmp_path / "x.json", *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "x.json").exists()


def test_nothing_is_overwritten(script, corpus, tmp_path, capsys):
    out = tmp_path / "x.json"
    out.write_text("mine")
    assert run(script, corpus, out, "--tokenizer", "char") == 2
    assert out.read_text() == "mine" and "--overwrite" in capsys.readouterr().err
    assert run(script, corpus, out, "--tokenizer", "char", "--overwrite") == 0
    assert encoders.load(str(out)).name == "char"
    assert run(script, corpus, tmp_path / "x.txt", "--tokenizer", "char") == 2


def test_absent_and_empty_corpora(script, tmp_path, capsys):
    assert run(script, str(tmp_path / "none.txt"), tmp_path / "x.json", "--tokenizer", "char") == 2
    assert "none.txt" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("")
    for flags in (["--tokenizer", "char"], ["--vocab_size", "300"]):
        assert run(script, str(tmp_path / "empty.txt"), tmp_path / "x.json", *flags) == 2
        assert "empty.txt" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_long_documents_are_cut_without_loss(script):
    text = ("line of words\n" * 20000) + "z" * 200000
    parts = list(script.pieces([text, "short", ""]))
    assert "".join(parts) == text + "short"
    assert max(map(len, parts)) <= script.PIECE_CHARS and len(parts) < 12


@pytest.mark.parametrize("kind", ["bbpe", "clip"])
def test_program_from_elsewhere_is_deterministic(root, corpus, tmp_path, kind):
    """Run as a program from another directory, twice, with other hash seeds: the same file."""
    program = os.path.join(root, "datasets", "train_tokenizer.py")
    for seed in ("1", "2"):
        subprocess.run([sys.executable, program, corpus, "--tokenizer", kind,
                        "--vocab_size", "600", "--out", f"{seed}.json"], cwd=tmp_path,
                       check=True, capture_output=True,
                       env=os.environ | {"PYTHONHASHSEED": seed})
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()


def test_clip_keeps_all_of_a_text_but_capitals_and_white_space(script, tmp_path, corpus):
    """Whatever a word ends in has an id, also bytes that the corpus has nowhere."""
    out = tmp_path / "clip.json"
    assert run(script, corpus, out, "--tokenizer", "clip", "--vocab_size", "600") == 0
    encoder = encoders.load(str(out))
    assert not encoder.lossless
    text = ("The \"Black\" diamond isn't 42 cafe\u0301s, \u65e5\u672c \U0001f642\x00 "
            "\u20ac9.50!\tEND")
    words = regex.findall(r"(?i)'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
                          unicodedata.normalize("NFC", text).lower())
    assert encoder.decode(encoder.encode(text)) == " ".join(words) + " "
    assert encoder.encode("A  b\n") == encoder.encode("a b") and encoder.encode("") == []


@pytest.mark.parametrize("word", ["diamonds", "caf\u00e9", "x"])
def test_clip_is_what_transformers_makes_of_the_same_merges(script, tmp_path, corpus, word):
    transformers = pytest.importorskip("transformers", reason="compares with its CLIPTokenizer")
    out = tmp_path / "clip.json"
    assert run(script, corpus, out, "--tokenizer", "clip", "--vocab_size", "600") == 0
    model = json.loads(out.read_text())["model"]
    theirs = transformers.CLIPTokenizer(
        vocab={**model["vocab"], "<|startoftext|>": len(model["vocab"])},
        merges=[tuple(pair) for pair in model["merges"]])
    text = f"two {word}, and one more: {word}"
    wanted = theirs(text, add_special_tokens=False)["input_ids"]
    assert encoders.load(str(out)).encode(text) == wanted
