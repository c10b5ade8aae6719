"""What a network is: a frozen description with exact, analytic figures. No torch here.

An `Architecture` is a sequence of layers followed by the one allowed pooling (the global average)
and a 1x1 classifier. It goes to JSON and back, has a stable id, and `operations` gives every
operation's shape, parameters, multiply-accumulates and receptive field without building anything.

    Architecture
    |- layers: units and residual blocks, in order
    |    |- Conv      convolution (dense, grouped, or depthwise + pointwise) -> [norm] -> [activation]
    |    |- Branches  depthwise convolutions side by side, on all channels each and summed, or on a
    |    |            share of the channels each and concatenated -> [norm] -> [activation]
    |    |- Gated     pointwise to two halves, activation(first) * second, pointwise -> [norm]
    |    `- Residual  body of units that keeps its shape, + identity, -> [activation]; one of both
    |                 may have a learned scale, and all of it may run several times with the same weights
    |- global average pool
    `- 1x1 convolution to the classes
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from search_spaces.fields import Count, DescriptionError, Within, check_fields, from_fields, opened, shown

FORMAT_VERSION = 1
"""Version of the JSON form; raised whenever its meaning changes."""


NORM_NAMES = {"batch": "BatchNorm2d", "layer": "LayerNorm2d"}
"""Torch's name (torchvision's for the layer norm over channels) of every norm."""
ACTIVATION_NAMES = {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU", "tanhexp": "TanhExp"}
"""The module's name of every activation. TanhExp is x * tanh(exp(x)) (Liu and Di 2020)."""
_NORM_RULE = f"A norm is one of {', '.join(NORM_NAMES)}"
_ACTIVATION_RULE = f"An activation is one of {', '.join(ACTIVATION_NAMES)}"
JOINS = {"sum": "Sum", "concat": "Concat"}
"""How branches come together."""
SCALED = (None, "body", "identity")
"""What of a residual block a learned scale may multiply."""


class ArchitectureError(DescriptionError):
    """The description is not a network: a map would vanish, or a residual body changes its shape."""


Side = Annotated[int, Within(1, 63)]
"""Of a kernel, in pixels."""
Step = Annotated[int, Within(1, 64)]
Dilation = Annotated[int, Within(1, 1_024)]
SEVERAL = Within(1, 1_000)
"""Layers, units of a body, branches."""
MOST_PARAMS = 50_000_000
MOST_MACS = 10_000_000_000
MOST_OPERATIONS = 20_000
MOST_VALUES = 2**20
"""Of one map: all its channels and pixels. A batch of 256 of them is a gibibyte."""
MOST_FIELD = 2**31
"""Pixels of a receptive field, and between the inputs of neighbouring outputs."""
_SIZES = (
    f"A network has at most {MOST_PARAMS:,} parameters, {MOST_MACS:,} multiply-accumulates, {MOST_OPERATIONS:,} "
    f"operations, maps of {MOST_VALUES:,} values and a receptive field of {MOST_FIELD:,} pixels"
)


def _require(holds: bool, rule: str, **values: Any) -> None:
    if not holds:
        raise ArchitectureError(f"{rule}: {', '.join(f'{name}={value!r}' for name, value in values.items())}.")


