"""From the tensors of a checkpoint to the native module's weights, one layer at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ryzanstein._core import (
    DenseMatrix,
    LayerWeights,
    Linear,
    TernaryMatrix,
    TernaryRows,
)
from ryzanstein.errors import CorruptFileError, QuantizationError
from ryzanstein.models.feed_forward import keep_channels, live_channels
from ryzanstein.models.grouped import (
    ROUNDED_FORMATS,
    fused_formats,
    grouped_matrix,
    held_format,
    pack_grouped,
)
from ryzanstein.models.tensors import FLOATS, fused_shape, linear_shapes, require_finite
from ryzanstein.quant import (
    exact_ternary,
    output_scale,
    to_bfloat16,
    to_float32,
)
from ryzanstein.tuning import format_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from ryzanstein._core import DenseArray, F32Array, GroupedMatrix
    from ryzanstein.config import WeightKind
    from ryzanstein.loaders.gguf_grouped import GroupedFormat
    from ryzanstein.loaders.model_files import WeightSource
    from ryzanstein.loaders.weight_cache import PackedWeights
    from ryzanstein.models.config import ModelConfig
    from ryzanstein.models.family import Family
    from ryzanstein.models.packing import Packing

__all__ = ["WeightReader"]

_COMPARE_ROWS = 4096


class WeightReader:
    """Builds weights from a checkpoint whose tensors `check_tensors` has accepted.

    Distinct layers may be read from distinct threads: packing releases the GIL. `objects` are those
    packed so far, by the names that `packed` is to know them under.
    """

    def __init__(
        self,
        checkpoint: WeightSource,
        config: ModelConfig,
        family: Family,
        packing: Packing,
        grouped_kernels: Mapping[tuple[int, int, int], str],
        packed: PackedWeights | None,
        advance: Callable[[int], None],
    ) -> None:
        """Take a callback that is told the bytes of each tensor once it has been read.

        Kernels of grouped matrices are by `grouped_shapes`.

        With `packed`, matrices are those of an earlier load of the same checkpoint, which found its
        large tensors sound: they are not read again.
        """
        self.objects: dict[str, dict[str, NDArray[Any]]] = {}
        self._packing = packing
        self._grouped_kernels = grouped_kernels
        self._packed = packed
        self._checkpoint = checkpoint
        self._config = config
        self._family = family
        self._shapes = linear_shapes(config, family)
        self._advance = advance

    def layer(self, index: int) -> LayerWeights:
        """Return the weights of one decoder layer, packed.

        Raises:
            QuantizationError: a code, master weight or scale that cannot be represented.
            CorruptFileError: a NaN or infinity in a norm.
        """
        family = self._family
        prefix = family.layer.format(index=index)
        is_local = self._config.sliding_windows[index] > 0
        window, sinks = self._config.attention_span(index)
        return LayerWeights(
            input_norm=self._norm(prefix + family.input_norm),
            attn_in=self._linears(prefix, family.attn_in),
            q_norm=self._optional_norm(prefix, family.q_norm),
            k_norm=self._optional_norm(prefix, family.k_norm),
            sliding_window=window,
            attention_sinks=sinks,
            rope=int(is_local and family.local_rope),
            attn_sub_norm=self._optional_norm(prefix, family.attn_sub_norm),
            o_proj=self._linears(prefix, (family.o_proj,))[0],
            attn_output_norm=self._optional_norm(prefix, family.attn_output_norm),
            ffn_norm=self._norm(prefix + family.ffn_norm),
            ffn_output_norm=self._optional_norm(prefix, family.ffn_output_norm),
            **self._feed_forward(prefix),
        )

    def _feed_forward(self, prefix: str) -> dict[str, Any]:
        family = self._family
        gain = self._optional_norm(prefix, family.ffn_sub_norm)
        if not self._drops_channels():
            return {
                "mlp_in": self._linears(prefix, family.mlp_in),
                "down_proj": self._linears(prefix, (family.down_proj,))[0],
                "ffn_sub_norm": gain,
            }
        gate_up, down, live = self._live_channels(prefix)
        parts = {
            "mlp_in": [Linear(gate_up, kernel=self._kernel(family.mlp_in))],
            "down_proj": Linear(down, kernel=self._kernel((family.down_proj,))),
            "ffn_sub_norm": gain if gain is None or live is None else gain[live],
        }
        channels = down.in_features
        if self._packing.skip_zeros == "all":
            parts["up_rows"] = self._rows(
                f"{prefix}up_rows",
                (channels, gate_up.in_features),
                lambda: TernaryRows.of_rows(gate_up, channels, 2 * channels),
            )
        if self._packing.skip_zeros != "none":
            parts["down_columns"] = self._rows(
                f"{prefix}down_columns",
                (channels, down.out_features),
                lambda: TernaryRows.of_columns(down),
            )
        return parts

    def _drops_channels(self) -> bool:
        """Return whether channels that are always zero may be left out."""
        config, family = self._config, self._family
        biased = not {*family.mlp_in, family.down_proj}.isdisjoint(config.biased)
        return config.quantization is not None and not config.has_input_norms and not biased

    def _live_channels(
        self, prefix: str
    ) -> tuple[TernaryMatrix, TernaryMatrix, NDArray[Any] | None]:
        """Return gate and up, and down, without dead channels, and which are left if not all."""
        names = (self._family.mlp_in, (self._family.down_proj,))
        key = f"{prefix}live_channels"
        if self._packed is not None:
            live = self._packed.arrays(key).get("index")
            channels = self._config.intermediate_size if live is None else len(live)
            gate_up, down = (self._matrix(prefix, part, channels) for part in names)
            return gate_up, down, live
        gate_up, down = (self._matrix(prefix, part) for part in names)
        live = live_channels(gate_up)
        if len(live) == down.in_features:
            return gate_up, down, None
        gate_up, down = keep_channels(gate_up, down, live)
        self.objects[self._key(prefix, names[0])] = gate_up.arrays()
        self.objects[self._key(prefix, names[1])] = down.arrays()
        self.objects[key] = {"index": live}
        return gate_up, down, live

    def _rows(
        self, key: str, shape: tuple[int, int], make: Callable[[], TernaryRows]
    ) -> TernaryRows:
        if self._packed is not None:
            return TernaryRows(*shape, self._packed.arrays(key))
        rows = make()
        self.objects[key] = rows.arrays()
        return rows

    def mapped_bytes(self) -> int:
        """Return the bytes of linears that are read from the files in place."""
        if self._config.quantization is not None or self._packing.weights in ROUNDED_FORMATS:
            return 0
        layers = [self._family.layer.format(index=i) for i in range(self._config.num_layers)]
        names = [f"{layer}{linear}.weight" for layer in layers for linear in self._shapes]
        in_place = [self._checkpoint.info(name) for name in names if not self._rounds(name)]
        return sum(info.nbytes for info in in_place if info.dtype in FLOATS)

    def final_norm(self) -> F32Array:
        """Return the gain of the norm before the head."""
        return self._norm(self._family.final_norm)

    def embedding(self) -> DenseArray | GroupedMatrix:
        """Return the embedding [V, hidden]: a view of the file where that holds plain numbers, and
        else the file's codes.

        Raises:
            CorruptFileError: a NaN or infinity in it.
            QuantizationError: a scale that is not finite.
        """
        return self._vocabulary(self._family.embedding)

    def lm_head(self) -> DenseArray | GroupedMatrix | None:
        """Return the output head [V, hidden] like the embedding, or None where it is tied.

        Raises:
            CorruptFileError: a NaN or infinity in it, or a tied head stored with other values.
            QuantizationError: a scale that is not finite.
        """
        name = self._family.lm_head
        if not self._config.tie_word_embeddings:
            return self._vocabulary(name)
        if (
            self._packed is None
            and name in self._checkpoint
            and not self._same(name, self._family.embedding)
        ):
            raise CorruptFileError(
                f"{self._checkpoint.where(name)} differs from the embedding, although config.json "
                "ties them; set tie_word_embeddings to false to use it"
            )
        return None

    def release_dense(self) -> None:
        """Let the pages of embedding and head go; they come back from the file when read."""
        for name in (self._family.embedding, self._family.lm_head):
            if name in self._checkpoint:
                self._checkpoint.release(name)

    def _linears(self, prefix: str, names: tuple[str, ...]) -> list[Linear]:
        """Return one fused linear, or one for each name where they cannot be one matrix."""
        quantization = self._config.quantization
        if quantization is None:
            return self._plain_linears(prefix, names)
        if not quantization.input_norm:
            return [self._linear(prefix, names)]
        epsilon = quantization.input_norm_eps
        norms = {name: self._norm(prefix + name + self._family.linear_norm) for name in names}
        return [self._linear(prefix, (name,), norms[name], epsilon) for name in names]

    def _plain_linears(self, prefix: str, names: tuple[str, ...]) -> list[Linear]:
        parts = fused_formats(self._checkpoint, prefix, names, self._packing.weights)
        return [
            self._dense_linear(prefix, part[0])
            if grouped is None
            else self._grouped_linear(prefix, part, grouped)
            for part, grouped in parts
        ]

    def _linear(
        self, prefix: str, names: tuple[str, ...], norm: F32Array | None = None, eps: float = 0.0
    ) -> Linear:
        bias = self._bias(prefix, names)
        return Linear(self._matrix(prefix, names), norm, eps, self._kernel(names), bias)

    def _dense_linear(self, prefix: str, name: str) -> Linear:
        weight = f"{prefix}{name}.weight"
        weights = self._dense(weight)
        if self._rounds(weight):
            weights = to_bfloat16(weights)
            self._checkpoint.release(weight)
        return Linear(DenseMatrix(weights), bias=self._bias(prefix, (name,)))

    def _rounds(self, name: str) -> bool:
        # Quantised types of GGUF are seen as float32 too.
        is_short = self._checkpoint.info(name).dtype in ("F16", "BF16")
        return self._packing.weights == "bf16" and not is_short

    def _grouped_linear(
        self, prefix: str, names: tuple[str, ...], grouped: GroupedFormat
    ) -> Linear:
        shape = fused_shape(self._shapes, names)
        weights = [f"{prefix}{name}.weight" for name in names]
        kind = self._packing.weights
        matrix = self._grouped_matrix(self._key(prefix, names), shape, grouped, weights, kind)
        kernel = self._grouped_kernels[*shape, grouped.bits]
        return Linear(matrix, kernel=kernel, bias=self._bias(prefix, names))

    def _grouped_matrix(
        self,
        key: str,
        shape: tuple[int, int],
        grouped: GroupedFormat,
        weights: list[str],
        kind: WeightKind,
    ) -> GroupedMatrix:
        """Return the matrices of these names, one below the other."""
        if self._packed is not None:
            return grouped_matrix(shape, grouped, self._packed.arrays(key))
        matrix = grouped_matrix(shape, grouped)
        row = 0
        for weight in weights:
            pack_grouped(matrix, row, self._checkpoint, weight, kind)
            self._done(weight)
            row += self._checkpoint.info(weight).shape[0]
        self.objects[key] = matrix.arrays()
        return matrix

    def _bias(self, prefix: str, names: tuple[str, ...]) -> F32Array | None:
        """Return the biases of these linears one after the other, None where none has one."""
        biased = self._config.biased
        if not any(name in biased for name in names):
            return None
        parts = [
            self._vector(f"{prefix}{name}.bias")
            if name in biased
            else np.zeros(self._shapes[name][0], np.float32)
            for name in names
        ]
        return np.concatenate(parts)

    def _kernel(self, names: tuple[str, ...]) -> str:
        return self._packing.kernels[fused_shape(self._shapes, names)]

    def _matrix(
        self, prefix: str, names: tuple[str, ...], channels: int | None = None
    ) -> TernaryMatrix:
        """Return the linears of these names, one below the other.

        `channels` are how many of the feed-forward's are stored, for its matrices.
        """
        rows, columns = fused_shape(self._shapes, names)
        key = self._key(prefix, names)
        ternary_format = format_of(self._kernel(names))
        if self._packed is not None:
            if channels is not None:
                is_down = names == (self._family.down_proj,)
                rows, columns = (rows, channels) if is_down else (2 * channels, columns)
            return TernaryMatrix(rows, columns, ternary_format, self._packed.arrays(key))
        matrix = TernaryMatrix(rows, columns, ternary_format)
        row = 0
        for name in names:
            self._pack(matrix, row, prefix + name)
            row += self._shapes[name][0]
        self.objects[key] = matrix.arrays()
        return matrix

    @staticmethod
    def _key(prefix: str, names: tuple[str, ...]) -> str:
        return prefix + "+".join(names)

    def _pack(self, matrix: TernaryMatrix, row: int, linear: str) -> None:
        weight = f"{linear}.weight"
        quantization = self._config.quantization
        assert quantization is not None
        try:
            if (parts := self._checkpoint.ternary_rows(weight)) is not None:
                for begin, codes, scales in parts:
                    matrix.pack_codes(row + begin, codes, scales)
                    self._checkpoint.release(weight)
            elif quantization.mode == "online":
                self._pack_floats(matrix, row, self._checkpoint.view(weight))
            else:
                stored = self._checkpoint.view(f"{linear}.weight_scale")
                scale = output_scale(quantization.linear_class, stored)
                matrix.pack_hf(row, self._checkpoint.view(weight), scale)
        except QuantizationError as error:
            raise QuantizationError(
                f"{self._checkpoint.where(weight)}: {error}; download the file again"
            ) from error
        self._done(weight)

    def _pack_floats(self, matrix: TernaryMatrix, row: int, weights: DenseArray) -> None:
        # Masters always have a scale for the whole of them; what became ternary elsewhere need not.
        codes = exact_ternary(weights) if self._packing.weights == "ternary" else None
        if codes is None:
            matrix.pack_master(row, weights)
        else:
            matrix.pack_codes(row, *codes)

    def _optional_norm(self, prefix: str, name: str | None) -> F32Array | None:
        return None if name is None else self._norm(prefix + name)

    def _norm(self, name: str) -> F32Array:
        gain = self._vector(name)
        offset = self._family.norm_offset
        return gain + np.float32(offset) if offset else gain

    def _vector(self, name: str) -> F32Array:
        values = to_float32(self._finite(name))
        self._done(name)
        return values

    def _dense(self, name: str) -> DenseArray:
        array = self._checkpoint.view(name) if self._packed is not None else self._finite(name)
        self._advance(self._checkpoint.info(name).nbytes)
        return array

    def _vocabulary(self, name: str) -> DenseArray | GroupedMatrix:
        """Return a row for each token, as stored whatever the linears are rounded to."""
        grouped = held_format(self._checkpoint, name, "auto")
        if grouped is None:
            return self._dense(name)
        rows, columns = self._checkpoint.info(name).shape
        return self._grouped_matrix(name, (rows, columns), grouped, [name], "auto")

    def _finite(self, name: str) -> NDArray[Any]:
        array = self._checkpoint.view(name)
        require_finite(self._checkpoint, name, array)
        return array

    def _same(self, first: str, second: str) -> bool:
        infos = [self._checkpoint.info(name) for name in (first, second)]
        if infos[0].dtype != infos[1].dtype or infos[0].shape != infos[1].shape:
            return False
        one, other = self._checkpoint.view(first), self._checkpoint.view(second)
        return all(
            np.array_equal(one[row : row + _COMPARE_ROWS], other[row : row + _COMPARE_ROWS])
            for row in range(0, one.shape[0], _COMPARE_ROWS)
        )

    def _done(self, name: str) -> None:
        self._checkpoint.release(name)
        self._advance(self._checkpoint.info(name).nbytes)
