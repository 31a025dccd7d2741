"""Talk to a trained model in a browser, or from any client of OpenAI's API: `python serve.py`.

    GET  /                       a page: a conversation, or a text that the model continues
    GET  /v1/models              the name of the model
    POST /v1/chat/completions    the next answer of a conversation
    POST /v1/completions         the continuation of a text

The model writes one text at a time; other requests wait for their turn.
"""

import dataclasses
import json
import sys
import threading
import time
import uuid
from contextlib import closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from model import check_range
from sample import (
    GenerationConfig,
    TextStream,
    first_tokens,
    load_for_sampling,
    new_context,
    opening_that_fits,
    steps_of,
)
from support.chat import converses, end_of_turn
from support.checkpoint import source_of
from support.config import load_config
from support.labelling import LABEL
from support.processes import open_world

PAGE = Path(__file__).parent / "support" / "page.html"
LARGEST_REQUEST = 10_000_000  # bytes
# A knob in a request -> ours, the type of its value.
KNOBS = {
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", int),
    "min_p": ("min_p", float),
    "repetition_penalty": ("repetition_penalty", float),
    "max_tokens": ("max_new_tokens", int),
    "max_completion_tokens": ("max_new_tokens", int),
    "seed": ("seed", int),
    "stop": ("stop", list),
}
# What a request may have besides: it does not change the text, or only if it has another value.
WITHOUT_EFFECT = {"model", "messages", "prompt", "stream", "stream_options", "user", "metadata"}
DEFAULTS = {"n": 1, "best_of": 1, "response_format": {"type": "text"}, "tool_choice": "none"}


@dataclass
class ServeConfig(GenerationConfig):
    """Serve a trained model: a page for the browser, and OpenAI's API."""

    host: str = "127.0.0.1"  # who can connect: this machine; 0.0.0.0: whoever can reach it
    port: int = 8000  # the last part of the address, http://localhost:8000

    def __post_init__(self):
        super().__post_init__()
        check_range(self, "port", at_least=0, below=2**16)


# ---------------------------------------------------------------------------- what is asked for


def settings_for(request, config):
    """The config with the knobs of a request; raises ValueError for what is not supported."""
    changes = {}
    for name, value in request.items():
        if name in KNOBS and value is not None:
            ours, kind = KNOBS[name]
            changes[ours] = typed(name, value, kind)
        elif name not in (*KNOBS, *WITHOUT_EFFECT) and value and value != DEFAULTS.get(name):
            raise ValueError(f"{name}={value!r} is not supported; the knobs are {', '.join(KNOBS)}")
    return dataclasses.replace(config, **changes)


def typed(name, value, kind):
    """The value of a knob; raises ValueError if it is of another kind."""
    texts = [value] if isinstance(value, str) else value
    if kind is list and isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        return tuple(texts)
    if (kind is float and type(value) in (float, int)) or (kind is int and type(value) is int):
        return value
    expected = {float: "a number", int: "a whole number", list: "a text or a list of texts"}[kind]
    raise ValueError(f"{name}={value!r}: expected {expected}")


def messages_of(request):
    """The conversation of a request, each content a text; raises ValueError if it has none."""
    try:
        said = [{"role": m["role"], "content": in_one(m["content"])} for m in request["messages"]]
    except (TypeError, KeyError):
        said = []
    if not said:
        raise ValueError(
            'messages: expected texts, such as [{"role": "user", "content": "Hello!"}]'
        )
    return said


