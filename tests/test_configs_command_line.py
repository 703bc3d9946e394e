"""configs/command_line.py: what command lines print and return when something goes wrong."""

import os
import subprocess
import sys

import pytest
import tensorflow.compat.v1 as tf

from configs import command_line, flags, old_flags
from configs.errors import UserError


def forbidden():
    """What TensorFlow raises where no directory can be made."""
    tf.io.gfile.makedirs("/proc/nothing")


def below_a_file():
    tf.io.gfile.makedirs(f"{__file__}/nothing")


def raising(error):
    def job():
        raise error
    return job


def test_statuses(capsys):
    assert command_line.status_of(lambda: None) == 0
    assert command_line.status_of(lambda status: status, 1) == 1
    assert command_line.status_of(raising(KeyboardInterrupt()), stopped="was stopped") == 130
    assert capsys.readouterr().err == "was stopped\n"


@pytest.mark.parametrize("job, wanted", [
    (raising(UserError("two\nlines")), "error: two lines\n"),
    (forbidden, "error: /proc/nothing; No such file or directory; see to the path, its "
                "permissions, free space and memory\n"),
    (below_a_file, f"error: {__file__} is not a directory; see to the path, its permissions, free "
     "space and memory\n"),
    (raising(PermissionError(13, "denied", "x.txt")), "error: [Errno 13] denied: 'x.txt'; see to "
     "the path, its permissions, free space and memory\n")])
def test_mistakes_and_refusals_are_one_line(capsys, job, wanted):
    assert command_line.status_of(job) == 2
    assert capsys.readouterr().err == wanted
    with pytest.raises((UserError, OSError, tf.errors.OpError)):
        command_line.status_of(job, debug=True)


def test_what_failed_in_a_graph_is_the_line():
    with tf.Graph().as_default(), tf.Session() as session:
        lines = tf.raw_ops.ReadFile(filename="no_such_file")
        with pytest.raises(tf.errors.NotFoundError) as caught:
            session.run(lines)
    assert command_line.refusal(caught.value).startswith("no_such_file; No such file or directory")


def test_defects_keep_their_traceback():
    assert command_line.refusal(ZeroDivisionError()) is None
    assert command_line.refusal(tf.errors.InvalidArgumentError(None, None, "shapes")) is None
    with pytest.raises(ZeroDivisionError):
        command_line.status_of(lambda: 1 / 0)


@pytest.mark.parametrize("script, needed", [
    ("datasets/create_tfrecords.py", ["--name", "x", "--encoder", "byte"]),
    ("datasets/openwebtext.py", ["--input", "x", "--name", "x", "--output_dir", "x"]),
    ("datasets/train_tokenizer.py", ["corpus", "--out", "x.json"])])
def test_scripts_refuse_unknown_flags_in_one_line(root, script, needed):
    result = subprocess.run([sys.executable, os.path.join(root, script), *needed, "--overwrit"],
                            capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == ("error: unrecognized arguments: --overwrit (did you mean "
                             "--overwrite?); --help lists the flags\n")


@pytest.mark.parametrize("given, here", [
    (["--encoder_path=t.json"], "argument --encoder_path: of an older program; here: --encoder;"),
    (["--name", "a", "--use_gpt2_tokenizer"], "here: --encoder gpt2;")])
def test_flags_of_older_programs_are_named(capsys, given, here):
    """Rather than the flag that is missing for want of them."""
    parser = command_line.Parser(former=old_flags.CREATE_TFRECORDS)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--name")
    with pytest.raises(SystemExit):
        parser.parse_args(given)
    error = capsys.readouterr().err
    assert here in error and error.count("\n") == 1
    with pytest.raises(SystemExit):
        parser.parse_args(["--name", "--b"])
    assert "older" not in capsys.readouterr().err


def test_main_names_the_flags_of_run_experiment(capsys):
    for given, here in ((["--heartbeat_timeout", "9"], "--recreate_tpu"), (["--test"], "--dry_run"),
                        (["--tpu", "colab"], "--tpu local")):
        with pytest.raises(SystemExit):
            flags.parse(["--model", "demo", *given])
        assert here in capsys.readouterr().err
    assert len(flags.parse(["--model", "demo", "--experiment_name", "a", "--autostack"]).notes) == 2