@dataclass(frozen=True)
class Conv:
    """One convolution unit on maps [N, C, H, W].

    Attributes:
        out_channels: Channels of the output.
        kernel: Side of the (depthwise, if separable) kernel: odd, or even where the stride is, as in
            a patch convolution.
        stride: Step between outputs; > 1 reduces the map.
        dilation: Distance between kernel taps; > 1 makes the convolution dilated.
        padded: True pads by dilation * (kernel - 1) / 2 on each side ("same" at stride 1; rounded down);
            False pads nothing, and the map shrinks by dilation * (kernel - 1).
        separable: Depthwise convolution (one kernel per channel), then a pointwise 1x1 one.
        bias: Whether the convolutions carry a bias.
        norm: Norm after the unit.
        activation: Activation after the unit.
        groups: Groups of channels convolved apart; with as many as channels the unit is depthwise.
        norm_type: "batch", or "layer" (over the channels of each pixel).
        activation_type: "relu", "gelu", "silu" or "tanhexp".
    """

    out_channels: Count
    kernel: Side = 3
    stride: Step = 1
    dilation: Dilation = 1
    padded: bool = True
    separable: bool = False
    bias: bool = False
    norm: bool = True
    activation: bool = True
    groups: Count = 1
    norm_type: str = "batch"
    activation_type: str = "relu"

    def __post_init__(self) -> None:
        check_fields(self)
        patch = self.kernel % 2 == 0 == self.stride % 2 and self.dilation == 1
        _require(
            patch or self.kernel % 2 == 1,
            "A kernel side must be odd, or even with an even stride and no dilation",
            kernel=self.kernel,
            stride=self.stride,
            dilation=self.dilation,
        )
        if self.separable:
            _require(self.groups == 1, "A separable convolution has no groups of its own", groups=self.groups)
        _check_types(self.norm_type, self.activation_type)

    @property
    def padding(self) -> int:
        """Zeros added on each side of the map."""
        return self.dilation * (self.kernel - 1) // 2 if self.padded else 0

    @property
    def is_dilated(self) -> bool:
        """A dilation on a 1x1 kernel dilates nothing, so it does not count."""
        return self.kernel > 1 and self.dilation > 1

    def convs(self, in_channels: int) -> tuple[Conv, ...]:
        """The convolutions that it consists of: itself, or a depthwise and a pointwise one."""
        if not self.separable:
            return (self,)
        geometry = (self.kernel, self.stride, self.dilation, self.padded, self.bias)
        return _depthwise(in_channels, *geometry), _pointwise(self.out_channels, self.bias)


@functools.cache  # solving widths describes the same convolutions thousands of times
def _depthwise(channels: int, kernel: int, stride: int, dilation: int, padded: bool, bias: bool) -> Conv:
    return Conv(channels, kernel, stride, dilation, padded, bias=bias, groups=channels)


@functools.cache
def _pointwise(out_channels: int, bias: bool) -> Conv:
    return Conv(out_channels, kernel=1, bias=bias)


@dataclass(frozen=True)
class Branch:
    """One of several depthwise convolutions side by side, padded to keep the map.

    Attributes:
        kernel: Odd side of the kernel; 1 is the identity, with no weights.
        dilation: Distance between kernel taps.
        smooth: Average 3x3 pixels before it. That is a pooling, which the limits forbid: it is here so
            that published networks can be described.
    """

    kernel: Side = 3
    dilation: Dilation = 1
    smooth: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        _require(self.kernel % 2 == 1, "The kernel side of a branch must be odd", kernel=self.kernel)

    def conv(self, channels: int, bias: bool) -> Conv:
        """The depthwise convolution on `channels` channels."""
        return _depthwise(channels, self.kernel, 1, self.dilation, True, bias)

    def __str__(self) -> str:
        kernel = f"{self.kernel}x{self.kernel}" if self.kernel > 1 else "identity"
        return kernel + (f" dilation {self.dilation}" if self.kernel > 1 < self.dilation else "")


@dataclass(frozen=True)
class Branches:
    """Depthwise convolutions side by side; the unit keeps channels and map.

    Attributes:
        branches: At least two, at least one of them a convolution.
        join: "sum" gives every branch all channels and adds the results; "concat" gives every branch an
            equal share of the channels (the first one the rest as well) and puts the results side by side.
        bias: Whether the convolutions carry a bias.
        norm, activation, norm_type, activation_type: After the join, as in `Conv`.
    """

    branches: Annotated[tuple[Branch, ...], SEVERAL]
    join: str = "concat"
    bias: bool = True
    norm: bool = True
    activation: bool = False
    norm_type: str = "batch"
    activation_type: str = "relu"

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.branches) < 2 or all(branch.kernel == 1 for branch in self.branches):
            raise ArchitectureError(f"Branches are at least two, and one of them convolves: {self.branches}.")
        _require(self.join in JOINS, f"Branches join by {' or '.join(JOINS)}", join=self.join)
        _check_types(self.norm_type, self.activation_type)

    def channels(self, in_channels: int) -> tuple[int, ...]:
        """Channels that every branch works on."""
        n_branches = len(self.branches)
        if self.join == "sum":
            return (in_channels,) * n_branches
        share = in_channels // n_branches
        _require(share >= 1, f"{n_branches} branches need as many channels", in_channels=in_channels)
        return (in_channels - share * (n_branches - 1),) + (share,) * (n_branches - 1)


