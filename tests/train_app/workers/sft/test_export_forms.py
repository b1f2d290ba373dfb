"""Every exported form, from trace database to trained tokens: in `datasets` and TRL, and in our own trainer.

What is trained is printed: `pytest -s tests/train_app/workers/sft/test_export_forms.py`.
"""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import orjson
import pytest

torch = pytest.importorskip("torch")

import datasets  # noqa: E402
from PIL import Image  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402
from trl.chat_template_utils import qwen3_training_chat_template  # noqa: E402
from trl.data_utils import prepare_multimodal_messages  # noqa: E402

from crafter_pipeline.config import ExportConfig, FilterConfig  # noqa: E402
from crafter_pipeline.contracts import Reply, Rollout, StopReason, Turn  # noqa: E402
from crafter_pipeline.conversation import answer_again, tool_results  # noqa: E402
from crafter_pipeline.dataset.build import build_dataset  # noqa: E402
from crafter_pipeline.dataset.chat_form import tool_as_served  # noqa: E402
from crafter_pipeline.dataset.token_counts import TokenCounter  # noqa: E402
from crafter_pipeline.environments import CRAFTER  # noqa: E402
from crafter_pipeline.errors import DataError  # noqa: E402
from crafter_pipeline.tokens import chat_template, render_chat, training_template  # noqa: E402
from crafter_pipeline.traces.store import TraceStore  # noqa: E402
from crafter_pipeline.vision import image_part  # noqa: E402
from train_app.workers.sft.rows import IGNORED, training_rows  # noqa: E402
from train_app.workers.students import make_tiny, tiny_tokenizer  # noqa: E402

FORMS = ("chat", "completion", "conversation")
SYSTEM = {"role": "system", "content": "play crafter"}
TOOL = CRAFTER.tool("Act.", {"type": "array", "items": {"type": "string"}})
NOTE = {"type": "function", "function": {"name": "note", "parameters": {"properties": {"radius": {"type": "integer"}}}}}
PLAYED = (("collect_wood", "move_left"), ("collect_wood", "do"), ("place_table", "noop"))
"""(thought, action) of each turn."""


@pytest.fixture(autouse=True)
def _quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def make_call(turn, action, name="interact_many", **arguments):
    function = {"name": name, "arguments": orjson.dumps(arguments or {"actions": [action]}).decode()}
    return {"id": f"call_{turn}", "type": "function", "function": function}


def make_rollout(*, tools=False, turns_form=False, run_id="run-0", content=None) -> Rollout:
    """Three turns, with thoughts; by tool the second one notes instead of acting, with another argument."""
    turns: list[Turn] = []
    earlier: list[dict[str, Any]] = []
    for i, (thought, action) in enumerate(PLAYED):
        calls = (make_call(i, action, "note", radius=3) if i == 1 else make_call(i, action),) if tools else ()
        reply = Reply("" if tools else action, thought, calls)
        asked = {"role": "user", "content": content or f"step {i} of 3 facing:left front:tree before:"}
        unlocked = ("collect_wood",) if i == 1 else ()
        messages = (SYSTEM, *(earlier if turns_form else ()), asked)
        turns.append(Turn(i, messages, reply, (action,), None, 0.0, unlocked, 1.8e9 + i, 1.8e9 + i + 0.5))
        said = answer_again(reply, thoughts=True, tools=tools)
        earlier += [asked, said, *tool_results(said, "done")]
    return Rollout(
        run_id=run_id,
        environment="crafter",
        seed=0,
        policy="react",
        model="m",
        provider="p",
        turns=tuple(turns),
        achievements=("collect_wood",),
        total_reward=1.0,
        env_steps=3,
        stop_reason=StopReason.TURN_LIMIT,
        created_at=1.8e9,
        tools=(TOOL, NOTE) if tools else (),
    )


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """`export(form="chat", tools=True)` -> path of the JSONL file of one rollout, or of the rollouts named."""
    done: dict[str, Path] = {}

    def run(*rollouts, tools=False, turns_form=False, **options):
        key = str((tools, turns_form, sorted(options.items())))
        if not rollouts and key in done:
            return done[key]
        folder = tmp_path_factory.mktemp("export")
        with TraceStore(folder / "t.db") as store:
            for rollout in rollouts or [make_rollout(tools=tools, turns_form=turns_form)]:
                store.add(rollout)
        with pytest.MonkeyPatch.context() as patch:  # the card's plots take longer than all the rest
            patch.setattr("crafter_pipeline.dataset.build.card_html", lambda manifest: "")
            build_dataset([folder / "t.db"], FilterConfig(export=ExportConfig(**options)), folder / "d.jsonl")
        if not rollouts:
            done[key] = folder / "d.jsonl"
        return folder / "d.jsonl"

    return run


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def rows_in(path):
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def trained(columns, tokenizer):
    """The trained texts of each row, one per stretch of labels; tokens are apart by a blank."""
    texts = []
    for labels in columns["labels"]:
        stretches = itertools.groupby(labels, lambda label: label != IGNORED)
        ids = [[int(i) for i in stretch] for kept, stretch in stretches if kept]
        texts.append([" ".join(tokenizer.decode(stretch).split()) for stretch in ids])
    return texts


