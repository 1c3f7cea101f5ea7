"""Structure from motion over folders of photos with pycolmap, on the CPU: the models behind `lumiglue dataset from-colmap`.

    python benchmarks/collections/reconstruct_photos.py PHOTOS/southbuilding -o sfm/southbuilding --one-camera

Makes OUT/database.db and one COLMAP model a connected part, OUT/0, OUT/1, ... (largest first).
"""

import argparse
import sys
from pathlib import Path

import pycolmap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--one-camera", action="store_true", help="all photos come from one camera at one zoom and size")
    parser.add_argument("--prefix", default="", help="take only the photos whose name starts so")
    parser.add_argument(
        "--peak-threshold", type=float, default=0.02 / 3, help="of SIFT; lower finds more points in dull photos"
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    names = sorted(path.name for path in args.photos.iterdir() if path.name.startswith(args.prefix))
    args.out.mkdir(parents=True, exist_ok=True)
    database = args.out / "database.db"
    database.unlink(missing_ok=True)
    pycolmap.set_random_seed(0)
    pycolmap.logging.minloglevel = 1

    extraction = pycolmap.FeatureExtractionOptions()
    extraction.num_threads, extraction.use_gpu = args.threads, False
    extraction.sift.peak_threshold = args.peak_threshold
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = "SIMPLE_RADIAL"
    mode = pycolmap.CameraMode.SINGLE if args.one_camera else pycolmap.CameraMode.PER_IMAGE
    pycolmap.extract_features(
        database, args.photos, names, camera_mode=mode, reader_options=reader, extraction_options=extraction
    )
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads, matching.use_gpu = args.threads, False
    pycolmap.match_exhaustive(database, matching_options=matching)
    mapping = pycolmap.IncrementalPipelineOptions()
    mapping.num_threads, mapping.min_model_size, mapping.random_seed = args.threads, 5, 0
    models = pycolmap.incremental_mapping(database, args.photos, args.out, mapping)
    for number, model in models.items():
        sys.stdout.write(
            f"{args.out.name}/{number}: {model.num_reg_images()} of {len(names)} photos, {model.num_points3D()} points, "
            f"mean track {model.compute_mean_track_length():.2f}, "
            f"mean reprojection error {model.compute_mean_reprojection_error():.3f} px\n"
        )
    if not models:
        sys.stdout.write(f"{args.out.name}: nothing reconstructed from {len(names)} photos\n")


if __name__ == "__main__":
    main()
