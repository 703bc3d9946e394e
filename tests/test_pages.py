"""Every command in docs/ is run in small, or stands in a list of those that are not, with a reason.

Those that are run go through one process, in a copy of the project (tests/page_runs.py), with tiny
models and data in the places that the pages name. tests/test_readme.py looks at the others' flags
and config keys, and runs README.md.
"""

import io
import json
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pydoc_data.topics import topics

import pytest
from test_readme import ROOT, commands, read

from configs import flags

# Those of which another test runs the same, with models, data or servers of its own.
ELSEWHERE = {
    "tests/test_whole_configs.py::test_trains_two_steps": [
        *("python main.py --model " + rest for rest in (
            "text_clip", "gpt_162M", "gptc_162M", "gptc_162M_input", "gpt_22L",
            "gptc_162M --set clip.control=shuffled --model_path runs/gptc_162M_shuffled",
            "gpt_162M --set 'datasets=[\"pile\"]' --model_path runs/gpt_162M_gpt2",
            "gpt_162M --set 'datasets=[\"pile\"]' --model_path runs/gpt_162M_gpt2 --eval --set "
            "eval_steps=null",
            "gpt_162M --eval --set eval_steps=null", "gptc_162M --eval --set eval_steps=null",
            "gptc_162M_input --eval --set eval_steps=null",
            "gpt_22L --eval --set eval_steps=null"))],
    "tests/test_training_starting.py::"
    "test_hugging_faces_weights_give_transformers_loss_on_the_first_batch": [
        "python main.py --model finetune_shakespeare",
        "python main.py --model finetune_shakespeare --set init_from=gpt2-medium --set n_layer=24 "
        "--set n_head=16 --set n_embd=1024 --model_path runs/finetune_medium"],
    "tests/test_import_clip.py::test_embeddings_equal_openais": [
        "python main.py --import_from ViT-B-32.pt --model_path runs/clip_vit_b32"],
    "tests/test_import_gpt.py::test_logits_equal_transformers": [
        "python main.py --import_from gpt2/ --model_path runs/gpt2"],
    "tests/test_interop_hub.py::test_a_name_is_downloaded_once_and_imported": [
        "python main.py --import_from gpt2 --model_path runs/gpt2",
        "python main.py --import_from gpt2-medium --model_path runs/gpt2_medium"],
    "tests/test_import_gpt.py::test_its_tokenizer_comes_along_and_it_samples": [
        "python main.py --model runs/gpt2/config.json --predict --prompt \"The rose is\""],
    "tests/test_cluster.py::test_two_processes_that_lose_workers_train_as_one_that_does_not": [
        "python main.py --model gpt_125M --set mesh_shape=x:2 --set layout=batch:x "
        "--cluster cluster.json --worker 1 --allow_remote",
        "python main.py --model gpt_125M --set mesh_shape=x:2 --set layout=batch:x "
        "--cluster cluster.json --allow_remote"],
    "tests/test_interop_hub.py::test_a_revision_has_a_folder_of_its_own": [
        "python main.py --import_from EleutherAI/pythia-160m@step1000 --model_path runs/pythia"],
    "tests/test_main.py::test_a_shell_completes_flags_and_configs": [
        'eval "$(activate-global-python-argcomplete --dest=-)"'],
    "tests/test_interop_serve.py::test_eight_clients_at_once_get_what_predictions_are": [
        "python -m interop.serve exported/mine --port 8000"],
    "tests/test_training_wandb.py::test_scalars_are_logged_and_a_run_goes_on": [
        "python main.py --model shakespeare_char --wandb my-project"],
    "tests/test_training_sweep.py::test_real_runs": [
        "python main.py --sweep configs/sweeps/clip_supervision.yaml"],
    "tests/test_training_board.py::test_tensorboard_opens_on_the_page_of_curves": [
        "python -m training.open_board --logdir runs"],
    "tests/test_layouts.py::test_auto_layout_writes_a_config_for_any_number_of_cores": [
        "python main.py --model gptc_162M --auto_layout_and_mesh_shape 12 --write my_gptc.json"],
    "tests/test_search_layouts.py::test_a_search_that_was_killed_goes_on": [
        "python main.py --model gptc_162M --search_layouts v3-32 --write my_gptc.json"],
    "tests/test_preflight.py::test_data_parallel_step_on_v3_8": [
        "python main.py --model gpt_125M --preflight v3-8"],
    "tests/test_downloads.py::test_named_files_have_the_checksums_of_the_files_themselves": [
        "python datasets/download.py tinyshakespeare --output_dir .",
        "python datasets/download.py tinyshakespeare gpt2 clip lambada"],
    "tests/test_downloads.py::test_a_file_comes_whole_and_is_not_fetched_twice": [
        "python datasets/download.py --url https://example.org/text.jsonl.zst --output_dir "
        "gs://bucket/raw"],
    "tests/test_baselines.py::test_the_table_has_transformers_losses_and_goes_on": [
        "python main.py --model runs/gpt2 --eval --set 'datasets=[\"mine\"]'",
        "python main.py --model runs/gpt2/config.json --eval --set 'datasets=[\"mine\"]'",
        "python benchmarks/baselines.py --data tinyshakespeare.txt --out runs/baselines",
        "python benchmarks/baselines.py --data tinyshakespeare.txt --out runs/baselines --models "
        "gpt2 EleutherAI/pythia-160m runs/finetune_shakespeare"],
    "tests/test_benchmarks.py::test_speed_and_profiles_of_both": [
        "python benchmarks/train_speed.py --nanogpt nanoGPT/model.py --theirs eager compiled",
        "python benchmarks/train_speed.py --nanogpt nanoGPT/model.py --theirs eager compiled "
        "--size 6x384x256 --vocab 50257 --steps 1 --rounds 3",
        "python benchmarks/train_speed.py --nanogpt nanoGPT/model.py --theirs eager compiled "
        "--size 12x768x1024 --vocab 50257 --set train_batch_size=2 --steps 1 --rounds 2 --warm 0"],
    "tests/test_training_probes.py::test_coda_equals_transformers_and_scipy": [
        "python main.py --model runs/demo/gptc_4x128_600_1 --eval --set "
        "'eval_tasks=[\"coda:data/demo/world/probes/coda/world.jsonl\"]'"],
    "tests/test_benchmarks.py::test_memory_of_both": [
        "python benchmarks/train_memory.py --nanogpt nanoGPT/model.py"],
    "tests/test_benchmarks.py::test_what_a_student_costs": ["python benchmarks/gptc_cost.py"],
    "tests/test_benchmarks.py::test_points_are_kept_and_axes_measured_one_by_one": [
        "python benchmarks/scaling.py --out runs/scaling"],
    "tests/test_preflight_table.py::test_the_smallest_row_is_what_the_compiler_says_now": [
        "python benchmarks/preflight_table.py --out runs/preflight"],
    "tests/test_speed_benchmarks.py::test_generation": ["python benchmarks/generation.py"],
    "tests/test_speed_benchmarks.py::test_encoding": [
        "python benchmarks/encoding.py",
        "python benchmarks/encoding.py --text tinyshakespeare.txt"],
    "tests/test_speed_benchmarks.py::test_input_speed": ["python benchmarks/input_speed.py"],
    "tests/test_speed_benchmarks.py::test_start": ["python benchmarks/start.py"],
}
# Those that are not run at all.
NOT_RUN = {
    "they install packages from the net, as .ci/run does": [
        "make venv", "make preflight-env", "source .venv/bin/activate",
        "pip install -r requirements-gpu.txt", "pip install -r requirements-serve.txt",
        "pip install -r requirements-sweep.txt", "pip install -r requirements-wandb.txt",
        "pip install --no-deps open_clip_torch"],
    "TensorBoard's own, which serves on": ["tensorboard --logdir runs"],
    "they need GPUs; tests/test_gpu.py does where there are some": [
        "python main.py --model shakespeare_char_large --gpu_ids 0",
        "python main.py --model gpt_125M --gpu_ids 0 1 2 3 --set mesh_shape=x:2,y:2 --set "
        "layout=batch:x,heads:y,vocab:y,intermediate_expanded:y"],
    "they need a TPU in Google Cloud": [
        "python main.py --model gpt_125M --tpu local --model_path gs://our-bucket/runs/gpt_125M",
        "python main.py --model gpt_1.3B --tpu ours --tpu_zone europe-west4-a --gcp_project "
        "our-project --model_path gs://our-bucket/runs/gpt_1.3B",
        "python main.py --model gpt_1.3B --tpu ours --tpu_zone europe-west4-a --gcp_project "
        "our-project --model_path gs://our-bucket/runs/gpt_1.3B --recreate_tpu"],
}

