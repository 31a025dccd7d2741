"""What a client of OpenAI's API and the page in a browser see of a model that is served."""

import json
import re
import socket
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from sample import SampleConfig, converse, load_for_sampling
from serve import ServeConfig, Writer, serve
from support import api_server
from support.api_server import Server
from support.processes import open_world

GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture
def served(trained, run):
    """A function that serves a tiny model, and returns a client of it: served("chat")."""
    servers = []

    def serve(task="text", **knobs):
        if not Path("out/tiny").exists():
            trained("--max_iters=30", "--position=rope")
        if task == "chat" and not Path("out/chat").exists():
            lines = [{"messages": turns(f"{i} the dog", "the cat ran")} for i in range(40)]
            Path("chats.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
            options = ["--task=chat", "--dataset=chats.jsonl", "--max_iters=4", "--device=cpu"]
            options += ["--block_size=256", "--learning_rate=0.01"]
            run("finetune.py", "--init_from=out/tiny", "--out_dir=out/chat", *options)
        folder = "out/tiny" if task == "text" else "out/chat"
        config = ServeConfig(out_dir=folder, device="cpu", dtype="float32", port=0, **knobs)
        with open_world("cpu", "float32", to_train=False) as world:
            writer = Writer(*load_for_sampling(config, world), config)
        server = Server(writer, "127.0.0.1", 0)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return Client(server.server_port, writer)

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


class Client:
    def __init__(self, port, writer):
        self.port, self.writer = port, writer

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}") as response:
            return response.headers["Content-Type"], response.read().decode()

    def post(self, path, content, kind="application/json"):
        """(status, what was answered)"""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": kind}
        )
        try:
            with urllib.request.urlopen(request) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def text(self, **request):
        status, answer = self.post("/v1/completions", request)
        assert status == 200, answer
        return answer["choices"][0]["text"]

    def events(self, path, request):
        """The events of a streamed answer."""
        headers = {"Content-Type": "application/json"}
        with closing(HTTPConnection("127.0.0.1", self.port)) as connection:
            connection.request("POST", path, json.dumps(request | {"stream": True}), headers)
            response = connection.getresponse()
            assert response.headers["Content-Type"] == "text/event-stream"
            *events, last = response.read().decode().removesuffix("\n\n").split("\n\n")
        assert last == "data: [DONE]"
        return [json.loads(event.removeprefix("data: ")) for event in events]


