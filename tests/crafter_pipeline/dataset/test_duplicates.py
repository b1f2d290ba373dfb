from __future__ import annotations

import random

from crafter_pipeline.dataset.duplicates import SIMILARITY, NearDuplicates


def _text(draw, words=60):
    return [f"w{draw.randrange(500)}" for _ in range(words)]


def test_a_small_step_is_found_and_a_large_one_is_not():
    draw, near = random.Random(0), NearDuplicates()
    base = _text(draw)
    assert near.add(" ".join(base), "do")
    assert not near.add(" ".join(["t10", *base[1:]]), "do")
    assert near.add(" ".join(_text(draw)[:10] + base[10:]), "do")


def test_another_answer_is_another_row():
    near = NearDuplicates()
    assert near.add("a b c", "do")
    assert near.add("a b c", "noop")
    assert not near.add("a b c", "do")


def test_a_chain_of_small_steps_does_not_end_in_one_row():
    draw, near = random.Random(1), NearDuplicates()
    text = _text(draw)
    for i in range(len(text)):
        text[i] = f"new{i}"
        near.add(" ".join(text), "do")
    assert len(near) > 5


def test_it_finds_what_comparing_everything_finds():
    """But for the 1 % that MinHash may miss at the threshold."""
    draw = random.Random(2)
    bases = [_text(draw) for _ in range(30)]
    texts = []
    for _ in range(600):
        text = list(draw.choice(bases))
        for _ in range(draw.randrange(6)):
            text[draw.randrange(len(text))] = f"w{draw.randrange(500)}"
        texts.append(text)
    near = NearDuplicates()
    found = [near.add(" ".join(text), "do") for text in texts]
    kept, wanted = [], []
    for text, new in zip(texts, found, strict=True):
        pairs = set(zip(["", *text], [*text, ""], strict=True))
        wanted.append(all(len(pairs & k) / len(pairs | k) < SIMILARITY for k in kept))
        if new:
            kept.append(pairs)
    assert sum(a != b for a, b in zip(found, wanted, strict=True)) <= 6
    assert 60 < sum(found) < 590


def test_prompts_of_no_words_are_equal():
    near = NearDuplicates()
    assert near.add("", "do") and not near.add(" ", "do")
