"""Own problems: JSONL folders and files, Hugging Face data sets."""

from __future__ import annotations

import builtins
import json

import pytest

from crafter_pipeline.errors import DataError
from crafter_pipeline.mathematics import read_dataset, read_file, read_folder


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(n, **changes):
    return {"problem": f"What is {n} plus {n}?", "answer": str(2 * n), **changes}


def test_a_folder_has_a_file_per_split_and_a_seed_is_a_row(tmp_path):
    write(tmp_path / "train.jsonl", [row(0), row(1), row(2)])
    write(tmp_path / "test.jsonl", [row(9)])
    rows = read_folder(tmp_path)
    assert [rows.problem("train", n).answer for n in (0, 1, 2, 3, 1_000_000)] == ["0", "2", "4", "0", "2"]
    assert rows.problem("test", 5).answer == "18"
    assert (rows.size("train"), rows.size("test")) == (3, 1)


def test_validation_is_test_where_there_is_none(tmp_path):
    write(tmp_path / "test.jsonl", [row(9)])
    rows = read_folder(tmp_path)
    assert rows.problem("validation", 0) == rows.problem("test", 0)
    with pytest.raises(DataError, match="no split 'train'; it has test, validation"):
        rows.problem("train", 0)


def test_one_file_is_divided_so_that_equal_problems_stay_together(tmp_path):
    path = write(tmp_path / "all.jsonl", [row(n) for n in range(200)] + [row(n) for n in range(200)])
    rows = read_file(path)
    sizes = [rows.size(split) for split in ("train", "validation", "test")]
    assert sum(sizes) == 400 and sizes[0] > 250 and min(sizes) > 10
    train, test = ({rows.problem(s, i).text for i in range(400)} for s in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"answer": 4}, "4"),
        ({"answer": None, "solution": r"So \boxed{1} or rather \boxed{\frac{1}{2}}."}, r"\frac{1}{2}"),
        ({"answer": "2 + 2 = 4\n#### 1,234"}, "1,234"),
        ({"problem": None, "question": "How many?", "answer": "7"}, "7"),
    ],
)
def test_an_answer_is_taken_from_where_data_sets_put_it(tmp_path, fields, answer):
    write(tmp_path / "train.jsonl", [row(1, **fields)])
    assert read_folder(tmp_path).problem("train", 0).answer == answer


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", r"train\.jsonl:1: not JSON"),
        ("[1]", r"train\.jsonl:1: not an object"),
        ('{"problem": "?"}', "needs `problem`, and `answer`"),
        ('{"problem": "?", "solution": "no box"}', "needs `problem`, and `answer`"),
        ('{"problem": "", "answer": "1"}', "needs `problem`"),
        (json.dumps({"problem": "?", "answer": "9" * 2000}), "2,000 characters"),
        ("", "holds no problems"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, text, complaint):
    (tmp_path / "train.jsonl").write_text(text)
    with pytest.raises(DataError, match=complaint):
        read_folder(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="none.jsonl: cannot be read"):
        read_file(tmp_path / "none.jsonl")


def test_a_data_set_is_read_by_datasets(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "train.jsonl", [row(3)])
    write(tmp_path / "test.jsonl", [row(4)])
    rows = read_dataset(str(tmp_path))
    assert (rows.problem("train", 0).answer, rows.problem("test", 0).answer) == ("6", "8")


def test_a_data_set_that_is_not_at_hand_is_not_fetched_silently(monkeypatch):
    datasets = pytest.importorskip("datasets")
    from huggingface_hub import is_offline_mode

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked = []

    def load(name, config):
        asked.append(is_offline_mode())
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="owner/name.*cannot be loaded: offline.*MATH_DOWNLOAD=1"):
        read_dataset("owner/name")
    with pytest.raises(DataError, match="offline"):
        read_dataset("owner/name", download=True)
    assert asked == [True, False] and not is_offline_mode()


def test_without_datasets_the_extra_is_named(monkeypatch):
    plain_import = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return plain_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DataError, match=r"crafter-pipeline\[train\]"):
        read_dataset("owner/name")
