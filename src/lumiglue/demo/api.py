"""The HTTP routes: match two photos, and fetch the pictures and files of a result."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from fastapi import FastAPI, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

import lumiglue
from lumiglue.demo.matching import DEFAULT, Estimator, MatchRequest, Outcome, View
from lumiglue.demo.service import BusyError, Service, TimeLimitError
from lumiglue.errors import LumiglueError, TooLargeError
from lumiglue.matcher.settings import MatchSettings
from lumiglue.pipeline.result import encode_result, result_arrays
from lumiglue.types import PIXELS

Point = tuple[float, float]
Row = tuple[float, float, float]
MEDIA_TYPES = {".npz": "application/octet-stream", ".json": "application/json", ".jpg": "image/jpeg"}


class LayerReply(BaseModel):
    """One layer that ran."""

    layer: int = Field(description="counted from 1")
    matches: int = Field(description="matches that the pair would have after this layer")
    active: int = Field(description="keypoints of both photos that went through this layer")
    pruned: int = Field(description="keypoints of both photos that were pruned earlier")


class MatchReply(BaseModel):
    """The fields of `lumiglue match --out m.json`, with the layers and times."""

    pixels: str = Field(description="the convention of all coordinates")
    points0: list[Point] = Field(description="matched points of the first photo")
    points1: list[Point] = Field(description="their partners, row by row")
    scores: list[float] = Field(description="probability of each match")
    matches: list[tuple[int, int]] = Field(description="rows of keypoints0 and keypoints1")
    keypoints0: list[Point]
    keypoints1: list[Point]
    image_size0: tuple[int, int] = Field(description="width and height")
    image_size1: tuple[int, int]
    stop_layer: int = Field(description="layers that ran; 0 where a photo has no keypoints")
    inliers: list[bool] | None = Field(None, description="inliers of the geometry, one per match")
    fundamental: tuple[Row, Row, Row] | None = None
    homography: tuple[Row, Row, Row] | None = None
    n_layers: int = Field(description="layers that the matcher has")
    layers: list[LayerReply]
    seconds: dict[str, float] = Field(description="wall time of each step")


class ErrorReply(BaseModel):
    """An error, as one sentence."""

    error: str


ERRORS: dict[int | str, dict[str, object]] = {
    400: {"model": ErrorReply, "description": "A photo cannot be read, or a setting cannot be used"},
    413: {"model": ErrorReply, "description": "A photo has too many bytes or pixels"},
    503: {"model": ErrorReply, "description": "Too many requests are waiting"},
    504: {"model": ErrorReply, "description": "The time limit was reached"},
}


def layer_replies(outcome: Outcome) -> list[LayerReply]:
    """Counts matches and points for each layer that ran."""
    replies = []
    for matches in outcome.layers:
        pruned = sum(int((run < matches.stop_layer).sum()) for run in (matches.layers0, matches.layers1))
        total = len(matches.layers0) + len(matches.layers1)
        if matches.stop_layer:
            replies.append(LayerReply(layer=matches.stop_layer, matches=len(matches), active=total - pruned, pruned=pruned))
    return replies


def create_app(service: Service) -> FastAPI:
    """The application without the page. The schema is at /openapi.json. There is no page of documentation, as it would load
    scripts from other sites."""
    app = FastAPI(title="Lumiglue", version=lumiglue.__version__, docs_url=None, redoc_url=None)

    @app.post("/api/match", responses=ERRORS, summary="Match two photos")
    async def match(
        image0: Annotated[UploadFile, File(description="JPEG, PNG, TIFF, WebP, BMP, GIF, JPEG 2000, AVIF or HEIC")],
        image1: Annotated[UploadFile, File()],
        weights: Annotated[str, Form(description="a name that the page offers")] = DEFAULT,
        estimator: Annotated[Estimator, Form(description="model that separates inliers")] = "fundamental",
        max_keypoints: Annotated[int, Form(description="per photo, strongest first")] = 2048,
        score_threshold: Annotated[float | None, Form(description="smallest score; by default the matcher's own")] = None,
        exit_ratio: Annotated[float | None, Form(description="stop once this share is confident; 0: all layers")] = None,
        prune_below: Annotated[float | None, Form(description="prune points of lower matchability; 0: none")] = None,
    ) -> MatchReply:
        """Match two photos as the page does. Errors are `{"error": "one sentence"}`."""
        settings = MatchSettings(score_threshold=score_threshold, exit_ratio=exit_ratio, prune_below=prune_below)
        request = MatchRequest(
            photos=(await image0.read(), await image1.read()),
            weights=weights,
            estimator=estimator,
            max_keypoints=max_keypoints,
            settings=settings,
        )
        token = await service.match(request)
        outcome = service.results.pop(token).outcome  # the reply has all of it
        arrays = {name: value.tolist() for name, value in result_arrays(outcome.result, outcome.geometry).items()}
        return MatchReply(
            pixels=PIXELS, n_layers=outcome.n_layers, layers=layer_replies(outcome), seconds=outcome.seconds, **arrays
        )

    @app.get("/result/{token}/{name}", include_in_schema=False)
    async def file(
        token: str, name: str, colour_by: Literal["score", "inlier"] = "score", stacked: bool = False
    ) -> Response:
        stored = service.result(token)
        layer = re.fullmatch(r"layer-(\d{1,3})\.jpg", name)
        if layer:
            content = await service.picture(token, View(layer=int(layer[1]), stacked=stacked))
        elif name == "matches.jpg":
            content = await service.picture(token, View(colour_by=colour_by, stacked=stacked))
        elif name in ("matches.npz", "matches.json"):
            content = encode_result(Path(name).suffix, stored.outcome.result, stored.outcome.geometry)
        else:
            return JSONResponse({"error": "there is nothing here"}, 404)
        media_type = MEDIA_TYPES[Path(name).suffix]
        return Response(content, media_type=media_type, headers={"Cache-Control": "private, max-age=3600"})

    @app.exception_handler(LumiglueError)
    async def refuse(_: Request, error: LumiglueError) -> JSONResponse:
        status = {TooLargeError: 413, BusyError: 503, TimeLimitError: 504}.get(type(error), 400)
        return JSONResponse({"error": str(error)}, status, headers={"Retry-After": "60"} if status == 503 else None)

    @app.exception_handler(RequestValidationError)
    async def explain(_: Request, error: RequestValidationError) -> JSONResponse:
        first: Mapping[str, object] = error.errors()[0]
        place = first["loc"]
        name = place[-1] if isinstance(place, tuple) else place
        return JSONResponse({"error": f"{name}: {str(first['msg']).lower()}"}, 400)

    return app
