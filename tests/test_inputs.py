"""The input functions against windows computed by hand from the tokens that were written."""

import logging

import numpy as np
import pytest
import shard_files as shards
import tensorflow.compat.v1 as tf

import inputs
from configs.errors import UserError
from records import mixing, scans, sources, windows

N = 8


@pytest.fixture
def small(monkeypatch):
    """Blocks of 4 windows and groups of 3 blocks, so that a few hundred tokens make many."""
    monkeypatch.setattr(windows, "BLOCK_TOKENS", 4 * N)
    monkeypatch.setattr(windows, "GROUP_TOKENS", 12 * N)


@pytest.fixture
def stream(tmp_path):
    """(config, tokens): 5 uneven shards without a manifest, one of them empty."""
    tokens = np.random.RandomState(0).randint(0, 257, 1003).tolist()
    parts = [tokens[:300], tokens[300:310], [], tokens[310:700], tokens[700:]]
    for number, part in enumerate(parts):
        shards.write(tmp_path / f"corpus_{number}.tfrecords", shards.cut(part, 13))
    path = {"path": str(tmp_path / "corpus_*.tfrecords")}
    return shards.config(tmp_path, {"corpus": (1, "chunks", 1.0, path)}), tokens


def expected_windows(tokens, n_ctx=N):
    return [tuple(tokens[i:i + n_ctx + 1]) for i in range(0, len(tokens) - n_ctx, n_ctx)]


def test_an_epoch_has_every_window_once(small, stream):
    config, tokens = stream
    wanted = expected_windows(tokens)
    epochs = shards.rows(config, 0, 2 * len(wanted)).reshape(2, len(wanted), N + 1)
    for epoch in epochs:
        assert sorted(map(tuple, epoch.tolist())) == sorted(wanted)
    assert (epochs[0] != epochs[1]).any(axis=1).mean() > 0.8
    assert inputs.dataset_facts(config, "train").windows == len(wanted)