@dataclass(frozen=True)
class Gated:
    """A gated pointwise pair: pointwise(activation(a) * b), where (a, b) are the halves of a pointwise.

    Attributes:
        out_channels: Channels of the output.
        hidden: Channels of each half.
        bias: Whether the two convolutions carry a bias.
        norm: Norm after the second one.
        norm_type, activation_type: As in `Conv`; the activation is that of the gate.
    """

    out_channels: Count
    hidden: Annotated[int, Within(1, 2**15)]
    bias: bool = True
    norm: bool = False
    norm_type: str = "batch"
    activation_type: str = "silu"

    def __post_init__(self) -> None:
        check_fields(self)
        _check_types(self.norm_type, self.activation_type)

    @property
    def convs(self) -> tuple[Conv, Conv]:
        """The pointwise convolutions before and after the gate."""
        return _pointwise(2 * self.hidden, self.bias), _pointwise(self.out_channels, self.bias)


Unit = Conv | Branches | Gated


@dataclass(frozen=True)
class Residual:
    """`activation(body(x) + x)`; the body keeps channels and map (He et al. 2016).

    Attributes:
        body: The units.
        activation: Activation after the addition.
        activation_type: Which, as in `Conv`.
        scaled: "body" or "identity" is multiplied by a learned scale per channel before the addition.
        times: How often the block runs, one run on the result of the other. Convolutions and scales are
            the same in all runs; every run has norms of its own, since statistics differ from run to run.
    """

    body: Annotated[tuple[Unit, ...], SEVERAL]
    activation: bool = True
    activation_type: str = "relu"
    scaled: str | None = None
    times: Annotated[int, Within(1, 1_000)] = 1

    def __post_init__(self) -> None:
        check_fields(self)
        _require(self.scaled in SCALED, "A learned scale multiplies 'body' or 'identity'", scaled=self.scaled)
        _check_types("batch", self.activation_type)


Layer = Conv | Branches | Gated | Residual

_OMITTED_AT_DEFAULT = {
    Conv: ("groups", "norm_type", "activation_type"),
    Residual: ("activation", "activation_type", "scaled", "times"),
}
"""Fields that came after the first networks were stored: left out, so that ids never change."""


def _check_types(norm_type: str, activation_type: str) -> None:
    _require(norm_type in NORM_NAMES, _NORM_RULE, norm_type=norm_type)
    _require(activation_type in ACTIVATION_NAMES, _ACTIVATION_RULE, activation_type=activation_type)


