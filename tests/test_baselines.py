"""What guessing would reach: simple, the same each time, and blind to the answers of the test."""

from support import baselines
from support.baselines import (
    bag,
    baseline_answers,
    baseline_choices,
    baseline_labels,
    baseline_tags,
)


def labelled(*pairs):
    return [{"text": text, "label": label} for text, label in pairs]


def test_a_bag_of_words_learns_what_the_most_common_label_cannot():
    train = labelled(("good", "up"), ("good day", "up"), ("BAD", "down"), ("good fun", "up"))
    test = labelled(("bad!", ""), ("a good thing", ""), ("", ""))
    guessed = baseline_labels(train * 10, test)
    assert guessed["most common label"] == ["up", "up", "up"]
    assert guessed["bag of words"][:2] == ["down", "up"]
    assert guessed["bag of words"][2] in ("up", "down")


def test_a_bag_of_chinese_words_has_pairs_of_characters():
    assert sorted(bag("猫喜欢，鱼A")) == ["a", "喜", "喜欢", "欢", "猫", "猫喜", "鱼"]
    orders = labelled(("上海", "city"), ("海上", "sea"))  # the same characters
    assert baseline_labels(orders * 9, orders)["bag of words"] == ["city", "sea"]


def test_classes_are_guessed_where_there_is_one_or_no_word_or_many_of_few_examples():
    one = labelled(("a", "x"), ("b", "x"))
    assert set(map(tuple, baseline_labels(one, one).values())) == {("x", "x")}
    wordless = labelled(("", "x"), ("!", "y"), ("?", "y"))
    assert baseline_labels(wordless, wordless)["bag of words"] == ["y", "y", "y"]
    many = labelled(*((f"word{n}", f"class{n}") for n in range(30)))
    assert baseline_labels(many, many)["bag of words"] == [row["label"] for row in many]


def prompts(*pairs):
    return [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]


def test_answers_are_guessed_from_the_most_common_the_prompt_and_the_most_similar_one():
    train = prompts(("where is the ball", "box"), ("who has the hat", "Tom"), ("谁有帽子", "Tom"))
    test = prompts(("Where was the ball?", "?"), ("帽子是谁的", "?"))
    assert baseline_answers(train, test) == {
        "most common answer": ["Tom", "Tom"],
        "a copy of the prompt": ["Where was the ball?", "帽子是谁的"],
        "the answer of the most similar prompt": ["box", "Tom"],
    }


def test_the_end_of_a_prompt_counts_as_much_as_all_of_it():
    story, other, asked, unasked = (" ".join(c + str(n) for n in range(20)) for c in "abcd")
    train = prompts((f"{story} {story} {unasked}", "story"), (f"{other} {asked}", "question"))
    test = prompts((f"{story} {story} {asked}", ""))
    assert baseline_answers(train, test)["the answer of the most similar prompt"] == ["question"]


def test_of_many_prompts_some_are_compared_in_batches(monkeypatch):
    monkeypatch.setattr(baselines, "MOST_PROMPTS", 50)
    monkeypatch.setattr(baselines, "PROMPTS_AT_ONCE", 7)
    train = prompts(*((f"number {n}", f"answer {n}") for n in range(100)))
    nearest = baseline_answers(train, train)["the answer of the most similar prompt"]
    kept = [f"answer {n}" for n in range(0, 100, 2)]
    assert nearest[::2] == kept
    assert set(nearest) == set(kept)


def test_answers_are_guessed_without_a_word_and_without_a_test():
    train = prompts(("", "a"), ("!", "b"))
    assert baseline_answers(train, prompts(("?", "")))["most common answer"] == ["a"]
    assert set(map(tuple, baseline_answers(train, []).values())) == {()}


def test_tags_are_guessed_from_the_token_and_from_its_neighbours():
    def example(text, tags):
        return {"tokens": text.split(), "tags": tags.split()}

    train = [
        example("in May now", "O B-TIME O"),
        example("by May now", "O B-TIME O"),
        example("Ms May sang", "O B-PER O"),
    ]
    test = [example("Ms May sang", "X X X"), example("with May 六月", "X X X")]
    assert baseline_tags(train, test) == {
        "no entity": [["O"] * 3, ["O"] * 3],
        "each token's most common tag": [["O", "B-TIME", "O"]] * 2,
        "most common tag between the same neighbours": [
            ["O", "B-PER", "O"],
            ["O", "B-TIME", "O"],
        ],
    }


def test_of_tags_that_are_equally_common_the_first_is_taken():
    train = [{"tokens": ["May", "May"], "tags": ["B-PER", "O"]}]
    assert baseline_tags(train, train)["each token's most common tag"] == [["B-PER", "B-PER"]]


def test_choices_are_guessed_by_their_place_their_length_and_their_words():
    lines = [
        {"prompt": "the cat ran home", "choices": ["a dog", "the cat", "a large bird"]},
        {"prompt": "猫跑回家", "choices": ["狗叫", "猫跑", "小鸟飞走"]},
    ]
    picked = {
        name: [scores.index(max(scores)) for scores in of_lines]
        for name, of_lines in baseline_choices(lines).items()
    }
    assert picked == {
        "first choice": [0, 0],
        "longest choice": [2, 2],
        "words of the prompt": [1, 1],
    }
