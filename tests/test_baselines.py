"""benchmarks/baselines.py: from directories that transformers wrote to the table."""

import json
import math

import pytest
import test_import_gpt

from benchmarks import baselines

torch = pytest.importorskip("torch", reason="compares with transformers")
TEXTS = ["To be, or not to be: that is the question.", "Ein Käse – für drei €.", "x\n\ny  z"] * 4


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """({name: (a GPT-2 of transformers', its directory)} of two sizes, {byte: its id})."""
    # GPT-2's letters of bytes: those that can be printed are themselves.
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = [*map(chr, shown), *(chr(256 + number) for number in range(len(hidden)))]
    vocabulary = {letter: number for number, letter in enumerate([*letters, "<|endoftext|>"])}
    found = {}
    for name, sizes in {"small": {}, "large": dict(n_layer=3, n_embd=24)}.items():
        directory = tmp_path_factory.mktemp(name)
        module = test_import_gpt.gpt2(**{"vocab_size": 257, "n_layer": 1, **sizes})
        module.save_pretrained(directory)
        (directory / "vocab.json").write_text(json.dumps(vocabulary))
        (directory / "merges.txt").write_text("#version: 0.2\n")
        found[name] = module, str(directory)
    return found, {byte: number for number, byte in enumerate([*shown, *hidden])}


def loss_of(module, ids, window=16):
    """transformers' mean loss on a stream of ids in windows, each id but the first a target."""
    total = 0.0
    for begin in range(0, len(ids) - 1, window):
        row = torch.tensor([ids[begin:begin + window + 1]])
        with torch.no_grad():
            logits = module(row[:, :-1]).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum"))
    return total / (len(ids) - 1)


@pytest.mark.slow
def test_the_table_has_transformers_losses_and_goes_on(models, tmp_path, capsys):
    found, ids = models
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    out = tmp_path / "out"
    flags = ["--data", str(text), "--out", str(out), "--batch", "3", "--models"]
    baselines.main([*flags, found["small"][1]])
    logs = {path.name: path.stat().st_mtime_ns for path in (out / "logs").glob("*.log")}
    capsys.readouterr()
    baselines.main([*flags, *(directory for _, directory in found.values())])
    assert all((out / "logs" / name).stat().st_mtime_ns == time for name, time in logs.items())
    assert len(list((out / "data").iterdir())) == 1, "the encoder is one"

    # A file's documents come in their order, and bytes are ids.
    stream = [number for text in TEXTS for number in (*map(ids.get, text.encode()), 256)]
    rows = json.loads((out / "results.json").read_text())
    assert [row["model"] for row in rows] == [directory for _, directory in found.values()]
    for row, (module, _) in zip(rows, found.values(), strict=True):
        assert row["eval_loss"] == pytest.approx(loss_of(module, stream), abs=1e-4)
        assert row["perplexity"] == pytest.approx(math.exp(row["eval_loss"]))
        # Of documents' ends too: nats of all tokens over the bytes of the text.
        assert row["bits_per_byte"] == pytest.approx(
            row["eval_loss"] * len(stream) / (len(stream) - len(TEXTS)) / math.log(2), rel=1e-6)
        assert row["parameters"] == sum(p.numel() for p in module.parameters())
        assert row["n_ctx"] == 16
    printed = capsys.readouterr().out
    assert printed == (out / "results.md").read_text()
    assert [len(line.split("|")) for line in printed.splitlines()] == [9] * 4
    assert f"| {rows[1]['eval_loss']:.4f} | {rows[1]['perplexity']:.2f} |" in printed


def test_what_fails_says_where_to_look(tmp_path, capsys):
    with pytest.raises(SystemExit) as failed:
        baselines.main(["--data", __file__, "--out", str(tmp_path), "--models",
                        str(tmp_path / "no")])
    assert "import_" in str(failed.value) and "no such" in str(failed.value)


def test_a_text_that_is_not_there_is_told_at_once(tmp_path, capsys):
    missing = str(tmp_path / "none.txt")
    with pytest.raises(SystemExit):
        baselines.main(["--data", missing, "--out", str(tmp_path / "out")])
    assert capsys.readouterr().err.endswith(f"--data {missing}: not found\n")
    assert not (tmp_path / "out").exists()
