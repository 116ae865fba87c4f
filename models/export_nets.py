"""Exports well-known networks with random weights to ONNX, for `minifer bench`. Nothing is downloaded.

    python -m venv nets-env && nets-env/bin/pip install torch transformers onnxscript
    nets-env/bin/python models/export_nets.py nets                     # all of them, 3.0 GB
    nets-env/bin/python models/export_nets.py nets resnet50 bert_base  # some
    nets-env/bin/python models/export_nets.py --list

PyTorch belongs to that environment and never to minifer's. The time of a network depends on its shapes, not on
what it has learnt, so random weights serve; they are scaled so that activations neither explode nor vanish, because
infinities and subnormal numbers would change the time. Shapes are static, batch 1. The graphs are those that the
TorchScript exporter makes at opset 17, as most published ONNX files were: attention, Gelu and masks in pieces.

Written with torch 2.13 and transformers 5; the same versions give the same bytes.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import torch
import transformers
from torch import Tensor, nn

OPSET = 17


class Net(NamedTuple):
    """What the exporter needs: a module of positional tensors, those tensors by name, and the names of its outputs."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: list[str]


class Recipe(NamedTuple):
    about: str
    build: Callable[[], Net]


RECIPES: dict[str, Recipe] = {}


def recipe(about: str) -> Callable[[Callable[[], Net]], Callable[[], Net]]:
    """Registers a function that builds a net, under the function's name."""

    def register(build: Callable[[], Net]) -> Callable[[], Net]:
        RECIPES[build.__name__] = Recipe(about, build)
        return build

    return register


class Select(nn.Module):
    """Calls a transformers model with its tensors by name, and returns some of its outputs as a tuple."""

    def __init__(self, model: nn.Module, inputs: list[str], outputs: list[str]) -> None:
        super().__init__()
        self.model, self.input_names, self.output_names = model, inputs, outputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = self.model(**dict(zip(self.input_names, tensors)))
        return tuple(found[name] for name in self.output_names)


def select(model: nn.Module, inputs: dict[str, Tensor], *outputs: str) -> Net:
    return Net(Select(model, list(inputs), list(outputs)), inputs, list(outputs))