# The order of the pages, as far as one uses what another has made; the others come after them.
PAGES = ["data", "shakespeare", "training", "sampling", "masked", "clip", "evaluation"]
TINY = ["n_layer=1", "n_embd=16", "n_ctx=32", "train_steps=2", "steps_per_checkpoint=2",
        "warmup_steps=0", "eval_steps=1", "sample_tokens=0", "train_batch_size=8",
        "eval_batch_size=8", "rotary_dims=0", 'attention_types=["global"]',
        'mesh_shape=""', 'layout=""']
# What else there has to be: of the README, and of what `make demo` makes.
MINE = "python main.py --model demo --set 'datasets=[\"mine\"]' --model_path runs/mine"
MADE_BEFORE = {
    "training": [MINE],
    "clip": ["python datasets/create_tfrecords.py --input_dir data/scenes/texts_train.jsonl "
             "--name demo --output_dir data/scenes/texts --encoder data/scenes/tokenizer.json "
             "--val_fraction 0.3 --write_dataset_config",
             "python datasets/encode_captions.py --input 'data/scenes/pictures_train_*.tfrecords' "
             "--val_input 'data/scenes/pictures_val_*.tfrecords' --name demo_pictures "
             "--output_dir data/scenes/demo --encoder data/scenes/tokenizer.json "
             "--write_dataset_config"],
    "evaluation": ["python main.py --model demo"],
}