@dataclass(frozen=True)
class Operation:
    """One row of the layer table.

    Attributes:
        layer: Index of the top-level layer it belongs to; the classifier's is len(layers).
        name: Of the module that does it: Conv2d, AvgPool2d, a norm (`NORM_NAMES`), an activation
            (`ACTIVATION_NAMES`), a join of branches (`JOINS`), Gate, Scale, Add.
        detail: Kernel, stride, dilation and the like, for people.
        in_shape: (C, H, W) before it.
        out_shape: (C, H, W) after it.
        params: Learned values; 0 where they are those of an earlier run of the block.
        macs: Multiply-accumulates for one image.
        receptive_field: Side in input pixels, after it, along the longest path.
        jump: Input pixels between neighbouring outputs.
        kernel, dilation, padded, groups: Of a convolution; 1, 1, True, 1 otherwise.
        unit: Index in the body of its residual block; None outside of a body.
        run: Which run of its residual block it belongs to, from zero.
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
    unit: int | None = None
    run: int = 0

    @property
    def is_depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.in_shape[0]

    @property
    def is_pointwise(self) -> bool:
        return self.name == "Conv2d" and self.kernel == 1 and self.groups == 1


@dataclass(frozen=True)
class Architecture:
    """A whole network for square images.

    Attributes:
        layers: Everything before the global average pool.
        in_channels: Channels of the image.
        image_size: Side of the image in pixels.
        n_classes: Outputs of the classifier.
        classifier_bias: Whether the classifier carries a bias.
    """

    layers: Annotated[tuple[Layer, ...], SEVERAL]
    in_channels: Count = 3
    image_size: Annotated[int, Within(1, 512)] = 32
    n_classes: Count = 10
    classifier_bias: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    @functools.cached_property
    def operations(self) -> tuple[Operation, ...]:
        """Every operation in order, with exact analytic figures.

        Raises:
            ArchitectureError: A map would shrink below one pixel, or a residual body changes shape.
        """
        return _trace(self)

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
    def units(self) -> tuple[Unit, ...]:
        """All units in order, residual bodies opened."""
        bodies = (layer.body if isinstance(layer, Residual) else (layer,) for layer in self.layers)
        return tuple(itertools.chain.from_iterable(bodies))

    @property
    def convs(self) -> tuple[Conv, ...]:
        """The `Conv` units among them."""
        return tuple(unit for unit in self.units if isinstance(unit, Conv))

    @property
    def n_dilated(self) -> int:
        """Dilated convolutions, shared ones once."""
        return sum(op.kernel > 1 and op.dilation > 1 and op.run == 0 for op in self.operations)

    @property
    def n_separable(self) -> int:
        """Depthwise convolutions (several side by side once) followed by a pointwise one, shared ones once.

        A norm, an activation or the join of branches may stand between the two, no other convolution,
        pooling or addition.
        """
        count, depthwise = 0, False
        for op in self.operations:
            if op.run > 0:
                continue
            if op.name == "Conv2d":
                count += depthwise and op.is_pointwise
                depthwise = op.is_depthwise and op.kernel > 1
            elif op.name in ("Add", "AvgPool2d"):
                depthwise = False
        return count

    @property
    def n_local_pools(self) -> int:
        """Poolings before the global average, shared ones once."""
        return sum(op.name == "AvgPool2d" and op.run == 0 for op in self.operations) - 1

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
            **({"classifier_bias": True} if self.classifier_bias else {}),
            "layers": [_layer_to_json(layer) for layer in self.layers],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Architecture:
        """Reads what `to_json` wrote.

        Raises:
            DescriptionError: Another format version, or fields that do not fit.
        """
        fields = opened(data, "An architecture")
        version = fields.pop("version", None)
        if version != FORMAT_VERSION:
            raise DescriptionError(f"Architectures of format {FORMAT_VERSION} can be read: version={shown(version)}.")
        fields["layers"] = _each(fields.get("layers"), "layers", _layer_from_json)
        architecture = from_fields(cls, fields)
        _ = architecture.operations  # the shapes must work out, too
        return architecture


def identifier(data: Any) -> str:
    """First 12 hex digits of the SHA-256 of the sorted, compact JSON of `data`."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


_KINDS: dict[str, type[Layer]] = {"conv": Conv, "branches": Branches, "gated": Gated, "residual": Residual}


def _layer_to_json(layer: Layer) -> dict[str, Any]:
    kind = next(name for name, cls in _KINDS.items() if isinstance(layer, cls))
    fields = dataclasses.asdict(layer)
    if isinstance(layer, Residual):
        fields["body"] = [_layer_to_json(unit) for unit in layer.body]
    elif isinstance(layer, Branches):
        fields["branches"] = list(fields["branches"])
    defaults = {field.name: field.default for field in dataclasses.fields(layer)}
    omitted = [name for name in _OMITTED_AT_DEFAULT.get(type(layer), ()) if fields[name] == defaults[name]]
    return {"kind": kind, **{name: value for name, value in fields.items() if name not in omitted}}


def _layer_from_json(data: Any) -> Layer:
    fields = opened(data, "A layer")
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise DescriptionError(f"A layer is one of {', '.join(_KINDS)}: {shown(kind)}.")
    if kind == "residual":
        fields["body"] = _each(fields.get("body"), "body", _unit_from_json)
    elif kind == "branches":
        fields["branches"] = _each(fields.get("branches"), "branches", functools.partial(from_fields, Branch))
    return from_fields(_KINDS[kind], fields)


def _unit_from_json(data: Any) -> Layer:
    if isinstance(data, Mapping) and data.get("kind") == "residual":  # nor would any depth of them end
        raise DescriptionError("The body of a residual block holds no residual blocks.")
    return _layer_from_json(data)


def _each(data: Any, name: str, read: Callable[[Any], Any]) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise DescriptionError(f"{name} must be a JSON list: {shown(data)}.")
    return tuple(map(read, data))


_Fields = tuple[tuple[int, int], ...]
"""Receptive field of so many channels, in their order."""


