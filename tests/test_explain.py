"""What the page about a model says is what the model computes."""

import re
from pathlib import Path

import pytest
import torch

from explain import look_inside
from model import ModelConfig, Transformer

TOKENS = [3, 1, 4, 1, 5, 9, 2]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position": "rope", "n_kv_head": 1, "fused_attention": False, "softcap": 5.0},
        {"ngrams": 3, "fused_attention": True},
    ],
)
def test_the_last_block_predicts_what_the_model_does_and_weights_sum_to_one(options):
    torch.manual_seed(0)
    shape = {"vocab_size": 20, "block_size": 16, "n_layer": 3, "n_head": 2, "n_embd": 16}
    model = Transformer(ModelConfig(**shape, **options)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    with torch.no_grad():
        logits, _ = model(torch.tensor([TOKENS]))
    log_p, weights = look_inside(model, TOKENS, vocab_size=18)  # the model's is padded
    torch.testing.assert_close(log_p[-1], logits[0, :, :18].log_softmax(dim=1))
    assert log_p.shape == (3, 7, 18)
    assert weights.shape == (3, 2, 7, 7)
    torch.testing.assert_close(weights.sum(dim=3), torch.ones(3, 2, 7))
    assert not weights.triu(1).any()
    assert not torch.allclose(weights[0], weights[1])


def test_a_page_shows_the_tokens_and_a_picture_for_each_head(train_tiny, run, capsys):
    train_tiny()
    run("explain.py", "--out_dir=out/tiny", "--start=the 猫")
    told = capsys.readouterr().out
    assert "nats per token" in told and told.endswith("open in a browser: out/explain.html\n")
    page = Path("out/explain.html").read_text(encoding="utf-8")
    assert page.count('<img width="75" height="75"') == 2 * 2  # five tokens, two blocks, two heads
    assert page.count("p = 0.") == 4  # of all tokens but the first
    for name in ("<th>t</th>", "<th>␣</th>", "<th>猫</th>", "<th>block 2</th>"):
        assert name in page
    assert not re.search(r"<script|https?://", page)


def test_without_a_text_the_model_writes_one(train_tiny, run):
    train_tiny()
    run("explain.py", "--out_dir=out/tiny", "--tokens=9", "--out=new/page.html")
    page = Path("new/page.html").read_text(encoding="utf-8")
    assert 2 <= page.count("<th>") - 2 - 2 <= 17
    assert "trained with" not in page


def test_a_page_says_what_is_unusual_about_the_model(train_tiny, run, capsys):
    train_tiny("--target_shift=0")
    run("explain.py", "--out_dir=out/tiny", "--tokens=4", "--start=the cat")
    told = capsys.readouterr()
    assert "It was trained with target_shift=0" in told.out
    assert "It was trained with target_shift=0" in Path("out/explain.html").read_text("utf-8")
    assert "shown are the first 4 of 7 tokens; for more, --tokens=7" in told.err
    train_tiny("--causal=False")
    run("explain.py", "--out_dir=out/tiny", "--start=the cat")
    assert "causal=False: it looks at the future too" in capsys.readouterr().out


def test_what_cannot_be_explained_is_told(train_tiny, run):
    train_tiny()
    with pytest.raises(SystemExit, match=r"start='t' is a single token"):
        run("explain.py", "--out_dir=out/tiny", "--start=t")
    with pytest.raises(SystemExit, match="there is no checkpoint out/nothing"):
        run("explain.py", "--out_dir=out/nothing")
    with pytest.raises(SystemExit, match=r"prompt\.txt cannot be read"):
        run("explain.py", "--out_dir=out/tiny", "--start=FILE:prompt.txt")
    with pytest.raises(SystemExit, match=r"out.*make it readable and writable"):
        run("explain.py", "--out_dir=out/tiny", "--start=the", "--out=out/tiny/")
    with pytest.raises(SystemExit, match=r"it is not a folder"):
        run("explain.py", "--out_dir=out/tiny", "--out=defaults.py/page.html")
