"""What Gemma multiplies quantised embeddings by, against transformers reading the same file.

The files do not say what type the embedding had, on which transformers' rounding of the factor
depends. It decodes them to float32.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import transformers
from checkpoints import random_tensors, write_checkpoint
from golden.engine import Sequence
from golden.specs import SPECS
from support import byte_level

from ryzanstein.convert import convert_model
from ryzanstein.loaders.model_files import DirectoryFiles, open_files
from ryzanstein.models import load_model

if TYPE_CHECKING:
    from pathlib import Path

# 96 has a root that bfloat16 and float16 round.
_SIZES = {"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
_SIZES |= {"intermediate_size": 128, "query_pre_attn_scalar": 16, "vocab_size": 260}
_PROMPT = np.arange(1, 25)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_scaled_embeddings(name: str, tmp_path: Path) -> None:
    config = next(spec.config for spec in SPECS if spec.name == name)
    config = config | _SIZES | {"tie_word_embeddings": True}
    model = write_checkpoint(tmp_path / "model", config, random_tensors(config, 1, "BF16"))
    tokenizer = json.loads(byte_level().to_str())
    tokenizer["model"] |= {"vocab": tokenizer["model"]["vocab"] | {"he": 257}}
    tokenizer["model"]["merges"] = [["h", "e"]]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    path = convert_model(DirectoryFiles(model), tmp_path / "model.gguf", "q8_0").path

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    with torch.no_grad():
        output = theirs(torch.tensor(_PROMPT)[None], output_hidden_states=True)
    hidden, _ = Sequence(load_model(open_files(path), threads=1, isa=None), 24).extend(_PROMPT)
    assert hidden[0].tobytes() == output.hidden_states[0][0].numpy().tobytes()
