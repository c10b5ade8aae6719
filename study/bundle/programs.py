"""A trained network with its normalisation as a program that runs without this project: float32 images [N, 3, H, W] in
[0, 1] -> logits [N, n_classes], for any N.

The packages of ONNX are an extra, and are imported where they are used.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from search_spaces.architecture import Architecture
from study.bundle.preprocessing import CONFIG, Preprocessing
from study.machine.hardware import n_cores
from study.model.network import Deployable, Network, folded

Run = Callable[[np.ndarray], np.ndarray]
"""float32 images [N, 3, H, W] in [0, 1] -> logits float32 [N, n_classes]."""

INPUT, OUTPUT = "images", "logits"
"""What an ONNX file calls them."""
_CHECKED_BATCHES = (1, 2, 7)
_TOLERANCE = 1e-4
_CALIBRATION_BATCH = 100


def torch_program(
    module: torch.nn.Module, architecture: Architecture, preprocessing: Preprocessing
) -> tuple[bytes, torch.nn.Module]:
    """`module` as `torch.export.save` writes it, with the text of config.json beside it, and as that is loaded again.

    Raises:
        RuntimeError: Loaded again, it does not compute what `module` computes.
    """
    size = architecture.image_size
    images = torch.rand(
        max(_CHECKED_BATCHES), architecture.in_channels, size, size, generator=torch.Generator().manual_seed(0)
    )
    # The example has two images: torch treats a dimension of one as a constant.
    program = torch.export.export(module, (images[:2],), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1)}})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, which are nobody's business
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={CONFIG: preprocessing.to_text()})
    content.seek(0)
    loaded = torch.export.load(content).module()
    for n_images in _CHECKED_BATCHES:
        with torch.inference_mode():
            found, expected = loaded(images[:n_images]), module(images[:n_images])
        if not torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
            worst = float((found - expected).abs().max())
            raise RuntimeError(f"The exported program differs from the network by {worst:.3g} at {n_images=}.")
    return content.getvalue(), loaded


def onnx_program(network: Network, preprocessing: Preprocessing) -> bytes:
    """`network` as an ONNX file, with norms folded into convolutions and the entries of config.json as its metadata."""
    module = Deployable(folded(network), preprocessing.mean, preprocessing.std).eval()
    size = preprocessing.image_size
    with _silence():
        program = torch.onnx.export(
            module.to(memory_format=torch.contiguous_format),
            (torch.rand(2, 3, size, size),),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1)}},
        )
    assert program is not None
    model: Any = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces: paths of this machine, which are nobody's business
    _add_metadata(model, preprocessing)
    return bytes(model.SerializeToString(deterministic=True))


def int8_program(program: bytes, images: np.ndarray, preprocessing: Preprocessing) -> bytes:
    """An ONNX file with weights and activations of 8 bits, each channel of a weight with its own scale.

    Weights use 7 of their bits: processors without VNNI add up products of 8 in 16 bits, and saturate.

    Args:
        program: What `onnx_program` gave.
        images: float32 [N, 3, H, W] in [0, 1], which give the ranges of the activations.
        preprocessing: For its metadata.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = iter(np.array_split(images, max(1, len(images) // _CALIBRATION_BATCH)))

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(batches, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory() as folder, _silence():
        given, prepared, made = (Path(folder) / f"{name}.onnx" for name in ("given", "prepared", "made"))
        given.write_bytes(program)
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            made,
            Batches(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        model = onnx.load(made)
    _add_metadata(model, preprocessing)
    return bytes(model.SerializeToString(deterministic=True))


def run_by_torch(module: torch.nn.Module) -> Run:
    """`module` on NumPy's arrays, on the CPU."""

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(images)).numpy())

    return run


def run_by_onnxruntime(program: bytes) -> Run:
    """An ONNX file on this process's cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_cores()  # it would count those of the machine
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        return np.asarray(session.run([OUTPUT], {INPUT: images})[0])

    return run


def _add_metadata(model: Any, preprocessing: Preprocessing) -> None:
    import json

    import onnx

    values = {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in preprocessing.to_json().items()
    }
    onnx.helper.set_model_props(model, values)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without what exporters and quantisers say of themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
