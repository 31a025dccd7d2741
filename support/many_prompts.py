"""Answer every line of a file: `python sample.py --lines=messages.csv > answers.jsonl`.

A line of the answers is a line of the file, in JSON, with one field more: `answer`.
"""

import json
import sys
import time

from tqdm import tqdm

from sample import (
    TextStream,
    first_tokens,
    new_context,
    opening_that_fits,
    start_tokens,
    steps_of,
)
from support.chat import end_of_turn
from support.examples import Asked, open_prompts
from support.labelling import LABEL, chances_of, tags_of, words_of


def answer_lines(model, tokenizer, checkpoint, config, out):
    """Write the answer to each line of the file `lines`, as soon as it is known.

    All lines are read and turned into tokens before the first answer, so that mistakes are told
    before anything is written.
    """
    asked = open_prompts(config.lines, config.fields, config.encoding)
    if checkpoint.get("task", {}).get("task") == "tagging":
        answers = with_tags(model, tokenizer, checkpoint, asked)
    elif model.config.n_labels:
        answers = with_labels(model, tokenizer, checkpoint, asked)
    else:
        answers = with_texts(model, tokenizer, checkpoint, asked, config)
    begun = time.perf_counter()
    shown = {"total": len(asked), "unit": "line", "disable": None, "leave": False}
    for line, answer in zip(asked, tqdm(answers, **shown)):
        out.write(json.dumps(line.record | answer, ensure_ascii=False) + "\n")
        out.flush()
    seconds = time.perf_counter() - begun
    print(f"{len(asked):,} answers, {len(asked) / seconds:,.1f} a second", file=sys.stderr)


def of_each(line, function):
    """function(line); exits with the number of the line if it cannot be read."""
    try:
        return function(line)
    except (ValueError, SystemExit) as error:
        raise SystemExit(f"{line.where}: {error}") from None


def with_labels(model, tokenizer, checkpoint, asked):
    """Yield {"answer": the likeliest label, "probability"} for each of the lines."""
    rows = [
        of_each(line, lambda line: start_tokens(tokenizer, line.plain_text())) for line in asked
    ]
    for tokens in rows:
        chance, label = chances_of(model, tokenizer, tokens, checkpoint)[0]
        yield {"answer": label, "probability": round(chance, 4)}


def with_tags(model, tokenizer, checkpoint, asked):
    """Yield {"tokens": words, "answer": their tags} for each of the lines."""
    blanks = checkpoint["task"].get("blanks", False)
    for line in asked:
        words = line.words or words_of(of_each(line, Asked.plain_text), blanks)
        yield {"tokens": words, "answer": tags_of(model, tokenizer, words, checkpoint)}


def with_texts(model, tokenizer, checkpoint, asked, config):
    """Yield {"answer": the text that follows} for each of the lines, batch_size of them at once."""
    size, is_label = model.config.block_size, checkpoint.get("task", {}).get("generative")
    documents = checkpoint["data"].get("train_documents", 0)

    def text_prompt(line):
        return first_tokens(tokenizer, line.plain_text() + (LABEL if is_label else ""), documents)

    def chat_prompt(line):
        said = line.messages
        if config.system and said[0]["role"] != "system":
            said = [{"role": "system", "content": config.system}, *said]
        n = int(said[0]["role"] == "system")
        return opening_that_fits(said[:n], said[n:], tokenizer, size)[0]

    prompts = [of_each(line, chat_prompt if config.chat else text_prompt) for line in asked]
    too_long = sum(len(prompt) > size for prompt in prompts)
    if too_long:
        print(f"of {too_long:,} prompts only the last {size:,} tokens are read", file=sys.stderr)
    ends = [tokenizer.eot] if config.chat or config.until_eot else []
    ends += [end_of_turn(tokenizer)] if config.chat else []
    context = new_context(model, config)
    for first in range(0, len(prompts), config.batch_size):
        rows = prompts[first : first + config.batch_size]
        streams = [TextStream(tokenizer, config.stop, ends, begins=config.chat) for _ in rows]
        texts = [""] * len(rows)
        for tokens in steps_of(context, tokenizer, rows, config, config.seed + first):
            parts = [stream.push(token) for stream, token in zip(streams, tokens)]
            texts = [text + part for text, part in zip(texts, parts)]
            if all(stream.ended for stream in streams):
                break
        for text, stream in zip(texts, streams):
            text += stream.finish()
            yield {"answer": text.strip() if config.chat or is_label else text}
