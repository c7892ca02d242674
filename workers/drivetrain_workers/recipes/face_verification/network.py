"""A sequential network, loaded from an ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnx import NodeProto, helper, numpy_helper
from torch import nn

Weights = dict[str, torch.Tensor]
Options = dict[str, Any]  # the attributes of an ONNX node


class _Affine(nn.Module):
    """The first layer: subtracts a number from pixels, and multiplies them by another."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.scale = 0.0, 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.shift) * self.scale


def from_onnx(path: str) -> nn.Sequential:
    """Build the layers with the weights of the file.

    Raises:
        ValueError: the file has unsupported layers, or they are not sequential.
    """
    graph = onnx.load(path).graph
    weights = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}
    first = _Affine()
    layers: list[nn.Module] = [first]
    before = graph.input[0].name
    for node in graph.node:
        if node.input[0] != before:
            raise ValueError(f"{path}: {node.name} does not follow {before}")
        before = node.output[0]
        if node.op_type == "Sub":
            first.shift = float(weights[node.input[1]])
        elif node.op_type == "Mul":
            first.scale = float(weights[node.input[1]])
        elif node.op_type in _LAYERS:
            options = {each.name: helper.get_attribute_value(each) for each in node.attribute}
            layers.append(_LAYERS[node.op_type](node, options, weights))
        else:
            raise ValueError(f"{path}: a layer {node.op_type}; known: Sub, Mul, {', '.join(_LAYERS)}")
    return nn.Sequential(*layers)


def _convolution(node: NodeProto, options: Options, weights: Weights) -> nn.Module:
    weight = weights[node.input[1]]
    out, within, height, width = weight.shape
    groups = options["group"]
    padding, bias = tuple(options["pads"][:2]), len(node.input) > 2
    layer = nn.Conv2d(
        within * groups, out, (height, width), tuple(options["strides"]), padding, groups=groups, bias=bias
    )
    return _filled(layer, node, weights)


def _linear(node: NodeProto, _: Options, weights: Weights) -> nn.Module:
    out, given = weights[node.input[1]].shape
    return _filled(nn.Linear(given, out), node, weights)


def _norm(node: NodeProto, options: Options, weights: Weights) -> nn.Module:
    width = len(weights[node.input[1]])
    layer = _FlatNorm(width, options["epsilon"])
    names = ("weight", "bias", "running_mean", "running_var")
    layer.load_state_dict(dict(zip(names, (weights[name] for name in node.input[1:]), strict=True)), strict=False)
    return layer


def _activation(node: NodeProto, _: Options, weights: Weights) -> nn.Module:
    slope = weights[node.input[1]].flatten()
    layer = nn.PReLU(len(slope))
    layer.load_state_dict({"weight": slope})
    return layer


class _FlatNorm(nn.BatchNorm2d):
    """Batch norm of images and of vectors."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        del input


def _filled(layer: nn.Module, node: NodeProto, weights: Weights) -> nn.Module:
    names = ("weight", "bias")[: len(node.input) - 1]
    layer.load_state_dict(dict(zip(names, (weights[name] for name in node.input[1:]), strict=True)))
    return layer


_LAYERS: dict[str, Callable[[NodeProto, Options, Weights], nn.Module]] = {
    "Conv": _convolution,
    "BatchNormalization": _norm,
    "PRelu": _activation,
    "Gemm": _linear,
    "Flatten": lambda *_: nn.Flatten(),
    "Dropout": lambda *_: nn.Identity(),
}