def in_one(content):
    """The content of a message as one text; it may be a list of parts that are texts."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


# ------------------------------------------------------------------------------------ the answer


class Part(NamedTuple):
    """What a text has grown by."""

    text: str
    reason: str | None  # why the text ends with it: stop or length
    usage: dict  # the numbers of tokens so far


class Writer:
    """The model, and what it has read: a conversation that goes on is not read again."""

    def __init__(self, model, tokenizer, checkpoint, config):
        self.tokenizer, self.config = tokenizer, config
        self.name = Path(config.adapter or source_of(config)).name
        self.documents = checkpoint["data"].get("train_documents", 0)
        task = checkpoint.get("task") or {}
        self.converses = converses(tokenizer, task.get("task"))
        self.after_prompt = LABEL if task.get("generative") else ""
        self.context, self.turn = new_context(model, config), threading.Lock()
        self.begun = 0  # texts so far: each has another seed

    def parts(self, request, in_chat):
        """Yield each `Part` of the text that a request asks for.

        Before the first, raises ValueError or SystemExit if the request cannot be answered.
        """
        config = dataclasses.replace(self.config, seed=(self.config.seed + self.begun) % 2**63)
        config = settings_for(request, config)
        prompt, ends = self.chat_prompt(request) if in_chat else self.text_prompt(request)
        stream, made = TextStream(self.tokenizer, config.stop, ends), 0

        def part(text, reason=None):
            total = len(prompt) + made
            usage = {"prompt_tokens": len(prompt), "completion_tokens": made, "total_tokens": total}
            return Part(text, reason, usage)

        with self.turn:
            self.begun += 1
            for tokens in steps_of(self.context, self.tokenizer, [prompt], config, config.seed):
                made += 1
                text = stream.push(tokens[0])
                if stream.ended:
                    yield part(text, "stop")
                    return
                yield part(text)
        yield part(stream.finish(), "length")

    def text_prompt(self, request):
        """(tokens of the text to continue, tokens to stop at)."""
        start = request.get("prompt")
        if not isinstance(start, str):
            raise ValueError(f'prompt={start!r}: expected a text, such as "Once upon a time"')
        ends = [self.tokenizer.eot] if self.config.until_eot else []
        return first_tokens(self.tokenizer, start + self.after_prompt, self.documents), ends

    def chat_prompt(self, request):
        """(tokens of the conversation up to the next answer, tokens to stop at)."""
        if not self.converses:
            raise ValueError(
                f"{self.name} was not taught to chat, which finetune.py --task=chat does; "
                "/v1/completions continues texts"
            )
        said = messages_of(request)
        instruction = [said.pop(0)] if said[0]["role"] == "system" else []
        if self.config.system and not instruction:
            instruction = [{"role": "system", "content": self.config.system}]
        size = self.context.model.config.block_size
        prompt, _ = opening_that_fits(instruction, said, self.tokenizer, size)
        return prompt, [self.tokenizer.eot, end_of_turn(self.tokenizer)]


# ------------------------------------------------------------------------------------- over HTTP


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection, in a thread of its own."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/":
            self.respond(200, PAGE.read_bytes(), "text/html; charset=utf-8")
        elif self.path == "/v1/models":
            writer = self.server.writer
            model = {"id": writer.name, "object": "model", "owned_by": "shiftgpt"}
            model["converses"] = writer.converses  # for our page
            self.respond(200, {"object": "list", "data": [model]})
        else:
            self.refuse(404, f"there is no {self.path}")

    def do_POST(self):
        in_chat = self.path == "/v1/chat/completions"
        if not in_chat and self.path != "/v1/completions":
            return self.refuse(404, f"there is no {self.path}")
        begun = time.perf_counter()
        try:
            request = self.read_request()
            with closing(self.server.writer.parts(request, in_chat)) as parts:
                parts = chain([next(parts)], parts)  # what cannot be written is known by now
                streamed = request.get("stream")
                usage = (self.stream if streamed else self.send_whole)(request, in_chat, parts)
        except (ValueError, SystemExit) as error:
            return self.refuse(400, error)
        except ConnectionError:
            self.close_connection = True
            return self.tell("the client has left")
        made = usage["completion_tokens"]
        self.tell(f"{made:,} tokens, {made / (time.perf_counter() - begun):,.0f} tokens/s")

    def read_request(self):
        """The content of a request, a dict; raises ValueError if it has none."""
        size = int(self.headers.get("Content-Length", 0))
        if size > LARGEST_REQUEST:
            raise ValueError(f"expected at most {LARGEST_REQUEST:,} bytes, not {size:,}")
        content = self.rfile.read(size)
        # Any page in the world can make a browser send us other types of content.
        if self.headers.get_content_type() != "application/json":
            raise ValueError("expected the header Content-Type: application/json")
        try:
            request = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the request is not JSON: {error}") from None
        if not isinstance(request, dict):
            raise ValueError('expected a JSON object, such as {"prompt": "Once upon a time"}')
        return request

    def head(self, in_chat, streamed):
        """What all parts of an answer have in common."""
        kind = "chat.completion" if in_chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if in_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": f"{kind}.chunk" if in_chat and streamed else kind,
            "created": int(time.time()),
            "model": self.server.writer.name,
        }

    def send_whole(self, request, in_chat, parts):
        """Send the text once it is complete; returns the numbers of its tokens."""
        parts = list(parts)
        text, last = "".join(part.text for part in parts), parts[-1]
        content = {"message": {"role": "assistant", "content": text}} if in_chat else {"text": text}
        answer = {"choices": [{"index": 0, **content, "finish_reason": last.reason}]}
        self.respond(200, self.head(in_chat, False) | answer | {"usage": last.usage})
        return last.usage

    def stream(self, request, in_chat, parts):
        """Send the text as it is written, in server-sent events; returns the numbers of tokens."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")  # otherwise the client waits for more
        self.end_headers()
        head, role = self.head(in_chat, True), {"role": "assistant"}
        for part in parts:
            if part.text or part.reason:
                content = {"text": part.text}
                if in_chat:
                    content = {"delta": role | {"content": part.text}}
                choice = {"index": 0, **content, "finish_reason": part.reason}
                self.send_event(head | {"choices": [choice]})
                role = {}
        options = request.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            self.send_event(head | {"choices": [], "usage": part.usage})
        self.wfile.write(b"data: [DONE]\n\n")
        return part.usage

    def send_event(self, content):
        self.wfile.write(b"data: " + in_json(content) + b"\n\n")

    def respond(self, status, content, kind="application/json"):
        """Send bytes, or what JSON can express."""
        content = content if isinstance(content, bytes) else in_json(content)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def refuse(self, status, reason):
        """Answer with the reason why there is no other answer."""
        self.tell(f"refused: {reason}")
        self.close_connection = True  # the rest of the request may be unread
        error = {
            "message": str(reason),
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
        self.respond(status, {"error": error})

    def tell(self, what):
        print(f"{self.path}: {what}", file=sys.stderr)

    def log_message(self, *_):
        """Requests are told when they are answered."""


def in_json(content):
    """Content as JSON, readable in any language."""
    return json.dumps(content, ensure_ascii=False).encode()


def serve(writer, config):
    """Answer requests until Ctrl-C."""
    try:
        server = ThreadingHTTPServer((config.host, config.port), Handler)
    except OSError as error:
        raise SystemExit(
            f"host={config.host} port={config.port}: {error.strerror or error}; try "
            f"--port={config.port + 1}"
        ) from None
    server.writer = writer
    host = "localhost" if config.host in ("127.0.0.1", "0.0.0.0") else config.host
    address = f"http://{host}:{server.server_port}"
    print(f"open in a browser: {address} (for OpenAI's clients: {address}/v1); Ctrl-C ends")
    sys.stdout.flush()
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nended")


def main():
    config = load_config(ServeConfig)
    with open_world(config.device, config.dtype, to_train=False) as world:
        model, tokenizer, checkpoint = load_for_sampling(config, world)
        if model.config.n_labels:
            raise SystemExit("this model predicts labels: python sample.py --start=TEXT shows them")
        serve(Writer(model, tokenizer, checkpoint, config), config)


if __name__ == "__main__":
    main()