def joined(command):
    """A command with single spaces."""
    return " ".join(command.split())


def listed():
    """{command: why it is not run here}."""
    return {command: reason for group in (ELSEWHERE, NOT_RUN)
            for reason, ones in group.items() for command in ones}


def pages():
    """The names of the pages in docs/, in the order in which they are gone through."""
    there = {name.removesuffix(".md") for name in os.listdir(os.path.join(ROOT, "docs"))
             if name.endswith(".md")}
    assert set(PAGES) <= there
    return [*PAGES, *sorted(there - set(PAGES))]


ALL = {joined(command): page for page in reversed(pages())
       for command in commands(f"docs/{page}.md")}
RUN = [command for command in ALL if command not in listed()]


def scaled_down(command):
    """The words of a command with a small model or little data."""
    changes = {"--val_fraction": "0.2", "--vocab_size": "512", "--pictures": "24", "--texts": "40"}
    words = shlex.split(command)
    if "main.py" in words:
        parsed = flags.parse(words[words.index("main.py") + 1:])
        # A run's own config is small already. What a command sets itself comes later, and counts.
        if parsed.model and not parsed.model.startswith("runs/"):
            at = words.index("--model") + 2
            words[at:at] = [word for setting in TINY for word in ("--set", setting)]
        if parsed.job == "predict":
            words += ["--max_new_tokens", "4"] if "mlm_training=true" not in words else []
    for flag, value in changes.items():
        if flag in words:
            words[words.index(flag) + 1] = value
    if "datasets/scenes.py" in words:
        words += ["--val_pictures", "8", "--cloze", "200", "--zero_shot", "8", "--val_texts", "4",
                  "--heldout_texts", "4"]
    if "datasets/create_tfrecords.py" in words or "datasets/encode_captions.py" in words:
        words += ["--overwrite"]
    if "datasets/create_tfrecords.py" in words or "datasets/openwebtext.py" in words:
        words += ["--processes", "1"]
    command = shlex.join(words).replace("'>'", ">").replace("'|'", "|")
    # CLIP's merges come with a package that is not required.
    return command.replace("--encoder clip ", "--encoder byte ")