def test_blocks_move_between_epochs_and_seeds(small, stream):
    config, tokens = stream
    place = {window: k for k, window in enumerate(expected_windows(tokens))}
    count = len(place)
    orders = [[place[tuple(row)] for row in shards.rows(config, start, count).tolist()]
              for start in (0, count)]
    config.seed = 2
    orders.append([place[tuple(row)] for row in shards.rows(config, 0, count).tolist()])
    first_groups = [sorted({k // 4 for k in order[:12]}) for order in orders]
    assert all(len(blocks) == 3 for blocks in first_groups)
    assert len(set(map(tuple, orders))) == 3 and len(set(map(tuple, first_groups))) > 1
    assert all(abs(np.corrcoef(order, np.arange(count))[0, 1]) < 0.5 for order in orders)


def test_resuming_anywhere_equals_the_straight_run(small, stream):
    """Within a group, at its ends, at the end of an epoch (125 windows), and past several."""
    config, _ = stream
    straight = shards.rows(config, 0, 390)
    for start in (1, 11, 12, 124, 125, 126, 251, 380):
        found = shards.rows(config, start, 10, batch_size=5)
        assert (found == straight[start:start + 10]).all(), start


def test_default_sizes_give_the_same_windows(stream):
    config, tokens = stream
    wanted = expected_windows(tokens)
    assert sorted(map(tuple, shards.rows(config, 0, len(wanted)).tolist())) == sorted(wanted)


def test_many_indexed_records_and_a_manifest(small, tmp_path):
    """Blocks are entered at indexed records in the middle of shards, whatever their order."""
    tokens = np.random.RandomState(1).randint(0, 257, 9000).tolist()
    listed = []
    for number, part in enumerate((tokens[:4001], tokens[4001:])):
        records = shards.cut(part, 7)
        path = tmp_path / f"many_{number}_{len(records)}.tfrecords"
        listed.append(shards.facts(path, records, shards.write(path, records)))
    shards.manifest(tmp_path, "many", "chunks", {"train": listed})
    config = shards.config(tmp_path, {"many": (1, None, 1.0, {
        "path": str(tmp_path / "many_*.tfrecords")})})
    wanted = expected_windows(tokens)
    assert sorted(map(tuple, shards.rows(config, 0, len(wanted)).tolist())) == sorted(wanted)
    facts = inputs.dataset_facts(config, "train")
    assert (facts.tokens, facts.bytes, facts.decoded_bytes) == (9000, 27000, 18000)
    assert (facts.encoder, facts.eos_id, facts.encoder_hash) == ("byte", 256, "0123456789abcdef")
    assert not list(tmp_path.glob("*.scan.json"))


@pytest.mark.parametrize("eval_steps", [None, 3])
def test_evaluation_sees_each_target_once_in_order(small, stream, tmp_path, eval_steps):
    _, tokens = stream
    json = {"path": str(tmp_path / "corpus_[01].tfrecords"),
            "eval_path": str(tmp_path / "corpus_[34].tfrecords")}
    config = shards.config(tmp_path, {"corpus": (1, "chunks", 1.0, json)}, eval_steps=eval_steps)
    held_out = tokens[310:]
    found, valid = shards.take(inputs.eval_input_fn(config))
    size = inputs.eval_windows(config)
    assert found.shape == (size.batches, 4, N + 1) and (eval_steps or 22) == size.batches
    targets = [token for row, count in zip(found.reshape(-1, N + 1), valid.ravel(), strict=True)
               for token in row[1:1 + count]]
    assert targets == held_out[1:len(targets) + 1] and len(targets) == size.targets
    assert eval_steps or len(targets) == len(held_out) - 1
    assert found.reshape(-1, N + 1)[:, 0][1] == held_out[N]


def test_evaluation_of_several_datasets_pads_each(tmp_path):
    sizes = {"a": 21, "b": 9, "c": 40}
    datasets = {}
    for name, size in sizes.items():
        shards.write(tmp_path / f"{name}.tfrecords", [list(range(size))])
        path = str(tmp_path / f"{name}.tfrecords")
        datasets[name] = (1, "chunks", 1.0, {"path": path, "eval_path": path})
    config = shards.config(tmp_path, datasets)
    tokens, valid = shards.take(inputs.eval_input_fn(config))
    assert valid.ravel().tolist() == [8, 8, 4, 8, 8, 8, 8, 8, 7, 0, 0, 0]
    assert tokens.reshape(-1, N + 1)[2].tolist() == [16, 17, 18, 19, 20, 0, 0, 0, 0]
    assert inputs.eval_windows(config) == inputs.EvalSize(9, 3, 67, 8)


def documents(tmp_path, mode, stitch, lengths, **keys):
    """A dataset of documents whose tokens tell document and place: (config, documents)."""
    texts = [[(number * 7 + place) % 257 for place in range(length)]
             for number, length in enumerate(lengths)]
    half = len(texts) // 2
    listed = []
    for number, part in enumerate((texts[:half], texts[half:])):
        path = tmp_path / f"docs_{number}_{len(part)}.tfrecords"
        listed.append(shards.facts(path, part, shards.write(path, part)))
    shards.manifest(tmp_path, "docs", "documents", {"train": listed})
    path = {"path": str(tmp_path / "docs_*.tfrecords")}
    return shards.config(tmp_path, {"docs": (stitch, mode, 1.0, path)}, **keys), texts


@pytest.fixture
def small_documents(monkeypatch):
    """Blocks of about 66 records and groups of two blocks."""
    monkeypatch.setattr(windows, "BLOCK_TOKENS", 1)
    monkeypatch.setattr(windows, "GROUP_TOKENS", 2 * 66 * 9)


def test_documents_fixed_stitches_each_document_once(small_documents, tmp_path):
    lengths = np.random.RandomState(3).randint(5, 14, 700).tolist()
    config, texts = documents(tmp_path, "documents_fixed", 2, lengths)
    found = shards.rows(config, 0, 700).reshape(2, 350, N + 1)
    begins = {}
    for number, text in enumerate(texts):
        begins.setdefault(tuple(text[:5]), []).append(number)
    for epoch in found:
        firsts = [begins[tuple(row[:5])] for row in epoch.tolist()]
        # each window is the start of a document followed by the start of another one
        for row, numbers in zip(epoch.tolist(), firsts, strict=True):
            assert any(_is_stitched(row, texts[number], texts) for number in numbers)
        assert len({tuple(numbers) for numbers in firsts}) > 100
    assert (found[0] != found[1]).any(axis=1).mean() > 0.9
    again = shards.rows(config, 333, 60, batch_size=6)
    assert (again == found.reshape(700, -1)[333:393]).all()


def _is_stitched(row, first, texts):
    own = min(len(first), N + 1)
    rest = row[own:]
    return row[:own] == first[:own] and (not rest or any(t[:len(rest)] == rest for t in texts))


def test_documents_come_once_an_epoch(small_documents, tmp_path):
    """With documents of n_ctx + 1 tokens and stitch 1 the windows are the documents."""
    config, texts = documents(tmp_path, None, 1, [N + 1] * 500)
    found = shards.rows(config, 0, 1000).reshape(2, 500, N + 1)
    for epoch in found:
        assert sorted(epoch.tolist()) == sorted(texts)


def test_left_over_documents_differ_between_epochs(small_documents, tmp_path):
    texts = [[number] * 3 for number in range(200)]
    path = tmp_path / "own_0_200.tfrecords"
    shards.write(path, texts)
    config = shards.config(tmp_path, {"own": (3, "documents_fixed", 1.0, {"path": str(path)})})
    found = shards.rows(config, 0, 66 * 6).reshape(6, -1)
    missing = [frozenset(range(200)) - set(epoch.tolist()) for epoch in found]
    assert all(len(left) == 2 for left in missing) and len(set(missing)) > 1
    assert all((np.bincount(epoch, minlength=200) <= 3).all() for epoch in found)


def test_documents_random_moves_the_window(small_documents, tmp_path):
    config, texts = documents(tmp_path, "documents_random", 1, [40] * 130)
    starts = {text[0]: number for number, text in enumerate(texts)}
    found = shards.rows(config, 0, 260).reshape(2, 130, N + 1)
    assert (np.diff(found, axis=-1) % 257 == 1).all()  # never beyond one document
    assert 0 < np.mean([row[0] in starts for row in found.reshape(-1, N + 1).tolist()]) < 0.6
    # every offset from 0 to 40 - 9 is possible: of a dataset of equal documents they are seen
    same = tmp_path / "same"
    same.mkdir()
    shards.write(same / "same.tfrecords", [list(range(40))] * 300)
    config = shards.config(tmp_path, {"same": (
        1, "documents_random", 1.0, {"path": str(same / "same.tfrecords")})})
    offsets = shards.rows(config, 0, 300)[:, 0]
    assert set(offsets.tolist()) == set(range(32))
    assert (shards.rows(config, 77, 20)[:, 0] == offsets[77:97]).all()
    config.seed = 5
    assert (shards.rows(config, 0, 300)[:, 0] != offsets).mean() > 0.8


def test_stitch_is_checked_against_the_shortest_document(tmp_path):
    config, _ = documents(tmp_path, "documents_random", 1, [9] * 20 + [4])
    with pytest.raises(UserError, match="docs.*shortest document has 4 .*stitch to 3 or more"):
        inputs.train_input_fn(config, 0)
    config, _ = documents(tmp_path / "..", "documents_random", 3, [9] * 20 + [4])
    assert shards.rows(config, 0, 7).shape == (7, 9)


def test_modes_that_disagree_with_the_manifest(tmp_path, caplog):
    config, texts = documents(tmp_path, "chunks", 1, [5] * 40)
    stream = [token for text in texts for token in text]
    wanted = expected_windows(stream)
    assert sorted(map(tuple, shards.rows(config, 0, len(wanted)).tolist())) == sorted(wanted)
    path = tmp_path / "docs_manifest.json"
    path.write_text(path.read_text().replace('"mode": "documents"', '"mode": "chunks"'))
    config.datasets[0][2] = "documents_fixed"
    sources.forget()
    assert sorted(map(tuple, shards.rows(config, 0, len(wanted)).tolist())) == sorted(wanted)
    caplog.set_level(logging.INFO)
    inputs.dataset_facts(config, "train")
    assert ("note: dataset docs: it was written as chunks, and is read so, not as documents_fixed"
            in caplog.messages)


def test_records_of_one_length_are_remarked_on(tmp_path, caplog):
    """GPT-Neo's shards tell nothing of themselves; its configs have documents_random for chunks."""
    caplog.set_level(logging.INFO)
    for name, lengths, wanted in (("same", [9] * 6, True), ("others", [9] * 5 + [10], False)):
        shards.write(tmp_path / f"{name}_6.tfrecords", [[7] * length for length in lengths])
        config = shards.config(tmp_path, {name: (2, "documents_random", 1.0, {
            "path": str(tmp_path / f"{name}_*.tfrecords")})})
        inputs.dataset_facts(config, "train")
        assert any(f"dataset {name}: all its records have 9 tokens: if they were cut" in line
                   for line in caplog.messages) == wanted


def three(tmp_path, weights, **keys):
    """Datasets a, b, c with tokens below 80, 160 and 240."""
    datasets = {}
    for number, (name, weight) in enumerate(zip("abc", weights, strict=True)):
        ids = 80 * number + np.random.RandomState(number).randint(0, 80, 400 + 50 * number)
        shards.write(tmp_path / f"{name}.tfrecords", shards.cut(ids.tolist(), 20))
        datasets[name] = (1, "chunks", weight, {"path": str(tmp_path / f"{name}.tfrecords")})
    return shards.config(tmp_path, datasets, **keys)


def test_mixing_keeps_ratios_and_each_datasets_order(small, tmp_path):
    config = three(tmp_path, [1.0, 2.0, 5.0])
    found = shards.rows(config, 0, 1000, batch_size=50)
    chosen = found[:, 0] // 80
    assert np.abs(np.bincount(chosen) / 1000 - np.array([1, 2, 5]) / 8).max() < 0.04
    for number in range(3):
        mine = found[chosen == number].tolist()
        count = (400 + 50 * number - 1) // N  # windows of the dataset's epoch
        assert len(set(map(tuple, mine[:count]))) == min(count, len(mine))
        assert len(set(map(tuple, mine))) == min(count, len(mine))


@pytest.mark.slow
def test_mixing_resumes_exactly(tmp_path, monkeypatch):
    """Within and past the table's period, with another batch size."""
    config = three(tmp_path, [0.3, 0.2, 0.5])
    for period, start in ((10_000, 500), (64, 333)):
        monkeypatch.setattr(mixing, "MIX_PERIOD", period)
        straight = shards.rows(config, 0, 600, batch_size=50)
        found = shards.rows(config, start, 40, batch_size=8)
        assert (found == straight[start:start + 40]).all()


def test_mixing_table_by_largest_remainder(tmp_path):
    entries = sources.of_run(three(tmp_path, [1.0, 1.0, 1.0]), "train")
    table = mixing.mixing_table(1, [source.entry for source in entries])
    assert sorted(np.bincount(table).tolist()) == [3333, 3333, 3334]
    config = three(tmp_path, [1.0, 1.0, 1e-6])
    with pytest.raises(UserError, match="dataset c: weight 1e-06"):
        shards.rows(config, 0, 1)


def test_foreign_shards_load_unmodified(tmp_path):
    """GPT-Neo's (count in the name) and ConnorJL's (a hash in each record, no count)."""
    tokens = np.random.RandomState(0).randint(0, 257, 9 * 30).tolist()
    records = shards.cut(tokens, N + 1)
    more = {"hash": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"abc"]))}
    for name, extra in (("openwebtext_0_30", {}), ("bundestag_0", more), ("pile_valid", more)):
        path = tmp_path / f"{name}.tfrecords"
        shards.write(path, records, **extra)
        config = shards.config(tmp_path, {name: (1, "documents_fixed", 1.0, {"path": str(path)})})
        assert sorted(shards.rows(config, 0, 30).tolist()) == sorted(records)
        config.datasets[0][2] = "chunks"
        wanted = expected_windows(tokens)
        assert sorted(map(tuple, shards.rows(config, 0, len(wanted)).tolist())) == sorted(wanted)
        assert (tmp_path / f"{name}.scan.json").exists()


