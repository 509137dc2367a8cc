"""Quantisation-aware training, export and resume, on a model small enough for any CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training group's own job runs these")

from safetensors.torch import load_file  # noqa: E402

from training import evaluate, export, train  # noqa: E402
from training.corpus import Document  # noqa: E402
from training.model import (  # noqa: E402
    BitLinear,
    BitNet,
    ModelConfig,
    causal_attention,
    fake_quantise_activation,
    fake_quantise_weight,
    set_compute_dtype,
    ternarise,
)
from training.tokenizer import END_OF_TEXT_ID, encode_documents, train_tokenizer  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

TINY = ModelConfig(
    vocab_size=300, hidden_size=32, intermediate_size=48, layers=2, heads=4, kv_heads=2,
    max_positions=64,
)  # fmt: skip
RECIPE = train.TrainConfig(
    steps=6, batch_tokens=128, micro_tokens=64, context=16, final_context=32, warmup=2, bf16=False
)


@pytest.fixture(autouse=True)
def float32_and_one_thread() -> None:
    set_compute_dtype(torch.float32)
    torch.set_num_threads(1)


@pytest.fixture
def tokens() -> train.Tokens:
    return np.random.default_rng(0).integers(0, 300, 4000).astype(np.uint16)


def test_weight_ste_is_the_reference_formula() -> None:
    weight = torch.randn(12, 20, requires_grad=True)
    s = 1.0 / weight.detach().abs().mean().clamp(min=1e-5)
    expected = (weight.detach() * s).round().clamp(-1, 1) / s
    out = fake_quantise_weight(weight)
    torch.testing.assert_close(out.detach(), expected)
    (out * torch.arange(20.0)).sum().backward()
    torch.testing.assert_close(weight.grad, torch.arange(20.0).expand(12, 20))


def test_activation_ste_is_the_reference_formula() -> None:
    x = torch.randn(3, 5, 16, requires_grad=True)
    s = 127 / x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5)
    expected = (x.detach() * s).round().clamp(-128, 127) / s
    out = fake_quantise_activation(x)
    torch.testing.assert_close(out.detach(), expected)
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))


def test_ties_round_to_even_and_zeros_stay_finite() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5]])
    assert fake_quantise_activation(x).tolist() == [[127.0, 0.0, 2.0, 2.0, 0.0]]
    assert fake_quantise_activation(torch.zeros(1, 4)).tolist() == [[0.0] * 4]
    values, scale = ternarise(torch.zeros(4, 4))
    assert values.abs().sum() == 0
    assert float(scale) == pytest.approx(1e-5)


def test_attention_in_blocks_equals_torch() -> None:
    q, k, v = (torch.randn(2, 3, 301, 8) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(causal_attention(q, k, v), expected)


def test_float_twin_differs_by_quantisation_alone() -> None:
    ternary = train.new_run(TINY, RECIPE, "cpu").model
    twin = train.new_run(replace(TINY, ternary=False), RECIPE, "cpu").model
    for a, b in zip(ternary.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    ids = torch.arange(10)[None]
    assert not torch.allclose(ternary(ids), twin(ids))


def test_training_lowers_the_loss(tokens: train.Tokens) -> None:
    run = train.new_run(TINY, RECIPE, "cpu")
    repeated = np.tile(tokens[:40], 50)
    losses = [train.train_step(run, run.model.loss, repeated) for _ in range(RECIPE.steps)]
    assert losses[-1] < losses[0] - 0.2


def test_resumed_run_equals_an_uninterrupted_one(tokens: train.Tokens, tmp_path: Path) -> None:
    whole = train.new_run(TINY, RECIPE, "cpu")
    for _ in range(RECIPE.steps):
        train.train_step(whole, whole.model.loss, tokens)
    first = train.new_run(TINY, RECIPE, "cpu")
    for _ in range(3):
        train.train_step(first, first.model.loss, tokens)
    train.save(first, tmp_path / "half.pt")
    second = train.load(tmp_path / "half.pt")
    assert second.step == 3
    while second.step < RECIPE.steps:
        train.train_step(second, second.model.loss, tokens)
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_schedule_has_two_stages() -> None:
    recipe = train.TrainConfig(steps=100, warmup=10, weight_decay=0.1)
    assert recipe.rate_at(0) == pytest.approx(0.1)
    assert recipe.rate_at(49) == 1.0
    assert recipe.rate_at(75) == pytest.approx(0.5)
    assert recipe.decay_at(49) == 0.1
    assert recipe.decay_at(50) == 0.0


def test_pack_follows_the_strided_layout() -> None:
    values = torch.randint(-1, 2, (8, 5)).float()
    packed = export.pack(values)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 5)
    for row in range(8):
        codes = (packed[row % 2] >> (2 * (row // 2))) & 3
        assert torch.equal(codes.float() - 1, values[row])
    assert torch.equal(export.unpack(packed), values)


def test_export_holds_exactly_the_trained_ternary_values(tmp_path: Path) -> None:
    run = train.new_run(TINY, RECIPE, "cpu")
    tokenizer = train_tokenizer(["def f(x):\n    return x\n"] * 4, vocab_size=300)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    export.export(run.model, tmp_path / "tokenizer.json", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for name, module in run.model.named_modules():
        if isinstance(module, BitLinear):
            values, scale = ternarise(module.weight.detach())
            assert torch.equal(export.unpack(tensors[f"model.{name}.weight"]), values)
            assert torch.equal(tensors[f"model.{name}.weight_scale"], scale.reshape(1).bfloat16())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quantization_mode"] == "offline"


def test_exported_model_agrees_with_the_trained_one(tmp_path: Path) -> None:
    run = train.new_run(TINY, RECIPE, "cpu")
    with torch.no_grad():  # so that the export rounds nothing but the linears
        run.model.embed_tokens.weight.copy_(run.model.embed_tokens.weight.bfloat16())
    (tmp_path / "tokenizer.json").write_text("{}")
    export.export(run.model, tmp_path / "tokenizer.json", tmp_path / "out")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        ours, exported = run.model(ids), export.load_exported(tmp_path / "out")(ids)
    # The scales are rounded to 8 bits, and that flips a few int8 roundings further on.
    assert float((exported - ours).abs().mean()) < 0.01


def test_windows_predict_every_token_once() -> None:
    ids = np.arange(23)
    cut = list(evaluate.windows(ids, 5))
    assert [t for w in cut for t in w[1:]] == list(range(1, 23))
    assert all(len(w) <= 6 for w in cut)


def test_bits_per_byte_of_a_uniform_model_is_its_entropy() -> None:
    tokenizer = train_tokenizer(["x = 1\n"], vocab_size=300)
    model = BitNet(TINY)
    torch.nn.init.zeros_(model.norm.weight)
    text = "y = 2\n"
    predicted = len(tokenizer.encode(text, add_special_tokens=False).ids) + 1
    figure = evaluate.bits_per_byte(model, tokenizer, [Document("a.py", "v", text)], 8)
    assert figure == pytest.approx(predicted * np.log2(300) / len(text), rel=1e-5)


def test_tokenizer_is_lossless_and_opens_each_document() -> None:
    tokenizer = train_tokenizer(["def f(x):\n    return x\n"] * 4, vocab_size=280)
    text = "class é:\n\tdef  g(self):\n\n        return 12345  # 漢\r\n"
    ids = encode_documents(tokenizer, [Document("a.py", "v", text)])
    assert ids[0] == END_OF_TEXT_ID
    assert (ids == END_OF_TEXT_ID).sum() == 1
    assert tokenizer.decode(ids.tolist()) == text
