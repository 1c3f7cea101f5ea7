"""A matcher as one ONNX file, for ONNX Runtime and OpenVINO, for OpenCV, or for COLMAP."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import onnx_ir as ir

from lumiglue.errors import InputError
from lumiglue.matcher.lightglue import LightGlue
from lumiglue.matcher.models import MatcherModel, model_name
from lumiglue.matcher.settings import MatchSettings
from lumiglue.onnx import builder, graph
from lumiglue.onnx.batched import BatchedGraph
from lumiglue.types import PIXELS

Layout = Literal["lumiglue", "batch", "opencv", "colmap"]
OnnxPrecision = Literal["fp32", "fp16", "int8"]
METADATA_KEY = "lumiglue"


@dataclass(frozen=True, kw_only=True)
class OnnxSettings:
    """What is fixed in an exported file besides the weights.

    Attributes:
        layout: Names and shapes of inputs and outputs. "lumiglue": keypoints in pixels. "batch": the same for several pairs
            at once, padded to the largest, with counts; not in int8, whose one scale would mix the pairs. "opencv": what
            `cv2.LightGlueMatcher` feeds, at full depth, because its engine cannot run a graph whose sizes change. "colmap":
            COLMAP's SIFT_LIGHTGLUE and ALIKED_LIGHTGLUE.
        precision: "fp32"; "fp16": weights and states; "int8": the layers' linear maps, with activations quantized
            dynamically.
        match: Thresholds and adaptivity.

    Raises:
        InputError: The layout or the precision is unknown.
    """

    layout: Layout = "lumiglue"
    precision: OnnxPrecision = "fp32"
    match: MatchSettings = field(default_factory=MatchSettings)

    def __post_init__(self) -> None:
        for name, choices in (("layout", get_args(Layout)), ("precision", get_args(OnnxPrecision))):
            if getattr(self, name) not in choices:
                raise InputError(f"unknown {name} {getattr(self, name)!r}; choose from {list(choices)}")


def export_onnx(model: MatcherModel, path: str | Path, settings: OnnxSettings | None = None) -> None:
    """Writes a matcher as an ONNX file.

    The "lumiglue" layout, where n is any number, 0 included, and d the width of the descriptors:

    | input | shape | |
    |---|---|---|
    | keypoints0, keypoints1 | (n, 2) float32 | pixels (x, y), centre of the top-left pixel at (0, 0) |
    | descriptors0, descriptors1 | (n, d) float32 | |
    | image_size0, image_size1 | (2,) float32 | width, height |
    | scales0, scales1, orientations0, orientations1 | (n,) float32 | if the matcher's encoding sees them |

    | output | shape | |
    |---|---|---|
    | matches | (k, 2) int64 | rows in image 0 and image 1 |
    | scores | (k,) float32 | P_ij |
    | stop_layer | () int64 | layers that ran |
    | layers0, layers1 | (n,) int64 | layers that each point went through |

    The "batch" layout has a first dimension b for the pairs everywhere, and the inputs counts0, counts1, (b,) int64. What is
    behind the counts is ignored; n is at least 1, counts may be 0. Its `matches` are (k, 3): number of the pair, row in
    image 0, row in image 1.

    Args:
        model: A LightGlue matcher.
        path: The .onnx file to write; its folder is created if it does not exist.
        settings: Layout, precision and thresholds; None takes the defaults.

    Raises:
        InputError: The matcher cannot be exported, or not in this layout, or the file is not named .onnx.
    """
    settings, path = settings or OnnxSettings(), Path(path)
    if not isinstance(model, LightGlue):
        raise InputError(f"only LightGlue is exported, not {model_name(model.config)}")
    if path.suffix != ".onnx":
        raise InputError(f"{path} does not end in .onnx; rename it")
    exported = build(model, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(exported, path)


def build(model: LightGlue, settings: OnnxSettings) -> ir.Model:
    """The graph of `export_onnx`."""
    return _LAYOUTS[settings.layout](model, settings)


def read_onnx_metadata(path: str | Path) -> dict:
    """The metadata of a file that `export_onnx` wrote.

    Args:
        path: The file.

    Returns:
        Model, config, layout, precision, thresholds and the pixel convention.

    Raises:
        InputError: The file does not exist, or `export_onnx` did not write it.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; write one with `lumiglue export onnx`")
    try:
        metadata = json.loads(ir.load(path).metadata_props[METADATA_KEY])
    except Exception as error:  # protobuf and onnx_ir document no exceptions
        metadata = type(error).__name__
    if not isinstance(metadata, dict):
        raise InputError(f"{path} was not written by `lumiglue export onnx` ({metadata}); export it again")
    return metadata