def ours(path, tokenizer, **options):
    return training_rows(path, tokenizer, max_length=4096, **options)


def answers(thinking, *, tools):
    """What is to be trained of each turn."""
    thoughts = [f"<think> {t}</think>" if thinking != "strip" else "<think></think>" for t, _ in PLAYED]
    if not tools:
        return [f"{t} {action}<|im_end|>" for t, (_, action) in zip(thoughts, PLAYED, strict=True)]
    calls = [make_call(i, action)["function"] for i, (_, action) in enumerate(PLAYED)]
    calls[1] = make_call(1, "", "note", radius=3)["function"]
    said = [f'{{"name": "{call["name"]}", "arguments": {call["arguments"]}}}' for call in calls]
    return [f"{t}<tool_call> {s}</tool_call><|im_end|>" for t, s in zip(thoughts, said, strict=True)]


# --------------------------------------------------------------------------- datasets and TRL


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("thinking", ["keep", "separate"])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_loads_in_datasets_and_trains_in_trl(export, tokenizer, tmp_path, form, thinking, tools):
    path = export(tools=tools, form=form, thinking=thinking)
    dataset = datasets.load_dataset("json", data_files=str(path), split="train")
    model, student = make_tiny(0)
    if form != "completion":
        student.chat_template = training_template(student.chat_template)
    config = SFTConfig(
        output_dir=str(tmp_path / "out"),
        assistant_only_loss=form != "completion",
        max_steps=1,
        per_device_train_batch_size=2,
        max_length=None,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=student)
    texts = trained(trainer.train_dataset[:], student)
    print(f"\n{form}, thoughts {thinking}, {'tools' if tools else 'text'}: {texts}")
    wanted = answers(thinking, tools=tools)
    assert texts == ([wanted] if form == "conversation" else [[answer] for answer in wanted])
    before = model.lm_head.weight.detach().clone()
    assert trainer.train().training_loss > 1
    assert not torch.equal(before, model.lm_head.weight)


@pytest.mark.parametrize("form", FORMS)
def test_calls_with_other_arguments_stay_apart_in_datasets(export, form):
    """The Arrow trap: a column of argument objects has `actions` and `radius` in every row, null where absent."""
    path = export(tools=True, form=form)
    loaded = datasets.load_dataset("json", data_files=str(path), split="train")
    column = "completion" if form == "completion" else "messages"
    calls = [m["tool_calls"][0] for row in loaded for m in row[column] if m.get("tool_calls")]
    assert [call["function"]["arguments"] for call in calls] == [
        '{"actions":["move_left"]}',
        '{"radius":3}',
        '{"actions":["noop"]}',
    ]
    tools = loaded[0]["tools"]
    assert [list(tool["function"]["parameters"]["properties"]) for tool in tools] == [["actions"], ["radius"]]