def test_a_scan_is_kept_until_the_size_changes(tmp_path, monkeypatch):
    path = tmp_path / "own.tfrecords"
    shards.write(path, [list(range(50))] * 3)
    config = shards.config(tmp_path, {"own": (1, "chunks", 1.0, {"path": str(path)})})
    scanned = []
    real = scans.scan
    monkeypatch.setattr(scans, "scan", lambda file: scanned.append(file) or real(file))
    for _ in range(2):
        sources.forget()
        assert inputs.dataset_facts(config, "train").tokens == 150
    assert len(scanned) == 1
    shards.write(path, [list(range(50))] * 4)
    sources.forget()
    assert inputs.dataset_facts(config, "train").tokens == 200 and len(scanned) == 2


@pytest.mark.parametrize("kept", [
    "[]", '{"format": 1}', '{"format": 1, "shards": [1]}', '{"format": 1, "shards": {"own": 3}}',
    '{"format": 1, "shards": {"own.tfrecords": {"size": SIZE}}}',
    '{"format": 1, "shards": {"own.tfrecords": {"size": SIZE, "records": 1, "tokens": 9, '
    '"shortest": 9, "longest": 9, "index": [[0]], "bytes": null, "decoded_bytes": null, '
    '"lowest": 0, "highest": 1}}}', "[" * 20000], ids=range(7))
