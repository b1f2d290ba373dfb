"""Tokenizers and chat templates without torch: the tiny student's own, and those of models at hand.

One token of the tiny student is one word of the environments' closed vocabulary (`tree@-2,1`, `collect_wood`,
`place_table`); any other text falls back to characters and bytes, so that nothing is ever unknown. Whitespace is
normalised: runs of blanks and line breaks count as one separator and cost no token, which keeps a turn near 70 tokens.

Its special tokens and chat template are Qwen3's own: CPU runs go through the code that Qwen3-4B runs.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import orjson
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from crafter_pipeline.environments import ENVIRONMENTS
from crafter_pipeline.errors import DataError
from crafter_pipeline.model_names import TINY as TINY
from crafter_pipeline.model_names import student_size

TINY_CONTEXT = 16_384
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
"""Cut out of decoded text."""
MARKUP_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Kept in decoded text: they carry thoughts and tool calls."""
ROLES = ("system", "user", "assistant", "tool")
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-*/=().,:;!?@#%&_<>[]{}'\"|^~$\\"
WORD_START = "▁"
NUMBERS = range(0, 256)


def build_tokenizer(words: Iterable[str]) -> Tokenizer:
    """A word tokenizer with character and byte fallback.

    Args:
        words: The environments' vocabulary; order decides ids, duplicates are dropped.
    """
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + [WORD_START, *CHARACTERS]
    pieces += [WORD_START + w for w in (*ROLES, *map(str, NUMBERS), *words)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, ignore_merges=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=WORD_START, prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(WORD_START, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in MARKUP_TOKENS])
    return tokenizer


def tiny_tokenizer() -> Tokenizer:
    """The word tokenizer of `crafter-tiny`, over the vocabulary of every registered environment."""
    return build_tokenizer(
        itertools.chain.from_iterable(ENVIRONMENTS[name].vocabulary for name in sorted(ENVIRONMENTS))
    )


# --------------------------------------------------------------------------- templates


def chat_template() -> str:
    """Qwen3's chat template, word for word (Apache-2.0, Alibaba Cloud)."""
    return _own("qwen3.jinja")


@lru_cache
def _own(name: str) -> str:
    return files("crafter_pipeline").joinpath(name).read_text(encoding="utf-8")


