"""Pictures of matches, drawn with OpenCV. They look like the figures of `visualization` and take a tenth of the time."""

import textwrap
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lumiglue.errors import InputError
from lumiglue.io.atomic import write_whole
from lumiglue.types import Features, Geometry, Matches

RASTER_SUFFIXES = (".png", ".jpg", ".jpeg")
_LEAST_WIDTH, _MOST_WIDTH = 900, 1500  # pixels of both photos together
_GAP = 0.02  # between the photos, as a share of their width together
_BACKGROUND = 32
_FONT = 17  # pixels
_BAR = 90  # pixels for the colour bar
_SHIFT = 4  # bits of OpenCV's sub-pixel coordinates


def picture_of_matches(
    image0: np.ndarray,
    image1: np.ndarray,
    features0: Features,
    features1: Features,
    matches: Matches,
    geometry: Geometry | None = None,
    title: str = "",
) -> np.ndarray:
    """Draws matches over both photos: inliers coloured by score, outliers faint, unmatched points small.

    Args:
        image0: h x w x 3, RGB.
        image1: The same.
        features0: Features of image 0.
        features1: Features of image 1.
        matches: Rows of both.
        geometry: A model of the matches; without one, every match is drawn as an inlier.
        title: By default the numbers of matches and inliers.

    Returns:
        h x w x 3, RGB.
    """
    canvas, scale, corners = _side_by_side(image0, image1)
    rows = matches.pairs.cpu().numpy().T
    points = [
        (features.keypoints.cpu().numpy() + 0.5 + corner) * scale - 0.5
        for features, corner in zip((features0, features1), corners, strict=True)
    ]
    layer = canvas.copy()
    for side, row in zip(points, rows, strict=True):
        _dots(layer, np.delete(side, row, axis=0), np.array([[255, 255, 255]]), 1)
    canvas = cv2.addWeighted(layer, 0.55, canvas, 0.45, 0)
    inliers = np.ones(len(matches), bool) if geometry is None else geometry.inliers.cpu().numpy()
    scores = matches.scores.cpu().numpy()
    order = np.argsort(scores, kind="stable")
    good, bad = order[inliers[order]], order[~inliers[order]]
    ends0, ends1 = points[0][rows[0]], points[1][rows[1]]
    colours = _plasma(scores)
    # Many opaque lines would hide the photos.
    opacity = min(0.75, max(0.4, 200 / max(1, len(good))))
    for chosen, line_colours, alpha in ((bad, np.full((len(scores), 3), 255), 0.22), (good, colours, opacity)):
        layer = canvas.copy()
        for start, end, colour in zip(*(_fixed(ends[chosen]) for ends in (ends0, ends1)), line_colours[chosen], strict=True):
            cv2.line(layer, start.tolist(), end.tolist(), colour.tolist(), 1, cv2.LINE_AA, _SHIFT)
        canvas = cv2.addWeighted(layer, alpha, canvas, 1 - alpha, 0)
    for ends in (ends0, ends1):
        _dots(canvas, ends[good], colours[good], 2)
    return _framed(canvas, title or f"{len(matches)} matches, {len(good)} inliers")


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Writes a picture.

    Args:
        picture: h x w x 3, RGB.
        path: The file; its suffix, of `RASTER_SUFFIXES`, chooses the format.

    Raises:
        InputError: The suffix is another one, or the disk is full.
    """
    if path.suffix.lower() not in RASTER_SUFFIXES:
        raise InputError(f"{path} has an unsupported suffix for pictures; use one of {list(RASTER_SUFFIXES)}")
    suffix = path.suffix.lower()
    quality = (cv2.IMWRITE_PNG_COMPRESSION, 3) if suffix == ".png" else (cv2.IMWRITE_JPEG_QUALITY, 92)
    _, data = cv2.imencode(suffix, picture[..., ::-1], quality)
    write_whole(path, data.tobytes())


def _side_by_side(image0: np.ndarray, image1: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Both photos on a dark canvas, centred; its scale, and the top-left corner (x, y) of each before scaling."""
    (height0, width0), (height1, width1) = image0.shape[:2], image1.shape[:2]
    gap = round(_GAP * (width0 + width1))
    width, height = width0 + gap + width1, max(height0, height1)
    corners = np.array([[0, (height - height0) // 2], [width0 + gap, (height - height1) // 2]])
    canvas = np.full((height, width, 3), _BACKGROUND, np.uint8)
    for image, (left, top) in zip((image0, image1), corners, strict=True):
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    scale = min(max(width, _LEAST_WIDTH), _MOST_WIDTH) / width
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(canvas, size, interpolation=how), scale, corners


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.rint(points * 2**_SHIFT).astype(int)


def _dots(canvas: np.ndarray, points: np.ndarray, colours: np.ndarray, radius: int) -> None:
    for centre, colour in zip(_fixed(points), np.broadcast_to(colours, (len(points), 3)), strict=True):
        cv2.circle(canvas, centre.tolist(), radius << _SHIFT, colour.tolist(), -1, cv2.LINE_AA, _SHIFT)


def _plasma(values: np.ndarray) -> np.ndarray:
    """n x 3 RGB colours of n values in [0, 1]."""
    grey = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8).reshape(-1, 1)
    return cv2.applyColorMap(grey, cv2.COLORMAP_PLASMA)[:, 0, ::-1].astype(int) if len(grey) else np.zeros((0, 3), int)


def _framed(canvas: np.ndarray, title: str) -> np.ndarray:
    """The canvas on white, with a title above and a colour bar of scores beside it."""
    height, width = canvas.shape[:2]
    font = ImageFont.load_default(_FONT)
    lines = [part for line in title.splitlines() for part in textwrap.wrap(line, max(20, round(width / (0.55 * _FONT))))]
    top = round(1.4 * _FONT * len(lines)) + _FONT
    page = Image.new("RGB", (width + _BAR, top + max(height, 6 * _FONT) + _FONT // 2), "white")
    page.paste(Image.fromarray(canvas), (0, top))
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        draw.text(((width - font.getlength(line)) / 2, _FONT / 2 + 1.4 * _FONT * number), line, fill="black", font=font)
    bar = np.broadcast_to(_plasma(np.linspace(1, 0, height))[:, None], (height, _FONT, 3)).astype(np.uint8)
    page.paste(Image.fromarray(np.ascontiguousarray(bar)), (width + 10, top))
    for value in (0, 0.5, 1):
        y = top + min(max((1 - value) * height - _FONT / 2, 0), height - _FONT)
        draw.text((width + 14 + _FONT, y), f"{value:g}", fill="black", font=font)
    label = Image.new("RGB", (round(font.getlength("match score")) + 1, round(1.4 * _FONT)), "white")
    ImageDraw.Draw(label).text((0, 0), "match score", fill="black", font=font)
    turned = label.rotate(90, expand=True)
    if turned.height + 2 * _FONT < height:
        page.paste(turned, (width + _BAR - turned.width - 2, top + (height - turned.height) // 4))
    return np.array(page)