def test_a_scan_that_another_program_kept_is_made_anew(tmp_path, kept):
    path = tmp_path / "own.tfrecords"
    shards.write(path, [list(range(50))])
    kept = kept.replace("SIZE", str(path.stat().st_size))
    (tmp_path / "own.scan.json").write_text(kept)
    config = shards.config(tmp_path, {"own": (1, "chunks", 1.0, {"path": str(path)})})
    assert inputs.dataset_facts(config, "train").tokens == 50
    assert (tmp_path / "own.scan.json").read_text() != kept


def test_a_scan_is_kept_in_model_path_if_shards_are_read_only(tmp_path, monkeypatch):
    path = tmp_path / "own.tfrecords"
    shards.write(path, [list(range(50))])
    (tmp_path / "own.scan.json.tmp").mkdir()  # a file of this name cannot be written
    config = shards.config(tmp_path, {"own": (1, "chunks", 1.0, {"path": str(path)})})
    assert inputs.dataset_facts(config, "train").tokens == 50
    assert len(list((tmp_path / "model").glob("own.*.scan.json"))) == 1
    sources.forget()
    monkeypatch.setattr(scans, "scan", lambda file: pytest.fail("scanned again"))
    assert inputs.dataset_facts(config, "train").tokens == 50


def test_wrong_counts_are_refused(tmp_path):
    path = tmp_path / "own_0_31.tfrecords"
    shards.write(path, [[1, 2, 3]] * 30)
    config = shards.config(tmp_path, {"own": (1, "chunks", 1.0, {"path": str(path)})})
    with pytest.raises(UserError, match="own_0_31.tfrecords: the name says 31 .* 30"):
        inputs.dataset_facts(config, "train")


