"""Answer every line of a file: `python sample.py --lines=messages.csv > answers.jsonl`.

A line of the answers is a line of the file, in JSON, with one field more: `answer`.
"""

import json
import sys
import time
from functools import partial

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
from support.examples import open_prompts
from support.labelling import LABEL, chances_of, tags_of, words_of


def answer_lines(model, tokenizer, checkpoint, config, out):
    """Write the answer to each line of the file `lines`, as soon as it is known."""
    asked = open_prompts(config.lines, config.fields, config.encoding)
    task = checkpoint.get("task", {})
    if task.get("task") == "tagging":
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


def with_labels(model, tokenizer, checkpoint, asked):
    """Yield {"answer": the likeliest label, "probability"} for each of the lines."""
    for line in asked:
        tokens = start_tokens(tokenizer, line.plain_text())
        chance, label = chances_of(model, tokenizer, tokens, checkpoint)[0]
        yield {"answer": label, "probability": round(chance, 4)}


def with_tags(model, tokenizer, checkpoint, asked):
    """Yield {"tokens": words, "answer": their tags} for each of the lines."""
    blanks = checkpoint["task"].get("blanks", False)
    for line in asked:
        words = line.words or words_of(line.plain_text(), blanks)
        yield {"tokens": words, "answer": tags_of(model, tokenizer, words, checkpoint)}


def with_texts(model, tokenizer, checkpoint, asked, config):
    """Yield {"answer": the text that follows} for each of the lines, batch_size of them at once."""
    if config.chat:
        ends, begins = [tokenizer.eot, end_of_turn(tokenizer)], True
        prompt_of = partial(chat_prompt, tokenizer=tokenizer, config=config, model=model)
    else:
        ends, begins = [tokenizer.eot] if config.until_eot else [], False
        prompt_of = partial(text_prompt, tokenizer=tokenizer, checkpoint=checkpoint)
    prompts = [prompt_of(line) for line in asked]  # mistakes are told before anything is written
    context, is_label = new_context(model, config), checkpoint.get("task", {}).get("generative")
    for first in range(0, len(prompts), config.batch_size):
        rows = prompts[first : first + config.batch_size]
        streams = [TextStream(tokenizer, config.stop, ends, begins) for _ in rows]
        texts = [""] * len(rows)
        for tokens in steps_of(context, tokenizer, rows, config, config.seed + first):
            parts = [stream.push(token) for stream, token in zip(streams, tokens)]
            texts = [text + part for text, part in zip(texts, parts)]
            if all(stream.ended for stream in streams):
                break
        for text, stream in zip(texts, streams):
            text += stream.finish()
            yield {"answer": text.strip() if config.chat or is_label else text}


def text_prompt(line, tokenizer, checkpoint):
    """The tokens of a text to continue."""
    text = line.plain_text()
    text += LABEL if checkpoint.get("task", {}).get("generative") else ""
    return first_tokens(tokenizer, text, checkpoint["data"].get("train_documents", 0))


def chat_prompt(line, tokenizer, config, model):
    """The tokens of a conversation up to the next answer."""
    said = line.messages
    instruction = [said[0]] if said[0]["role"] == "system" else []
    if config.system and not instruction:
        said = [{"role": "system", "content": config.system}, *said]
        instruction = [said[0]]
    rest = said[len(instruction) :]
    try:
        return opening_that_fits(instruction, rest, tokenizer, model.config.block_size)[0]
    except ValueError as error:  # too long, an unknown character, what the template refuses
        raise SystemExit(f"{line.where}: {error}") from None
