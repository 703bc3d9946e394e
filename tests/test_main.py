"""The command line: flags, help, exit codes, one-line errors, and which job is called with what."""

import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import types

import pytest

import main
from configs import flags, old_flags, schema
from configs.errors import UserError

FLAGS = {
    "--help", "-h", "--model", "--set", "--model_path", "--gpu_ids", "--tpu", "--tpu_zone",
    "--gcp_project", "--recreate_tpu", "--cluster", "--worker", "--wait_for_workers",
    "--allow_remote", "--eval", "--predict",
    "--check_dataset", "--diff", "--dry_run", "--print_config", "--auto_layout",
    "--auto_layout_and_mesh_shape", "--search_layouts",
    "--explain_layout", "--write", "--preflight", "--import_from", "--export", "--sweep", "--wandb",
    "--report", "--out", "--preflight_layers",
    "--steps_per_checkpoint", "--new", "--yes", "--prompt",
    "--num_samples", "--max_new_tokens", "--temperature", "--top_k", "--top_p", "--stop", "--seed",
    "--entmax_sampling", "--checkpoint", "--interactive", "--quiet", "--verbose", "--debug",
    "--skip_corrupt",
}


def run(root, *args, **options):
    """main.py in a process of its own."""
    return subprocess.run([sys.executable, os.path.join(root, "main.py"), *args],
                          capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def calls(monkeypatch):
    """Stands for the rooms that do jobs, and records which job is called with what."""
    made = []

    def recorder(job):
        def record(*args, **kwargs):
            made.append((job, args, kwargs))
            return True
        return record

    def room(name, *jobs):
        module = types.ModuleType(name)
        for job in jobs:
            setattr(module, job, recorder(job))
        return module

    rooms = {"training.run": room("training.run", "train", "evaluate"),
             "training.predictions": room("training.predictions", "predict"),
             "interop.saved_model": room("interop.saved_model", "export"),
             "interop.export_hf": room("interop.export_hf", "export"),
             "interop.import_clip": room("interop.import_clip", "import_clip"),
             "inputs": room("inputs", "check_dataset")}
    for name, module in rooms.items():
        monkeypatch.setitem(sys.modules, name, module)
        package, dot, attribute = name.partition(".")
        if dot:
            monkeypatch.setattr(importlib.import_module(package), attribute, module, raising=False)
    monkeypatch.setattr(main, "set_loudness", lambda quiet, verbose: None)
    return made


def refused(capsys, *argv):
    """The one line with which a command line is refused."""
    try:
        status = main.main(list(argv))
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    assert status == 2 and printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), printed.err
    return lines[0]


# The surface.

def test_the_flags_are_these_and_each_is_explained():
    actions = flags.make_parser()._actions
    names = [name for action in actions for name in action.option_strings]
    old = {*old_flags.TAKEN, *old_flags.UNNEEDED}
    assert set(names) == FLAGS | old and len(names) == len(FLAGS | old)
    assert all(action.help for action in actions)


