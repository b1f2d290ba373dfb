"""The last layer of a small model on the positions alone whose logits are wanted.

Of a turn of some 75 tokens, training scores five and sampling begins with one. All positions must have keys and values
in the last layer, but only those that are scored need the rest of it: queries, attention, feed-forward, head. Of a
model of two layers that is nearly half of the work; of thirty-six it is nothing, and such models stay as they are. The
numbers are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from transformers import Qwen3ForCausalLM
from transformers.cache_utils import Cache
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, rotate_half

MOST_LAYERS = 8
_Model = TypeVar("_Model", bound=torch.nn.Module)


class LastLayer(Qwen3DecoderLayer):
    """A decoder layer that may be asked for some positions: `model(…, kept=columns_BK)` reaches it.

    Args:
        kept: [B, K] columns of the hidden states [B, T, C]; the result is [B, K, C]. None: all.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        kept: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        if kept is None:
            return super().forward(
                hidden_states,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **kwargs,
            )
        assert position_embeddings is not None
        attention, (B, K), T = self.self_attn, kept.shape, hidden_states.size(1)
        normed_BTC = self.input_layernorm(hidden_states)
        angles = [a.expand(B, -1, -1) for a in position_embeddings]
        q_BHKD = attention.q_norm(attention.q_proj(_at(normed_BTC, kept)).view(B, K, -1, attention.head_dim))
        k_BHTD = attention.k_norm(attention.k_proj(normed_BTC).view(B, T, -1, attention.head_dim))
        v_BHTD = attention.v_proj(normed_BTC).view(B, T, -1, attention.head_dim).transpose(1, 2)
        q_BHKD = _rotated(q_BHKD.transpose(1, 2), *(_at(a, kept) for a in angles))
        k_BHTD = _rotated(k_BHTD.transpose(1, 2), *angles)
        if past_key_values is not None:
            k_BHTD, v_BHTD = past_key_values.update(k_BHTD, v_BHTD, attention.layer_idx)
        if attention_mask is None:  # causal: what was read before, and up to the position itself
            columns = torch.arange(k_BHTD.size(2), device=kept.device)
            mask_BxKT = (columns <= (kept + k_BHTD.size(2) - T)[:, :, None])[:, None]
        else:
            mask_BxKT = attention_mask.expand(B, -1, -1, -1).take_along_dim(kept[:, None, :, None], 2)
        out_BHKD = torch.nn.functional.scaled_dot_product_attention(
            q_BHKD, k_BHTD, v_BHTD, attn_mask=mask_BxKT, scale=attention.scaling, enable_gqa=True
        )
        hidden_BKC = _at(hidden_states, kept) + attention.o_proj(out_BHKD.transpose(1, 2).reshape(B, K, -1))
        return hidden_BKC + self.mlp(self.post_attention_layernorm(hidden_BKC))


def _at(values_BTC: torch.Tensor, kept_BK: torch.Tensor) -> torch.Tensor:
    return values_BTC.take_along_dim(kept_BK[:, :, None], 1)


def _rotated(heads_BHTD: torch.Tensor, cos_BTD: torch.Tensor, sin_BTD: torch.Tensor) -> torch.Tensor:
    return heads_BHTD * cos_BTD[:, None] + rotate_half(heads_BHTD) * sin_BTD[:, None]


def with_last_layer(model: _Model) -> _Model:
    """The same model, its last layer a `LastLayer`, where that is worth it."""
    if type(model) is not Qwen3ForCausalLM:
        return model
    body: Any = model.model
    config, layers = body.config, body.layers
    plain = config._attn_implementation == "sdpa" and not body.has_sliding_layers
    if plain and len(layers) <= MOST_LAYERS:
        old = layers[-1]
        with torch.device("meta"):
            layers[-1] = LastLayer(config, len(layers) - 1)
        for name, part in old.named_children():
            setattr(layers[-1], name, part)
        layers[-1].train(old.training)
    return model


def has_last_layer(model: torch.nn.Module) -> bool:
    """Whether a model, an adapter around it or none, takes `kept`."""
    return any(isinstance(part, LastLayer) for part in model.modules())


def ask_for_last(
    narrow: bool, rows: int, columns: int, count: int, device: torch.device
) -> dict[str, torch.Tensor | int]:
    """The argument of a forward that wants the logits of its last `count` columns alone."""
    return {"kept": last_columns(rows, columns, count, device)} if narrow else {"logits_to_keep": count}


def last_columns(rows: int, columns: int, count: int, device: torch.device) -> torch.Tensor:
    """[rows, count]: the last ones of each row."""
    return torch.arange(columns - count, columns, device=device).expand(rows, -1)


def logits_where(
    model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], wanted_BT: torch.Tensor, *, narrow: bool, sliced: bool
) -> torch.Tensor:
    """The logits [N, V] of the N wanted positions, row by row.

    Args:
        narrow: The model takes `kept` (`has_last_layer`): each row has its own columns.
        sliced: It takes `logits_to_keep`: the head then runs on the columns that any row wants.
    """
    if narrow:
        kept_BK, counts_BK = _columns_of_rows(wanted_BT)
        logits: torch.Tensor = model(**inputs, kept=kept_BK, use_cache=False).logits
        return logits[counts_BK]
    columns_U = wanted_BT.any(0).nonzero()[:, 0]
    if sliced:
        logits_BUV = model(**inputs, logits_to_keep=columns_U, use_cache=False).logits
    else:
        logits_BUV = model(**inputs, use_cache=False).logits[:, columns_U]
    return logits_BUV[wanted_BT[:, columns_U]]


def _columns_of_rows(wanted_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The columns [B, K] that each row wants, as many for all, and which of these count, [B, K]."""
    count_B = wanted_BT.sum(1)
    # A stable sort of the others behind the wanted: each row's own columns in their order, then some to fill up.
    kept_BK = (~wanted_BT).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(count_B.max())]
    return kept_BK, torch.arange(kept_BK.size(1), device=kept_BK.device) < count_B[:, None]