def test_a_short_shard_raises_rather_than_shifts(small, tmp_path):
    """A manifest that claims more than is there is found out as soon as it is read."""
    records = shards.cut(list(range(200)), 5)
    path = tmp_path / "own_0_41.tfrecords"
    offsets = shards.write(path, records)
    listed = shards.facts(path, [*records, [1] * 5], offsets)
    shards.manifest(tmp_path, "own", "chunks", {"train": [listed]})
    config = shards.config(tmp_path, {"own": (1, "chunks", 1.0, {"path": str(path)})})
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        shards.rows(config, 0, 25)
    assert "own_0_41.tfrecords" in inputs.explain_data_error(config, caught.value)
    assert "holds less than it held" in inputs.explain_data_error(config, caught.value)


def test_ids_out_of_range(tmp_path):
    records = [[1, 2, 3, 257] * 5] * 3
    path = tmp_path / "own_0_3.tfrecords"
    shards.write(path, records)
    config = shards.config(tmp_path, {"own": (1, "chunks", 1.0, {"path": str(path)})})
    with pytest.raises(UserError, match="own_0_3.tfrecords has ids from 1 to 257"):
        inputs.train_input_fn(config, 0)


@pytest.mark.parametrize("mode", ["chunks", "documents_fixed", "documents_random", "validation"])
@pytest.mark.parametrize("wrong", [257, -1])
def test_ids_out_of_range_in_a_manifests_shards(tmp_path, mode, wrong):
    """What no scan has seen is refused when it is read, whatever the mode."""
    records = [[1, 2, 3, wrong] * 5] * 3
    path = tmp_path / "own_0_3.tfrecords"
    offsets = shards.write(path, records)
    reading = "chunks" if mode == "validation" else mode
    shards.manifest(tmp_path, "own", reading.partition("_")[0],
                    {"train": [shards.facts(path, records, offsets)]})
    config = shards.config(tmp_path, {"own": (1, reading, 1.0, {
        "path": str(path), "eval_path": str(path)})})
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        if mode == "validation":
            shards.take(inputs.eval_input_fn(config))
        else:
            shards.rows(config, 0, 1)
    line = inputs.explain_data_error(config, caught.value)
    assert "dataset own: token ids have to be below 257" in line and str(path) in line


