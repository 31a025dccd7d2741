"""Write text with a trained model: `python sample.py --start="Once upon a time"`.

The text goes to standard output as it is generated; everything else to standard error.
"""

import codecs
import sys
import time
from bisect import bisect_left
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from model import KVCache, check_range
from support.chat import converses, end_of_turn, opening
from support.checkpoint import in_a_line, load_model, source_of
from support.config import load_config
from support.labelling import chances_of, tags_of, to_continue, words_of
from support.processes import open_world
from support.quantize import (
    cache_dtype,
    for_inference,
    held_out,
    perplexity,
    use_few_threads,
)
from support.recording import CudaGraph, recorded_step
from support.tokenizer_files import assumed_tokenizer, chat_template_of, tokens_before

RANKED_AT_FIRST = 1024  # tokens, mostly enough for top_p; sorting all takes far longer
WORTH_RECORDING = 64  # tokens: recording takes as long as it saves in about so many (on a CPU)
NO_TOKEN = -1  # where every token's probability is 0
LONGEST_MATCH = 3  # prompt lookup searches for the last tokens, at most this many
SEPARATOR = "---------------"


@dataclass
class GenerationConfig:
    """A trained model, and how text is generated with it."""

    out_dir: str = "out/stories"  # the run to sample from
    init_from: str = "resume"  # resume: the best checkpoint of out_dir; or the PATH of another
    adapter: str | None = None  # apply what finetune.py or peft added to a model: the PATH of it
    system: str = ""  # the system prompt of a conversation
    max_new_tokens: int = 500  # limit for each text
    temperature: float = 0.8  # below 1 more predictable, above 1 more random; 0: greedy
    top_k: int = 200  # sample from this many most likely tokens; 0: from all
    top_p: float = 1.0  # sample from the fewest tokens that together have this probability
    min_p: float = 0.05  # exclude tokens less likely than this share of the most likely one
    repetition_penalty: float = 1.0  # above 1: tokens that occurred become less likely
    quantize: Literal["no", "int8"] = "no"  # int8: 8-bit weights, faster and slightly worse
    speculate: int = 0  # speculative decoding: draft tokens per pass, looked up in the text
    stop: tuple[str, ...] = ()  # texts to stop at, not printed themselves: --stop "The end" "。"
    until_eot: bool = True  # stop at the end of the document
    record: bool = True  # record the computation of a token once, and replay it without Python
    seed: int = 1337  # the same seed gives the same text
    device: str = "auto"  # cuda, cuda:1, mps or cpu
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the weights

    def __post_init__(self):
        check_range(self, "max_new_tokens", at_least=1)
        check_range(self, "temperature top_k speculate", at_least=0)
        check_range(self, "min_p", at_least=0, below=1)
        check_range(self, "top_p", above=0, at_most=1)
        check_range(self, "repetition_penalty", above=0)
        check_range(self, "seed", at_least=0, below=2**63)


@dataclass
class SampleConfig(GenerationConfig):
    """Write text with a trained model."""

    start: str = ""  # the prompt; FILE:prompt.txt, - for standard input, empty for none
    num_samples: int = 3  # texts, generated as one batch
    interactive: bool = False  # ask for one prompt after another
    chat: bool = False  # hold a conversation with a model that was fine-tuned for it
    lines: str | None = None  # a file: answer each of its lines (its prompt or text), in JSON
    fields: tuple[str, ...] = ()  # lines: the file's names for ours: --fields prompt=message
    encoding: str = "utf-8"  # lines: of the file; Excel saves Chinese in gb18030
    batch_size: int = 16  # lines: how many are answered at once

    def __post_init__(self):
        super().__post_init__()
        check_range(self, "num_samples batch_size", at_least=1)
        if self.lines == "":
            raise ValueError("lines= is empty: expected a file, such as --lines=messages.csv")
        if self.lines and self.interactive:
            raise ValueError("interactive=True does not go with --lines: leave one of them out")