def calibrate(model: nn.Module, image: Tensor) -> None:
    """Gives every BatchNorm the mean and variance that it meets on one random image.

    A fresh BatchNorm changes nothing, and then residual sums grow, and small random weights let the rest vanish.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of this one image
            module.train()
    with torch.no_grad():
        model(image)
    model.eval()


def image_net(model: nn.Module, size: int = 224) -> Net:
    image = torch.randn(1, 3, size, size)
    calibrate(model, image)
    return select(model, {"pixel_values": image}, "logits")


# --- images


@recipe("ResNet-50, 224 x 224")
def resnet50() -> Net:
    return image_net(transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000)))


@recipe("MobileNetV2, 224 x 224")
def mobilenet_v2() -> Net:
    # tf_padding would put a Pad before each convolution; published files of this net have none
    config = transformers.MobileNetV2Config(num_labels=1000, tf_padding=False)
    return image_net(transformers.MobileNetV2ForImageClassification(config))


@recipe("ConvNeXt-Tiny, 224 x 224")
def convnext_tiny() -> Net:
    # the layer scale stays at the 1e-6 where training starts, so the blocks hardly show in the result
    return image_net(transformers.ConvNextForImageClassification(transformers.ConvNextConfig(num_labels=1000)))


@recipe("ViT-Base/16, 224 x 224")
def vit_base() -> Net:
    return image_net(transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000)))


@recipe("SegFormer-B0, 512 x 512, 150 classes")
def segformer_b0() -> Net:
    return image_net(transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=150)), 512)


@recipe("VGG-19, 224 x 224: nearly all of it 3x3 convolutions")
def vgg19() -> Net:
    layers: list[nn.Module] = []
    channels = 3
    for width, repeats in (64, 2), (128, 2), (256, 4), (512, 4), (512, 4):
        for _ in range(repeats):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()]
    layers.append(nn.Linear(4096, 1000))
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return Net(nn.Sequential(*layers), {"pixel_values": torch.randn(1, 3, 224, 224)}, ["logits"])


# --- text


def token_inputs(vocabulary: int, length: int) -> dict[str, Tensor]:
    tokens = torch.randint(vocabulary, (1, length))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def bert(config: transformers.BertConfig, *outputs: str) -> Net:
    inputs = token_inputs(config.vocab_size, 128)
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    return select(transformers.BertModel(config), inputs, *outputs)


@recipe("BERT-Base, 128 tokens")
def bert_base() -> Net:
    return bert(transformers.BertConfig(), "last_hidden_state", "pooler_output")


@recipe("the sentence encoder all-MiniLM-L6-v2, 128 tokens")
def minilm() -> Net:
    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    return bert(config, "last_hidden_state")


@recipe("GPT-2 reads 64 tokens, without a cache")
def gpt2() -> Net:
    config = transformers.GPT2Config(use_cache=False)
    return select(transformers.GPT2LMHeadModel(config), token_inputs(config.vocab_size, 64), "logits")


class DecodeStep(nn.Module):
    """One step of a decoder whose cache goes in and comes out as flat tensors: key, value, key, value, ..."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = transformers.DynamicCache(list(zip(past[::2], past[1::2])))
        found = self.model(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True)
        present = [tensor for layer in found.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return found.logits, *present


@recipe("GPT-2 writes one token after 64, with its cache")
def gpt2_decode() -> Net:
    config, past = transformers.GPT2Config(), 64
    parts = [f"{layer}.{kind}" for layer in range(config.n_layer) for kind in ("key", "value")]
    inputs = {"input_ids": torch.randint(config.vocab_size, (1, 1)), "attention_mask": torch.ones(1, past + 1).long()}
    for part in parts:
        inputs[f"past_key_values.{part}"] = torch.randn(1, config.n_head, past, config.n_embd // config.n_head)
    return Net(
        DecodeStep(transformers.GPT2LMHeadModel(config)), inputs, ["logits"] + [f"present.{part}" for part in parts]
    )


# --- sound


@recipe("the encoder of Whisper-Tiny, 30 s: 80 x 3000 mel")
def whisper_tiny_encoder() -> Net:
    config = transformers.WhisperConfig()
    model = transformers.WhisperModel(config).encoder
    return select(model, {"input_features": torch.randn(1, config.num_mel_bins, 3000)}, "last_hidden_state")


# --- export


def vary_constants(module: nn.Module) -> None:
    """Makes fresh biases and scales differ a little, as trained ones do.

    The exporter stores equal tensors once, with Identity nodes for the rest, which no trained net has.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            first = parameter.flatten()[0]
            if (parameter == first).all():
                spread = 0.1 * first.abs() if first != 0 else 0.02
                parameter += spread * torch.randn_like(parameter)


def check_sane(name: str, net: Net) -> None:
    """Outputs must be finite, and must not all be the same number."""
    with torch.no_grad():
        found = net.module(*net.inputs.values())
    for output, tensor in zip(net.outputs, found if isinstance(found, tuple) else [found]):
        if not tensor.isfinite().all() or not tensor.std() > 1e-4 * tensor.abs().max():
            raise SystemExit(f"{name}: output '{output}' is not finite, or constant")


def export(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    net = RECIPES[name].build()
    net.module.eval()
    vary_constants(net.module)
    check_sane(name, net)
    path = folder / f"{name}.onnx"
    partial = path.with_suffix(".part")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each shape that tracing makes a constant warns; all are meant to be constants
        torch.onnx.export(
            net.module, tuple(net.inputs.values()), str(partial), dynamo=False, opset_version=OPSET,
            input_names=list(net.inputs), output_names=net.outputs,
        )  # fmt: skip
    partial.replace(path)  # a file of the final name is a whole one
    return path


def describe(path: Path) -> str:
    nodes = onnx.load(path).graph.node
    common = ", ".join(f"{op} {count}" for op, count in Counter(node.op_type for node in nodes).most_common(5))
    return f"{path.stat().st_size / 1e6:.1f} MB, {len(nodes)} nodes: {common}, ..."


def main(arguments: Any = None) -> None:
    parser = argparse.ArgumentParser(description="Export well-known networks with random weights to ONNX.")
    parser.add_argument("folder", type=Path, nargs="?", help="where to write NAME.onnx")
    parser.add_argument("names", nargs="*", metavar="name", help="which nets (default: all)")
    parser.add_argument("--list", action="store_true", help="list the nets, export nothing")
    options = parser.parse_args(arguments)
    if options.list:
        for name, (about, _) in RECIPES.items():
            print(f"{name:22} {about}")
        return
    if options.folder is None:
        parser.error("name a folder to write to, or --list")
    if unknown := [name for name in options.names if name not in RECIPES]:
        parser.error(f"no net named {', '.join(unknown)}; there is {', '.join(RECIPES)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.names or RECIPES:
        start = time.perf_counter()
        path = export(name, options.folder)
        print(f"{name:22} {describe(path)} ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