def make_texts(place):
    """Puts the texts there that the pages' commands read, each with the same documents."""
    whole = "\n\n".join(topics[name] for name in sorted(topics)[:12])
    documents = [text for text in whole.split("\n\n") if len(text) > 50]
    (place / "mytext").mkdir()
    # With no more characters than the play's.
    (place / "tinyshakespeare.txt").write_text(re.sub(r"[^A-Za-z \n.:]", "", whole))
    (place / "prompt.txt").write_text("It is", encoding="utf-8")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    (place / "mytext" / "texts.jsonl").write_text(lines)
    (place / "pile" / "train").mkdir(parents=True)
    (place / "pile" / "train" / "00.jsonl").write_text(lines)
    import zstandard

    (place / "pile" / "val.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        for number, text in enumerate(documents):
            member = tarfile.TarInfo(f"{number}.txt")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    packed = lzma.compress(inner.getvalue())
    with tarfile.open(place / "openwebtext.tar.xz", "w:xz") as tar:
        member = tarfile.TarInfo("openwebtext/urlsf_subset00-1_data.xz")
        member.size = len(packed)
        tar.addfile(member, io.BytesIO(packed))
    facts = place / "configs" / "datasets" / "pile_clip.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "encoder": "byte",
                                 "n_vocab": 257, "eos_id": 256}))


def in_order():
    """All commands that are run, those of a page behind each other."""
    found = []
    for page in pages():
        here = [command for command in map(joined, commands(f"docs/{page}.md"))
                if command in RUN and command not in found]
        # A page on a world of pictures shows first what is done with it.
        first = [command for command in here if "datasets/" in command.split(" --")[0]]
        found += [*first, *MADE_BEFORE.get(page, ()),
                  *(command for command in here if command not in first)]
        if page == "interop":
            found.append(client())
    return found


def client():
    """The program in docs/interop.md that asks a SavedModel, as a command."""
    program, = re.findall(r"(?ms)^```python\n(.*?)^```$", read("docs/interop.md"))
    return shlex.join(["python", "-c", program])


def run_all(place):
    """{command of a page: its result}, of all that are run, in a copy of the checkout."""
    shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(
        ".git", ".venv", "tests", "__pycache__", ".*_cache", "data", "runs"))
    make_texts(place)
    order = in_order()
    (place / "asked.json").write_text(json.dumps(list(map(scaled_down, order))))
    done = subprocess.run([sys.executable, os.path.join(ROOT, "tests", "page_runs.py"),
                           "asked.json"], cwd=place, capture_output=True, text=True, timeout=900)
    lines = (place / "asked.json.results").read_text().splitlines()
    assert done.returncode == 0 and len(lines) == len(order), done.stderr[-2000:]
    return dict(zip(order, map(json.loads, lines), strict=True))


def test_commands_that_are_not_run_are_in_the_pages_and_their_tests_exist():
    assert set(listed()) <= set(ALL)
    assert len(RUN) > 35
    for test in ELSEWHERE:
        path, name = test.split("::")
        assert re.search(rf"(?m)^def {name}\(", read(path)), test


@pytest.mark.slow
def test_the_commands_of_the_pages_run(tmp_path):
    """All in one test: each uses what those before it have made."""
    place = tmp_path / "checkout"
    results, failed = run_all(place), []
    for command in RUN:
        try:
            check(place, command, results[command])
        except AssertionError as error:
            failed.append(f"{command}\n{error}")
    assert not failed, "\n\n".join(failed)
    result = results[client()]
    assert result["status"] == 0 and len(result["stdout"].splitlines()) >= 2, result["stderr"]


def check(place, command, result):
    """Fails unless a command did what it says, in a directory."""
    assert result["status"] == 0 and "Traceback" not in result["stderr"], (
        f"{result['command']}\n{result['stdout'][-2000:]}\n{result['stderr'][-3000:]}")
    last = (result["stdout"].splitlines() or [""])[-1]
    if "main.py" not in command:
        return
    args = flags.parse(shlex.split(command.rpartition("main.py ")[2]))
    if args.job in ("train", "eval"):
        assert json.loads(last)["step"] == 2
    elif args.job == "predict":
        assert last == "---------------"
    elif args.job == "check_dataset":
        assert last == "0 problems found"
    elif args.job == "export":
        assert (place / last).is_dir()
    elif args.job == "report":
        assert "<svg" in (place / args.out).read_text(encoding="utf-8")
    elif args.job == "explain_layout":
        assert (place / args.explain_layout / "layout.html").exists()
    else:
        assert json.loads(last)
