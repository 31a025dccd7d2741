"""The offline default corpus: short stories in English and Chinese from one story world.

    from support.stories import generate

    story = next(generate(seed=1))
    print(story.title, story.text, sep="\\n")
    print(story.ending, story.outcome, story.translation().text, sep="\\n")

Reading order: one of the files in plots/ (what can happen, told in both languages) with
screenplay.py, which explains and reads them; words.txt (to whom, where, with what) with lexicon.py;
telling.py (how choices become text); story.py (what a story knows about itself). To add a plot
or a word, write it into one of the text files.
"""

from .story import HELD_OUT, Entity, Event, Story, floor_bits_per_byte, generate

__all__ = ["HELD_OUT", "Entity", "Event", "Story", "floor_bits_per_byte", "generate"]