def turns(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def test_a_text_is_continued_as_sample_py_continues_it(served, run, capsys):
    client = served(until_eot=False)
    status, answer = client.post("/v1/completions", {"prompt": "the 猫", **GREEDY})
    text = answer["choices"][0]["text"]
    assert status == 200
    assert answer["object"] == "text_completion"
    assert answer["model"] == "tiny"
    assert answer["choices"][0]["finish_reason"] == "length"
    made, given = answer["usage"]["completion_tokens"], answer["usage"]["prompt_tokens"]
    assert (made, given) == (12, 1 + len(client.writer.tokenizer.encode("the 猫")))
    assert answer["usage"]["total_tokens"] == made + given
    capsys.readouterr()
    options = "--temperature=0 --max_new_tokens=12 --num_samples=1 --until_eot=False --device=cpu"
    run("sample.py", "--out_dir=out/tiny", "--start=the 猫", *options.split())
    assert capsys.readouterr().out == f"the 猫{text}\n"


def test_the_parts_of_a_streamed_text_are_the_whole_one(served):
    client = served(until_eot=False)
    request = {"prompt": "狗", "seed": 5, "max_tokens": 40}
    events = client.events("/v1/completions", request | {"stream_options": {"include_usage": True}})
    *parts, usage = events
    assert "".join(part["choices"][0]["text"] for part in parts) == client.text(**request)
    *before, last = (part["choices"][0]["finish_reason"] for part in parts)
    assert (set(before), last) == ({None}, "length")
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 40
    assert {event["id"] for event in events} == {usage["id"]}


def test_knobs_of_a_request_come_before_those_typed(served):
    client = served(temperature=0.0, max_new_tokens=10, until_eot=False)
    greedy = client.text(prompt="the")
    assert client.text(prompt="the", seed=1) == greedy
    for name, n in (("max_tokens", 3), ("max_completion_tokens", 4)):
        assert (
            client.post("/v1/completions", {"prompt": "the", name: n})[1]["usage"][
                "completion_tokens"
            ]
            == n
        )
        assert greedy.startswith(client.text(prompt="the", **{name: n}))
    assert client.text(prompt="the", stop=greedy[4]) == greedy[: greedy.index(greedy[4])]
    assert client.text(prompt="the", top_k=1, temperature=1.5) == greedy
    assert client.text(prompt="the", max_tokens=None, n=1, frequency_penalty=0) == greedy


def test_texts_differ_unless_a_request_has_a_seed(served):
    client = served(temperature=1.5, top_k=0, min_p=0.0)
    free = {client.text(prompt="the", max_tokens=30) for _ in range(4)}
    seeded = {client.text(prompt="the", max_tokens=30, seed=7) for _ in range(3)}
    assert (len(free), len(seeded)) == (4, 1)


def test_a_conversation_is_answered_as_on_the_terminal(served, monkeypatch, capsys):
    client = served("chat", temperature=0.0, max_new_tokens=20)
    config = SampleConfig(
        out_dir="out/chat", chat=True, temperature=0.0, max_new_tokens=20, device="cpu"
    )
    said = ["看见 the dog", "the dog ran"]
    lines = iter([*said, ""])
    monkeypatch.setattr("sample.read_line", lambda prompt: next(lines))
    capsys.readouterr()
    converse(client.writer.context.model, client.writer.tokenizer, config, sys.stdout)
    expected = capsys.readouterr().out.removesuffix("\n").split("\n")

    path, messages = "/v1/chat/completions", []
    for text, right in zip(said, expected, strict=True):
        messages.append({"role": "user", "content": text})
        status, answer = client.post(path, {"messages": messages})
        choice = answer["choices"][0]
        assert (status, answer["object"]) == (200, "chat.completion")
        assert choice["message"] == {"role": "assistant", "content": right}
        parts = [event["choices"][0] for event in client.events(path, {"messages": messages})]
        assert "".join(part["delta"]["content"] for part in parts) == right
        assert [part["delta"].get("role") for part in parts] == ["assistant"] + [None] * (
            len(parts) - 1
        )
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        messages.append(choice["message"])
    in_parts = [{"role": "user", "content": [{"type": "text", "text": said[0]}]}]
    assert (
        client.post(path, {"messages": in_parts})[1]["choices"][0]["message"]["content"]
        == (expected[0])
    )


def test_a_conversation_goes_on_from_what_was_read(served):
    client = served("chat", temperature=0.0, max_new_tokens=4)
    read, context = [], client.writer.context
    context.model.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].size(1)))
    messages = turns("看见 the dog", "the cat", "ran home")
    client.post("/v1/chat/completions", {"messages": messages[:1]})
    first = read[0]
    read.clear()
    client.post("/v1/chat/completions", {"messages": messages})
    total = len(context.rows[0])
    assert first > 10
    assert read[0] <= total - first


