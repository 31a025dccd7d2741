"""Fine-tune a trained model on examples of a task: `python finetune.py config/finetune_mood.py`.

An example becomes inputs and targets as in train.py, except that a target is -1 wherever nothing is
to be learned: in a question, or in what the user of a chat says (support/tasks.py).

    inputs     Who   lost   it   ?   Answer   :     Mei
    targets    -1    -1     -1   -1  -1       Mei   <|endoftext|>

The examples of a step are put into rows, and train.py's loop trains on them; there is no other.
"""

import dataclasses
import json
import math
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import regex
import torch

from model import IGNORED, check_range
from support.adapters import MATRICES, SETTINGS
from support.checkpoint import (
    BEST,
    MERGED,
    merged_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from support.config import show_config, typed_options
from support.distillation import load_teacher, taught_by
from support.files import replacing
from support.finetuning import (
    begin,
    short_start,
    show_example,
    show_examples,
    show_weights,
    shown,
    table,
    tell_few_steps,
)
from support.fp8 import use_fp8
from support.processes import only_main_prints, open_world
from support.recomputation import recompute_blocks
from support.report import (
    Report,
    advice_on_memory,
    farewell,
    in_words,
    show_formulas,
    show_memory,
)
from support.starting_point import check_accumulation, make_room, read_config
from support.tasks import TASKS, Example
from support.token_files import permuted
from support.weights import averaged
from train import Schedule, TrainConfig, evaluation, train, training_batches, windows_of

QUICK_START = Path(__file__).parent / "config" / "finetune_qa.py"  # when no task is named
# Options that do not apply to a folder of tokens, which has no fields, words or examples.
EXAMPLES_ALONE = (
    "format fields encoding val_fraction shots long pack word_deletion word_swap token_shift"
)
STEPS_LOOKED_AT = 50  # to find out how long the rows of a run are
NOTHING = Example([0], [IGNORED])  # fills a batch that random changes left without a target


@dataclass
class FinetuneConfig(TrainConfig):
    """Fine-tune a trained model on examples of a task; all other options are those of train.py."""

    # input and output
    init_from: str = "out/stories"  # a run, a checkpoint, a Hugging Face folder or name; or resume
    out_dir: str = "out/finetuned"  # checkpoints, log, test.json and predictions.jsonl
    pretrained: bool = True  # False: same shape, random weights; what was pretraining worth?
    redraw: tuple[Literal["attention", "mlp"], ...] = ()  # parts of each block to reinitialise
    # the examples
    task: Literal[tuple(TASKS)] = "completion"  # what to learn of an example (support/tasks.py)
    dataset: str = "stories/tasks/qa"  # a file; a folder with train, val, test; a folder of tokens
    format: Literal["auto", "jsonl", "json", "csv", "tsv", "conll"] = "auto"  # auto: by file name
    fields: tuple[str, ...] = ()  # the file's names for ours: --fields text=message label=topic
    encoding: str = "utf-8"  # of the file; Excel saves Chinese in gb18030
    val_fraction: float = 0.1  # of a single file, and the same again for testing; 1: all of it
    generative: bool = False  # classification: generate the label as text, with no head for labels
    shots: int = 0  # choice: solved training examples before each prompt
    long: Literal["cut", "chunk"] = "cut"  # examples beyond block_size: keep the end, or split
    pack: bool | Literal["auto"] = "auto"  # several examples per row; auto: with rotary positions
    word_deletion: float = 0.0  # fraction of a text's words to delete, resampled every epoch
    word_swap: float = 0.0  # fraction of words to swap with the next
    token_shift: float = 0.0  # fraction to overwrite with the previous word, as if the text shifted
    # what is trained
    method: Literal[tuple(SETTINGS)] = "full"  # what to train (support/adapters.py)
    last_blocks: int = 1  # last: number of blocks
    lora_rank: int = 8  # lora: rank of the update to a matrix
    lora_alpha: float = 16.0  # lora: the update is scaled by lora_alpha / lora_rank
    lora_dropout: float = 0.0  # lora: fraction of its inputs that is zeroed
    lora_targets: tuple[str, ...] = MATRICES  # lora: which matrices of a block
    adapter_size: int = 16  # adapter: channels of the bottleneck
    prefix_length: int = 16  # prefix: number of learned positions
    merge: bool = False  # lora: also write merged.pt, an ordinary model
    preference_beta: float = 0.1  # preference: how firmly the model is held to what it was (DPO)
    # the teacher
    teacher: str | None = None  # model with the same tokens or labels, whose logits are learned too
    teacher_weight: float = 0.5  # fraction of the loss that comes from the teacher
    teacher_temperature: float = 2.0  # above 1: the teacher's less likely choices count for more
    # as in train.py, with defaults for a model that has learned a language
    block_size: int | None = None  # context length; None: the model's
    batch_size: int = 8  # examples per micro-batch
    gradient_accumulation_steps: int = 1  # micro-batches per update
    epochs: float = 3.0  # passes over the examples
    max_iters: int | None = None  # updates, instead of epochs; None: as many as the epochs take
    learning_rate: float = 5e-5  # for a large model; try 2e-4 for lora, 1e-2 for a very small model
    warmup_iters: int = 20  # updates of learning rate warmup
    min_lr: float = 0.0  # what learning_rate decays to
    schedule: Schedule = "linear"  # of the learning rates
    weight_decay: float = 0.0  # of matrices
    eval_interval: int = 100  # updates between evaluations
    eval_iters: int = 0  # batches of validation examples to evaluate; 0: all
    log_interval: int = 10  # updates between lines of the log
    best_metric: str | None = None  # metric that picks the best checkpoint; None: the task's own
    dry_run: bool = False  # print the plan and exit
    compile: bool | Literal["auto"] = False  # off, since examples differ in length

    def __post_init__(self):
        super().__post_init__()
        check_range(self, "last_blocks lora_rank adapter_size prefix_length", at_least=1)
        check_range(self, "lora_dropout word_deletion word_swap token_shift", at_least=0, below=1)
        if self.val_fraction == 1 and not self.eval_only:
            raise ValueError("val_fraction=1 leaves nothing to learn from: for --eval_only=True")
        if not (0 < self.val_fraction < 0.5 or self.val_fraction == 1):
            raise ValueError(
                f"val_fraction={self.val_fraction} must be above 0 and below 0.5, or with "
                "--eval_only=True 1"
            )
        check_range(self, "shots", at_least=0)
        check_range(self, "teacher_weight", at_least=0, at_most=1)
        check_range(self, "teacher_temperature epochs preference_beta", above=0, below=math.inf)
        unknown = set(self.lora_targets) - set(MATRICES)
        if unknown or not self.lora_targets:
            raise ValueError(
                f"lora_targets={' '.join(self.lora_targets)}: expected some of {' '.join(MATRICES)}"
            )
        if self.target_shift != 1:
            raise ValueError(f"target_shift={self.target_shift} is for train.py; leave it out")

    @property
    def starts_random(self):
        return not self.pretrained


# ------------------------------------------------------------------- batches with masked targets


def fitting(example, size, long):
    """[Example, …] that fit a context of `size`: the end of a longer one, or all of it in parts."""
    if len(example.inputs) <= size:
        return [example]
    if long == "cut":
        return [example.end(size)]
    inputs, targets = example
    parts, learned = [], 0  # each token is learned once, with half a context before it
    for start in [*range(0, len(inputs) - size, max(1, size // 2)), len(inputs) - size]:
        known = max(0, learned - start)
        part = [IGNORED] * known + targets[start + known : start + size]
        parts.append(Example(inputs[start : start + size], part))
        learned = start + size
    return parts


def all_examples(task, lines, config):
    """([Example, …] that fit the context, Counter of those too long and those without a target)."""
    examples, counts = [], Counter()
    for line in lines:
        whole = task.examples(line)
        parts = [part for e in whole for part in fitting(e, config.block_size, task.long)]
        useful = [part for part in parts if any(t != IGNORED for t in part.targets)]
        too_long = any(len(e.inputs) > config.block_size for e in whole)
        counts["long"] += too_long or (task.splits and len(whole) > 1)
        counts["without a target"] += not useful
        examples += useful
    return examples, counts


def origins(task, lines, config):
    """(index of its line, its place among the line's examples) of each of `all_examples`."""
    numbers = [len(all_examples(task, [line], config)[0]) for line in lines]
    return [(i, place) for i, number in enumerate(numbers) for place in range(number)]


def example_batches(task, lines, examples, config, world):
    """`batch_at(step)`: this process's micro-batches of that step, dicts for `model(**batch)`.

    Every epoch has each example once, in its own order and, where the config asks for random
    changes, with its own changes. The batches of a step depend on the step alone.
    """
    per_step = config.batch_size * config.gradient_accumulation_steps
    mine = per_step // world.size
    is_noisy = config.word_deletion or config.word_swap or config.token_shift
    if is_noisy and not task.noisy_field:
        raise SystemExit(
            "word_deletion, word_swap and token_shift are for classification, completion and "
            f"choice; for --task={config.task} leave them out"
        )
    if is_noisy and config.shots:
        raise SystemExit(f"shots={config.shots} would show the text unchanged: leave it out")
    n, origin = len(examples), origins(task, lines, config) if is_noisy else []
    pack = config.position == "rope" if config.pack == "auto" else config.pack

    def examples_at(number, epoch):
        if not is_noisy:
            return [examples[number]]
        i, place = origin[number]
        chance = np.random.default_rng([config.seed, epoch, i]).random
        changed = lines[i] | {task.noisy_field: noisy(lines[i][task.noisy_field], config, chance)}
        return all_examples(task, [changed], config)[0][place : place + 1]

    def batch_at(step):
        # The next examples of an endless reading, in which each epoch is shuffled in its own way.
        epochs, places = np.divmod(step * per_step + world.rank * mine + np.arange(mine), n)
        numbers = np.empty_like(places)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            numbers[in_epoch] = permuted(places[in_epoch], n, [config.seed, epoch])
        chosen = [examples_at(int(number), int(epoch)) for number, epoch in zip(numbers, epochs)]

        batches = []
        for first in range(0, mine, config.batch_size):
            together = [*chain(*chosen[first : first + config.batch_size])] or [NOTHING]
            batches.append(task.batch(together, pack, hide_padding=not config.causal))
        return batches

    return batch_at


def noisy(text, config, chance):
    """The text with some words deleted, swapped with the next, or overwritten by the previous one.

    chance() samples from [0, 1). A Chinese character is a word. Whitespace stays where it is.
    """
    parts = regex.findall(r"(\s*)(\p{Han}|[^\s\p{Han}]+)", text)
    kept = [part for part in parts if chance() >= config.word_deletion] or parts
    words = [word for _, word in kept]
    for i in range(len(words) - 1):
        if chance() < config.word_swap:
            words[i], words[i + 1] = words[i + 1], words[i]
    previous = [*words[:1], *words]
    words = [p if chance() < config.token_shift else w for p, w in zip(previous, words)]
    changed = "".join(gap + word for (gap, _), word in zip(kept, words))
    return changed + text[len(text.rstrip()) :]


# ---------------------------------------------- training: on which batches, for how many updates


def batches_for(config, start, world):
    """(config with `max_iters` set to what its epochs take, `batch_at`)."""
    if start.dataset:
        for name in EXAMPLES_ALONE.split():
            if getattr(config, name) != getattr(FinetuneConfig, name):
                raise SystemExit(
                    f"{name}={getattr(config, name)} is for examples, and {config.dataset} is a "
                    f"folder of tokens: leave out --{name}"
                )
        n = len(windows_of(start.dataset, "train", config))
        return with_steps(config, n), training_batches(start.dataset, config, world)
    examples, counts = all_examples(start.task, start.lines["train"], config)
    if not examples:
        raise SystemExit(
            f"{config.dataset}: no training example has anything to learn: all {start.task.nothing}"
        )
    show_examples(start.task, start.lines, examples, counts, config)
    planned = with_steps(config, len(examples))
    if config.max_iters is None and not config.eval_only:
        tell_few_steps(planned, len(examples))
    return planned, example_batches(start.task, start.lines["train"], examples, planned, world)


def with_steps(config, n):
    """The config with the number of updates that its epochs of `n` examples take."""
    if config.max_iters is not None:
        return config
    per_step = config.batch_size * config.gradient_accumulation_steps
    return dataclasses.replace(config, max_iters=max(1, round(config.epochs * n / per_step)))


def longest_row(config, batch_at):
    """The longest row of tokens in the first steps of a run."""
    steps = range(min(STEPS_LOOKED_AT, config.max_iters))
    return max(batch["inputs"].size(1) for step in steps for batch in batch_at(step))


# ----------------------------------------------------------------------------------- evaluation


def judge(task, lines, model, compiled_model, config, world):
    """({metric: value}, answers) of a model on these lines, which the processes share."""
    mine = lines[world.rank :: world.size]

    # The mean loss over all targets.
    examples, _ = all_examples(task, mine, config)
    examples.sort(key=lambda example: len(example.inputs))
    total, count = 0.0, 0
    for first in range(0, len(examples), config.batch_size):
        together = examples[first : first + config.batch_size]
        batch = task.batch(together, hide_padding=not config.causal)
        n = int((batch["targets"] != IGNORED).sum())
        with world.precision():
            _, loss = compiled_model(**world.place(batch))
        total, count = total + loss.item() * n, count + n
    total, count = world.sum(total, count)
    loss = total / max(count, 1)

    # The answers, in the order of the lines.
    answers = world.gather(task.answers(model, mine))
    answers = [answers[i % world.size][i // world.size] for i in range(len(lines))]
    return {"val_loss": loss} | task.numbers(lines, answers, loss, count), answers


def task_evaluation(task, lines, model, config, world, show):
    """`evaluate(model)` on a fixed subset of the lines; passes one of the answers to `show`."""
    chosen = spread(lines, config)

    def evaluate(compiled_model):
        numbers, answers = judge(task, chosen, model, compiled_model, config, world)
        if answers[0] is not None and config.sample_tokens:
            answer, right = shown(answers[0]), shown(task.right(chosen[0]))
            show(f"  | {answer}" + ("" if answer == right else f"   (expected: {right})"))
        return numbers

    return evaluate


def spread(lines, config):
    """The lines that are evaluated: eval_iters batches, spread evenly; or all."""
    n = min(config.eval_iters * config.batch_size or len(lines), len(lines))
    return [lines[i * len(lines) // n] for i in range(n)]


def evaluation_for(config, start, world, show):
    """`evaluate(model)` on the validation examples, or on both splits of a folder of tokens."""
    if start.dataset:
        return evaluation(start.dataset, config, world)
    return task_evaluation(start.task, start.lines["val"], start.model, config, world, show)


# ----------------------------------------------------------------------------------------- test


def finish(start, config, world):
    """Test the best checkpoint; for merge=True first write it with LoRA merged into its weights."""
    best = read_checkpoint(Path(config.out_dir) / BEST)
    start.model.load_state_dict(averaged(best), strict=False)
    if config.merge and world.is_main:
        path = Path(config.out_dir) / MERGED
        save_checkpoint(path, merged_checkpoint(Path(config.out_dir) / BEST))
        if start.task.labels:
            print(f"{path} is the whole model: python sample.py --init_from={path}")
        else:
            print(f"{path} is an ordinary model: sample from it, convert it, train it further")
    if start.lines:
        print(f"testing on {len(start.lines['test']):,} examples…")
        test(start.task, start.lines, start.model, config, world)


def beside_baselines(numbers, task, train, judged):
    """{model: {metric: value}}: a model's numbers on some lines, and those of the baselines."""
    metrics = {name: value for name, value in numbers.items() if name != "val_loss"}
    rows = {"this model": {"loss": numbers["val_loss"]} | metrics}
    for name, guesses in task.guesses(train, judged).items():
        rows[name] = task.numbers(judged, guesses, math.nan, 0)
    return rows


def test(task, splits, model, config, world):
    """Evaluate a model and the baselines on the test examples; print and save the results."""
    tested = splits["test"]
    model.eval()
    with torch.no_grad():
        numbers, answers = judge(task, tested, model, model, config, world)
    if not world.is_main:
        return
    rows = beside_baselines(numbers, task, splits["train"], tested)
    print(f"\n{len(tested):,} test examples, with {config.out_dir}/{BEST}:\n\n{table(rows)}")
    with replacing(Path(config.out_dir) / "test.json", "w") as file:
        json.dump(rows, file, indent=1, ensure_ascii=False)
    with replacing(Path(config.out_dir) / "predictions.jsonl", "w") as file:
        for line, answer in zip(tested, answers):
            answered = line if answer is None else line | {"answer": answer}
            file.write(json.dumps(answered, ensure_ascii=False) + "\n")
    details = task.report(tested, answers, config.out_dir)
    print(f"\n{details}\n" if details else "")


# ----------------------------------------------------------------------------------------- main


def read_finetune_config():
    """What `read_config` returns; a resumed run keeps its task and its method."""
    fixed = ("optimizer", "task", "generative", "pretrained", "redraw", "method")
    fixed += tuple(knob for knobs in SETTINGS.values() for knob in knobs)
    typed = typed_options(sys.argv[1:]).keys()
    own = typed & {"init_from", "dataset", "data", "task"}
    config, resumed = read_config(FinetuneConfig, None if own else QUICK_START, fixed)
    if config.merge and config.method != "lora":
        raise SystemExit(f"merge=True is for --method=lora, not {config.method}")
    if config.task == "preference":
        check_preference(config)
    if config.shots and config.task != "choice":
        raise SystemExit(f"shots={config.shots} is for --task=choice, not {config.task}")
    if config.generative and config.task != "classification":
        raise SystemExit(f"generative=True is for --task=classification, not {config.task}")
    other_epochs = resumed and config.epochs != resumed["train_config"]["epochs"]
    if other_epochs and "max_iters" not in typed:
        config = dataclasses.replace(config, max_iters=None)
    return config, resumed


def check_preference(config):
    """Exit if preferences, which compare the model with what it was, are combined with these."""
    if config.pack is True:
        raise SystemExit("pack=True: a pair of answers has two rows; leave it out")
    for name in ("teacher", "redraw", "pretrained", "causal"):
        if getattr(config, name) != getattr(FinetuneConfig, name):
            raise SystemExit(
                f"{name}={getattr(config, name)} does not go with --task=preference, which holds a "
                "model to what it was: leave it out"
            )


def main():
    only_main_prints()
    config, resumed = read_finetune_config()
    with open_world(config.device, config.dtype) as world, advice_on_memory(config):
        check_accumulation(config, world)
        config, start = begin(config, resumed, world)
        model = start.model.to(world.device)
        if config.fp8:
            use_fp8(model, world.device)
        if config.gradient_checkpointing:
            recompute_blocks(model)
        config, batch_at = batches_for(config, start, world)
        show_config(config)
        show_weights(model)
        show_formulas(model)
        if config.dry_run:
            show_memory(model, config, world, longest_row(config, batch_at), start.task.rows)
            show_example(start.task, batch_at(0)[0])
            print(f"dry run: {config.max_iters:,} steps; nothing was trained or written")
            return
        if config.teacher:
            taught_by(model, load_teacher(config, start, world), config)
        if start.lines:
            judged = {"val": spread(start.lines["val"], config)}
            asked = judged if config.eval_only else start.lines
            start.task.begin(model, asked, start.metadata, world)
        if config.eval_only:
            with torch.no_grad():
                numbers = evaluation_for(config, start, world, print)(model.eval())
            print(in_words(numbers))
            if start.lines and world.is_main:
                rows = beside_baselines(numbers, start.task, start.lines["train"], judged["val"])
                print(f"\n{len(judged['val']):,} validation examples:\n\n{table(rows)}")
            return
        make_room(config, world, resumed)
        with Report(config, model, world, resumed) as report:
            evaluate = evaluation_for(config, start, world, report.show)
            progress = train(
                model, config, batch_at, evaluate, world, report, start.metadata, resumed
            )
        world.wait()  # until the best checkpoint is written
        if progress.is_over(config):
            finish(start, config, world)
        print(farewell(progress, config, start.metadata["task"]["task"], short_start(start)))


if __name__ == "__main__":
    main()