@pytest.mark.parametrize("damage", ["data", "length", "cut"])
def test_damage_in_a_run_is_named_by_file_and_offset(tmp_path, damage):
    records = [list(range(20))] * 600
    for number in range(3):
        path = tmp_path / f"own_{number}_600.tfrecords"
        offsets = shards.write(path, records)
    listed = [shards.facts(tmp_path / f"own_{n}_600.tfrecords", records, offsets) for n in range(3)]
    shards.manifest(tmp_path, "own", "chunks", {"train": listed})
    path, place = tmp_path / "own_1_600.tfrecords", offsets[300 if damage != "cut" else 599]
    data = bytearray(path.read_bytes())
    data[place + (20 if damage == "data" else 3)] ^= 255
    if damage == "cut":
        data = path.read_bytes()[:place + 15]
    path.write_bytes(data)
    config = shards.config(tmp_path, {"own": (1, "chunks", 1.0, {
        "path": str(tmp_path / "own_*.tfrecords")})})
    with pytest.raises(tf.errors.DataLossError) as caught:
        shards.rows(config, 0, 4400)
    line = inputs.explain_data_error(config, caught.value)
    assert "own_1_600.tfrecords" in line and f"at byte {place};" in line


def test_damage_in_a_foreign_shard_is_named_before_the_run(tmp_path):
    path = tmp_path / "own.tfrecords"
    offsets = shards.write(path, [list(range(20))] * 10)
    data = bytearray(path.read_bytes())
    data[offsets[6] + 14] ^= 1
    path.write_bytes(data)
    config = shards.config(tmp_path, {"own": (1, "chunks", 1.0, {"path": str(path)})})
    with pytest.raises(UserError, match=rf"own.tfrecords: corrupt.* at byte {offsets[6]};"):
        inputs.train_input_fn(config, 0)


def test_an_error_that_is_not_the_datas_is_left_alone(stream):
    assert inputs.explain_data_error(stream[0], tf.errors.InternalError(None, None, "mesh")) is None


def test_a_manifest_of_other_files_is_refused(tmp_path):
    records = [list(range(20))] * 600
    path = tmp_path / "own_0_600.tfrecords"
    listed = shards.facts(path, records, shards.write(path, records))
    shards.write(path, [list(range(21))] * 600)
    shards.manifest(tmp_path, "own", "chunks", {"train": [listed]})
    config = shards.config(tmp_path, {"own": (1, "chunks", 1.0, {"path": str(path)})})
    with pytest.raises(UserError, match="own_0_600.tfrecords: corrupt .* make the shard anew"):
        inputs.train_input_fn(config, 0)


def test_validation_shards_of_the_manifest_stay_out_of_training(tmp_path):
    listed = {}
    for split, name, value in (("train", "x_0_5", 1), ("validation", "x_val_0_5", 2)):
        path = tmp_path / f"{name}.tfrecords"
        records = [[value] * 9] * 5
        listed[split] = [shards.facts(path, records, shards.write(path, records))]
    shards.manifest(tmp_path, "x", "chunks", listed)
    config = shards.config(tmp_path, {"x": (1, "chunks", 1.0, {
        "path": str(tmp_path / "x_*.tfrecords")})})
    assert set(shards.rows(config, 0, 5).ravel().tolist()) == {1}
    tokens, valid = shards.take(inputs.eval_input_fn(config))
    assert set(tokens[0, 0].tolist()) == {2} and valid.sum() == 44