def _metadata(model: LightGlue, settings: OnnxSettings) -> dict[str, str]:
    metadata = {
        "model": "lightglue", "config": asdict(model.config), "layout": settings.layout,
        "precision": settings.precision, "match": asdict(settings.match.completed(model.own_settings)), "pixels": PIXELS,
    }  # fmt: skip
    return {METADATA_KEY: json.dumps(metadata)}


def _batch(model: LightGlue, settings: OnnxSettings) -> ir.Model:
    if settings.precision == "int8":
        raise InputError("the layout 'batch' has no int8, whose single scale would mix the pairs; choose fp32 or fp16")
    g = builder.Builder()
    writer = BatchedGraph(model, settings.match, half=settings.precision == "fp16")
    inputs: list[ir.Value] = []
    positions, descriptors, counts = [], [], []
    for side in (0, 1):
        n = f"n{side}"
        keypoints = builder.tensor_input(f"keypoints{side}", builder.FLOAT, ("b", n, 2))
        descriptor = builder.tensor_input(f"descriptors{side}", builder.FLOAT, ("b", n, model.config.descriptor_dim))
        size = builder.tensor_input(f"image_size{side}", builder.FLOAT, ("b", 2))
        count = builder.tensor_input(f"counts{side}", builder.INT64, ("b",))
        inputs += [keypoints, descriptor, size, count]
        xy = _normalised(g, keypoints, g("Unsqueeze", size, g.integers(1)))
        if model.config.encoding != "xy":
            names = ("scales", "orientations")
            optional = [builder.tensor_input(f"{name}{side}", builder.FLOAT, ("b", n)) for name in names]
            inputs += optional
            xy = _with_scale(g, model, xy, *optional)
        positions.append(xy)
        descriptors.append(descriptor)
        counts.append(count)
    assignment = writer.batch(g, positions, descriptors, counts)
    outputs = [
        builder.as_output(g, assignment.pairs, "matches", builder.INT64, ("k", 3)),
        builder.as_output(g, assignment.scores, "scores", builder.FLOAT, ("k",)),
        builder.as_output(g, assignment.stop_layer, "stop_layer", builder.INT64, ("b",)),
        builder.as_output(g, assignment.layers0, "layers0", builder.INT64, ("b", "n0")),
        builder.as_output(g, assignment.layers1, "layers1", builder.INT64, ("b", "n1")),
    ]
    return builder.finish(g, inputs, outputs, _metadata(model, settings))


def _writer(model: LightGlue, settings: OnnxSettings) -> tuple[builder.Builder, graph.LightGlueGraph]:
    precision = settings.precision
    writer = graph.LightGlueGraph(model, settings.match, half=precision == "fp16", integer=precision == "int8")
    return builder.Builder(), writer


def _normalised(g: builder.Builder, keypoints: ir.Value, size: ir.Value) -> ir.Value:
    """(keypoints - size / 2) / (max(size) / 2), as `matcher.inputs.normalize_positions`; size is (2,) or (b, 1, 2)."""
    half = g("Mul", size, g.constant(0.5))
    return g("Div", g("Sub", keypoints, half), g("ReduceMax", half, axes=[-1], keepdims=1))


def _with_scale(g: builder.Builder, model: LightGlue, xy: ir.Value, scales: ir.Value, orientations: ir.Value) -> ir.Value:
    scales = g("Log", scales) if model.config.encoding == "xy-logscale-angle" else scales
    columns = (g("Unsqueeze", column, g.integers(-1)) for column in (scales, orientations))
    return g("Concat", xy, *columns, axis=-1)


def _lumiglue(model: LightGlue, settings: OnnxSettings) -> ir.Model:
    g, writer = _writer(model, settings)
    inputs: list[ir.Value] = []
    positions, descriptors = [], []
    for side in (0, 1):
        n = f"n{side}"
        keypoints = builder.tensor_input(f"keypoints{side}", builder.FLOAT, (n, 2))
        descriptor = builder.tensor_input(f"descriptors{side}", builder.FLOAT, (n, model.config.descriptor_dim))
        size = builder.tensor_input(f"image_size{side}", builder.FLOAT, (2,))
        inputs += [keypoints, descriptor, size]
        xy = _normalised(g, keypoints, size)
        if model.config.encoding != "xy":
            optional = [builder.tensor_input(f"{name}{side}", builder.FLOAT, (n,)) for name in ("scales", "orientations")]
            inputs += optional
            xy = _with_scale(g, model, xy, *optional)
        positions.append(xy)
        descriptors.append(descriptor)
    assignment = writer.assignment(g, positions, descriptors)
    outputs = [
        builder.as_output(g, assignment.pairs, "matches", builder.INT64, ("k", 2)),
        builder.as_output(g, assignment.scores, "scores", builder.FLOAT, ("k",)),
        builder.as_output(g, assignment.stop_layer, "stop_layer", builder.INT64, ()),
        builder.as_output(g, assignment.layers0, "layers0", builder.INT64, ("n0",)),
        builder.as_output(g, assignment.layers1, "layers1", builder.INT64, ("n1",)),
    ]
    return builder.finish(g, inputs, outputs, _metadata(model, settings))


