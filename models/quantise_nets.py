"""Quantised variants of the benchmark's nets, by ONNX Runtime's own tool: what the int8 rows of the benchmark run.

    python -m minifer.models.quantise_nets FOLDER          # reads and writes FOLDER

Makes `resnet50_int8.onnx` (QDQ, signed activations: the tool's default), `resnet50_int8_u8.onnx` (unsigned
activations, which it advises for x86), `minilm_int8.onnx` (QDQ) and `minilm_int8_dynamic.onnx` (activations quantised
as the model runs). Weights are int8 per channel. The nets' weights are random, and so is the calibration data:
the files measure speed, and how far two engines agree, not accuracy.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import numpy as np

#: calibration inputs
SAMPLES = 4


class RandomReader:
    """Calibration data: images of normal numbers, or token ids with a full attention mask."""

    def __init__(self, path: str) -> None:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(0)
        self.feeds = [{i.name: _random(rng, i.name, i.shape, i.type) for i in session.get_inputs()}
                      for _ in range(SAMPLES)]  # fmt: skip

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next feed; None at the end."""
        return self.feeds.pop() if self.feeds else None


def _random(rng: np.random.Generator, name: str, shape: list[int], kind: str) -> np.ndarray:
    if kind == "tensor(float)":
        return rng.standard_normal(shape).astype(np.float32)
    if "mask" in name:
        return np.ones(shape, np.int64)
    return rng.integers(0, 2 if "type" in name else 30000, shape)


def quantise_static(source: str, target: str, unsigned: bool = False) -> None:
    """QDQ with calibrated activations and int8 weights per channel. With unsigned activations weights have seven bits,
    as ONNX Runtime's guide wants it on x86 without VNNI, where its sums of unsigned products would saturate."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    reader: Any = RandomReader(source)
    kind = QuantType.QUInt8 if unsigned else QuantType.QInt8
    quantize_static(
        source, target, reader, quant_format=QuantFormat.QDQ, per_channel=True, activation_type=kind,
        weight_type=QuantType.QInt8, reduce_range=unsigned,
    )  # fmt: skip


def quantise_dynamic(source: str, target: str) -> None:
    """DynamicQuantizeLinear and MatMulInteger, with int8 weights per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)


def main() -> None:
    """Quantise what lies in a folder."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where resnet50.onnx and minilm.onnx lie")
    folder = parser.parse_args().folder
    for name in ("resnet50", "minilm"):
        ready, target = os.path.join(folder, f"{name}_ready.onnx"), os.path.join(folder, f"{name}_int8")
        # ONNX Runtime's offline optimisation would fuse to its own operators: only shapes are wanted
        quant_pre_process(
            os.path.join(folder, f"{name}.onnx"), ready, skip_optimization=name == "minilm", skip_symbolic_shape=True
        )
        quantise_static(ready, f"{target}.onnx")
        if name == "resnet50":
            quantise_static(ready, f"{target}_u8.onnx", unsigned=True)
        else:
            quantise_dynamic(ready, f"{target}_dynamic.onnx")
        os.remove(ready)


if __name__ == "__main__":
    main()
