"""Pairs of photos with the labels of a teacher: positives as lines, unmatchable keypoints as blue dots, others grey.

    python benchmarks/tools/look_at_taught.py PHOTOS -o PICTURES --teacher aliked-lightglue --features sift --scenes 8

Writes a picture for each pair of some scenes of PHOTOS, which are spread over the folder. With --teacher-matches, results of
`lumiglue dataset teach --teacher-matches` with the same settings are reused.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from lumiglue.errors import ImageError
from lumiglue.extractors import create_extractor
from lumiglue.images import read_image, resize_long_side
from lumiglue.training.data.taught import PairLabels
from lumiglue.training.data.teacher import Teacher
from lumiglue.training.data.teaching import TaughtPhotos

ZOOM = 2
POSITIVE, UNMATCHABLE, IGNORED = (80, 200, 60), (50, 90, 235), (150, 150, 150)


def draw(images: list[np.ndarray], keypoints: list[np.ndarray], labels: PairLabels, lines: int = 60) -> np.ndarray:
    """One picture of a pair, RGB; of the positives, `lines` are drawn as lines, the others as dots."""
    height, offset = max(image.shape[0] for image in images), images[0].shape[1]
    canvas = np.full((height, offset + images[1].shape[1], 3), 255, np.uint8)
    for image, x in zip(images, (0, offset), strict=True):
        canvas[: image.shape[0], x : x + image.shape[1]] = image[..., None] if image.ndim == 2 else image
    canvas = cv2.resize(canvas, None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_LINEAR)
    places = [
        np.rint(ZOOM * (points + np.array([x, 0]))).astype(int) for points, x in zip(keypoints, (0, offset), strict=True)
    ]
    matches = labels.matches()
    for side, (points, alone) in enumerate(zip(places, labels.unmatchable(), strict=True)):
        positive = np.isin(np.arange(len(points)), matches[:, side])
        for point, is_alone, is_positive in zip(points.tolist(), alone, positive, strict=True):
            colour = POSITIVE if is_positive else UNMATCHABLE if is_alone else IGNORED
            cv2.circle(canvas, point, 3, colour, -1, cv2.LINE_AA)
    for i, j in matches[np.random.default_rng(0).permutation(len(matches))[:lines]].tolist():
        cv2.line(canvas, places[0][i].tolist(), places[1][j].tolist(), POSITIVE, 1, cv2.LINE_AA)
    alone = " and ".join(str(int(mask.sum())) for mask in labels.unmatchable())
    text = f"{len(matches)} positives, {alone} unmatchable"
    cv2.putText(canvas, text, (12, 28), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 5, cv2.LINE_AA)
    cv2.putText(canvas, text, (12, 28), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 0, 0), 2, cv2.LINE_AA)
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of folders of overlapping photos")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--teacher", default="aliked-lightglue")
    parser.add_argument("--teacher-features")
    parser.add_argument("--teacher-keypoints", type=int, default=2048)
    parser.add_argument("--teacher-matches", type=Path)
    parser.add_argument("--neighbours", type=int, default=6)
    parser.add_argument("--features", default="sift")
    parser.add_argument("--max-keypoints", type=int, default=2048)
    parser.add_argument("--scenes", type=int, default=8)
    args = parser.parse_args()
    teacher = Teacher.named(args.teacher, args.teacher_features, max_keypoints=args.teacher_keypoints)
    source = TaughtPhotos.of_folder(args.photos, teacher, neighbours=args.neighbours, matches=args.teacher_matches)
    extractor = create_extractor(args.features, max_keypoints=args.max_keypoints, resize=None)
    args.out.mkdir(parents=True, exist_ok=True)
    for item in np.linspace(0, len(source.items) - 1, min(args.scenes, len(source.items))).round().astype(int).tolist():
        try:
            names, views, pairs = source.labelled_photos(item, extractor, args.max_keypoints)
        except ImageError as error:
            print(error)
            continue
        for a, b, _, labels in pairs:
            images = [resize_long_side(read_image(source.root / names[end]), source.long_side) for end in (a, b)]
            keypoints = [views[end].features.keypoints.numpy() for end in (a, b)]
            file = args.out / f"{source.items[item].replace('/', '-')}-{a}-{b}.jpg"
            cv2.imwrite(str(file), draw(images, keypoints, labels)[..., ::-1])
            print(file)


if __name__ == "__main__":
    main()