def test_help_is_complete_and_imports_nothing_heavy(root):
    """What --help imports, rather than seconds, which depend on the machine."""
    result = subprocess.run([sys.executable, "-X", "importtime", "main.py", "--help"], cwd=root,
                            capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    for flag in FLAGS - {"-h"}:  # each once, below its group's heading
        assert len(re.findall(rf"(?m)^  (?:-h, )?{flag}\b", result.stdout)) == 1, flag
    assert "--tpu" not in result.stdout.partition("\n\n")[0]
    imported = {line.split("|")[-1].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"tensorflow", "mesh_tensorflow", "pydantic", "yaml", "numpy", "inputs"}


@pytest.mark.parametrize(("program", "typed", "wanted", "unwanted"), [
    ("main.py", "--model gpt2_1 --pre", {"--predict", "--preflight"}, {"--eval"}),
    ("main.py", "--model shakes", {"shakespeare_char", "shakespeare_char_large"}, {"demo"}),
    ("datasets/create_tfrecords.py", "--out", {"--output_dir"}, {"--name"})])
def test_a_shell_completes_flags_and_configs(root, tmp_path, program, typed, wanted, unwanted):
    line, out = f"{program} {typed}", tmp_path / "out"
    environment = {**os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": "bash",
                   "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SUPPRESS_SPACE": "0",
                   "_ARGCOMPLETE_STDOUT_FILENAME": str(out), "COMP_LINE": line,
                   "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    subprocess.run([sys.executable, program], cwd=root, env=environment, check=True, timeout=60)
    found = {word.strip() for word in out.read_text().split("\n")}
    assert wanted <= found and not unwanted & found
    with open(os.path.join(root, program)) as file:  # argcomplete's hook looks for it
        assert "PYTHON_ARGCOMPLETE_OK" in file.read(1024)


def test_examples_in_the_help_are_valid(root):
    commands = [line.split("main.py ")[1] for line in flags.EXAMPLES.splitlines()[1:]]
    assert len(commands) == 6
    for command in commands:
        flags.parse(shlex.split(command))


def test_print_config_without_tensorflow(root):
    code = ("import sys, main; status = main.main(['--model', 'demo', '--set', 'lr=1e-4', "
            "'--print_config']); heavy = [name for name in sys.modules if "
            "name.split('.')[0] in ('tensorflow', 'mesh_tensorflow')]; print(status, heavy)")
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True,
                            timeout=60)
    lines = result.stdout.splitlines()
    assert lines[-1] == "0 []", result.stderr
    assert ["lr", "0.0001", "--set"] in [line.split() for line in lines]
    assert ["n_layer", "4", "file"] in [line.split() for line in lines]


def test_print_config_shows_what_differs_between_runs(tmp_path, capsys):
    for name, key in (("one", "lr=1e-3"), ("other", "n_head=2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(schema.load("demo", [key]).to_json())
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    lr, heads = json.dumps(schema.load("demo").lr), schema.load("demo").n_head
    for given, wanted in (([], [["n_head", f"{heads}", "2"], ["lr", "0.001", lr],
                                ["head_size", "32", "64"], ["rotary_size", "32", "64"]]),
                          (["--set", "n_head=2", "--set", f"lr={lr}"], [])):
        assert main.main(["--model", one, *given, "--print_config", "--diff", other]) == 0
        assert [line.split() for line in capsys.readouterr().out.splitlines() if line] == wanted
    assert main.main(["--model", "gpt_162M", "--print_config", "--diff", "gptc_162M"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["model"].split() == ['"GPT"', '"gpt_c"'] and rows["clip.layer"].split()[0] == "-"
    assert "--diff: belongs to --print_config" in refused(capsys, "--model", "demo", "--diff", one)


def test_print_config_into_a_closed_pipe_is_quiet(root):
    command = f"{sys.executable} main.py --model demo --print_config | true"
    result = subprocess.run(command, cwd=root, shell=True, capture_output=True, text=True,
                            timeout=60)
    assert "Traceback" not in result.stderr


# Mistakes.

@pytest.mark.parametrize("argv, wanted", [
    ([], "required: --model"),
    (["--model", "dmo"], "dmo: no such config (did you mean demo?)"),
    (["--model", "demo", "--temprature", "1"], "did you mean --temperature?"),
    (["--model", "demo", "--mod", "x"], "unrecognized arguments: --mod"),
    (["--model", "demo", "--set", "max_steps=2"],
     "--set: max_steps: unknown key (did you mean train_steps?)"),
    (["--model", "demo", "--set", "lr=fast"], "--set: lr: must be a valid number"),
    (["--model", "demo", "--gpu_ids", "x"], '--gpu_ids: gpu_ids: "x" is no GPU'),
    (["--model", "demo", "--gpu_ids", "0", "1"], "gpu_ids: names 2"),
    (["--model", "demo", "--steps_per_checkpoint", "0"], "--steps_per_checkpoint: must be"),
    (["--model", "demo", "--eval", "--predict"], "--predict: not allowed with argument --eval"),
    (["--model", "demo", "--eval", "--new"], "--new: belongs to --import_from and training"),
    (["--model", "demo", "--eval", "--yes"], "--yes: belongs to --import_from and training"),
    (["--model_path", "r", "--report", "runs/a"], "--model_path: does not go with --report"),
    (["--model", "demo", "--tpu", "t", "--worker", "0"], "--worker: does not go with --tpu"),
    (["--model", "demo", "--tpu", "t", "--allow_remote"], "--allow_remote: does not go with --tpu"),
    (["--model", "demo", "--wait_for_workers"], "--wait_for_workers: there is no cluster; give"),
    (["--model", "demo", "--predict", "--predict_file", "tests"], "tests: is a directory; give"),
    (["--model", "demo", "--quiet", "--verbose"], "not allowed with"),
    (["--model", "demo", "--wandb", ""], "--wandb: must not be empty"),
    (["--model", "demo", "--predict", "--prompt", "no/such.txt"], "no/such.txt: no such file"),
    (["--model", "demo", "--predict", "--prompt", "-", "--interactive"], "--prompt: - and"),
    (["--import_from", "a.pt"], "--import_from: needs --model_path"),
    (["--import_from", "a.pt", "--model_path", "b", "--eval"], "not allowed with"),
    (["--import_from", "a.pt", "--model_path", "b", "--model", "demo"], "--model: does not go"),
    (["--import_from", "a.pt", "--model_path", "b", "--set", "lr=1"], "--set: does not go")])
def test_a_mistake_is_one_line_and_status_2(capsys, calls, argv, wanted):
    assert wanted in refused(capsys, *argv)
    assert calls == []


@pytest.mark.parametrize("flag, wrong", [
    ("--temperature", "-1"), ("--temperature", "nan"), ("--temperature", "warm"), ("--top_p", "0"),
    ("--top_p", "1.1"), ("--top_p", "nan"), ("--top_k", "-1"), ("--top_k", "1.5"),
    ("--num_samples", "0"), ("--max_new_tokens", "0"), ("--seed", "-1"), ("--seed", "2147483648"),
    ("--stop", "")])
def test_sampling_flags_out_of_range_are_refused_by_name(capsys, calls, flag, wrong):
    message = refused(capsys, "--model", "demo", "--predict", f"{flag}={wrong}")
    assert f"argument {flag}: must " in message
    assert calls == []


@pytest.mark.parametrize("flag", ["--prompt=a", "--num_samples=1", "--max_new_tokens=1",
                                  "--temperature=1", "--top_k=0", "--top_p=1", "--stop=a",
                                  "--seed=1", "--interactive", "--entmax_sampling"])
def test_flags_of_prediction_belong_to_it(capsys, calls, flag):
    name = flag.split("=")[0]
    assert f"argument {name}: belongs to --predict" in refused(capsys, "--model", "demo", flag)


def test_mistakes_in_a_process_of_its_own(root, tmp_path):
    (tmp_path / "bad.json").write_text('{"n_layers": 1}')
    result = run(root, "--model", "bad.json", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == ("error: bad.json: n_layers: unknown key (did you mean n_layer?) "
                             "(and 8 more)\n")
    assert "Traceback" in run(root, "--model", "bad.json", "--debug", cwd=tmp_path).stderr


def test_a_prompt_that_is_no_text_is_refused(capsys, calls, tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\x1f\x8b\x00")
    message = refused(capsys, "--model", "demo", "--predict", "--prompt", str(path))
    assert f"--prompt {path}: no UTF-8 text" in message
    assert calls == []


def test_mistakes_found_by_a_job_are_one_line(capsys, calls, monkeypatch):
    def fail(config, **kwargs):
        raise UserError("runs/demo: two\nlines")

    monkeypatch.setattr(sys.modules["training.run"], "train", fail)
    assert refused(capsys, "--model", "demo") == "error: runs/demo: two lines"
    with pytest.raises(UserError):
        main.main(["--model", "demo", "--debug"])


def test_an_interrupt_ends_with_130(capsys, calls, monkeypatch):
    def interrupt(config, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["training.run"], "train", interrupt)
    assert main.main(["--model", "demo"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_bugs_keep_their_traceback(calls, monkeypatch):
    monkeypatch.setattr(sys.modules["training.run"], "train", lambda config, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main.main(["--model", "demo"])


# Jobs.

@pytest.mark.parametrize("well, status", [(True, 0), (False, 1)])
def test_problems_of_a_dataset_end_with_1(calls, monkeypatch, well, status):
    monkeypatch.setattr(sys.modules["inputs"], "check_dataset", lambda config: well)
    assert main.main(["--model", "demo", "--check_dataset"]) == status


@pytest.mark.parametrize("given, job, wanted", [
    ([], "train", {"new": False, "yes": False, "tpu": None, "elsewhere": main.start_from,
                     "wandb": None, "hosts": None}),
    (["--new", "--yes"], "train", {"new": True, "yes": True, "tpu": None,
                                   "elsewhere": main.start_from, "wandb": None,
                                   "hosts": None}),
    (["--eval"], "evaluate", {"tpu": None, "hosts": None}),
    (["--check_dataset"], "check_dataset", {})])
def test_one_job_is_called_with_the_config(calls, given, job, wanted):
    assert main.main(["--model", "demo", "--set", "lr=1e-4", "--model_path", "there",
                      "--steps_per_checkpoint", "7", *given]) == 0
    [(name, (config,), kwargs)] = calls
    assert (name, kwargs) == (job, wanted)
    assert (config.lr, config.model_path, config.steps_per_checkpoint) == (1e-4, "there", 7)
    assert config.sources["steps_per_checkpoint"] == "--steps_per_checkpoint"


def test_an_import_needs_no_config(calls):
    assert main.main(["--import_from", "a.pt", "--model_path", "b", "--new"]) == 0
    assert calls == [("import_clip", ("a.pt", "b"), {"new": True, "yes": False})]


def test_predict_without_flags(calls):
    assert main.main(["--model", "demo", "--predict", "--set", "predict_max_steps=9",
                      "--set", "seed=5"]) == 0
    [(job, (config,), kwargs)] = calls
    assert job == "predict" and config.n_layer == 4
    assert kwargs == {"prompts": [""], "num_samples": 1, "max_new_tokens": 9, "temperature": 1.0,
                      "top_k": 0, "top_p": 1.0, "stop": [], "seed": 5, "interactive": False,
                      "tpu": None}


def test_predict_with_all_flags(calls, tmp_path, monkeypatch):
    file = tmp_path / "prompt.txt"
    file.write_text("from a file\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("from standard input"))
    assert main.main(["--model", "demo", "--predict", "--prompt", "a text", "--prompt", str(file),
                      "--prompt", "-", "--num_samples", "3", "--max_new_tokens", "4",
                      "--temperature", "0", "--top_k", "5", "--top_p", "0.9", "--stop", "x",
                      "--stop", "\n", "--seed", "0", "--entmax_sampling"]) == 0
    [(_, (config,), kwargs)] = calls
    assert config.entmax_sampling
    assert kwargs == {"prompts": ["a text", "from a file\n", "from standard input"],
                      "num_samples": 3, "max_new_tokens": 4, "temperature": 0.0, "top_k": 5,
                      "top_p": 0.9, "stop": ["x", "\n"], "seed": 0, "interactive": False,
                      "tpu": None}


def test_interactive_starts_with_no_prompt(calls):
    assert main.main(["--model", "demo", "--predict", "--interactive"]) == 0
    assert calls[0][2]["prompts"] == [] and calls[0][2]["interactive"] is True


# Loudness.

def test_tensorflow_is_quiet_unless_asked(root):
    code = ("from configs import command_line; command_line.set_loudness(False, {verbose});"
            "import logging, os, json, sys;"
            "import tensorflow.compat.v1 as tf; tf.logging.info('chatter'); logging.info('ours');"
            "print(json.dumps(os.environ.get('TF_CPP_MIN_LOG_LEVEL')))")
    env = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    texts = {}
    for verbose in (False, True):
        result = subprocess.run([sys.executable, "-c", code.format(verbose=verbose)], cwd=root,
                                capture_output=True, text=True, timeout=120, env=env, check=True)
        texts[verbose] = (json.loads(result.stdout), result.stderr)
    assert texts[False] == ("3", "ours\n")
    assert texts[True][0] is None and "chatter" in texts[True][1] and "ours" in texts[True][1]


def test_notes_go_to_stderr_unless_quiet(root, tmp_path):
    path = tmp_path / "old.json"
    with open(os.path.join(root, "configs", "demo.json"), encoding="utf-8") as file:
        path.write_text(json.dumps({**json.load(file), "causal": 1}))
    loud = run(root, "--model", str(path), "--print_config")
    assert [line for line in loud.stderr.splitlines() if "causal" in line] == \
        loud.stderr.splitlines()
    assert "ignored" in loud.stderr
    assert run(root, "--model", str(path), "--print_config", "--quiet").stderr == ""


# Command lines of GPT-Neo and ConnorJL/GPT2.

def test_old_ways_to_give_a_prompt(calls, tmp_path, capsys):
    """--predict_text is text even where a file has its name, --predict_file a file whatever it is
    called."""
    (tmp_path / "unicorns").write_text("Unicorns live")
    text, file = str(tmp_path / "unicorns"), str(tmp_path / "unicorns")
    assert main.main(["--model", "demo", "--predict_text", text, "--top_k", "40"]) == 0
    assert main.main(["--model", "demo", "--predict_file", file, "--set", "top_k=7"]) == 0
    (first, second) = calls
    assert first[0] == second[0] == "predict"
    assert (first[2]["prompts"], first[2]["top_k"]) == ([text], 40)
    assert (second[2]["prompts"], second[2]["top_k"]) == (["Unicorns live"], 7)
    assert "--predict_file nowhere: no such file" in refused(
        capsys, "--model", "demo", "--predict_file", "nowhere")
    assert "a job of their own" in refused(capsys, "--model", "demo", "--eval", "--predict_text",
                                           "a")


def test_export_writes_where_it_is_told_or_into_the_run(calls, capsys):
    run = ["--model", "demo", "--model_path", "runs/x", "--export"]
    for given, directory in (([], "runs/x/export"), (["saved_model"], "runs/x/export"),
                             (["saved_model", "out"], "out"), (["hf"], "runs/x/export_hf"),
                             (["hf", "out"], "out")):
        assert main.main(run + given) == 0
        job, args, _ = calls.pop()
        assert job == "export" and args[1] == directory
        assert capsys.readouterr().out == directory + "\n"
    for wrong in (["onnx"], ["saved_model", "a", "b"]):
        assert "takes saved_model or hf and a directory" in refused(capsys, *run, *wrong)


def test_a_flag_that_nothing_needs_is_noted(calls, caplog):
    with caplog.at_level("INFO"):
        assert main.main(["--model", "demo", "--sacred_id", "9", "--eval"]) == 0
    assert any("--sacred_id: not needed" in line for line in caplog.messages)
    assert [job for job, *_ in calls] == ["evaluate"]
