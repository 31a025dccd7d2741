"""Write a model and its tokenizer as one GGUF file, for llama.cpp, Ollama and LM Studio.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from pathlib import Path

import torch

from model import rotary_frequencies
from support.chat import final_token
from support.files import replacing
from support.huggingface import Unfit, their_config, weights_to_write
from support.sentencepiece import BYTES
from support.tokenizer import GPT2_PATTERN
from support.tokenizer_files import DIGITS_PATTERN, as_text, merges_of
from support.weights import GGUF, GGUF_GPT2, place_of, put

FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}  # llama.cpp's codes
BLOCK = 32  # numbers that share a scale in q8_0
# The patterns that split a text into words are built into llama.cpp, under these names.
NEWER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    GPT2_PATTERN: "gpt-2",
    DIGITS_PATTERN: "smollm",
    NEWER % "{1,3}": "llama-bpe",
    NEWER % "": "qwen2",
}


def write_gguf(path, model, tokenizer, kind="f16", bos=None):
    """Write the file; kind is the type of its matrices, one of FILE_TYPES; bos as in `write_model`.

    Raises Unfit for a model or tokenizer that llama.cpp does not support. llama.cpp computes GELU
    by tanh (`mlp=gelu_tanh`), even if a model was trained with the exact one.
    """
    try:
        import gguf
    except ImportError:
        raise SystemExit("--to=gguf needs: pip install gguf") from None

    family = their_config(model.config)[0]["model_type"]
    weights = weights_to_write(model, family)
    places = {name: place_of(name, GGUF_GPT2 if family == "gpt2" else GGUF) for name in weights}
    writer = gguf.GGUFWriter(None, family)
    describe_model(writer, model.config, Path(path).stem, kind)
    describe_tokenizer(writer, tokenizer, model.config.vocab_size, bos, gguf.TokenType)
    for name, tensor in put(weights, places):
        if family == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            tensor = interleaved(tensor, model.config.head_channels)
        add_tensor(writer, name, tensor.float().numpy(), kind, gguf)
    if model.config.rope_scaling:
        add_tensor(writer, "rope_freqs.weight", slowed(model.config).numpy(), kind, gguf)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        writer.write_header_to_file(Path(file.name))
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def describe_model(writer, config, name, kind):
    """Write the model's hyperparameters, under GGUF's keys."""
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.mlp_channels)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.kv_heads)
    if config.position == "learned":
        writer.add_layer_norm_eps(config.norm_eps)
        return
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_key_length(config.head_channels)
    writer.add_value_length(config.head_channels)
    writer.add_rope_dimension_count(config.head_channels)
    writer.add_rope_freq_base(config.rope_theta)


def describe_tokenizer(writer, tokenizer, vocab_size, bos, kinds):
    """Write the vocabulary, how it is merged and the roles of its special tokens."""
    if tokenizer is None:
        raise Unfit("it has no tokenizer, without which llama.cpp cannot run it")
    if tokenizer.kind in ("char", "byte"):
        raise Unfit(f"llama.cpp has no tokenizer of single {tokenizer.kind}s; use --tokenizer=bpe")
    special = {i: text for text, i in tokenizer.special_tokens.items()}
    spare = {i: f"[PAD{i}]" for i in range(vocab_size)}  # rows of the model without a token
    added = {
        i: kinds.USER_DEFINED if text in tokenizer.ordinary else kinds.CONTROL
        for i, text in special.items()
    }
    describe = describe_sentencepiece if tokenizer.kind == "sentencepiece" else describe_byte_pairs
    ordinary, types = describe(writer, tokenizer, vocab_size, kinds)
    tokens, types = spare | ordinary | special, types | added
    writer.add_token_list([tokens[i] for i in range(vocab_size)])
    writer.add_token_types([types.get(i, kinds.UNUSED) for i in range(vocab_size)])
    writer.add_add_bos_token(bos is not None)
    if bos is not None:
        writer.add_bos_token_id(bos)
    if final_token(tokenizer) is not None:
        writer.add_eos_token_id(final_token(tokenizer))
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def describe_byte_pairs(writer, tokenizer, vocab_size, kinds):
    """How a byte-level encoding splits and merges; {id: text} and {id: kind} of its tokens."""
    if tokenizer.pattern not in PATTERNS:
        raise Unfit("its tokenizer splits text into words by a pattern unknown to llama.cpp")
    ordinary = {i: as_text(part) for part, i in tokenizer.ranks.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PATTERNS[tokenizer.pattern])
    writer.add_token_merges([f"{as_text(a)} {as_text(b)}" for a, b in merges_of(tokenizer)])
    return ordinary, dict.fromkeys(ordinary, kinds.NORMAL)


def describe_sentencepiece(writer, tokenizer, vocab_size, kinds):
    """The same for SentencePiece's: a token's score is higher the earlier it is merged.

    llama.cpp puts a space before a text and behind special tokens, or nowhere. In conversations the
    latter is right for a tokenizer that only has one before a text, as they begin with such tokens.
    """
    if tokenizer.form or tokenizer.splits:
        raise Unfit("its tokenizer changes or splits text in a way unknown to llama.cpp")
    scores = {}
    for rank, (left, right) in enumerate(tokenizer.merges):
        scores.setdefault(tokenizer.vocab[left + right], -float(rank))
    converses = tokenizer.prefix_rule == "first" and tokenizer.chat_template
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([scores.get(i, -float(len(scores))) for i in range(vocab_size)])
    writer.add_add_space_prefix(bool(tokenizer.prefix and not converses))
    if tokenizer.unknown:
        writer.add_unk_token_id(tokenizer.vocab[tokenizer.unknown])
    types = {i: kinds.BYTE if t in BYTES else kinds.NORMAL for i, t in tokenizer.texts.items()}
    return tokenizer.texts, types


def add_tensor(writer, name, numbers, kind, gguf):
    """Add an array in `kind`; small or sensitive ones stay float32, as llama.cpp expects."""
    quantization = gguf.GGMLQuantizationType[kind.upper()]
    if numbers.ndim < 2 or name.startswith("position_embd"):
        quantization = gguf.GGMLQuantizationType.F32
    elif kind == "q8_0" and numbers.shape[-1] % BLOCK:
        quantization = gguf.GGMLQuantizationType.F16
    writer.add_tensor(name, gguf.quantize(numbers, quantization), raw_dtype=quantization)


def interleaved(weight, head_channels):
    """Rows of queries or keys in the order in which llama.cpp pairs them for the rotation.

    We rotate channel i with i + D/2, as Hugging Face does; llama.cpp 2i with 2i + 1.
    """
    heads = weight.unflatten(0, (-1, 2, head_channels // 2))  # (H, 2, D/2, C)
    return heads.transpose(1, 2).flatten(0, 2)  # (H·D, C)


def slowed(config):
    """How many times slower `rope_scaling` rotates each pair of channels: (D/2,)."""
    plain = rotary_frequencies(config.head_channels, config.rope_theta)
    scaled = rotary_frequencies(config.head_channels, config.rope_theta, config.rope_scaling)
    return (plain / scaled).to(torch.float32)
