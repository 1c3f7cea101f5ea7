"""The page, with Gradio: photos and settings in, pictures, numbers and files out."""

import asyncio
import html
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import FastAPI
from gradio.components import Component
from gradio.themes import Soft

from lumiglue.demo.api import layer_replies
from lumiglue.demo.matching import DEFAULT, MatchRequest, Outcome, View, own_thresholds
from lumiglue.demo.service import Service
from lumiglue.errors import ImageError, InputError, LumiglueError
from lumiglue.matcher.settings import MatchSettings
from lumiglue.samples import sample_pair
from lumiglue.visualization import ColourBy

COLOURS = {"score": "score", "inlier or outlier": "inlier"}
SYSTEM_FONTS = ("system-ui", "sans-serif")
CSS = """
.gradio-container { max-width: 1500px !important; }
#message p { margin: 0; padding: .6rem .8rem; border-radius: 8px; }
#message .error { background: #fdecec; color: #8f1414; }
#message .done { background: var(--background-fill-secondary); }
.picture img { width: 100%; height: auto; display: block; border-radius: 6px; background: #fff; }
.numbers table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; border: 0 !important; }
.numbers tr, .numbers th, .numbers td { border: 0 !important; background: none; }
.numbers th, .numbers td { text-align: right !important; padding: .3rem .4rem !important; }
.numbers tr + tr > *, .numbers tbody tr > * { border-top: 1px solid var(--border-color-primary) !important; }
.numbers th:first-child { text-align: left !important; font-weight: 500; }
.numbers tr.done > * { background: var(--background-fill-primary); font-weight: 600; }
.files a { display: inline-block; margin: 0 .5rem .5rem 0; padding: .45rem .9rem; border-radius: 8px; text-decoration: none;
  border: 1px solid var(--border-color-primary);
  color: var(--body-text-color); background: var(--button-secondary-background-fill); }
footer { display: none !important; }
"""


def _photo(label: str, name: str) -> gr.Image:
    """An image that hands on the path of the file as it was sent: the workers decode it, within limits.

    Set on the object, as Gradio writes a file beside the source of every subclass of a component.
    """
    photo = gr.Image(
        label=label, type="filepath", format="png", image_mode=None, height=260, elem_id=name,
        sources=["upload", "webcam", "clipboard"], buttons=[],
    )  # fmt: skip
    photo.preprocess = lambda payload: None if payload is None else payload.path
    return photo


def _is_upload(path: str | Path) -> bool:
    file, folder = Path(path).resolve(), Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    return "://" not in str(path) and file.is_relative_to(folder)


def _restrict_to_uploads(block: Any) -> None:
    """Restricts a component to files of the upload folder: no other file of the server, and no URL.

    Any value of a request may claim to be a file. Gradio checks its folder only in pages that were started by `launch`; for
    a mounted page it copies any file that is named into the folder from which it serves.
    """
    keep = block.async_move_resource_to_block_cache

    async def keep_upload(path: str | Path | None) -> str | None:
        if path is not None and not _is_upload(path):
            raise gr.Error("send the photo itself, not its path", print_exception=False)
        return await keep(path)

    block.async_move_resource_to_block_cache = keep_upload


def mount(app: FastAPI, service: Service, models: list[str]) -> FastAPI:
    """Adds the page at /. models: weights to choose from."""
    return gr.mount_gradio_app(
        app,
        _Page(service, models).blocks,
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,  # unexpected errors are logged, and not shown
        max_file_size=service.limits.upload_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=Soft(font=SYSTEM_FONTS, font_mono=("ui-monospace", "monospace")),
        css=CSS,
    )


