"""What published configurations leave out, as an installed transformers fills it in."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import transformers
from golden.specs import GEMMA3_TEXT_CONFIGS

from ryzanstein.loaders.model_files import open_files
from ryzanstein.models import read_config

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", GEMMA3_TEXT_CONFIGS)
def test_gemma3(name: str, tmp_path: Path) -> None:
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": GEMMA3_TEXT_CONFIGS[name],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = read_config(open_files(tmp_path))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path).text_config

    for mine, key in {
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "vocab_size": "vocab_size",
        "max_position_embeddings": "max_position_embeddings",
        "rms_norm_eps": "rms_norm_eps",
        "query_scalar": "query_pre_attn_scalar",
        "tie_word_embeddings": "tie_word_embeddings",
    }.items():
        assert getattr(ours, mine) == getattr(theirs, key), key
    assert (theirs.attn_logit_softcapping, theirs.final_logit_softcapping) == (None, None)
    assert (ours.attention_softcap, ours.final_softcap, ours.biased) == (0.0, 0.0, ())
    assert theirs.hidden_activation == "gelu_pytorch_tanh"
    assert ours.activation == "gelu_tanh"
    window = theirs.sliding_window
    kinds = {"sliding_attention": window, "full_attention": 0}
    assert ours.sliding_windows == tuple(kinds[kind] for kind in theirs.layer_types)
    sections = [theirs.rope_parameters[kind] for kind in ("full_attention", "sliding_attention")]
    for rope, section in zip(ours.ropes, sections, strict=True):
        assert (rope.kind, rope.theta) == (section["rope_type"], section["rope_theta"])
        assert rope.factor == section.get("factor", 1.0)
