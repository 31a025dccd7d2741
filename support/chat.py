"""Conversations as tokens, in the model's own chat template or in ChatML.

A conversation is a list of messages {"role": "system", "user" or "assistant", "content": text}:

    <|im_start|>user\\nWho lost the kite?<|im_end|>\\n
    <|im_start|>assistant\\nMei.<|im_end|>\\n
                          ^^^^^^^^^^^^^^ learned: what the assistant says, and that it ends
"""

import json
import re
import time
from functools import cache, partial

from support.tokenizer_files import chat_template_of

GUARD = "\ue000"  # splits what looks like a special token in a message, so that it stays text
MARKS = "<|im_start|>", "<|im_end|>"
GENERATION = re.compile(r"({%-?\s*)(end)?generation(\s*-?%})")  # marks what is learned: not needed


def converses(tokenizer, checkpoint):
    """Whether a model was taught to converse: by who published it, or by its last task here."""
    task = checkpoint.get("task", {}).get("task")
    published = tokenizer is not None and bool(tokenizer.chat_template)
    return task == "chat" or (task in (None, "text") and published)


def rendered(messages, tokenizer, answering=False):
    """A conversation as text; `answering`: up to where the assistant's next answer begins.

    Raises ValueError if the model's template refuses it, such as two user messages in a row.
    """
    import jinja2

    special = {i: text for text, i in tokenizer.special_tokens.items()}
    marks = [text for text in special.values() if text not in tokenizer.ordinary]
    guarded = [{**message, "content": shielded(message["content"], marks)} for message in messages]
    try:
        return compiled_template(chat_template_of(tokenizer)).render(
            messages=guarded,
            tools=None,
            documents=None,
            add_generation_prompt=answering,
            bos_token=special.get(tokenizer.bos, ""),
            eos_token=special.get(tokenizer.eot, ""),
        )
    except (jinja2.TemplateError, TypeError) as error:
        raise ValueError(f"the model's chat template refuses this conversation: {error}") from None


@cache
def compiled_template(template):
    """A chat template compiled in a sandbox, ready to render."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message):
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": time.strftime}
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    template = GENERATION.sub(lambda m: m[1] + ("endif" if m[2] else "if true") + m[3], template)
    return environment.from_string(template)


def shielded(text, special):
    """The text with every special token broken up, so that none is found in it."""
    for mark in special:
        text = text.replace(mark, mark[0] + GUARD + mark[1:])
    return text


def tokens_of(text, tokenizer, before=()):
    """The tokens of a text, with special tokens encoded as themselves; it continues those before.

    A tokenizer that puts a space before a text does so at the beginning of all and, some of them,
    behind every special token.
    """
    marks = sorted(tokenizer.special_tokens, key=len, reverse=True)
    begins = set(tokenizer.special_tokens.values()) if tokenizer.prefixes_each else ()
    tokens = []
    for part in re.split("(" + "|".join(map(re.escape, marks)) + ")", text):
        if part in tokenizer.special_tokens:
            tokens.append(tokenizer.special_tokens[part])
        elif part:
            last = [*before[-1:], *tokens[-1:]]
            inside = bool(last) and last[-1] not in begins
            tokens += tokenizer.encode(part.replace(GUARD, ""), inside).tolist()
    return tokens


def opening(messages, tokenizer):
    """The tokens of a conversation up to where the assistant's next answer begins."""
    return tokens_of(rendered(messages, tokenizer, answering=True), tokenizer)


def conversation(messages, tokenizer):
    """[(tokens, whether each is learned)]: one pair, or one for each answer of the assistant.

    They are separate if the template renders earlier answers differently from the last one, as
    Qwen 3's does with thoughts.
    """
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    whole = rendered(messages, tokenizer)
    spans = []
    for i in answers:
        before = rendered(messages[:i], tokenizer, answering=True)
        after = rendered(messages[: i + 1], tokenizer)
        if not (after.startswith(before) and whole.startswith(after)):
            if i == answers[-1]:
                raise ValueError("the model's chat template does not say where an answer begins")
            return [conversation_to(messages, j, tokenizer) for j in answers]
        spans.append((len(before), len(after)))
    return [with_learned(whole, spans, tokenizer)]


def conversation_to(messages, i, tokenizer):
    """(tokens, learned) of a conversation up to message `i`, an answer; only that is learned."""
    before = rendered(messages[:i], tokenizer, answering=True)
    text = rendered(messages[: i + 1], tokenizer)
    if not text.startswith(before):
        raise ValueError("the model's chat template does not say where an answer begins")
    return with_learned(text, [(len(before), len(text))], tokenizer)


def with_learned(text, spans, tokenizer):
    """(tokens, learned) of a text: each span is learned, up to its last special token."""
    special = set(tokenizer.special_tokens.values())
    tokens, learned, place = [], [], 0
    for start, end in spans:
        given = tokens_of(text[place:start], tokenizer, tokens)
        said = tokens_of(text[start:end], tokenizer, given or tokens)
        marks = [i for i, token in enumerate(said) if token in special]
        n = marks[-1] + 1 if marks else len(said)
        tokens += given + said
        learned += [False] * len(given) + [True] * n + [False] * (len(said) - n)
        place = end
    rest = tokens_of(text[place:], tokenizer, tokens)
    return tokens + rest, learned + [False] * len(rest)


def without_thoughts(answer):
    """The answer without the thoughts that models such as Qwen 3 write before it."""
    return answer.rpartition("</think>")[2].strip()


def final_token(tokenizer):
    """The token that ends generation: end of turn if there is a chat template, else end of text."""
    try:
        end = end_of_turn(tokenizer) if tokenizer.chat_template else None
    except ValueError:  # the template refuses such a conversation
        end = None
    return tokenizer.eot if end is None else end


def end_of_turn(tokenizer):
    """The token that ends the assistant's answer; None if the template has no such token."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tokens, learned = conversation(messages, tokenizer)[-1]
    last = max(i for i, is_learned in enumerate(learned) if is_learned)
    return tokens[last] if tokens[last] in tokenizer.special_tokens.values() else None
