"""`benchmarks/tools/training_photos.py`: which photos training may see, and which of them show one place."""

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).parents[2] / "benchmarks" / "tools" / "training_photos.py"


@pytest.fixture
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("training_photos", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("file", "place"),
    [
        ("sceaux/images_100_7100.jpg", "sceaux"),
        ("tlliao/TwoImage_Images_12_12_l.jpg", "tlliao/TwoImage_Images_12"),
        ("vggsfm/examples_british_museum_images_78600497_407639599.jpg", "vggsfm/examples_british_museum"),
        ("liberty/images_video3_0052.jpg", "liberty/images_video3"),
        ("liberty/images_2252182845_180809de97_o.jpg", "liberty"),
        ("camvid/CamVid_test_Seq05VD_f00690.jpg", "camvid/CamVid_test_Seq05VD"),
        ("boofcv/example_stitch_kayak_07.jpg", "boofcv/example_stitch_kayak"),
        ("boofcv/example_recognition_pixabay_frog02.jpg", None),
        ("imagenet/n02971356_carton.jpg", None),
    ],
)
def test_places_are_told_by_the_names_of_files(tool: Any, file: str, place: str | None) -> None:
    assert tool.place_of({"file": file}) == place


def test_a_scene_is_a_place(tool: Any) -> None:
    assert tool.place_of({"file": "dut/067.jpg", "scene": "dut_fcase_foundation"}) == "dut_fcase_foundation"


@pytest.mark.parametrize("count", [2, 8, 9, 16, 17, 68])
def test_large_places_are_cut_into_folders_of_neighbours(tool: Any, count: int) -> None:
    files = [f"{k:03}.jpg" for k in range(count)]
    folders = tool.folders_of_place(reversed(files), 8, random.Random(0))
    assert sorted(file for folder in folders for file in folder) == files
    assert all(2 <= len(folder) <= 8 for folder in folders)
    assert all(int(folder[-1][:3]) - int(folder[0][:3]) < 16 for folder in folders)


def test_the_photos_of_the_yardstick_are_left_out(tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = json.loads(tool.HELD_OUT.read_text())
    rows = [
        *({"file": f"terrace/{k}.jpg", "scene": "terrace"} for k in range(3)),
        *({"file": f"dut/{k}.jpg", "scene": scene} for k, scene in enumerate(held_out["dut_pairs"])),
        *({"file": file} for file in held_out["photos"]),
        *({"file": f"carwall/{k}.jpg", "scene": "carwall"} for k in range(3)),
        {"file": "kronan/0.jpg", "scene": "kronan"},
        {"file": "urban100/CUrban100_img_001.jpg"},
        *({"file": f"imagenet/{k:02}.jpg"} for k in range(12)),
    ]
    for row in rows:
        (tmp_path / "photos" / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / row["file"]).write_text(row["file"])
    (tmp_path / "photos" / "photos.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    monkeypatch.setattr("sys.argv", ["training_photos.py", str(tmp_path), "-o", str(tmp_path / "out")])
    tool.main()
    written = {str(file.relative_to(tmp_path / "out")): file.read_text() for file in (tmp_path / "out").rglob("*.jpg")}
    assert {name for name in written if not name.startswith("singles")} == {
        "facades/urban100-CUrban100_img_001.jpg", *(f"places/carwall-0/carwall-{k}.jpg" for k in range(3)),
    }  # fmt: skip
    assert sorted(file for name, file in written.items() if name.startswith("singles")) == [
        f"imagenet/{k:02}.jpg" for k in range(12)
    ]
    assert {name.split("/")[1] for name in written if name.startswith("singles")} == {str(k) for k in range(10)}