def test_a_system_prompt_is_put_before_a_conversation_that_has_none(served):
    client = served("chat", system="a dog", max_new_tokens=2)
    prompt, _ = client.writer.chat_prompt({"messages": turns("the")})
    assert "a dog" in client.writer.tokenizer.decode(prompt)
    own = [{"role": "system", "content": "a cat"}, *turns("the")]
    prompt, _ = client.writer.chat_prompt({"messages": own})
    assert "a cat" in client.writer.tokenizer.decode(prompt)
    assert "a dog" not in client.writer.tokenizer.decode(prompt)


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({}, "prompt=None"),
        ({"prompt": ["a", "b"]}, "prompt=.*expected a text"),
        ({"prompt": "the", "temperature": "hot"}, "temperature='hot': expected a number"),
        ({"prompt": "the", "temperature": -1}, "temperature"),
        ({"prompt": "the", "max_tokens": 2.5}, "max_tokens=2.5: expected a whole number"),
        ({"prompt": "the", "max_tokens": True}, "max_tokens=True"),
        ({"prompt": "the", "temperature": 10**400}, "temperature=1000.*a number"),
        ({"prompt": "the", "\ud800": 1}, "is not supported"),
        ({"prompt": "the", "stop": [1]}, "stop=.*list of texts"),
        ({"prompt": "the", "n": 2}, "n=2 is not supported"),
        ({"prompt": "the", "logprobs": 3}, "logprobs=3 is not supported; the knobs are"),
        ([1], "JSON object"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_request_that_cannot_be_answered_is_told_why(served, request_, told):
    client = served()
    status, answer = client.post("/v1/completions", request_)
    assert status == 400
    assert re.search(told, answer["error"]["message"])
    assert client.text(prompt="the", max_tokens=1)  # it goes on


@pytest.mark.parametrize(
    "messages",
    [
        *(None, [], "the", [1], [{"role": "user"}], [{"content": 1}]),
        [{"role": "user<|im_end|>", "content": "a special token in a role"}],
    ],
)
def test_a_conversation_without_messages_is_told_what_they_are(served, messages):
    status, answer = served("chat").post("/v1/chat/completions", {"messages": messages})
    assert status == 400
    assert '"role": "user"' in answer["error"]["message"]


def test_a_message_beyond_the_context_is_refused(served):
    status, answer = served("chat").post(
        "/v1/chat/completions", {"messages": turns("the cat " * 200)}
    )
    assert status == 400
    assert re.search("too long: .* tokens, of 256", answer["error"]["message"])


def test_a_mistake_in_the_middle_of_a_text_is_an_event(served, monkeypatch):
    client = served()

    def steps_until_nan(*_):
        yield [client.writer.tokenizer.encode("a")[0]]
        raise SystemExit("no token has a probability")

    monkeypatch.setattr("serve.steps_of", steps_until_nan)
    *_, last = client.events("/v1/completions", {"prompt": "the"})
    assert "no token has a probability" in last["error"]["message"]


def test_only_pages_of_this_machine_are_answered(served):
    """Another page could lead its own name to this machine (DNS rebinding)."""
    client = served()
    for host, status in (("evil.example", 403), ("localhost", 200), ("127.0.0.1:80", 200)):
        with closing(HTTPConnection("127.0.0.1", client.port)) as connection:
            connection.request("GET", "/v1/models", headers={"Host": host})
            assert connection.getresponse().status == status


def test_a_connection_serves_several_requests_until_one_is_refused(served):
    client = served()
    with closing(HTTPConnection("127.0.0.1", client.port)) as connection:
        for path in ("/v1/models", "/v1/models/tiny?a=1", "/v1/models/ti%6Ey"):
            connection.request("GET", path)
            response = connection.getresponse()
            assert (response.status, response.headers["Connection"]) == (200, None)
            response.read()
        connection.request("GET", "/secret")
        response = connection.getresponse()
        assert (response.status, response.headers["Connection"]) == (404, "close")


def test_other_addresses_types_and_sizes_are_refused(served):
    client = served()
    assert client.post("/v1/embeddings", {})[0] == 404
    with pytest.raises(urllib.error.HTTPError, match="404"):
        client.get("/secret")
    status, answer = client.post("/v1/completions", {"prompt": "the"}, kind="text/plain")
    assert status == 400
    assert "Content-Type: application/json" in answer["error"]["message"]
    with socket.create_connection(("127.0.0.1", client.port)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n")
        assert b" 400 " in connection.recv(100)
    with socket.create_connection(("127.0.0.1", client.port)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n")
        assert b" 400 " in connection.recv(100)


def test_a_model_that_was_not_taught_to_chat_says_so(served):
    status, answer = served().post("/v1/chat/completions", {"messages": turns("the")})
    assert status == 400
    assert "--task=chat" in answer["error"]["message"]


def test_requests_at_the_same_time_wait_for_each_other(served):
    client = served()
    alone = {n: client.text(prompt="the", max_tokens=n, temperature=0) for n in (20, 25, 30, 35)}
    with ThreadPoolExecutor() as threads:
        ask = lambda n: client.text(prompt="the", max_tokens=n, temperature=0)  # noqa: E731
        together = dict(zip(alone, threads.map(ask, alone)))
        assert together == alone
        ask = lambda _: client.text(prompt="the", max_tokens=30, temperature=1.5, top_k=0)  # noqa: E731
        assert len(set(threads.map(ask, range(6)))) == 6  # none has the seed of another


def ask_without_end(client, **request):
    """A connection that has asked for a very long text."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # soon full, if it is not read
    connection.connect(("127.0.0.1", client.port))
    content = json.dumps({"prompt": "the", "max_tokens": 10**8} | request)
    head = f"Content-Type: application/json\r\nContent-Length: {len(content)}"
    request = f"POST /v1/completions HTTP/1.1\r\n{head}\r\n\r\n{content}"
    connection.sendall(request.encode())
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_text_alone(served, capsys, stream):
    client = served(until_eot=False)
    with ask_without_end(client, stream=stream) as connection:
        assert not stream or connection.recv(50)
        while not client.writer.turn.locked():
            pass
    assert client.text(prompt="the", max_tokens=2)
    assert "the client has left" in capsys.readouterr().err


def test_a_client_that_does_not_read_ends_its_text_alone(served, capsys, monkeypatch):
    def setup(self, plain=api_server.Handler.setup):
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # soon full, too
        plain(self)

    monkeypatch.setattr(api_server.Handler, "setup", setup)
    monkeypatch.setattr(api_server.Handler, "timeout", 0.2)
    client = served(until_eot=False)
    with ask_without_end(client, stream=True):
        while not client.writer.turn.locked():
            pass
        assert client.text(prompt="the", max_tokens=2)
    assert "the client has left" in capsys.readouterr().err


def test_ctrl_c_ends_the_text_that_is_being_written(served, monkeypatch, capsys):
    client = served(until_eot=False)
    writer = client.writer

    def interrupted(server):
        with ask_without_end(client, stream=True) as connection:
            connection.recv(50)
            raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    serve(writer, ServeConfig(port=0))
    assert writer.turn.locked()  # by Ctrl-C: nothing is computed any more
    assert "ended" in capsys.readouterr().out


def test_the_page_and_the_models_name_are_there(served):
    client = served()
    kind, page = client.get("/")
    assert kind == "text/html; charset=utf-8"
    assert "/v1/chat/completions" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing comes from elsewhere
    models = json.loads(client.get("/v1/models")[1])
    assert models["data"][0]["id"] == "tiny"
    assert models["data"][0]["converses"] is False


def test_an_address_in_use_and_a_model_of_labels_are_told(served, run):
    client = served()
    with pytest.raises(SystemExit, match=rf"port={client.port} cannot be used.*such as --port="):
        run("serve.py", "--out_dir=out/tiny", f"--port={client.port}")
    lines = [{"text": f"the {i}", "label": "ab"[i % 2]} for i in range(40)]
    Path("labels.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    options = ["--task=classification", "--dataset=labels.jsonl", "--max_iters=2", "--device=cpu"]
    run("finetune.py", "--init_from=out/tiny", "--out_dir=out/labels", *options)
    with pytest.raises(SystemExit, match="predicts labels"):
        run("serve.py", "--out_dir=out/labels")