class _Page:
    """The components and their callbacks. It stores nothing of a user; the browser's session has the token of a result."""

    def __init__(self, service: Service, models: list[str]) -> None:
        self.service = service
        with gr.Blocks(title="Lumiglue", analytics_enabled=False, delete_cache=(600, 3600)) as self.blocks:
            gr.Markdown("# Lumiglue\nTwo photos in, correspondences out.")
            self.token = gr.State(None, time_to_live=3600)
            with gr.Row():
                with gr.Column(scale=4, min_width=320):
                    self._photos()
                    self._results()
                with gr.Column(scale=1, min_width=280), gr.Accordion("Settings", open=True):
                    settings = self._settings(models)
            self._wire(settings)
        for block in self.blocks.blocks.values():
            _restrict_to_uploads(block)
        self.blocks.queue(default_concurrency_limit=None)  # the service has the one queue, for page and API

    def _photos(self) -> None:
        with gr.Row():
            self.photos = [_photo("Photo A", "photo-a"), _photo("Photo B", "photo-b")]
        with gr.Row():
            self.match = gr.Button("Match", variant="primary", scale=2, elem_id="match")
            self.samples = gr.Button("Use the sample photos", scale=1, elem_id="samples")
        self.message = gr.HTML(padding=False, elem_id="message")

    def _results(self) -> None:
        with gr.Column(visible=False) as self.results:
            with gr.Tabs():
                with gr.Tab("Matches", id="matches"):
                    self.picture = gr.HTML(padding=False, elem_id="picture", elem_classes="picture")
                    self.colour = gr.Radio(list(COLOURS.items()), value="score", label="Lines coloured by", elem_id="colour")
                with gr.Tab("Layer by layer", id="layers"):
                    self.layer_picture = gr.HTML(padding=False, elem_id="layer-picture", elem_classes="picture")
                    self.layer = gr.Slider(1, 9, value=1, step=1, label="Layer", elem_id="layer", buttons=[])
                    self.layer_table = gr.HTML(padding=False, elem_id="layer-numbers", elem_classes="numbers")
            self.files = gr.HTML(padding=False, elem_id="files", elem_classes="files")
            self.numbers = gr.HTML(padding=False, elem_id="numbers", elem_classes="numbers")

    def _settings(self, models: list[str]) -> list[Component]:
        most = self.service.limits.most_keypoints
        exit_ratio, prune_below = own_thresholds(DEFAULT)
        return [
            gr.Radio(models, value=DEFAULT, label="Features and weights"),
            gr.Radio(["fundamental", "homography", "none"], value="fundamental", label="Geometry", info="separates inliers"),
            gr.Slider(128, most, value=min(2048, most), step=64, label="Keypoints", buttons=[],
                      info="the strongest of each photo"),
            gr.Slider(0, 1, value=0.1, step=0.01, label="Score threshold", info="smallest score of a match", buttons=[]),
            gr.Slider(0, 1, value=exit_ratio, step=0.01, label="Exit ratio", buttons=[],
                      info="stop once this share of the points is confident; 0 runs all layers"),
            gr.Slider(0, 0.5, value=prune_below, step=0.005, label="Prune below", buttons=[],
                      info="prune confident points whose matchability is below this; 0 keeps all points"),
        ]  # fmt: skip

    def _wire(self, settings: list[Component]) -> None:
        outputs = [
            self.token, self.message, self.results, self.picture, self.layer_picture, self.layer, self.layer_table,
            self.files, self.numbers,
        ]  # fmt: skip
        shown: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
        self.match.click(
            self.on_match, [*self.photos, *settings, self.colour], outputs, show_progress_on=self.message, **shown
        )
        weights = settings[0]
        assert isinstance(weights, gr.Radio)
        weights.change(own_thresholds, weights, settings[-2:], show_progress="hidden", **shown)
        self.samples.click(self.on_samples, None, self.photos, **shown)
        self.colour.input(self.on_colour, [self.token, self.colour], [self.picture, self.message], **shown)
        self.layer.change(
            self.on_layer, [self.token, self.layer], [self.layer_picture, self.message], trigger_mode="always_last",
            show_progress="hidden", **shown,
        )  # fmt: skip

    async def on_samples(self) -> tuple[np.ndarray, np.ndarray]:
        return await asyncio.to_thread(_samples)

    async def on_match(
        self, a: str | None, b: str | None, weights: str, estimator: Any, keypoints: float, threshold: float,
        exit_ratio: float, prune_below: float, colour: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        try:
            request = MatchRequest(
                photos=(_sent(a, "A"), _sent(b, "B")),
                weights=weights,
                estimator=estimator,
                max_keypoints=int(keypoints),
                settings=MatchSettings(score_threshold=threshold, exit_ratio=exit_ratio, prune_below=prune_below),
            )
            token = await self.service.match(request)
            outcome = self.service.result(token).outcome
            picture = await self._image(token, View(colour_by=_known(colour)))
            layer = _linked(token, View(layer=max(1, outcome.stop_layer)))  # drawn when the browser asks for it
        except LumiglueError as error:
            return (None, _complaint(error), gr.update(visible=False), *(gr.skip() for _ in range(6)))
        slider = gr.Slider(maximum=outcome.n_layers, value=max(1, outcome.stop_layer))
        return (
            token, _summary(outcome), gr.update(visible=True), picture, layer, slider, _layer_table(outcome), _files(token),
            _numbers(outcome),
        )  # fmt: skip

    async def on_colour(self, token: str | None, colour: Any) -> tuple[Any, Any]:
        return await self._redrawn(token, lambda: View(colour_by=_known(colour)))

    async def on_layer(self, token: str | None, layer: float) -> tuple[Any, Any]:
        return await self._redrawn(token, lambda: View(layer=int(layer)))

    async def _redrawn(self, token: str | None, view: Callable[[], View]) -> tuple[Any, Any]:
        if token is None:
            return gr.skip(), gr.skip()
        try:
            return await self._image(token, view()), gr.skip()
        except LumiglueError as error:
            return gr.skip(), _complaint(error)

    async def _image(self, token: str, view: View) -> str:
        """Draws first, so that an error is shown as a sentence."""
        await self.service.picture(token, view)
        return _linked(token, view)


def _known(colour: Any) -> ColourBy:
    if colour not in COLOURS.values():
        raise InputError(f"unknown colour {colour!r}; choose from {list(COLOURS.values())}")
    return colour


def _linked(token: str, view: View) -> str:
    """The picture for wide screens, or for narrow ones; it opens alone, in full size, when it is clicked."""
    if view.layer is None:
        source, alt = f"/result/{token}/matches.jpg?colour_by={view.colour_by}&amp;", "matches drawn over both photos"
    else:
        source, alt = f"/result/{token}/layer-{view.layer}.jpg?", f"the matches after layer {view.layer}"
    narrow = f'<source media="(max-width: 640px)" srcset="{source}stacked=true">'
    image = f'<picture>{narrow}<img src="{source}stacked=false" alt="{alt}" loading="lazy"></picture>'
    return f'<a href="{source}stacked=false" target="_blank" title="open the picture alone">{image}</a>'


@lru_cache(maxsize=1)
def _samples() -> tuple[np.ndarray, np.ndarray]:
    pair = sample_pair()
    return pair.image0, pair.image1


def _sent(path: str | None, letter: str) -> bytes:
    """The bytes of an uploaded file."""
    if path is None:
        raise InputError(f"photo {letter} is missing; drop one, or use the sample photos")
    if not _is_upload(path) or not Path(path).is_file():
        raise ImageError(f"photo {letter} was removed; send it again")
    return Path(path).read_bytes()


def _complaint(error: LumiglueError) -> str:
    return f'<p class="error" role="alert">{html.escape(str(error))}</p>'


def _summary(outcome: Outcome) -> str:
    result = outcome.result
    if not outcome.stop_layer:
        return '<p class="done">A photo has no keypoints (blank, or under 8 pixels), so there is nothing to match.</p>'
    inliers = f", {int(outcome.geometry.inliers.sum())} of them inliers" if outcome.geometry else ""
    stop = f"done after layer {outcome.stop_layer} of {outcome.n_layers}"
    return f'<p class="done">{len(result)} matches{inliers}; {stop}, {sum(outcome.seconds.values()):.1f} s.</p>'


def _numbers(outcome: Outcome) -> str:
    result, matches = outcome.result, outcome.result.matches
    pruned = [int((run < matches.stop_layer).sum()) for run in (matches.layers0, matches.layers1)]
    sizes = [f"{width} &times; {height}" for width, height in (result.features0.image_size, result.features1.image_size)]
    sides = [
        ("pixels", *sizes),
        ("keypoints", len(result.features0), len(result.features1)),
        ("pruned before the end", *pruned),
    ]
    inliers = [("inliers", int(outcome.geometry.inliers.sum()))] if outcome.geometry else []
    stop = [("layers run", f"{outcome.stop_layer} of {outcome.n_layers}")]
    times = [(f"time: {html.escape(step)}", f"{1000 * seconds:.0f} ms") for step, seconds in outcome.seconds.items()]
    rows = [f"<tr><th>{name}</th><td>{a}</td><td>{b}</td></tr>" for name, a, b in sides]
    rows += [
        f'<tr><th>{name}</th><td colspan="2">{value}</td></tr>'
        for name, value in [("matches", len(result)), *inliers, *stop, *times]
    ]
    return f"<table><thead><tr><th></th><th>photo A</th><th>photo B</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _layer_table(outcome: Outcome) -> str:
    rows = []
    for reply in layer_replies(outcome):
        done = reply.layer == outcome.stop_layer
        note, mark = ("done", ' class="done"') if done else ("", "")
        cells = "".join(f"<td>{value}</td>" for value in (reply.matches, reply.active, reply.pruned, note))
        rows.append(f"<tr{mark}><th>{reply.layer}</th>{cells}</tr>")
    rows += [
        f'<tr><th>{layer}</th><td colspan="4">did not run</td></tr>'
        for layer in range(outcome.stop_layer + 1, outcome.n_layers + 1)
    ]
    head = "<tr><th>layer</th><th>matches</th><th>active points</th><th>pruned</th><th></th></tr>"
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _files(token: str) -> str:
    return "".join(
        f'<a href="/result/{token}/matches.{suffix}" download="matches.{suffix}">Download {what}</a>'
        for suffix, what in (("npz", ".npz"), ("json", ".json"), ("jpg", "the picture"))
    )
