"""The experiment's table: which evaluation counts, means and spread, and what is refused or run."""

import argparse
import json
import os
import re

import pytest

from benchmarks import clip_experiment, clip_experiment_report

ARGS = argparse.Namespace(sizes=["4x128"], texts=[600], rows=["gpt", "gptc"], seeds=2, items="test")


def line(step, loss, answers):
    part = {"acc": 0.25, "answer_loss": answers}
    told = {"acc": answers / 8, "untold": {"acc": answers / 16}}
    return {"step": step, "eval_loss": loss, "bits_per_decoded_byte": loss / 2, "tasks": {
        "coda_world": {"acc": 0.5, "spearman": loss / 4, "untold": {"acc": 0.25}},
        "color_world": told, "shape_world": told, "size_larger_world": {"acc": 0.5},
        "size_smaller_world": {"acc": 0.75}, "combinations": {"acc": 0.625},
        "stories_test": {**part, "untold": part}, "statements_test": part,
        "cloze_test": {"acc": 0.5},
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
    plain, supervised, *probes = (row.split(" | ") for row in text.splitlines()
                                  if row.startswith("| GPT"))
    assert plain[1:3] == ["200", "2.100 ± 0.141"] and plain[5] == "4.20 ± 0.28"
    assert supervised[2] == "2.120 ± 0.311" and supervised[5] == "3.40 ± 0.57"
    same = ["0.500 ± 0.000 (0.250 ± 0.000)", "0.500 ± 0.000", "0.750 ± 0.000", "0.625 ± 0.000 |"]
    for row, coda, pairs in zip(probes, ("0.525 ± 0.035 (–)", "0.530 ± 0.078 (–)"), (
            "0.525 ± 0.035 (0.263 ± 0.018)", "0.425 ± 0.071 (0.212 ± 0.035)"), strict=True):
        assert row[1:] == [coda, same[0], pairs, pairs, *same[1:]]
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
        *clip_experiment.ROWS, "--teachers", "2", "--sizes",
        "2x64"])
    experiment = clip_experiment.Experiment(args)
    for row in clip_experiment.ROWS:
        _, config, changes = experiment._language_model(row, "2x64", 600, seed=2)
        values = [change for change in changes if not change.startswith("datasets=")]
        found = schema.load(config, values)
        assert found.seed == 2 and found.n_layer == 2 and found.train_steps == 250
        assert len(found.eval_tasks) == 10
        assert found.model == ("GPT" if row in ("gpt", "gpt_bytes") else "gpt_c")
        if found.model == "gpt_c":
            assert os.path.basename(found.clip.student) == {
                "gptc_text": "student_text"}.get(row, "student_random1" if "random" in row
                                                 else "student")
            assert found.clip.mode == ("input" if "input" in row else "loss")
            assert found.clip.control == ("shuffled" if "shuffled" in row else "none")