@pytest.mark.parametrize("form", FORMS)
def test_files_of_many_megabytes_load_although_facts_come_late(export, form):
    """`datasets` takes its schema from the first ten megabytes."""
    pad = "front:tree " * 12_000
    early = [make_rollout(run_id=f"run-{i:03}", content=pad) for i in range(29 if form != "conversation" else 28)]
    late = make_rollout(run_id="run-999")
    failed = Turn(**{**{k: getattr(late.turns[0], k) for k in Turn.__slots__}, "parse_failure": "no action in it"})
    late = Rollout(**{**{k: getattr(late, k) for k in Rollout.__slots__}, "turns": (failed, *late.turns[1:])})
    path = export(*early, late, form=form)
    assert path.stat().st_size > 10 << 20
    loaded = datasets.load_dataset("json", data_files=str(path), split="train")
    assert len(loaded) == len(rows_in(path))


def test_pictures_in_files_are_rows_as_vision_trainers_want_them(export):
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "PNG")
    png = out.getvalue()
    path = export(make_rollout(content=[{"type": "text", "text": "look"}, image_part(png)]), images="files")
    loaded = datasets.load_dataset("json", data_files=str(path), split="train")
    (name,) = loaded[0]["images"]
    assert (path.parent / name).read_bytes() == png
    filled = prepare_multimodal_messages(loaded[0]["messages"], images=["picture"])
    assert [part["type"] for part in filled[1]["content"]] == ["text", "image"]
    assert filled[1]["content"][1]["image"] == "picture"