def next_token_distribution(
    logits, seen=None, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0
):
    """Probabilities (B, V) of the next token, given its logits (B, V).

    seen (B, V) marks the tokens that occurred, for the penalty (CTRL, arXiv:1909.05858). Excluded
    tokens get 0; of equally likely ones at a threshold, all stay.
    """
    logits = logits.float()
    if repetition_penalty != 1:
        lowered = torch.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
        logits = torch.where(seen, lowered, logits)
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
    probabilities = (logits / temperature).softmax(dim=1)
    least = min_p * probabilities.amax(dim=1, keepdim=True)
    if 0 < top_k < probabilities.size(1):
        least = least.maximum(probabilities.topk(top_k, dim=1).values[:, -1:])
    if top_p < 1:
        ranked = largest(probabilities, top_p)
        of_likelier_ones = ranked.cumsum(dim=1) - ranked
        in_nucleus = torch.where(of_likelier_ones < top_p, ranked, 1.0)
        least = least.maximum(in_nucleus.amin(dim=1, keepdim=True))
    kept = torch.where(probabilities >= least, probabilities, 0.0)
    return kept / kept.sum(dim=1, keepdim=True)


def largest(probabilities, total):
    """The largest of each row (B, V), in order: as many as reach `total` together, or more."""
    if not probabilities.is_cuda:  # a GPU sorts them sooner than Python can decide
        ranked = probabilities.topk(min(RANKED_AT_FIRST, probabilities.size(1)), dim=1).values
        if (ranked.sum(dim=1) >= total).all():
            return ranked
    return probabilities.sort(dim=1, descending=True).values


def draw(probabilities, generator):
    """Sample one token for each row (B, V): (B, 1), NO_TOKEN where none has a probability.

    By the inverse of the cumulative distribution: a CPU is far faster at it than at multinomial.
    """
    sums = probabilities.cumsum(dim=1)
    total = sums[:, -1:]
    chance = torch.rand(total.shape, generator=generator, device=total.device)
    below = total.nextafter(torch.zeros_like(total))  # the last sum itself stands for no token
    found = torch.searchsorted(sums, torch.minimum(chance * total, below), right=True)
    return torch.where(total > 0, found, NO_TOKEN)


def fetching(tokens):
    """A function that returns the tokens (B, 1) as a list, once they have arrived from a GPU."""
    on_cpu = tokens.to("cpu", non_blocking=tokens.is_cuda)
    arrived = torch.cuda.Event() if tokens.is_cuda else None
    if arrived:
        arrived.record()

    def fetch():
        if arrived:
            arrived.synchronize()
        return checked(on_cpu[:, 0].tolist())

    return fetch


def checked(tokens):
    """The tokens; exits if one is NO_TOKEN."""
    if NO_TOKEN in tokens:
        raise SystemExit(
            "no token has a probability: the model's logits are nan or infinite, because its "
            "training diverged, or a sampling rule excludes every token"
        )
    return tokens


def marked(rows, vocab_size, device):
    """Which tokens occur in each row, as a mask (B, V)."""
    seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=device)
    for i, row in enumerate(rows):
        seen[i, row] = True
    return seen


