"""configs/examples/: a commented config of each kind of run, and the smallest one trains."""

import glob
import os

import jobs
import pytest

from configs import reading, reference, schema

EXAMPLES = sorted(os.path.splitext(os.path.basename(path))[0]
                  for path in glob.glob(f"{jobs.ROOT}/configs/examples/*"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_loads_and_explains_itself(name):
    config = schema.load(f"examples/{name}")
    assert not [note for note in config.notes if not note.split(": ")[1] == "datasets"]
    text = reading.read_text(reading.find_config(f"examples/{name}"))
    assert text.startswith("# ") and f": python main.py --model examples/{name} " in text
    assert all(len(line) <= 100 for line in text.splitlines())
    assert f"`{name}`" in reference.INTRODUCTION


def test_there_is_one_of_each_kind():
    configs = [schema.load(f"examples/{name}") for name in EXAMPLES]
    assert {config.model for config in configs} == {"GPT", "clip", "clip_student", "gpt_c"}
    assert any(config.mlm_training for config in configs)
    assert any(config.moe_layers for config in configs)
    assert {config.mesh_size for config in configs} == {1, 8, 128}


def test_the_smallest_trains(tmp_path, capsys):
    data = jobs.dataset(tmp_path)
    result = jobs.here(capsys, "examples/smallest", "--set", f'datasets=["{data}"]', "--set",
                       "train_steps=60", "--set", "sample_tokens=0", "--model_path",
                       str(tmp_path / "run"))
    assert result.summary["eval_loss"] < 4.0  # that of ignorance is 5.5
