"""Look into a trained model as it reads a text: `python explain.py --start="Once upon a time"`.

It writes one HTML page, which needs neither scripts nor a connection, with three pictures: how much
each token surprises the model, what it would say after each block (the logit lens), and which
tokens each head of attention looks at.
"""

import base64
import io
import math
import sys
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path

import torch

from model import capped, causal_attention, check_range
from sample import Context, SampleConfig, first_tokens, steps_of, text_meant_by
from support.adapters import has_added
from support.checkpoint import in_a_line, load_model, source_of
from support.config import load_config
from support.files import replacing
from support.processes import open_world
from support.tokenizer import LINE_END, SPACE, visible
from support.tokenizer_files import assumed_tokenizer

CELL = 15  # pixels of a token in a picture of attention
MOST_SURPRISED = 8.0  # nats from which on a token has the darkest colour
STYLE = f"""
body {{ font: 15px sans-serif; margin: 2em; max-width: 80em }}
h1 {{ font-size: 20px }}
p.text {{ line-height: 1.9; font-size: 17px; white-space: pre-wrap }}
p.text span {{ border-radius: 3px; padding: 2px 0 }}
table {{ border-collapse: collapse; font-size: 13px }}
td, th {{ padding: 2px 5px; border: 1px solid #ddd; white-space: nowrap }}
td, th {{ font-weight: normal; text-align: center }}
.scroll {{ overflow-x: auto }}
.head {{ display: inline-flex; flex-wrap: wrap; margin: 0 2em 1.5em 0; font-size: 11px }}
.head p {{ width: 100%; margin: 0 0 4px; font-size: 13px }}
.head div div {{ height: {CELL}px; line-height: {CELL}px; text-align: right; padding-right: 4px }}
.head img {{ image-rendering: pixelated; outline: 1px solid #ccc }}
"""


@dataclass
class ExplainConfig:
    """Write a page that shows what a trained model does with a text."""

    out_dir: str = "out/stories"  # the run to look into
    init_from: str = "resume"  # resume: the best checkpoint of out_dir; or the PATH of another
    start: str = ""  # the text; FILE:prompt.txt; - for standard input; empty: the model writes one
    tokens: int = 48  # the most tokens to show
    seed: int = 1337  # of the text that the model writes
    out: str = "out/explain.html"  # the page

    def __post_init__(self):
        check_range(self, "tokens", at_least=2)
        check_range(self, "seed", at_least=0, below=2**63)


@torch.no_grad()
def look_inside(model, tokens, vocab_size):
    """What a model computes as it reads a list of T tokens; the model is of no other use then.

    (log p of the next token after each block (n_layer, T, V), for the V = vocab_size tokens that
    are in use; weights of attention (n_layer, H, T, T))
    """
    streams, weights = [], []

    def watched(attend):
        def attention(q, k, v, mask=None, dropout=0.0):
            # With a one-hot vector as the value of each key, the weighted mean is the weights.
            values = torch.eye(k.size(2)).expand(*k.shape[:2], -1, -1)
            weights.append(causal_attention(q, k, values, mask)[0])
            return attend(q, k, v, mask, dropout)

        return attention

    for block in model.blocks:
        block.attention.attend = watched(block.attention.attend)
        block.register_forward_hook(lambda _block, _inputs, x: streams.append(x[0]))
    model(torch.tensor([tokens]))
    logits = capped(model.head(model.norm(torch.stack(streams))), model.config.softcap)
    return logits[:, :, :vocab_size].log_softmax(dim=2), torch.stack(weights)


# ------------------------------------------------------------------------------------- the pictures


def likeliest(log_p, names, n=5):
    """The n likeliest tokens of one distribution (V) as text."""
    best = log_p.topk(min(n, len(log_p))).indices.tolist()
    return ", ".join(f"{names(token)} {log_p[token].exp():.2f}" for token in best)


def text_in_colours(tokens, log_p, names):
    """The text as HTML: the more a token surprises the model, the darker."""
    spans = [f"<span>{escape(names(tokens[0]))}</span>"]
    for before, token in enumerate(tokens[1:]):
        nats = -log_p[before, token].item()
        p, best = math.exp(-nats), likeliest(log_p[before], names)
        hint = f"p = {p:.4f}, {nats:.2f} nats. Likeliest: {best}"
        colour = f"rgba(230, 110, 0, {min(1.0, nats / MOST_SURPRISED):.2f})"
        name = escape(names(token)).replace(SPACE, " ").replace(LINE_END, f"{LINE_END}\n")
        spans.append(f'<span style="background: {colour}" title="{escape(hint)}">{name}</span>')
    return f'<p class="text">{"".join(spans)}</p>'


