"""Talk to a trained model in a browser, or from any client of OpenAI's API: `python serve.py`.

    GET  /                       a page: a conversation, or a text that the model continues
    GET  /v1/models              the name of the model
    POST /v1/chat/completions    the next answer of a conversation
    POST /v1/completions         the continuation of a text

The model writes one text at a time; other requests wait for their turn.
"""

import dataclasses
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from model import check_range
from sample import (
    GenerationConfig,
    TextStream,
    ends_of_a_text,
    ends_of_an_answer,
    first_tokens,
    load_for_sampling,
    new_context,
    opening_that_fits,
    steps_of,
    with_instruction,
)
from support.api_server import LOCAL, Server
from support.chat import converses
from support.checkpoint import source_of
from support.config import load_config
from support.labelling import to_continue
from support.processes import open_world

LARGEST_NUMBER = 1e9  # of a knob
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
# What else a request may have: its text, how it is sent, and what does not change it.
UNDERSTOOD = (
    "messages prompt model stream stream_options metadata parallel_tool_calls prompt_cache_key "
    "safety_identifier service_tier store tool_choice user"
).split()
# What would change the text, if it had another value.
DEFAULTS = {"n": 1, "best_of": 1, "response_format": {"type": "text"}}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass
class ServeConfig(GenerationConfig):
    """Serve a trained model: a page for the browser, and OpenAI's API."""

    host: str = "127.0.0.1"  # who can connect: this machine; 0.0.0.0: whoever can reach it
    port: int = 8000  # the last part of the address, http://localhost:8000
    seed: int = 1337  # of the first text; the next has the next, unless a request has its own

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
            changes[ours] = checked(name, value, kind)
        elif name not in UNDERSTOOD and value and value != DEFAULTS.get(name):
            raise ValueError(f"{name}={value!r} is not supported; the knobs are {', '.join(KNOBS)}")
    return dataclasses.replace(config, **changes)


def checked(name, value, kind):
    """The value of a knob; raises ValueError if it is of another kind."""
    if kind is int and type(value) is int:
        return value
    if kind is float and type(value) in (float, int) and abs(value) < LARGEST_NUMBER:
        return float(value)
    texts = [value] if isinstance(value, str) else value
    if kind is list and isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        return tuple(texts)
    expected = {float: "a number", int: "a whole number", list: "a text or a list of texts"}[kind]
    raise ValueError(f"{name}={value!r:.100}: expected {expected}")


def messages_of(request):
    """The conversation of a request, each content a text; raises ValueError if it has none."""
    try:
        said = [
            {"role": ROLES[message["role"]], "content": in_one(message["content"])}
            for message in request["messages"]
        ]
    except (TypeError, KeyError):
        said = []
    if not said:
        raise ValueError(
            'messages: expected texts, such as [{"role": "user", "content": "Hello!"}], with the '
            f"roles {', '.join(ROLES)}"
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
        self.name = Path(config.adapter or source_of(config)).resolve().name
        self.documents = checkpoint["data"].get("train_documents", 0)
        self.converses = converses(tokenizer, checkpoint)
        self.task = checkpoint.get("task", {})
        self.context, self.turn = new_context(model, config), threading.Lock()
        self.block_size = model.config.block_size
        self.begun = 0  # texts so far
        self.ended = False  # set it, and the text that is being written ends

    def parts(self, request, in_chat):
        """Yield each `Part` of the text that a request asks for.

        Before the first, raises ValueError or SystemExit if the request cannot be answered.
        """
        config = settings_for(request, self.config)
        prompt, ends = self.chat_prompt(request) if in_chat else self.text_prompt(request)
        begins = in_chat or not to_continue(request["prompt"], self.task)
        stream = TextStream(self.tokenizer, config.stop, ends, begins)
        n_read, made = min(len(prompt), self.block_size), 0

        def part(text, reason=None):
            usage = {"prompt_tokens": n_read, "completion_tokens": made}
            return Part(text, reason, usage | {"total_tokens": n_read + made})

        with self.turn:
            seed = config.seed
            if request.get("seed") is None:  # another text each time
                seed = (seed + self.begun) % 2**63
            self.begun += 1
            for tokens in steps_of(self.context, self.tokenizer, [prompt], config, seed):
                made += 1
                text = stream.push(tokens[0])
                if stream.ended:
                    yield part(text, "stop")
                    return
                yield part(text)
                if self.ended:
                    break
        yield part(stream.finish(), "length")

    def text_prompt(self, request):
        """(tokens of the text to continue, tokens to stop at)."""
        start = request.get("prompt")
        if not isinstance(start, str):
            raise ValueError(f'prompt={start!r:.100}: expected a text, such as "Once upon a time"')
        start = to_continue(start, self.task)
        prompt = first_tokens(self.tokenizer, start, self.documents)
        return prompt, ends_of_a_text(self.tokenizer, self.config)

    def chat_prompt(self, request):
        """(tokens of the conversation up to the next answer, tokens to stop at)."""
        if not self.converses:
            raise ValueError(
                f"{self.name} was not taught to chat, which finetune.py --task=chat does; "
                "/v1/completions continues texts"
            )
        instruction, said = with_instruction(messages_of(request), self.config.system)
        prompt, _ = opening_that_fits(instruction, said, self.tokenizer, self.block_size)
        return prompt, ends_of_an_answer(self.tokenizer)


# ---------------------------------------------------------------------------------------- main


def serve(writer, config):
    """Answer requests until Ctrl-C."""
    try:
        server = Server(writer, config.host, config.port)
    except OSError as error:
        raise SystemExit(
            f"host={config.host} port={config.port} cannot be used ({error.strerror or error}): "
            "try another, such as --port=8001"
        ) from None
    host = LOCAL[1] if config.host in (*LOCAL, "0.0.0.0", "") else config.host
    address = f"http://{host}:{server.server_port}"
    print(f"open in a browser: {address} (for OpenAI's clients: {address}/v1); Ctrl-C ends")
    sys.stdout.flush()
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            writer.ended = True
            writer.turn.acquire()  # no thread computes while Python ends
            print("\nended")


def main():
    config = load_config(ServeConfig)
    with open_world(config.device, config.dtype, to_train=False) as world:
        model, tokenizer, checkpoint = load_for_sampling(config, world)
        if model.config.n_labels:
            raise SystemExit("this model predicts labels: python sample.py --start=TEXT shows them")
        writer = Writer(model, tokenizer, checkpoint, config)
        if config.system and not writer.converses:
            print("system is not used: this model was not taught to chat", file=sys.stderr)
        serve(writer, config)


if __name__ == "__main__":
    main()