def test_it_does_not_go_on_from_what_had_other_settings(tmp_path):
    def check(*flags):
        clip_experiment.Experiment(clip_experiment.parse_args([
            "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), *flags]),
        ).check_settings()

    check("--texts", "300", "600")
    check()  # it was stopped before the world was there
    (tmp_path / "out" / "logs" / "world.done").touch()
    with pytest.raises(SystemExit, match="data: is gone, which .*out was made with"):
        check()
    (tmp_path / "data" / "world").mkdir(parents=True)
    check("--texts", "200", "600", "--seeds", "5", "--teachers", "2", "--rows", "gpt")
    for flags, words in ((["--facts", "0.5"], "--facts 0.5: .*out was made with 0.3"),
                         (["--texts", "900"], "--texts 900: .*out was made with 600"),
                         (["--set_clip", "lr=1"], "--set_clip .*lr=1"), (["--quick"], "--")):
        with pytest.raises(SystemExit, match=words):
            check(*flags)
    check()


@pytest.mark.parametrize("flag", ["seeds", "teachers", "jobs", "evaluations", "texts", "steps"])
def test_numbers_of_nothing_are_refused(flag, capsys):
    with pytest.raises(SystemExit):
        clip_experiment.parse_args(["--data", "d", "--out", "o", f"--{flag}", "0"])
    assert f"--{flag} must be at least 1" in capsys.readouterr().err


def test_what_is_told_of_students(tmp_path):
    """Those of texts alone have no teacher to be like."""
    values = {f"{score}_{part}": number for score in ("cosine", "uncentred_cosine",
                                                      "mean_vector_cosine")
              for part, number in (("windows", 0.9), ("beyond", 0.75))}
    for name, line in (("student", {**values, "r2_windows": 0.9, "r2_beyond": 0.85}),
                       ("student_text", {"eval_loss": 1.0})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("{}\n" + json.dumps(line) + "\n")
    _, _, row = clip_experiment_report.students(str(tmp_path)).splitlines()
    both = "0.900, 0.750"
    assert row == f"| `student` | {both} | 0.900, 0.850 | {both} | {both} | 1.50 |"


def test_each_size_and_amount_of_texts_may_have_its_steps(capsys):
    def steps(*flags):
        args = clip_experiment.parse_args(["--data", "d", "--out", "o", *flags])
        made = clip_experiment.Experiment.__new__(clip_experiment.Experiment)
        made.args, made.out, made._data = args, "o", "d"
        found = [made._language_model("gptc", size, number, 1)[2] for size in args.sizes
                 for number in args.texts]
        return [[change for change in changes
                 if re.match(r"(train_steps|steps_per_checkpoint|clip.weight_end)=", change)]
                for changes in found]

    assert steps("--texts", "600", "2000", "--steps", "300", "900", "--evaluations", "3") == [
        ["train_steps=300", "steps_per_checkpoint=100", "clip.weight_end=300"],
        ["train_steps=900", "steps_per_checkpoint=300", "clip.weight_end=900"]]
    assert steps("--texts", "600", "2000", "--steps", "30") == 2 * [
        ["train_steps=30", "steps_per_checkpoint=30", "clip.weight_end=30"]]
    some = ("--sizes", "2x64", "4x128", "--texts", "600", "2000", "--steps")
    for given, wanted in (("1 2 3 4", "1 2 3 4"), ("1 2", "1 2 1 2"), ("1", "1 1 1 1")):
        assert [changes[0] for changes in steps(*some, *given.split())] == [
            f"train_steps={number}" for number in wanted.split()]
    with pytest.raises(SystemExit):
        steps(*some, "300", "900", "400")
    assert "--steps has 3 numbers" in capsys.readouterr().err


def test_changes_against_each_control(results):
    for seed, loss, answers in ((1, 2.0, 3.5), (2, 2.44, 4.5)):
        folder = results / clip_experiment.run_name("gptc_text", "4x128", 600, seed)
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(json.dumps(line(100, loss, answers)) + "\n")
    args = argparse.Namespace(**{**vars(ARGS), "rows": ["gpt", "gptc", "gptc_text"]})
    text = clip_experiment_report.write(args, str(results))
    assert "GPT-C against GPT-C, student of texts alone: validation loss, nats -0.100 ± 0.000 " \
           "(standard error), by seed -0.10 -0.10; looks, within stories: loss on the answer, " \
           "nats -0.600 ± 0.100 (standard error), by seed -0.50 -0.70." in text
    assert text.count(" against ") == 2


def test_the_student_of_texts_alone_is_like_the_others(tmp_path, monkeypatch):
    """Its config is one that is taken, with CLIP's width, the student's window and its steps."""
    import clip_runs

    from configs import schema

    clip_runs.teacher(tmp_path, 259, out=20)
    os.rename(tmp_path / "teacher", tmp_path / "clip")
    clip_runs.student(tmp_path / "student")
    args = clip_experiment.parse_args([
        "--data", str(tmp_path), "--out", str(tmp_path), "--rows", "gptc_text", "--texts", "7", "9",
        "--set_student", "train_steps=60", "--set_student", "clip.positions=3", "--set_text",
        "lr=1e-3"])
    experiment, runs = clip_experiment.Experiment(args), []
    monkeypatch.setattr(experiment, "train", lambda *run, **keys: runs.append(run))
    experiment.make_students()
    (name, config, changes), = [run for run in runs if run[0] == "student_text"]
    assert changes[0] == f'datasets=["{tmp_path}/texts_9/clip.json", ' \
                         f'"{tmp_path}/captions/captions.json"]'
    found = schema.load(config, changes[1:])
    assert found.text_only and (found.clip.out, found.clip.window) == (20, 5)
    assert (found.train_steps, found.train_batch_size, found.lr) == (60, 8, 1e-3)