def last_half(row, block_size):
    """The end of a row, half a context long, if the row exceeds the context."""
    return row[-max(1, block_size // 2) :] if len(row) > block_size else row


@torch.inference_mode()
def generate(
    model, prompts, max_new_tokens, distribution, vocab_size, generator=None, context=None
):
    """Yield the next token of each prompt, `max_new_tokens` times: lists of B ids.

    prompts are lists of tokens, of any lengths; distribution(logits, seen) returns probabilities;
    vocab_size is the number of tokens in use (the model's may be padded); context is the Context of
    earlier texts, to continue in. When the context is full, its last half is kept and read again:
    there are no positions beyond block_size.
    """
    context, block_size = context or Context(model), model.config.block_size
    rows = [list(prompt)[-block_size:] for prompt in prompts]
    capacity = min(block_size, max(map(len, rows)) + max_new_tokens)
    logits = context.read(rows, capacity)
    seen = marked(rows, vocab_size, logits.device)

    def choose(logits):
        """The next token of each row. On a GPU this is recorded: as in `seen`, what changes from
        token to token must be in a tensor, unless --record=False.
        """
        tokens = draw(distribution(logits[:, :vocab_size], seen), generator)  # (B, 1)
        seen.scatter_(1, tokens.clamp(min=0), True)
        return tokens

    for left in reversed(range(max_new_tokens)):
        tokens = context.chosen(choose, logits, generator)
        fetch = fetching(tokens)
        ahead = left > 0 and context.runs_ahead
        if ahead:  # the GPU reads them while Python looks at them
            logits = context.read_on(tokens)[:, -1]
        new = fetch()
        yield new
        for row, token in zip(rows, new, strict=True):
            row.append(token)
        if left and not ahead:
            if context.full:
                rows = [last_half(row, block_size) for row in rows]
                logits = context.read(rows, capacity)
            else:
                logits = context.read_on(tokens)[:, -1]


# -------------------------------------------------------- context: the cache and recorded steps


class Context:
    """The tokens that a model has read, one text in each row, and how it reads on.

    What the next texts have in common with these, as the turns of a conversation do, is not read
    again. recorded: the steps of single tokens are replayed without Python.
    """

    def __init__(self, model, recorded=False):
        self.model = model
        self.recorded = recorded and model.token_embedding.weight.device.type in ("cpu", "cuda")
        self.rows, self.cache = [], None
        self.steps = {}  # recorded: (tokens of each row, whether rows are equally long): its step

    def read(self, rows, capacity):
        """Logits (B, V) of the token after each row.

        The rows are kept: append to them what is read later, up to `capacity` tokens.
        """
        if len(rows) != len(self.rows) or capacity > self.cache.capacity:
            self.make_cache(len(rows), capacity)
        cache = self.cache
        known = min(map(in_common, self.rows, rows), default=0)
        known = min(known, int(cache.lengths.min()))
        self.rows = rows
        cache.truncate(known)
        lengths = torch.tensor([len(row) for row in rows], device=cache.lengths.device)
        padded = torch.zeros(len(rows), max(map(len, rows)) - known, dtype=torch.long)
        for i, row in enumerate(rows):
            padded[i, : len(row) - known] = torch.tensor(row[known:])
        at = lengths[:, None] - known - 1
        logits, _ = self.model(padded.to(at.device), cache=cache, at=at)
        cache.truncate(lengths)  # drop the padding behind the shorter rows
        return logits[:, 0]

    def make_cache(self, n_rows, capacity):
        """Allocate a cache; at least twice as large as the one that the rows had."""
        weight, config, old = self.model.token_embedding.weight, self.model.config, self.cache
        if n_rows != len(self.rows):
            self.rows, old = [], None
        capacity = min(config.block_size, max(capacity, 2 * old.capacity if old else 0))
        self.steps = {}
        self.cache = KVCache(config, n_rows, weight.device, cache_dtype(self.model), capacity)
        if old:
            self.cache.copy_from(old)

    @property
    def full(self):
        return self.cache.longest == self.model.config.block_size

    @property
    def graph(self):
        """The step of a single token as a CUDA graph; None if there is none."""
        step = self.steps.get((1, self.cache.in_step))
        return step if isinstance(step, CudaGraph) else None

    @property
    def runs_ahead(self):
        """Whether to read a token means to ask a GPU for it, and not to wait."""
        return self.graph is not None and not self.full

    def chosen(self, choose, logits, generator=None):
        """choose(logits) -> tokens (B, 1), replayed where the logits are a replay's."""
        if self.graph and self.graph.holds(logits):
            return self.graph.chosen(choose, generator)
        return choose(logits)

    def read_on(self, tokens):
        """Read T more tokens of each row (B, T): logits (B, T, V) of the tokens after them."""
        T = tokens.size(1)
        case, cache = (T, self.cache.in_step), self.cache
        if self.recorded and case not in self.steps and cache.longest + T < cache.capacity:
            self.record(case)
        try:
            if case in self.steps:
                return self.steps[case](tokens)
        except RuntimeError as error:
            self.give_up_recording(error)
        return self.model(tokens, cache=cache)[0]

    def record(self, case):
        T, _ = case
        try:
            self.steps[case] = recorded_step(self.model, self.cache, T)
        except Exception as error:  # of any kind: it also works without a recording
            self.give_up_recording(error)

    def give_up_recording(self, error):
        self.recorded, self.steps = False, {}
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[-1 if "TorchScript" in lines[0] else 0]
        # It may stand in the middle of a line of text.
        print(f"\nrecord: not possible here ({reason})", file=sys.stderr)


def in_common(old, new):
    """The length of the common prefix of two rows, at most all but one token of `new`."""
    n = min(len(old), len(new) - 1)
    return next((i for i in range(n) if old[i] != new[i]), n)


# ------------------------------------------------ speculative decoding: several tokens in a pass


def prompt_lookup(tokens, n):
    """Up to `n` draft tokens: what followed the last few tokens where they occurred before."""
    for length in range(min(LONGEST_MATCH, len(tokens) - 1), 0, -1):
        ending = tokens[-length:]
        for start in range(len(tokens) - length - 1, -1, -1):
            if tokens[start : start + length] == ending:
                return tokens[start + length : start + length + n]
    return []


def accepted(drafts, logits, seen, distribution, generator):
    """The accepted draft tokens and one more; `seen` (1, V) is updated.

    logits (at least g + 1, V) are those before the first draft token, after it, and so on. A draft
    token is accepted with its probability; the first that is rejected is replaced by a sample from
    the others. So every token has the distribution of one sampled alone (arXiv:2211.17192).
    """
    tokens = []
    for i, draft in enumerate(drafts):
        p = distribution(logits[i : i + 1], seen)  # (1, V)
        if torch.rand((), generator=generator, device=p.device) >= p[0, draft]:
            p[0, draft] = 0.0
            break
        tokens.append(draft)
        seen[0, draft] = True
    else:
        p = distribution(logits[len(drafts)][None], seen)
    (last,) = checked(draw(p, generator)[:, 0].tolist())
    seen[0, last] = True
    return [*tokens, last]


@torch.inference_mode()
def generate_speculatively(
    model,
    prompts,
    max_new_tokens,
    distribution,
    vocab_size,
    generator=None,
    context=None,
    n_draft=4,
):
    """What `generate` yields, in fewer passes where the text repeats itself.

    Each pass scores a row's last token and up to `n_draft` draft tokens from its own text; a row
    may run ahead of the others. At temperature 0 the text is that of `generate`, up to the rounding
    of matrix products with one row and with several.
    """
    context, block_size = context or Context(model), model.config.block_size
    rows = [list(prompt)[-block_size:] for prompt in prompts]
    waiting = [[] for _ in rows]  # tokens that are accepted and not yet yielded
    capacity = min(block_size, max(map(len, rows)) + max_new_tokens + n_draft)
    logits, drafts = context.read(rows, capacity)[:, None], [[] for _ in rows]
    seen = marked(rows, vocab_size, logits.device)
    made = 0
    while True:
        for i, row in enumerate(rows):
            if made + len(waiting[i]) >= max_new_tokens:
                continue  # it has run ahead to its end
            scores = logits[i, :, :vocab_size]  # (g + 1, V)
            tokens = accepted(drafts[i], scores, seen[i : i + 1], distribution, generator)
            row += tokens
            waiting[i] += tokens
        context.cache.truncate([len(row) - 1 for row in rows])  # the last token is still to be read
        while all(waiting):
            yield [tokens.pop(0) for tokens in waiting]
            made += 1
            if made == max_new_tokens:
                return
        if context.full:
            rows = [last_half(row, block_size) for row in rows]
            logits, drafts = context.read(rows, capacity)[:, None], [[] for _ in rows]
        else:
            n = min(n_draft, capacity - context.cache.longest - 1)
            drafts = [prompt_lookup(row, n) for row in rows]
            n = n if any(drafts) else 0  # two sizes, rather than many, can both be recorded
            inputs = [[row[-1], *g, *[0] * (n - len(g))] for row, g in zip(rows, drafts)]
            logits = context.read_on(torch.tensor(inputs, device=seen.device))


class TextStream:
    """Decodes the tokens of one text into characters as soon as they are certain.

    A character may span several tokens, and the beginning of a stop text may turn out to be
    something else: both are held back until a later token decides. `ends` are tokens to stop at;
    begins: what is decoded is the beginning of a text, before which some tokenizers put a space.
    """

    def __init__(self, tokenizer, stop=(), ends=(), begins=False):
        self.tokenizer, self.stop, self.ends = tokenizer, [text for text in stop if text], ends
        self.prefix = tokenizer.prefix if begins else ""
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.held = ""
        self.ended = False

    def push(self, token):
        """The text that becomes certain with this token."""
        if self.ended:
            return ""
        if token in self.ends:
            return self.finish()
        self.held += self.decoder.decode(self.tokenizer.token_bytes(token))
        if self.prefix and self.held:
            self.held, self.prefix = self.held.removeprefix(self.prefix), ""
        found = [self.held.index(stop) for stop in self.stop if stop in self.held]
        if found:
            self.ended, self.held = True, self.held[: min(found)]
        uncertain = 0 if found else max((overlap(self.held, stop) for stop in self.stop), default=0)
        certain = len(self.held) - uncertain
        text, self.held = self.held[:certain], self.held[certain:]
        return text

    def finish(self):
        """The rest of the text when no token follows, without an incomplete character."""
        rest = "" if self.ended else self.held
        self.ended, self.held = True, ""
        return rest


def ends_of_a_text(tokenizer, config):
    """The tokens at which a text ends."""
    return [tokenizer.eot] if config.until_eot else []


def ends_of_an_answer(tokenizer):
    """The tokens at which an answer in a conversation ends."""
    return [tokenizer.eot, end_of_turn(tokenizer)]


def overlap(text, stop):
    """How many characters at the end of `text` are the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)


def first_tokens(tokenizer, start, documents):
    """The prompt in tokens: the one that begins a text, then `start`; at least a newline."""
    first = tokens_before(tokenizer, documents)
    if not first:
        return start_tokens(tokenizer, start or tokenizer.known("\n")) or [0]
    return [*first, *start_tokens(tokenizer, start)]


def start_tokens(tokenizer, start):
    """The tokens of a text; exits for a character that the tokenizer does not have."""
    try:
        return tokenizer.encode(start).tolist()
    except ValueError as error:
        shown = start if len(start) < 40 else start[:40] + "…"
        raise SystemExit(f"start={shown!r} cannot be continued: {error}") from None


def text_of(model, tokenizer, prompt, max_new_tokens, seed):
    """One continuation of the tokens `prompt`, as a string: to look at while training."""
    config = SampleConfig(max_new_tokens=max_new_tokens)
    steps = steps_of(Context(model), tokenizer, [prompt], config, seed)
    return "".join(streamed(steps, TextStream(tokenizer, ends=[tokenizer.eot], begins=True)))


def streamed(steps, stream):
    """The parts of a single text, as they become certain."""
    for tokens in steps:
        yield stream.push(tokens[0])
        if stream.ended:
            break
    yield stream.finish()


def new_context(model, config):
    """A Context for texts as the config describes them."""
    return Context(model, config.record and config.max_new_tokens >= WORTH_RECORDING)


def steps_of(context, tokenizer, prompts, config, seed):
    """The generator of next tokens for these prompts, as the config says."""
    model = context.model
    generator = torch.Generator(model.token_embedding.weight.device).manual_seed(seed)
    distribution = partial(
        next_token_distribution,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
    )
    how = (config.max_new_tokens, distribution, tokenizer.vocab_size, generator, context)
    if config.speculate:
        return generate_speculatively(model, prompts, *how, n_draft=config.speculate)
    return generate(model, prompts, *how)


def write_samples(context, tokenizer, start, prompt, config, out):
    """Write `num_samples` continuations of `start`: the first is streamed, then come the others.

    prompt is `start` in tokens. Returns the number of tokens generated.
    """
    how = config.stop, ends_of_a_text(tokenizer, config), not start
    streams = [TextStream(tokenizer, *how) for _ in range(config.num_samples)]
    texts, made, written = [start for _ in streams], 0, 0
    prompts = [prompt] * config.num_samples
    for tokens in steps_of(context, tokenizer, prompts, config, config.seed):
        made += sum(not stream.ended for stream in streams)
        texts = [text + stream.push(token) for text, stream, token in zip(texts, streams, tokens)]
        out.write(texts[0][written:])
        out.flush()
        written = len(texts[0])
        if all(stream.ended for stream in streams):
            break
    texts = [text + stream.finish() for text, stream in zip(texts, streams)]
    out.write(texts[0][written:] + "\n")
    out.writelines(f"{SEPARATOR}\n{text}\n" for text in texts[1:])
    out.flush()
    return made


# ------------------------------------------------------------------------- conversations, labels


def converse(model, tokenizer, config, out):
    """Answer what is typed, line by line, until a line is empty."""
    instruction, said = with_instruction([], config.system)
    context, ends = new_context(model, config), ends_of_an_answer(tokenizer)
    print("type and press Enter; an empty line ends", file=sys.stderr)
    while line := read_line("> "):
        said.append({"role": "user", "content": line})
        try:
            prompt, said = opening_that_fits(instruction, said, tokenizer, model.config.block_size)
        except ValueError as error:  # too long, an unknown character, what the template refuses
            print(error, file=sys.stderr)
            said.pop()
            continue
        stream = TextStream(tokenizer, config.stop, ends, begins=True)
        answer = write_answer(context, stream, prompt, config, config.seed + len(said), out)
        said.append({"role": "assistant", "content": answer})


def with_instruction(said, system):
    """(the message with the system prompt or none, the others): their own, or `system`."""
    if said and said[0]["role"] == "system":
        return said[:1], said[1:]
    return [{"role": "system", "content": system}] if system else [], said


def opening_that_fits(instruction, said, tokenizer, block_size):
    """(the tokens up to the next answer, what was said): without the first turns where too long.

    The prompt fills less than half of the context, so that there is room for an answer, unless what
    was said last takes more. Raises ValueError if it does not fit at all.
    """

    def prompt_without(turns):
        return opening(instruction + said[2 * turns :], tokenizer)

    def fits(turns):
        return len(prompt_without(turns)) < block_size // 2

    prompt, forgotten = prompt_without(0), 0
    if len(prompt) >= block_size // 2:
        most = (len(said) - 1) // 2  # turns; the last message stays
        forgotten = bisect_left(range(most), True, key=fits)
        prompt = prompt_without(forgotten)
    if len(prompt) >= block_size:
        raise ValueError(f"too long: {len(prompt):,} tokens, of {block_size:,} that are read")
    return prompt, said[2 * forgotten :]


def write_answer(context, stream, prompt, config, seed, out):
    """Stream the assistant's answer to a prompt in tokens; the answer as text."""
    text = ""
    for part in streamed(steps_of(context, stream.tokenizer, [prompt], config, seed), stream):
        out.write(part)
        out.flush()
        text += part
    out.write("\n")
    out.flush()
    return text


def write_labels(model, tokenizer, start, checkpoint, out):
    """Write the probability of each label of a text, or the tag of each word."""
    if checkpoint["task"]["task"] == "tagging":
        words = words_of(start, checkpoint["task"].get("blanks", False))
        (tags,) = tags_of(model, tokenizer, [words], checkpoint)
        out.writelines(f"{word}\t{tag}\n" for word, tag in zip(words, tags))
        return
    tokens = start_tokens(tokenizer, start.strip())  # as in training
    (chances,) = chances_of(model, tokenizer, [tokens], checkpoint)
    for chance, label in chances:
        out.write(f"{chance:.4f} {label}\n")


def starts(config):
    """The prompts: the one that `start` stands for, or one after another as they are typed."""
    if config.interactive or config.start == "-":
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")
    if config.interactive:
        print("type a beginning and press Enter; an empty line ends", file=sys.stderr)
        while start := read_line("> "):
            yield start
    else:
        yield text_meant_by(config.start)


def text_meant_by(start):
    """The text that the option `start` stands for: a file's, standard input's or itself."""
    if start.startswith("FILE:"):
        return read_text(Path(start.removeprefix("FILE:")))
    return read_input(sys.stdin.read).removesuffix("\n") if start == "-" else start


def read_line(prompt):
    """A line from the keyboard; empty at its end."""
    print(prompt, end="", file=sys.stderr, flush=True)
    return read_input(sys.stdin.readline).rstrip("\r\n")


def read_input(read):
    """`read()` from standard input; exits where that is not UTF-8."""
    try:
        return read()
    except UnicodeDecodeError:
        raise SystemExit("standard input is not UTF-8: set the terminal to it") from None


def read_text(path):
    """A prompt from a file, in UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n")  # added by the editor
    except UnicodeDecodeError:
        raise SystemExit(f"start=FILE:{path} is not UTF-8: save it as UTF-8") from None
    except OSError as error:
        raise SystemExit(f"start=FILE:{path} cannot be read: {error}") from None


def load_for_sampling(config, world, n_texts=1):
    """(model, tokenizer, contents of its checkpoint), to generate `n_texts` at once."""
    source, base = config.adapter or source_of(config), None
    typed = config.init_from != "resume" or config.out_dir != GenerationConfig.out_dir
    if config.adapter and typed:
        base = source_of(config)  # else the adapter knows what it was put on
    model, tokenizer, checkpoint = load_model(source, world.device, dtype=None, base=base)
    print(in_a_line(checkpoint), file=sys.stderr)
    if config.adapter and "base" not in (checkpoint.get("method") or {}):
        raise SystemExit(f"adapter={source} is a whole model: --out_dir={source} reads it")
    tokenizer = tokenizer or assumed_tokenizer(checkpoint["path"], model)
    rows_at_once = n_texts * (1 + config.speculate)
    block = held_out(checkpoint, model) if config.quantize != "no" else None
    before = None if block is None else perplexity(model, block)
    use_few_threads(model, rows_at_once)
    model = for_inference(model, config, rows_at_once, world)
    if before:
        now = f"{before:.4g} before, {perplexity(model, block):.4g} in {config.quantize}"
        print(f"perplexity on {block.numel():,} held-out tokens: {now}", file=sys.stderr)
    return model, tokenizer, checkpoint


def tell_unused(config):
    """Name the options that have no effect."""
    if config.start and config.lines:
        print("start is not used: the prompts are in the file", file=sys.stderr)
    elif config.start and (config.chat or config.interactive):
        print("start is not used: the prompt is typed here", file=sys.stderr)
    if (config.chat or config.lines) and config.num_samples != SampleConfig.num_samples:
        print("num_samples is not used: a prompt has one answer", file=sys.stderr)
    for name in () if config.lines else ("fields", "encoding", "batch_size"):
        if getattr(config, name) != getattr(SampleConfig, name):
            print(f"{name} is not used: it is for --lines=FILE", file=sys.stderr)
    if config.system and not config.chat:
        print("system is not used: it is for --chat", file=sys.stderr)


def check_converses(model, tokenizer, checkpoint):
    """Exit if the model cannot converse; print it if it was not taught to."""
    if model.config.n_labels:
        raise SystemExit("this model predicts labels and cannot converse: leave --chat out")
    if chat_template_of(tokenizer) is None:
        raise SystemExit("this model has no chat template; finetune.py --task=chat teaches it one")
    try:
        end_of_turn(tokenizer)
    except ValueError as error:  # the model's template refuses every conversation
        raise SystemExit(str(error)) from None
    if not converses(tokenizer, checkpoint):
        print("this model was not fine-tuned to chat: finetune.py --task=chat", file=sys.stderr)


def begin_conversation(model, tokenizer, config):
    """Converse on the terminal."""
    sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")
    converse(model, tokenizer, config, sys.stdout)


def write_for(context, tokenizer, start, checkpoint, config):
    """Write the model's continuation or labels of `start`, and how fast it was."""
    model, task = context.model, checkpoint.get("task", {})
    documents = checkpoint["data"].get("train_documents", 0)
    if model.config.n_labels:
        write_labels(model, tokenizer, start, checkpoint, sys.stdout)
        return
    start = to_continue(start, task)
    prompt = first_tokens(tokenizer, start, documents)
    if len(prompt) > model.config.block_size:
        size = model.config.block_size
        print(f"the prompt has {len(prompt):,} tokens: the last {size:,} are read", file=sys.stderr)
    begun = time.perf_counter()
    made = write_samples(context, tokenizer, start, prompt, config, sys.stdout)
    seconds = time.perf_counter() - begun
    print(f"{made:,} tokens, {made / seconds:,.0f} tokens/s", file=sys.stderr)


def main():
    config = load_config(SampleConfig)
    with open_world(config.device, config.dtype, to_train=False) as world:
        n_texts = 1 if config.chat else config.num_samples
        if config.lines:
            from support.many_prompts import answer_lines, read_lines  # here: they import this

            lines, n_texts = read_lines(config), config.batch_size
        model, tokenizer, checkpoint = load_for_sampling(config, world, n_texts)
        tell_unused(config)
        if config.chat:
            check_converses(model, tokenizer, checkpoint)
        elif checkpoint.get("task", {}).get("task") == "chat":
            print("this model was fine-tuned to chat: --chat", file=sys.stderr)
        if config.lines:
            answer_lines(lines, model, tokenizer, checkpoint, config, sys.stdout)
            return
        if config.chat:
            begin_conversation(model, tokenizer, config)
            return
        context = new_context(model, config)
        for start in starts(config):
            try:
                write_for(context, tokenizer, start, checkpoint, config)
            except SystemExit as error:
                if not config.interactive:
                    raise
                print(error, file=sys.stderr)


if __name__ == "__main__":
    main()
