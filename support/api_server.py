"""OpenAI's API over HTTP, with nothing but the standard library: serve.py says what is answered.

The server knows nothing of models. Its `writer` has a `name`, says whether it `converses`, and
yields the `parts` of a text, each with its `text`, the `reason` to end or None, and the `usage`.
"""

import json
import socket
import sys
import time
import uuid
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from urllib.parse import unquote

from support.files import ON_WINDOWS

PAGE = Path(__file__).parent / "page.html"
LARGEST_REQUEST = 10_000_000  # bytes
PATIENCE = 20  # seconds to wait for a client to read or write
LOCAL = ("127.0.0.1", "localhost")  # the names of this machine for itself


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection, in a thread of its own."""

    protocol_version = "HTTP/1.1"
    timeout = PATIENCE
    disable_nagle_algorithm = True  # which would hold a small answer back

    def handle(self):
        with suppress(ConnectionError, TimeoutError):
            super().handle()

    def do_GET(self):
        writer = self.server.writer
        model = {"id": writer.name, "object": "model", "owned_by": "shiftgpt"}
        model["converses"] = writer.converses  # for our page
        if self.path == "/":
            self.respond(200, PAGE.read_bytes(), "text/html; charset=utf-8")
        elif self.path == "/v1/models":
            self.respond(200, {"object": "list", "data": [model]})
        elif self.path == f"/v1/models/{writer.name}":
            self.respond(200, model)
        else:
            self.refuse(404, f"there is no {self.path}")

    def do_POST(self):
        in_chat = self.path == "/v1/chat/completions"
        try:
            request = self.read_request()
            if not in_chat and self.path != "/v1/completions":
                return self.refuse(404, f"there is no {self.path}")
            with closing(self.server.writer.parts(request, in_chat)) as parts:
                first = next(parts)  # what cannot be answered is known by now
                begun = time.perf_counter()
                answer = self.stream if request.get("stream") is True else self.send_whole
                made = answer(request, in_chat, chain([first], self.while_there(parts)))
        except (ValueError, SystemExit) as error:
            return self.refuse(400, error)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
            return self.tell("the client has left")
        rate = (made - 1) / (time.perf_counter() - begun)
        self.tell(f"{made:,} tokens" + (f", {rate:,.0f} tokens/s" if made > 1 else ""))

    def parse_request(self):
        """Whether there is a request to answer: none from a page that only borrows our address."""
        if not super().parse_request():
            return False
        self.path = unquote(self.path.partition("?")[0])
        named = self.headers.get("Host", LOCAL[0]).partition(":")[0]
        if self.server.server_address[0] in LOCAL and named not in LOCAL:
            self.refuse(403, "expected the host localhost; for others, --host=0.0.0.0")
            return False
        return True

    def read_request(self):
        """The content of a request, a dict; raises ValueError if it has none."""
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > LARGEST_REQUEST:
            raise ValueError(f"expected a Content-Length of at most {LARGEST_REQUEST:,} bytes")
        content = self.rfile.read(int(size))
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

    def while_there(self, parts):
        """The parts, until the client has left: then raises ConnectionError."""
        with DefaultSelector() as selector:
            selector.register(self.connection, EVENT_READ)
            for part in parts:
                if selector.select(0) and not self.connection.recv(1, socket.MSG_PEEK):
                    raise ConnectionError
                yield part

    def head(self, in_chat, streamed=False):
        """What all parts of an answer have in common."""
        kind = "chat.completion" if in_chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if in_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": f"{kind}.chunk" if in_chat and streamed else kind,
            "created": int(time.time()),
            "model": self.server.writer.name,
        }

    def send_whole(self, request, in_chat, parts):
        """Send the text once it is complete; returns its number of tokens."""
        parts = list(parts)
        text, last = "".join(part.text for part in parts), parts[-1]
        content = {"message": {"role": "assistant", "content": text}} if in_chat else {"text": text}
        answer = {"choices": [{"index": 0, **content, "finish_reason": last.reason}]}
        self.respond(200, self.head(in_chat) | answer | {"usage": last.usage})
        return last.usage["completion_tokens"]

    def stream(self, request, in_chat, parts):
        """Send the text as it is written, in server-sent events; returns its number of tokens."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")  # otherwise the client waits for more
        self.end_headers()
        head, role, last = self.head(in_chat, streamed=True), {"role": "assistant"}, None
        try:
            for last in parts:
                text, reason, _ = last
                if text or reason:
                    content = {"delta": role | {"content": text}} if in_chat else {"text": text}
                    choice = {"index": 0, **content, "finish_reason": reason}
                    self.send_event(head | {"choices": [choice]})
                    role = {}
        except SystemExit as error:  # the logits have become nan
            self.send_event(mistake(error))
        options = request.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            self.send_event(head | {"choices": [], "usage": last.usage})
        self.wfile.write(b"data: [DONE]\n\n")
        return last.usage["completion_tokens"]

    def send_event(self, content):
        self.wfile.write(b"data: " + in_json(content) + b"\n\n")

    def respond(self, status, content, kind="application/json"):
        """Send bytes, or what JSON can express."""
        content = content if isinstance(content, bytes) else in_json(content)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def refuse(self, status, reason):
        """Answer with the reason why there is no other answer."""
        self.tell(f"refused: {reason}")
        self.close_connection = True  # the rest of the request may be unread
        self.respond(status, mistake(reason))

    def tell(self, what):
        line = f"{self.path}: {what}"
        print("".join(c if c.isprintable() else "�" for c in line), file=sys.stderr)

    def log_message(self, *_):
        """Requests are told when they are answered."""


class Server(ThreadingHTTPServer):
    """Has a `Writer` for all connections."""

    request_queue_size = 128
    allow_reuse_address = not ON_WINDOWS  # there, a second server could take the same port

    def __init__(self, writer, host, port):
        self.writer = writer
        super().__init__((host, port), Handler)


def in_json(content):
    """Content as JSON, readable in any language."""
    return json.dumps(content, ensure_ascii=False).encode(errors="replace")


def mistake(reason):
    """The content of an answer that tells a mistake."""
    error = {"message": str(reason), "type": "invalid_request_error"}
    return {"error": error | {"param": None, "code": None}}