def _opencv(model: LightGlue, settings: OnnxSettings) -> ir.Model:
    """kpts (1, n, 2) normalised, desc (1, n, d) -> matches0 (k, 2), mscores0 (k).

    OpenCV divides x by half the width and y by half the height, where LightGlue divides both by half the longer side. Only
    differences of positions matter, so `setPairInfo` with the longer side as width and height gives the right ones.
    """
    settings = replace(settings, match=replace(settings.match, exit_ratio=0, prune_below=0))
    if model.config.encoding != "xy":
        raise InputError("cv2.LightGlueMatcher passes positions only; this matcher also needs scales and orientations")
    g, writer = _writer(model, settings)
    inputs, (positions, descriptors) = _batched_inputs(g, 1, 2, model.config.descriptor_dim)
    assignment = writer.assignment(g, positions, descriptors)
    outputs = [
        builder.as_output(g, assignment.pairs, "matches0", builder.INT64, ("k", 2)),
        builder.as_output(g, assignment.scores, "mscores0", builder.FLOAT, ("k",)),
    ]
    return builder.finish(g, inputs, outputs, _metadata(model, settings))


def _colmap(model: LightGlue, settings: OnnxSettings) -> ir.Model:
    """kpts (1, n, 2) pixels, desc (1, n, d), image_size (1, 2), for SIFT scales and oris (1, n) -> for each point of image 0
    matches0 (n), its row in image 1 or -1, and mscores0 (n)."""
    g, writer = _writer(model, settings)
    inputs, (keypoints, descriptors) = _batched_inputs(g, "b", "two", "d")  # COLMAP requires that no size is fixed
    sizes = [builder.tensor_input(f"image_size{side}", builder.FLOAT, ("b", "two")) for side in (0, 1)]
    inputs += sizes
    flat = [g("Squeeze", size, g.integers(0)) for size in sizes]
    positions = [_normalised(g, k, size) for k, size in zip(keypoints, flat, strict=True)]
    if model.config.encoding != "xy":
        optional = [
            [builder.tensor_input(f"{name}{side}", builder.FLOAT, ("b", f"n{side}")) for side in (0, 1)]
            for name in ("scales", "oris")
        ]
        inputs += [value for pair in optional for value in pair]
        scales, angles = ([g("Squeeze", value, g.integers(0)) for value in pair] for pair in optional)
        positions = [_with_scale(g, model, *values) for values in zip(positions, scales, angles, strict=True)]
    assignment = writer.assignment(g, positions, descriptors)
    rows, partners = (g("Gather", assignment.pairs, g.number(side), axis=1) for side in (0, 1))
    count = g("Shape", assignment.layers0)
    none = g("Expand", g.number(-1), count)
    matches = g("ScatterElements", none, rows, partners, axis=0)
    scores = g("ScatterElements", g("Expand", g.constant(0.0), count), rows, assignment.scores, axis=0)
    outputs = [
        builder.as_output(g, matches, "matches0", builder.INT64, ("n0",)),
        builder.as_output(g, scores, "mscores0", builder.FLOAT, ("n0",)),
    ]
    return builder.finish(g, inputs, outputs, _metadata(model, settings))


def _batched_inputs(
    g: builder.Builder, batch: int | str, two: int | str, width: int | str
) -> tuple[list[ir.Value], tuple[Sequence[ir.Value], Sequence[ir.Value]]]:
    """Inputs kpts0, kpts1, desc0, desc1 with a leading 1, and the same without it."""
    kpts = [builder.tensor_input(f"kpts{side}", builder.FLOAT, (batch, f"n{side}", two)) for side in (0, 1)]
    desc = [builder.tensor_input(f"desc{side}", builder.FLOAT, (batch, f"n{side}", width)) for side in (0, 1)]
    inside = tuple([g("Squeeze", value, g.integers(0)) for value in values] for values in (kpts, desc))
    return [*kpts, *desc], (inside[0], inside[1])


_LAYOUTS = {"lumiglue": _lumiglue, "batch": _batch, "opencv": _opencv, "colmap": _colmap}