def test_index_files_lists_and_empty_globs(tmp_path, monkeypatch):
    deep = tmp_path / "deep"
    deep.mkdir()
    for name, value in (("one", 1), ("two", 2), ("three", 3)):
        shards.write((deep if value < 3 else tmp_path) / f"{name}.tfrecords", [[value] * 12])
    (deep / "index.txt").write_text(f"# shards\n\ntwo.tfrecords\n{tmp_path}/three.tfrecords\n")
    monkeypatch.chdir(tmp_path)
    for path, wanted in ((str(deep / "index.txt"), [2] * 12 + [3] * 12),
                         ([str(deep / "one.tfrecords"), "deep/index.txt"],
                          [1] * 12 + [2] * 12 + [3] * 12)):
        config = shards.config(tmp_path, {"own": (1, "chunks", 1.0, {
            "path": path, "eval_path": path})})
        tokens, valid = shards.take(inputs.eval_input_fn(config))
        flat = [t for row, n in zip(tokens.reshape(-1, 9), valid.ravel(), strict=True)
                for t in row[1:n + 1]]
        assert flat == wanted[1:]
    for path, match in ((f"{tmp_path}/none_*.tfrecords", "no file matches"),
                        (f"{tmp_path}/none.tfrecords", "none.tfrecords does not exist"),
                        (f"{tmp_path}/none.index", "no .*none.index, an index file or a shard"),
                        (str(deep), "neither a shard")):
        config = shards.config(tmp_path, {"own": (1, "chunks", 1.0, {"path": path})})
        with pytest.raises(UserError, match=match):
            inputs.train_input_fn(config, 0)


def test_natural_order_of_shards(tmp_path):
    for number in (10, 9, 1):
        shards.write(tmp_path / f"own_{number}.tfrecords", [[number] * 8])
    path = str(tmp_path / "own_*.tfrecords")
    config = shards.config(tmp_path, {"own": (1, "chunks", 1.0, {"path": path, "eval_path": path})})
    tokens, _ = shards.take(inputs.eval_input_fn(config))
    assert tokens[0, :3, 0].tolist() == [1, 9, 10]


def test_no_validation_split_and_other_refusals(stream, tmp_path):
    config, _ = stream
    with pytest.raises(UserError, match="corpus has no validation split; set eval_path"):
        inputs.eval_input_fn(config)
    config.n_ctx = 1003
    with pytest.raises(UserError, match="does not fill one window"):
        inputs.train_input_fn(config, 0)
    config.n_ctx, config.n_vocab = 8, 100
    with pytest.raises(UserError, match="corpus has 257 token ids, more than n_vocab 100"):
        inputs.train_input_fn(config, 0)


def test_datasets_of_different_encoders_are_refused(tmp_path):
    datasets = {}
    for name in "ab":
        records = [[1] * 20] * 3
        directory = tmp_path / name
        directory.mkdir()
        path = directory / f"{name}_0_3.tfrecords"
        listed = [shards.facts(path, records, shards.write(path, records))]
        shards.manifest(directory, name, "chunks", {"train": listed}, hash=f"{name * 16}")
        datasets[name] = (1, "chunks", 1.0, {"path": str(path)})
    with pytest.raises(UserError, match="a and b were made by different encoders"):
        inputs.train_input_fn(shards.config(tmp_path, datasets), 0)
    datasets["b"][3]["encoder_hash"] = "0" * 16
    with pytest.raises(UserError, match="b: its JSON has encoder_hash 0000"):
        inputs.train_input_fn(shards.config(tmp_path, datasets), 0)


def test_a_run_on_another_file_system(small, tmp_path):
    tokens = list(range(250))
    tf.io.gfile.makedirs("ram://inputs")
    shards.write("ram://inputs/own_0_50.tfrecords", shards.cut(tokens, 5))
    config = shards.config(tmp_path, {"own": (1, "chunks", 1.0, {
        "path": "ram://inputs/own_*.tfrecords"})})
    wanted = expected_windows(tokens)
    assert sorted(map(tuple, shards.rows(config, 0, len(wanted)).tolist())) == sorted(wanted)
    assert tf.io.gfile.exists("ram://inputs/own_0_50.scan.json")


def test_pipelines_hold_no_python_functions(tmp_path):
    """On a TPU the pipeline runs on another host: its graph may not call back into Python."""
    path = str(tmp_path / "own.tfrecords")
    shards.write(path, [[1] * 20] * 10)
    datasets = {"a": (1, "chunks", 1.0, {"path": path, "eval_path": path}),
                "b": (3, "documents_random", 1.0, {"path": path, "eval_path": path})}
    config = shards.config(tmp_path, datasets)
    for input_fn in (inputs.train_input_fn(config, 0), inputs.eval_input_fn(config)):
        with tf.Graph().as_default() as graph:
            tf.data.make_one_shot_iterator(input_fn({})).get_next()
        definition = graph.as_graph_def()
        used = {node.op for function in definition.library.function for node in function.node_def}
        used |= {node.op for node in definition.node}
        assert "TFRecordDatasetV2" in used
        assert not {op for op in used if "PyFunc" in op or "Generator" in op}
