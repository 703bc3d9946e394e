"""interop/serve.py in a process of its own, asked over HTTP: answers are those of --predict."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import test_predictor
import tokenizers

import encoders
from configs.errors import UserError
from interop import completions_api, saved_model
from training import predictor

ROWS, N_CTX = 3, 48


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(a run's config, its SavedModel)."""
    folder = tmp_path_factory.mktemp("served")
    config = test_predictor.save_run(test_predictor.make_config(
        folder / "mine", predict_batch_size=ROWS, n_ctx=N_CTX, n_layer=1,
        attention_types=("global",)))
    saved_model.export(config, str(folder / "out"))
    return config, str(folder / "out")


@pytest.fixture(scope="module")
def address(run, root):
    """(host, port) of a server."""
    process = subprocess.Popen(
        [sys.executable, "-m", "interop.serve", run[1], "--port", "0", "--max_body", "20000",
         "--max_waiting", "40"], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True)
    line = process.stdout.readline()
    if not line.startswith("serving mine at http://127.0.0.1:"):
        process.kill()
        raise AssertionError(line + process.stderr.read())
    yield "127.0.0.1", int(line.rpartition(":")[2])
    process.send_signal(signal.SIGINT)
    status, errors = process.wait(60), process.stderr.read()
    assert (status, errors) == (130, "interrupted\n"), errors[-3000:]