# --------------------------------------------------------------------------- our own trainer


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("thinking", ["keep", "strip", "separate"])
@pytest.mark.parametrize("form", FORMS)
def test_our_trainer_reads_every_form_and_trains_the_answers_alone(export, tokenizer, form, thinking, tools):
    path = export(tools=tools, form=form, thinking=thinking)
    texts = trained(ours(path, tokenizer), tokenizer)
    print(f"\n{form}, thoughts {thinking}, {'tools' if tools else 'text'}: {texts}")
    wanted = answers(thinking, tools=tools)
    assert texts == ([wanted] if form == "conversation" else [[answer] for answer in wanted])


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("turns_form", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_thoughts_in_the_content_and_apart_are_the_same_tokens(export, tokenizer, form, turns_form, tools):
    options = {"form": form, "tools": tools, "turns_form": turns_form}
    kept, apart = (ours(export(thinking=thinking, **options), tokenizer) for thinking in ("keep", "separate"))
    for column in ("input_ids", "labels"):
        assert [ids.tolist() for ids in kept[column]] == [ids.tolist() for ids in apart[column]]


def test_only_the_last_answer_is_trained_where_the_prompt_repeats_earlier_ones(export, tokenizer):
    wanted = [[answer] for answer in answers("keep", tools=False)]
    for form in ("chat", "completion"):
        assert trained(ours(export(turns_form=True, form=form), tokenizer), tokenizer) == wanted


@pytest.mark.parametrize("form", FORMS)
def test_thoughts_can_be_masked_in_every_form(export, tokenizer, form):
    texts = trained(ours(export(form=form), tokenizer, train_thinking=False), tokenizer)
    assert [text for row in texts for text in row] == [f"{action}<|im_end|>" for _, action in PLAYED]


def test_pictures_are_refused_by_name(export, tokenizer):
    path = export(make_rollout(content=[{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]))
    with pytest.raises(
        DataError, match="line 1, message 2: it holds a picture, and the models trained here read text alone"
    ):
        ours(path, tokenizer)


@pytest.mark.parametrize("form", FORMS)
def test_text_in_parts_is_read_like_text(export, tokenizer, form):
    """Qwen3's template leaves out what is no text, so that a prompt in parts would be trained as an empty one."""
    parts = [{"type": "text", "text": "step 1"}, {"type": "text", "text": "facing:left"}]
    one, other = (export(make_rollout(content=content), form=form) for content in (parts, "step 1\nfacing:left"))
    read = [[ids.tolist() for ids in ours(path, tokenizer)["input_ids"]] for path in (one, other)]
    assert read[0] == read[1]
    assert TokenCounter("crafter-tiny").count(rows_in(one)) == [len(ids) for ids in read[0]]


def test_a_row_of_no_known_form_is_named(tmp_path, tokenizer):
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(DataError, match="line 1: it needs `messages`, or `prompt` and `completion` as lists"):
        ours(path, tokenizer)


def test_a_conversation_needs_a_template_that_marks_answers(export, tokenizer):
    plain = tiny_tokenizer()
    plain.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(DataError, match="does not mark which part the model said. Export the form chat"):
        ours(export(form="conversation"), plain)


def test_trl_s_own_variant_would_train_what_the_tiny_student_is_told(export, tokenizer):
    """Why there is one of ours: it marks the line break after an answer, which is no token of this tokenizer, and
    without its end a mark reaches to the end of the row."""
    (row,) = rows_in(export(form="conversation"))
    masks = {
        name: tokenizer.apply_chat_template(
            row["messages"], chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )["assistant_masks"]
        for name, template in (("trl", qwen3_training_chat_template), ("ours", training_template(chat_template())))
    }
    assert len(masks["trl"]) == len(masks["ours"])
    assert 0 not in masks["trl"][masks["trl"].index(1) :] and 0 in masks["ours"][masks["ours"].index(1) :]


# --------------------------------------------------------------------------- token counts


@pytest.mark.parametrize("turns_form", [False, True])
@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("thinking", ["keep", "strip", "separate"])
@pytest.mark.parametrize("form", FORMS)
def test_counted_tokens_are_the_trained_row_s_length(export, tokenizer, form, thinking, tools, turns_form):
    path = export(tools=tools, turns_form=turns_form, form=form, thinking=thinking)
    lengths = [len(ids) for ids in ours(path, tokenizer)["input_ids"]]
    assert TokenCounter("crafter-tiny").count(rows_in(path)) == lengths


def test_counts_of_a_model_s_folder_are_those_of_its_tokenizer(export, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "model")
    path = export(tools=True)
    counter = TokenCounter(str(tmp_path / "model"))
    assert counter.count(rows_in(path)) == [len(ids) for ids in ours(path, tokenizer)["input_ids"]]


STRANGE = """{{ bos_token }}{% for t in tools or [] %}{{ t | tojson(indent=1) }}{% endfor %}
{%- for message in messages %}{% if message.role == 'tool' %}{% continue %}{% endif %}
{%- if message.role == 'assistant' %}{% generation %}{{ message.thinking }}{{ message.content }}{% endgeneration %}
{%- else %}{{ message.content }}{% endif %}{% endfor %}{% if tools is none %}none{% endif %}"""


@pytest.mark.parametrize("answer_next", [False, True])
@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("template", ["qwen3", "training", STRANGE])
def test_conversations_render_as_transformers_renders_them(export, tokenizer, template, tools, answer_next):
    """Also in templates of others: with tools, with the loop controls, marks and variables that templates may use."""
    if template in ("qwen3", "training"):
        template = tokenizer.chat_template if template == "qwen3" else training_template(tokenizer.chat_template)
    path = export(tools=tools, turns_form=True, form="conversation", thinking="separate")
    for row in rows_in(path):
        told = [tool_as_served(tool) for tool in row.get("tools", ())] or None
        theirs = tokenizer.apply_chat_template(
            row["messages"],
            tools=told,
            chat_template=template,
            add_generation_prompt=answer_next,
            tokenize=False,
            bos_token="<s>",
        )
        text = render_chat(
            row["messages"],
            tools=told,
            template=template,
            add_generation_prompt=answer_next,
            variables={"bos_token": "<s>"},
        )
        assert text == theirs
