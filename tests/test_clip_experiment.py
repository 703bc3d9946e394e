"""The experiment's table: which evaluation counts, means and spread, and what is refused or run."""

import argparse
import json

import pytest

from benchmarks import clip_experiment, clip_experiment_report

ARGS = argparse.Namespace(sizes=["4x128"], texts=[600], rows=["gpt", "gptc"], seeds=2, items="test")


def line(step, loss, answers):
    part = {"acc": 0.25, "answer_loss": answers}
    return {"step": step, "eval_loss": loss, "bits_per_decoded_byte": loss / 2, "tasks": {
        "statements_test": {**part, "untold": part}, "cloze_test": {"acc": 0.5},
        "texts_heldout": {"bits_per_decoded_byte": 0.75}}}


@pytest.fixture
def results(tmp_path):
    """Of each run three evaluations; the second has the least validation loss."""
    for row, seed, loss, answers in (("gpt", 1, 2.0, 4.0), ("gpt", 2, 2.2, 4.4),
                                     ("gptc", 1, 1.9, 3.0), ("gptc", 2, 2.34, 3.8)):
        folder = tmp_path / clip_experiment.run_name(row, "4x128", 600, seed)
        folder.mkdir()
        lines = [line(100, loss + 1, 0.1), line(200, loss, answers), line(300, loss + 0.5, 0.2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return tmp_path


def test_the_evaluation_of_the_least_validation_loss_counts(results):
    text = clip_experiment_report.write(ARGS, str(results))
    runs = json.loads((results / "results.json").read_text())
    assert [(run["row"], run["seed"], run["step"], run["answers"]) for run in runs] == [
        ("gpt", 1, 200, 4.0), ("gpt", 2, 200, 4.4), ("gptc", 1, 200, 3.0), ("gptc", 2, 200, 3.8)]
    assert (results / "results.md").read_text() == text + "\n"
    assert (results / "results.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_has_means_spread_and_changes_by_seed(results):
    text = clip_experiment_report.write(ARGS, str(results))
    plain, supervised = (row.split(" | ") for row in text.splitlines() if row.startswith("| GPT"))
    assert plain[1:3] == ["200", "2.100 ± 0.141"] and plain[5] == "4.20 ± 0.28"
    assert supervised[2] == "2.120 ± 0.311" and supervised[5] == "3.40 ± 0.57"
    # −1.0 and −0.6: mean −0.8, standard error 0.2.
    assert "nats -0.800 ± 0.200 (standard error), by seed -1.00 -0.60" in text
    assert "nats +0.020 ± 0.120 (standard error), by seed -0.10 +0.14" in text


def test_a_stage_is_run_once_and_again_if_its_command_changed(tmp_path):
    stages = clip_experiment.Stages(str(tmp_path))
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(f"import sys; open({str(out)!r}, 'a').write(sys.argv[1])")
    for argument in ("a", "a", "b", "b"):
        stages.run("one", str(script), argument)
    assert out.read_text() == "ab"
    script.write_text("raise SystemExit('the disk is full')")
    with pytest.raises(SystemExit, match="the disk is full"):
        stages.run("two", str(script), "c")
    assert not (tmp_path / "logs" / "two.done").exists()


def test_every_row_asks_for_what_main_takes(tmp_path):
    """The settings of each row, as main.py would read them, with the paths that they name."""
    from configs import schema

    args = clip_experiment.parse_args([
        "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--rows",
        *clip_experiment.ROWS, "--teachers", "2"])
    experiment = clip_experiment.Experiment(args)
    for row in clip_experiment.ROWS:
        _, config, changes = experiment._language_model(row, "2x64", 600, seed=2)
        values = [change for change in changes if not change.startswith("datasets=")]
        found = schema.load(config, values)
        assert found.seed == 2 and found.n_layer == 2 and found.train_steps == args.steps
        assert len(found.eval_tasks) == 3
        assert found.model == ("GPT" if row in ("gpt", "gpt_bytes") else "gpt_c")
        if found.model == "gpt_c":
            assert found.clip.student.endswith("student_random1" if "random" in row else "student")
            assert found.clip.mode == ("input" if "input" in row else "loss")
            assert found.clip.control == ("shuffled" if "shuffled" in row else "none")