def ask(address, body=None, path="/v1/completions", method=None, **headers):
    """(status, the answer's JSON or text)."""
    connection = http.client.HTTPConnection(*address, timeout=120)
    with contextlib.closing(connection):
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        connection.request(method or ("GET" if body is None else "POST"), path, body,
                           {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        text = answer.read().decode()
        is_json = answer.getheader("content-type") == "application/json"
        return answer.status, json.loads(text) if is_json else text


def streamed(address, body):
    """The events of a streamed answer."""
    status, text = ask(address, {**body, "stream": True})
    assert status == 200
    *events, last, end = text.split("\n\n")
    assert last == "data: [DONE]" and end == "" and all(e.startswith("data: ") for e in events)
    return [json.loads(event[6:]) for event in events]


@pytest.fixture(scope="module")
def expected(run):
    """A function from (prompt, n, max_tokens, settings) to what --predict samples."""
    config, _ = run
    model = predictor.Predictor(config, encoders.load("byte"))

    def samples(prompt, n=1, max_tokens=16, stop=(), **settings):
        return [(sample.text, {"eos": "stop"}.get(sample.reason, sample.reason))
                for sample in model.generate([list(prompt.encode())], n, max_tokens, stop=stop,
                                             **settings)]

    return samples


def both(answer):
    return [(choice["text"], choice["finish_reason"]) for choice in answer["choices"]]


CLIENTS = [dict(prompt="ab" * (i % 4 + 1) + "\u00e9" * (i % 2), seed=i, max_tokens=5 + 3 * i,
                temperature=[0, 0.7, 1.3][i % 3], top_k=[0, 20][i % 2],
                top_p=[1.0, 0.9, 1.0][i % 3]) for i in range(8)]


def test_eight_clients_at_once_get_what_predictions_are(address, expected):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        whole = [pool.submit(ask, address, {**client, "n": 2}) for client in CLIENTS]
        pieces = [pool.submit(streamed, address, client) for client in CLIENTS]
    for client, one, events in zip(CLIENTS, whole, pieces, strict=True):
        status, answer = one.result()
        samples = expected(**{**client, "n": 2})
        assert status == 200 and both(answer) == samples, answer
        assert answer["object"] == "text_completion" and answer["model"] == "mine"
        counts = answer["usage"]
        assert counts["prompt_tokens"] == len(client["prompt"].encode())
        assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"]
        choices = [event["choices"][0] for event in events.result()]
        assert "".join(choice["text"] for choice in choices) == samples[0][0]
        assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == [
            samples[0][1]]
    assert len({both(one.result()[1])[0][0] for one in whole}) == 8


def test_prompts_stops_and_echo(address, expected):
    settings = dict(seed=3, temperature=1.0, top_k=0, top_p=1.0)
    status, answer = ask(address, {"prompt": ["ab", "xyz"], "echo": True, "n": 2,
                                   "max_tokens": 6, **settings})
    samples = expected("ab", 2, 6, **settings) + expected("xyz", 2, 6, **settings)
    heads = ["ab", "ab", "xyz", "xyz"]
    assert both(answer) == [(head + text, reason) for head, (text, reason) in
                            zip(heads, samples, strict=True)]
    assert both(ask(address, {"prompt": [97, 98], "max_tokens": 6, **settings})[1]) == samples[:1]
    text = expected("ab", 1, 30, **settings)[0][0]
    stop = [text[9:11], "never"]
    cut = expected("ab", 1, 30, stop=stop, **settings)
    body = {"prompt": "ab", "max_tokens": 30, "stop": stop, **settings}
    assert both(ask(address, body)[1]) == cut and cut[0][1] == "stop"
    events = streamed(address, {**body, "stream_options": {"include_usage": True}, "echo": True})
    assert events[-1]["choices"] == [] and events[-1]["usage"]["prompt_tokens"] == 2
    choices = [event["choices"][0] for event in events[:-1]]
    assert "".join(choice["text"] for choice in choices) == "ab" + cut[0][0]
    # No seed: chance. A lone surrogate is a character that no text has.
    assert len({ask(address, {"prompt": "ab", "max_tokens": 20})[1]["choices"][0]["text"]
                for _ in range(3)}) > 1
    assert ask(address, {"prompt": "\ud800", "echo": True})[0] == 200
    assert ask(address, {"prompt": "", "seed": 1, "model": "mine"})[0] == 200


def test_what_there_is(address):
    status, health = ask(address, path="/health")
    assert status == 200 and health["status"] == "ok"
    status, models = ask(address, path="/v1/models")
    assert [model["id"] for model in models["data"]] == ["mine"] and models["object"] == "list"
    status, page = ask(address, path="/")
    assert status == 200 and "<textarea" in page and "v1/completions" in page


@pytest.mark.parametrize(("body", "status", "words"), [
    (b"", 400, "no JSON"), (b"{", 400, "no JSON"), (b"[1]", 400, "a JSON object"),
    (b"\xff\xfe", 400, "no JSON"), (b"[" * 9000, 400, "no JSON"),
    (b'{"prompt": "a", "temperature": NaN}', 400, "temperature"),
    (b" " * 30000, 413, "larger than 20000 bytes"), ({"prompt": 5}, 400, "prompt"),
    ({"prompt": []}, 400, "prompt"), ({"prompt": [[]]}, 400, "prompt"),
    ({"prompt": [300]}, 400, "from 0 to 256"), ({"prompt": [-1]}, 400, "from 0 to 256"),
    ({"prompt": ["a"] * 65}, 400, "65 prompts"), ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": 10**9, "prompt": "a"}, 400, "maximum context length is 48"),
    ({"prompt": "a" * 60}, 400, "maximum context length is 48"),
    ({"max_tokens": "5"}, 400, "max_tokens"), ({"temperature": -1}, 400, "temperature"),
    ({"temperature": True}, 400, "temperature"), ({"top_p": 0}, 400, "top_p"),
    ({"top_k": 2**40}, 400, "top_k"), ({"n": 0}, 400, "n: "), ({"n": 65}, 400, "n: "),
    ({"stop": ["a"] * 5}, 400, "stop"), ({"stop": ""}, 400, "stop"), ({"stop": 3}, 400, "stop"),
    ({"seed": 1.5}, 400, "seed"), ({"model": "gpt-4"}, 404, "there is only 'mine'"),
    ({"logprobs": 5}, 400, "logprobs: is not supported"), ({"best_of": 3}, 400, "best_of"),
    ({"logit_bias": {"5": 1}}, 400, "logit_bias"), ({"suffix": "x"}, 400, "suffix"),
    ({"presence_penalty": 0.5}, 400, "presence_penalty"), ({"x" * 300: 1}, 400, "x" * 80 + ": "),
    ({"stream_options": 1}, 400, "stream_options"), ({"n": 50}, 429, "too many requests")],
    ids=range(36))
def test_what_is_wrong_is_refused_in_openais_shape(address, body, status, words):
    found, answer = ask(address, body)
    assert found == status and words in answer["error"]["message"], answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert len(answer["error"]["message"]) < 300
    kind = "rate_limit_error" if status == 429 else "invalid_request_error"
    assert answer["error"]["type"] == kind


def test_neither_other_sites_nor_other_methods(address):
    assert ask(address, {}, **{"Content-Type": "text/plain"})[0] == 415
    assert ask(address, {}, Host="evil.example")[0] == 400
    assert ask(address, path="/v1/completions")[0] == 405
    status, answer = ask(address, path="/v1/chat/completions", body={})
    assert status == 404 and "/v1/chat/completions" in answer["error"]["message"]


def running(address):
    health = ask(address, path="/health")[1]
    return health["running"], health["waiting"]


def wait_for(test):
    for _ in range(600):
        if test():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come")


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_frees_the_rows(address, stream):
    body = json.dumps({"prompt": "a", "n": 40, "max_tokens": 40, "stream": stream}).encode()
    with socket.create_connection(address) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                       b"application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        wait_for(lambda: running(address)[0] > 0)
    wait_for(lambda: running(address)[0] == 0)
    assert ask(address, {"prompt": "a", "n": 40, "max_tokens": 1})[0] == 200


class Engine:
    """In place of the engine, one on which nothing ever comes, or everything fails."""

    encoder, n_ctx = encoders.load("byte"), 32
    facts = {"n_vocab": 257}

    def __init__(self, fails):
        self._fails, self.samples = fails, []

    def submit(self, samples):
        self.samples = samples
        for sample in samples if self._fails else ():
            sample.failed = True
            sample.notify()


@pytest.mark.parametrize(("fails", "status"), [(True, 500), (False, 504)])
def test_failures_and_limits_of_time(fails, status):
    import uvicorn

    from interop import completions_app

    engine = Engine(fails)
    app = completions_app.make_app(engine, "mine", completions_app.Limits(1000, 4, 8, 0.2))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        found, answer = ask(listener.getsockname(), {"prompt": "a"})
        event, = streamed(listener.getsockname(), {"prompt": "a"})
        server.should_exit = True
        thread.join()
    assert found == status and answer["error"]["type"] == "server_error"
    assert event["error"] == answer["error"]
    assert all(sample.cancelled for sample in engine.samples)


def test_what_is_sent_is_never_taken_back():
    safe = completions_api.safe_length
    assert safe("ab\ufffd", [], False) == 2 and safe("ab\ufffd", [], True) == 3
    assert safe("hello wor", ["world"], False) == 6 and safe("aab", ["abc", "bX"], False) == 1
    assert safe("hello", ["x", "lord"], False) == 3 and safe("hel", ["x", "lord"], False) == 2


def test_its_encoder_is_in_the_directory(tmp_path):
    """Whatever file it was made of, and wherever that is now."""
    from encoders import char
    from interop import serving_engine

    char.train(["ab\u00e9 "]).save(str(tmp_path / "char.json"))
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<end>": 1, "b": 2}, "a"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "words.json"))
    extra = tmp_path / "out" / "assets.extra"
    os.makedirs(extra)
    for spec in (f"char:{tmp_path}/char.json", f"{tmp_path}/words.json#<end>", "byte", "gpt2"):
        encoder = encoders.load(spec)
        (extra / "tokenizer.json").write_text(encoder.to_tokenizers().to_str())
        here = spec.replace(str(tmp_path), "moved")
        facts = {"encoder": here, "n_vocab": encoder.n_vocab}
        found = serving_engine._encoder(str(tmp_path / "out"), facts)
        ids = encoder.encode("a b")
        assert found.encode("a b") == ids and found.decode(ids) == encoder.decode(ids)
        assert (found.eos_id, found.n_vocab) == (encoder.eos_id, encoder.n_vocab)
    with pytest.raises(UserError, match="do not belong together"):
        serving_engine._encoder(str(tmp_path / "out"), {"encoder": "byte", "n_vocab": 300})


def main_of(root, *flags):
    return subprocess.run([sys.executable, "-m", "interop.serve", *flags], cwd=root,
                          capture_output=True, text=True)


def test_what_cannot_be_served_is_one_line(tmp_path, root, run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = [([str(tmp_path / "none")], "give a directory that main.py --export has written"),
                 ([run[1], "--port", port], f"--port {port}: "),
                 ([run[1], "--port", "-1"], "--port: must be from 0 to 65535")]
        broken = tmp_path / "broken" / "assets.extra"
        os.makedirs(broken)
        (broken / "model.json").write_text('{"encoder": "byte", "n_vocab": "many"}')
        cases.append(([str(tmp_path / "broken"), "--port", "0"], "n_vocab: 'many'"))
        for flags, words in cases:
            done = main_of(root, *flags)
            assert done.returncode == 2 and done.stdout == ""
            line, = done.stderr.splitlines()
            assert words in line