def training_template(template: str) -> str | None:
    """The variant of a chat template in which every answer of a conversation is marked for training: of Qwen3's our
    own, else the template itself if it has the marks; None: there is none here."""
    if template == chat_template():
        return _own("qwen3_training.jinja")
    return template if "endgeneration" in template else None


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks a model's part for trainers; rendered, it is what stands in it."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    ours = template in (chat_template(), _own("qwen3_training.jinja"))
    # The sandbox, for strangers' templates, costs as much again.
    make = jinja2.Environment if ours else jinja2.sandbox.ImmutableSandboxedEnvironment
    environment = make(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


_REASONING = ("reasoning_content", "thinking", "reasoning")


def _with_reasoning(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message whose thoughts can be read under the names that templates know."""
    thoughts = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    return message if thoughts is None else {"thinking": thoughts, **message, "reasoning_content": thoughts}


def in_one_text(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose content is text in parts, with that text as one: templates of text models read nothing else, and
    leave parts out without a word. Content with pictures is left as it is."""
    return [_in_one_text(message) for message in messages]


def _in_one_text(message: Mapping[str, Any]) -> dict[str, Any]:
    parts = message.get("content")
    if not isinstance(parts, list) or not all(isinstance(p, Mapping) and p.get("type") == "text" for p in parts):
        return dict(message)
    return {**message, "content": "\n".join(str(part.get("text") or "") for part in parts)}


def render_chat(
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Text of a conversation, as transformers' `apply_chat_template` gives it.

    Args:
        template: Qwen3's unless told otherwise.
        variables: What the template knows besides, e.g. `enable_thinking` or `bos_token`.
    """
    return _compiled(template or chat_template()).render(
        messages=[_with_reasoning(message) for message in messages],
        tools=list(tools) if tools else None,
        documents=None,
        add_generation_prompt=add_generation_prompt,
        **(variables or {}),
    )


# --------------------------------------------------------------------------- models at hand

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class ChatTokenizer:
    """What a model's tokenizer and template are."""

    tokenizer: Tokenizer
    template: str
    tool_template: str | None = None
    """Of models that have one of its own for prompts with tools."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Special tokens by the names that templates use."""
    context: int | None = None
    """Longest sequence of the model in tokens; None: its files do not say."""


def load_chat_tokenizer(source: str) -> ChatTokenizer:
    """Tokenizer and template of a model.

    Args:
        source: `crafter-tiny` of any size, a model's folder (an adapter's too), or the name of a model in the local
            cache of the hub. Nothing is downloaded.

    Raises:
        DataError: there is none; the message says what would help.
    """
    if student_size(source):
        variables = {"eos_token": TURN_END, "pad_token": END_OF_TEXT}
        return ChatTokenizer(tiny_tokenizer(), chat_template(), variables=variables, context=TINY_CONTEXT)
    found = _FolderFiles(source) if Path(source).is_dir() else _CachedFiles(source)
    path = found.path("tokenizer.json")
    if path is None:
        base = (found.json("adapter_config.json") or {}).get("base_model_name_or_path")
        if isinstance(base, str) and base and base != source:
            return load_chat_tokenizer(base)
        raise DataError(f"There is no tokenizer for {source!r}: {found.remedy}")
    config = found.json("tokenizer_config.json") or {}
    templates = _templates(found, config)
    if "default" not in templates:
        raise DataError(
            f"The tokenizer of {source!r} has no chat template: count with an instruction-tuned model's, or put its "
            "chat_template.jinja beside it."
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises nothing narrower
        raise DataError(f"{path}: no tokenizer that can be read ({e}).") from e
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return ChatTokenizer(
        tokenizer,
        templates["default"],
        templates.get("tool_use"),
        _special_tokens({**(found.json("special_tokens_map.json") or {}), **config}),
        _context(found.json("config.json") or {}, config),
    )


class _FolderFiles:
    """A model's folder."""

    def __init__(self, source: str) -> None:
        self._folder = Path(source)
        self.remedy = "the folder holds no tokenizer.json. Save the tokenizer there, or name another model."

    def path(self, name: str) -> Path | None:
        path = self._folder / name
        return path if path.is_file() else None

    def json(self, name: str) -> dict[str, Any] | None:
        path = self.path(name)
        if path is None:
            return None
        try:
            value = orjson.loads(path.read_bytes())
        except (OSError, orjson.JSONDecodeError) as e:
            raise DataError(f"{path}: cannot be read ({e}).") from e
        return value if isinstance(value, dict) else None


class _CachedFiles(_FolderFiles):
    """A model in the hub's local cache."""

    def __init__(self, source: str) -> None:
        self._name = source
        self.remedy = (
            f"it is neither {TINY}, nor a folder, nor in the hub's local cache, and nothing is downloaded here. Give "
            f"a folder with tokenizer.json, or fetch it once with `hf download {source} --include 'token*' 'chat*' "
            "config.json`."
        )

    def path(self, name: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache  # loaded only where it is asked for

        try:
            found = try_to_load_from_cache(self._name, name)
        except ValueError:  # no name that the hub could have
            return None
        return Path(found) if isinstance(found, str) else None


def _templates(found: _FolderFiles, config: Mapping[str, Any]) -> dict[str, str]:
    """Name -> template; a file beside the tokenizer wins over its config."""
    told = config.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(told, str):
        templates["default"] = told
    elif isinstance(told, list):
        templates = {t["name"]: t["template"] for t in told if isinstance(t, dict) and {"name", "template"} <= t.keys()}
    for name, file in (("default", "chat_template.jinja"), ("tool_use", "additional_chat_templates/tool_use.jinja")):
        if (path := found.path(file)) is not None:
            templates[name] = path.read_text(encoding="utf-8")
    return templates


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    told = {name: config.get(name) for name in _SPECIAL}
    texts = {name: t.get("content") if isinstance(t, dict) else t for name, t in told.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _context(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> int | None:
    inner = config.get("text_config")
    for value in (
        config.get("max_position_embeddings"),
        inner.get("max_position_embeddings") if isinstance(inner, dict) else None,
        tokenizer_config.get("model_max_length"),
    ):
        if isinstance(value, int | float) and 0 < value < 1e9:  # "no limit" is told as 1e30
            return int(value)
    return None