def lens(tokens, log_p, names):
    """A table: for each position (column), the likeliest next token after each block (row)."""
    rows = ["<th>it reads</th>" + "".join(f"<th>{escape(names(t))}</th>" for t in tokens)]
    for number, after_block in enumerate(log_p, 1):
        cells = [f"<th>block {number}</th>"]
        for at_token in after_block:
            colour = f"rgba(0, 110, 230, {at_token.max().exp():.2f})"
            hint, best = escape(likeliest(at_token, names)), escape(names(int(at_token.argmax())))
            cells.append(f'<td style="background: {colour}" title="{hint}">{best}</td>')
        rows.append("".join(cells))
    following = "".join(f"<th>{escape(names(token))}</th>" for token in tokens[1:])
    rows.append(f"<th>what follows</th>{following}")
    return f'<div class="scroll"><table>{"".join(f"<tr>{row}</tr>" for row in rows)}</table></div>'


def heads(tokens, weights, names):
    """A picture for each head: the row of a token shows how much it looks at each earlier one."""
    from matplotlib.image import imsave

    labels = "".join(f"<div>{escape(names(token))}</div>" for token in tokens)
    pictures = []
    for block, of_block in enumerate(weights, 1):
        for head, of_head in enumerate(of_block, 1):
            picture = io.BytesIO()
            imsave(picture, of_head.numpy(), cmap="Blues", vmin=0.0, vmax=1.0, format="png")
            data = base64.b64encode(picture.getvalue()).decode()
            size = f'width="{CELL * of_head.size(1)}" height="{CELL * of_head.size(0)}"'
            pictures.append(
                f'<div class="head"><p>block {block}, head {head}</p><div>{labels}</div>'
                f'<img {size} alt="" src="data:image/png;base64,{data}"></div>'
            )
    return "".join(pictures)


def page(title, notes, tokens, log_p, weights, names):
    """The whole page, as text."""
    return "\n".join(
        [
            f'<!DOCTYPE html><html><head><meta charset="utf-8"><title>{escape(title)}</title>',
            f"<style>{STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            "<h2>Surprise</h2>",
            "<p>The darker a token, the more it surprised the model, given the tokens before it. "
            "Point at a token to read its probability, and which tokens were likeliest. "
            "(&lt;|endoftext|&gt; says that a text begins; numbers such as &lt;e6&gt; are bytes of "
            "a character that takes several tokens.)</p>",
            f"<p>{' '.join(notes)}</p>",
            text_in_colours(tokens, log_p[-1], names),
            "<h2>After each block</h2>",
            "<p>The head applied to what each block passes on (the logit lens): the token that "
            "would be likeliest if the blocks above were left out; the darker, the more certain."
            "</p>",
            lens(tokens, log_p, names),
            "<h2>Attention</h2>",
            "<p>Each row is a token that asks, each column, in the same order, a token that it "
            "looks at. Above the diagonal is the future.</p>",
            heads(tokens, weights, names),
            "</body></html>",
        ]
    )


def tokens_to_show(config, model, tokenizer, documents):
    """The tokens to look at: of `start` or, if that is empty, of what the model writes."""
    most = min(config.tokens, model.config.block_size)
    text = text_meant_by(config.start)
    tokens = first_tokens(tokenizer, text, documents)
    if not text:
        settings = SampleConfig(num_samples=1, max_new_tokens=max(1, most - len(tokens)))
        steps = steps_of(Context(model), tokenizer, [tokens], settings, config.seed)
        tokens += [token for (token,) in steps]
    if len(tokens) < 2:
        raise SystemExit(f"start={config.start!r} is a single token: type more text")
    if len(tokens) > most:
        longer = f"; for more, --tokens={len(tokens)}" if config.tokens <= most else ""
        print(f"shown are the first {most} of {len(tokens):,} tokens{longer}", file=sys.stderr)
    return tokens[:most]


def remarks(model, checkpoint):
    """What to know of a model that does not simply predict the next token."""
    if not model.config.causal:
        yield "This model was trained with causal=False: it looks at the future too."
    shift = checkpoint["train_config"].get("target_shift", 1)
    if shift != 1:
        yield f"It was trained with target_shift={shift}, not to predict the next token."
    task = checkpoint.get("task", {}).get("task")
    if task in ("completion", "chat"):
        yield "It was fine-tuned to answer: it never learned prompts, and they surprise it."


def main():
    config = load_config(ExplainConfig, takes_files=False)
    with open_world("cpu", to_train=False):
        source = source_of(config)
        model, tokenizer, checkpoint = load_model(source)
        if model.config.n_labels:
            raise SystemExit(f"{source} predicts labels, and only models of text can be explained")
        if has_added(model):
            raise SystemExit(f"{source} has an adapter or a prefix, which cannot be explained")
        tokenizer = tokenizer or assumed_tokenizer(checkpoint["path"], model)
        documents = checkpoint["data"].get("train_documents", 0)
        tokens = tokens_to_show(config, model, tokenizer, documents)
        log_p, weights = look_inside(model, tokens, tokenizer.vocab_size)
        loss = -log_p[-1, :-1].gather(1, torch.tensor(tokens[1:])[:, None]).mean()
        title, names = in_a_line(checkpoint), partial(visible, tokenizer)
        notes = [f"{loss:.3f} nats per token.", *remarks(model, checkpoint)]
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)
        with replacing(config.out, "w") as file:
            file.write(page(title, notes, tokens, log_p, weights, names))
        print("\n".join([title, *notes, f"open in a browser: {config.out}"]))


if __name__ == "__main__":
    main()