class _Trace:
    """Operations so far, their sums, and where they lead: shape (C, H, W), receptive field and jump.

    Where channels come from different branches, each has a field of its own until a dense convolution or a layer norm
    mixes them: what one branch and the next add to different channels nobody sees together. `fields` holds runs of
    channels of one field, since a stranger's network may have thousands of channels, thousands of times.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.operations: list[Operation] = []
        self.shape, self.jump = shape, 1
        self.fields: _Fields = ((1, shape[0]),)
        self.params, self.macs = 0, 0
        self.layer, self.run = 0, 0
        self.unit: int | None = None

    def add(
        self,
        name: str,
        detail: str = "",
        out_shape: tuple[int, int, int] | None = None,
        params: int = 0,
        macs: int = 0,
        geometry: tuple[int, int, bool, int] = (1, 1, True, 1),
    ) -> None:
        """Appends an operation that leads to `out_shape` (the same shape, if None) and the current field."""
        before, self.shape = self.shape, out_shape or self.shape
        self.params += params
        self.macs += macs
        channels, side, _ = self.shape
        # In numbers, before anybody allocates what they stand for.
        if (
            len(self.operations) >= MOST_OPERATIONS
            or channels * side**2 > MOST_VALUES
            or self.params > MOST_PARAMS
            or self.macs > MOST_MACS
            or max(self.field, self.jump) > MOST_FIELD
        ):
            raise ArchitectureError(f"{_SIZES}: layer {self.layer} makes it larger.")
        figures = (params, macs, self.field, self.jump)
        self.operations.append(
            Operation(self.layer, name, detail, before, self.shape, *figures, *geometry, self.unit, self.run)
        )

    def convolve(self, conv: Conv, kind: str = "") -> None:
        """Receptive field: r <- r + (k - 1) * dilation * jump, then jump <- jump * stride (Araujo et al. 2019).

        Here r is the largest of the channels that a group of outputs sees.
        """
        channels, side, _ = self.shape
        kernel, dilation, padded = conv.kernel, conv.dilation, conv.padded
        extent = dilation * (kernel - 1)
        out_side = (side + 2 * conv.padding - extent - 1) // conv.stride + 1
        if out_side < 1:
            raise ArchitectureError(
                f"The map would shrink below 1 pixel in layer {self.layer}: {side}x{side} with "
                f"{kernel=}, {dilation=}, {padded=}."
            )
        self._see(extent * self.jump, conv.out_channels, conv.groups)
        self.jump *= conv.stride
        detail = f"{kernel}x{kernel}"
        detail += f", stride {conv.stride}" if conv.stride > 1 else ""
        detail += f", dilation {dilation}" if kernel > 1 < dilation else ""
        detail += ("" if padded else ", unpadded") + (f", {kind}" if kind else "")
        weights = conv.out_channels * channels * kernel**2 // conv.groups
        params = 0 if self.run else weights + conv.out_channels * conv.bias
        out = (conv.out_channels, out_side, out_side)
        self.add("Conv2d", detail, out, params, weights * out_side**2, (kernel, dilation, padded, conv.groups))

    @property
    def field(self) -> int:
        """The largest."""
        return max(self.fields)[0]

    def _see(self, more: int, n_outputs: int, groups: int = 1) -> None:
        """Every output sees `more` than the inputs of its group."""
        if len(self.fields) == 1 or groups == 1:
            self.fields = ((self.field + more, n_outputs),)
        else:
            seen = _by_group(self.fields, self.shape[0] // groups)
            self.fields = _joined((field + more, n * (n_outputs // groups)) for field, n in seen)

    def follow(self, unit: Unit) -> None:
        """Appends the operations of `unit`."""
        if isinstance(unit, Conv):
            self._conv(unit)
        elif isinstance(unit, Branches):
            self._branches(unit)
        else:
            first, last = unit.convs
            self.convolve(first, "pointwise")
            self.add("Gate", ACTIVATION_NAMES[unit.activation_type], (unit.hidden, *self.shape[1:]))
            self.convolve(last, "pointwise")
        if unit.norm:
            if unit.norm_type == "layer":
                self._see(0, self.shape[0])
            self.add(NORM_NAMES[unit.norm_type], params=2 * self.shape[0])
        if not isinstance(unit, Gated) and unit.activation:
            self.add(ACTIVATION_NAMES[unit.activation_type])

    def _conv(self, unit: Conv) -> None:
        channels = self.shape[0]
        if channels % unit.groups or unit.out_channels % unit.groups:
            raise ArchitectureError(
                f"Groups divide the channels before and after: layer {self.layer} has groups={unit.groups}, "
                f"in_channels={channels}, out_channels={unit.out_channels}."
            )
        kinds: tuple[str, ...] = ("depthwise", "pointwise")
        if not unit.separable:
            kinds = ({channels: "depthwise", 1: ""}.get(unit.groups, f"{unit.groups} groups"),)
        for conv, kind in zip(unit.convs(channels), kinds, strict=True):
            self.convolve(conv, kind)

    def _branches(self, unit: Branches) -> None:
        shape, fields, ends, first = self.shape, self.fields, list[_Fields](), 0
        for branch, channels in zip(unit.branches, unit.channels(shape[0]), strict=True):
            self.shape = (channels, *shape[1:])
            self.fields = _joined(_part(fields, first, channels))
            if branch.smooth:
                self._see(2 * self.jump, channels, channels)
                self.add("AvgPool2d", "3x3, stride 1")
            if branch.kernel > 1:
                self.convolve(branch.conv(channels, unit.bias), "depthwise")
            ends.append(self.fields)
            first += channels if unit.join == "concat" else 0
        self.shape = shape
        sums = unit.join == "sum"
        self.fields = functools.reduce(_largest, ends) if sums else _joined(itertools.chain(*ends))
        self.add(JOINS[unit.join], ", ".join(map(str, unit.branches)))

    def repeat(self, layer: Residual) -> None:
        """Appends the operations of all runs of `layer`."""
        before, jump = self.shape, self.jump
        for run in range(layer.times):
            self.run, identity = run, self.fields
            for position, unit in enumerate(layer.body):
                self.unit = position
                self.follow(unit)
            self.unit = None
            if (self.shape, self.jump) != (before, jump):
                raise ArchitectureError(
                    f"A residual body keeps its shape: layer {self.layer} turns {before} into {self.shape}."
                )
            if layer.scaled:
                self.add("Scale", layer.scaled, params=0 if run else self.shape[0])
            self.fields = _largest(identity, self.fields)
            self.add("Add", "identity")
            if layer.activation:
                self.add(ACTIVATION_NAMES[layer.activation_type])
        self.run = 0


def _joined(runs: Iterable[tuple[int, int]]) -> _Fields:
    """Those of one field that follow each other as one."""
    fields = ((field, sum(n for _, n in each)) for field, each in itertools.groupby(runs, operator.itemgetter(0)))
    return tuple(fields)


def _part(fields: _Fields, first: int, n: int) -> Iterator[tuple[int, int]]:
    """Those of `n` channels from `first` on."""
    for field, length in fields:
        inside = min(length, first + n) - max(0, first)
        if inside > 0:
            yield field, inside
        first -= length


def _by_group(fields: _Fields, size: int) -> Iterator[tuple[int, int]]:
    """The largest of every group of `size` channels, and of how many groups."""
    most, missing = 0, size
    for field, n in fields:
        while n:
            whole = n // size if missing == size else 0
            if whole:
                yield field, whole
                n -= whole * size
                continue
            taken = min(n, missing)
            most, missing, n = max(most, field), missing - taken, n - taken
            if not missing:
                yield most, 1
                most, missing = 0, size


def _largest(some: _Fields, others: _Fields) -> _Fields:
    """The larger one of each channel."""
    if len(some) == len(others) == 1:
        return max(some, others)
    left, right, found = list(reversed(some)), list(reversed(others)), list[tuple[int, int]]()
    while left:
        (one, n), (other, m) = left.pop(), right.pop()
        both = min(n, m)
        found.append((max(one, other), both))
        if n > both:
            left.append((one, n - both))
        if m > both:
            right.append((other, m - both))
    return _joined(found)


def _trace(architecture: Architecture) -> tuple[Operation, ...]:
    trace = _Trace((architecture.in_channels, architecture.image_size, architecture.image_size))
    for index, layer in enumerate(architecture.layers):
        trace.layer = index
        if isinstance(layer, Residual):
            trace.repeat(layer)
        else:
            trace.follow(layer)
    trace.layer = len(architecture.layers)
    channels, side, _ = trace.shape
    trace._see((side - 1) * trace.jump, channels)
    trace.add("AvgPool2d", f"global, {side}x{side}", (channels, 1, 1))
    trace.convolve(Conv(architecture.n_classes, kernel=1, bias=architecture.classifier_bias), "classifier")
    return tuple(trace.operations)
