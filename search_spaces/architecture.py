"""What a network is: a frozen description with exact, analytic figures. No torch here.

An `Architecture` is a sequence of layers followed by the one allowed pooling (the global average)
and a bias-free 1x1 classifier. It goes to JSON and back, has a stable id, and `trace` gives every
operation's shape, parameters, multiply-accumulates and receptive field without building anything.

    Architecture
    |- layers: Conv | Residual, in order
    |    |- Conv      convolution (dense, or depthwise + pointwise) -> [BatchNorm] -> [ReLU]
    |    `- Residual  body of Convs that keeps its shape, + identity, -> ReLU
    |- global average pool
    `- 1x1 convolution to the classes, no bias
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

FORMAT_VERSION = 1
"""Version of the JSON form; raised whenever its meaning changes."""


class ArchitectureError(ValueError):
    """The description is not a network: a map would vanish, or a residual body changes its shape."""


@dataclass(frozen=True)
class Conv:
    """One convolution unit on maps [N, C, H, W].

    Attributes:
        out_channels: Channels of the output.
        kernel: Odd side of the (depthwise, if separable) kernel.
        stride: Step between outputs; > 1 reduces the map.
        dilation: Distance between kernel taps; > 1 makes the convolution dilated.
        padded: True pads by dilation * (kernel - 1) / 2 on each side ("same" at stride 1);
            False pads nothing, and the map shrinks by dilation * (kernel - 1).
        separable: Depthwise convolution (one kernel per channel), then a pointwise 1x1 one.
        bias: Whether the convolutions carry a bias.
        norm: BatchNorm after the unit.
        activation: ReLU after the unit.
    """

    out_channels: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    padded: bool = True
    separable: bool = False
    bias: bool = False
    norm: bool = True
    activation: bool = True

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ArchitectureError(f"A kernel side must be odd and positive: kernel={self.kernel}.")
        if min(self.out_channels, self.stride, self.dilation) < 1:
            raise ArchitectureError(
                "Channels, stride and dilation must be at least 1: "
                f"out_channels={self.out_channels}, stride={self.stride}, dilation={self.dilation}."
            )

    @property
    def padding(self) -> int:
        """Zeros added on each side of the map."""
        return self.dilation * (self.kernel - 1) // 2 if self.padded else 0

    @property
    def is_dilated(self) -> bool:
        """A dilation on a 1x1 kernel dilates nothing, so it does not count."""
        return self.kernel > 1 and self.dilation > 1


@dataclass(frozen=True)
class Residual:
    """`relu(body(x) + x)`; the body keeps channels and map (He et al. 2016, post-activation form)."""

    body: tuple[Conv, ...]


Layer = Conv | Residual


@dataclass(frozen=True)
class Operation:
    """One row of the layer table.

    Attributes:
        layer: Index of the top-level layer it belongs to; the classifier's is len(layers).
        name: Torch's name of the operation: Conv2d, BatchNorm2d, ReLU, Add, AvgPool2d.
        detail: Kernel, stride, dilation and the like, for people.
        in_shape: (C, H, W) before it.
        out_shape: (C, H, W) after it.
        params: Learned values.
        macs: Multiply-accumulates for one image.
        receptive_field: Side in input pixels, after it, along the longest path.
        jump: Input pixels between neighbouring outputs.
        kernel, dilation, padded, groups: Of a convolution; 1, 1, True, 1 otherwise.
    """

    layer: int
    name: str
    detail: str
    in_shape: tuple[int, int, int]
    out_shape: tuple[int, int, int]
    params: int
    macs: int
    receptive_field: int
    jump: int
    kernel: int = 1
    dilation: int = 1
    padded: bool = True
    groups: int = 1

    @property
    def is_depthwise(self) -> bool:
        return self.groups > 1


@dataclass(frozen=True)
class Architecture:
    """A whole network for square images.

    Attributes:
        layers: Everything before the global average pool.
        in_channels: Channels of the image.
        image_size: Side of the image in pixels.
        n_classes: Outputs of the classifier.
    """

    layers: tuple[Layer, ...]
    in_channels: int = 3
    image_size: int = 32
    n_classes: int = 10

    @functools.cached_property
    def operations(self) -> tuple[Operation, ...]:
        """Every operation in order, with exact analytic figures.

        Raises:
            ArchitectureError: A map would shrink below one pixel, or a residual body changes shape.
        """
        return tuple(_trace(self))

    @property
    def params(self) -> int:
        """All learned values; equals the built module's."""
        return sum(op.params for op in self.operations)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all convolutions for one image (padding taps counted)."""
        return sum(op.macs for op in self.operations)

    @property
    def receptive_field(self) -> int:
        """Side in pixels of what the last convolution before the global pooling sees."""
        return self._before_pool.receptive_field

    @property
    def receptive_field_with_pool(self) -> int:
        """The same with the global average pool counted as a layer."""
        last = self._before_pool
        return last.receptive_field + (last.out_shape[1] - 1) * last.jump

    @property
    def _before_pool(self) -> Operation:
        return next(op for op in reversed(self.operations[:-1]) if op.name != "AvgPool2d")

    @property
    def convs(self) -> tuple[Conv, ...]:
        """All units in order, residual bodies opened."""
        units: list[Conv] = []
        for layer in self.layers:
            units.extend(layer.body if isinstance(layer, Residual) else (layer,))
        return tuple(units)

    @property
    def n_dilated_reductions(self) -> int:
        """Unpadded dilated convolutions, which reduce the map where others would pool."""
        return sum(unit.is_dilated and not unit.padded for unit in self.convs)

    @property
    def architecture_id(self) -> str:
        return identifier(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` inverts it exactly."""
        return {
            "version": FORMAT_VERSION,
            "in_channels": self.in_channels,
            "image_size": self.image_size,
            "n_classes": self.n_classes,
            "layers": [_layer_to_json(layer) for layer in self.layers],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Architecture:
        """Reads what `to_json` wrote.

        Raises:
            ArchitectureError: Another format version, or fields that do not fit.
        """
        if data.get("version") != FORMAT_VERSION:
            raise ArchitectureError(
                f"Architectures of format {FORMAT_VERSION} can be read: version={data.get('version')!r}."
            )
        try:
            return cls(
                layers=tuple(_layer_from_json(layer) for layer in data["layers"]),
                in_channels=data["in_channels"],
                image_size=data["image_size"],
                n_classes=data["n_classes"],
            )
        except (KeyError, TypeError) as error:
            raise ArchitectureError(f"Not a description of an architecture: {error}.") from error


def identifier(data: Any) -> str:
    """First 12 hex digits of the SHA-256 of the sorted, compact JSON of `data`."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _layer_to_json(layer: Layer) -> dict[str, Any]:
    if isinstance(layer, Residual):
        return {"kind": "residual", "body": [_layer_to_json(unit) for unit in layer.body]}
    return {"kind": "conv", **dataclasses.asdict(layer)}


def _layer_from_json(data: Mapping[str, Any]) -> Layer:
    fields = dict(data)
    kind = fields.pop("kind")
    if kind == "conv":
        return Conv(**fields)
    if kind == "residual":
        body = tuple(_layer_from_json(unit) for unit in fields["body"])
        return Residual(tuple(unit for unit in body if isinstance(unit, Conv)))
    raise ArchitectureError(f"A layer is a conv or a residual: kind={kind!r}.")


def _trace(architecture: Architecture) -> Iterator[Operation]:
    shape = (architecture.in_channels, architecture.image_size, architecture.image_size)
    field, jump = 1, 1
    for index, layer in enumerate(architecture.layers):
        units = layer.body if isinstance(layer, Residual) else (layer,)
        before = shape
        for unit in units:
            for op in _unit_operations(index, unit, shape, field, jump):
                shape, field, jump = op.out_shape, op.receptive_field, op.jump
                yield op
        if isinstance(layer, Residual):
            if shape != before:
                raise ArchitectureError(f"A residual body keeps its shape: layer {index} turns {before} into {shape}.")
            yield Operation(index, "Add", "identity", shape, shape, 0, 0, field, jump)
            yield Operation(index, "ReLU", "", shape, shape, 0, 0, field, jump)
    last, channels, side = len(architecture.layers), shape[0], shape[1]
    pooled = field + (side - 1) * jump
    yield Operation(last, "AvgPool2d", f"global, {side}x{side}", shape, (channels, 1, 1), 0, 0, pooled, jump)
    weights = channels * architecture.n_classes
    yield Operation(
        last,
        "Conv2d",
        "1x1, classifier",
        (channels, 1, 1),
        (architecture.n_classes, 1, 1),
        weights,
        weights,
        pooled,
        jump,
    )


def _unit_operations(index: int, unit: Conv, shape: tuple[int, int, int], field: int, jump: int) -> Iterator[Operation]:
    """Receptive field: r <- r + (k - 1) * dilation * jump, then jump <- jump * stride (Araujo et al. 2019)."""
    channels, side, _ = shape
    out_side = (side + 2 * unit.padding - unit.dilation * (unit.kernel - 1) - 1) // unit.stride + 1
    if out_side < 1:
        raise ArchitectureError(
            f"The map would shrink below 1 pixel in layer {index}: {side}x{side} with "
            f"kernel={unit.kernel}, dilation={unit.dilation}, padded={unit.padded}."
        )
    field += (unit.kernel - 1) * unit.dilation * jump
    jump *= unit.stride
    taps = unit.kernel * unit.kernel
    detail = f"{unit.kernel}x{unit.kernel}"
    if unit.stride > 1:
        detail += f", stride {unit.stride}"
    if unit.is_dilated:
        detail += f", dilation {unit.dilation}"
    if not unit.padded:
        detail += ", unpadded"
    out = (unit.out_channels, out_side, out_side)
    if unit.separable:
        middle = (channels, out_side, out_side)
        bias = int(unit.bias)
        yield Operation(
            index,
            "Conv2d",
            detail + ", depthwise",
            shape,
            middle,
            channels * (taps + bias),
            channels * taps * out_side**2,
            field,
            jump,
            unit.kernel,
            unit.dilation,
            unit.padded,
            channels,
        )
        yield Operation(
            index,
            "Conv2d",
            "1x1, pointwise",
            middle,
            out,
            unit.out_channels * (channels + bias),
            unit.out_channels * channels * out_side**2,
            field,
            jump,
        )
    else:
        weights = unit.out_channels * channels * taps
        yield Operation(
            index,
            "Conv2d",
            detail,
            shape,
            out,
            weights + unit.out_channels * unit.bias,
            weights * out_side**2,
            field,
            jump,
            unit.kernel,
            unit.dilation,
            unit.padded,
        )
    if unit.norm:
        yield Operation(index, "BatchNorm2d", "", out, out, 2 * unit.out_channels, 0, field, jump)
    if unit.activation:
        yield Operation(index, "ReLU", "", out, out, 0, 0, field, jump)
