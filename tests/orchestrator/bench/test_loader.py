"""`mirage bench loader`, beside a stand-in for the release's dataset class; the real one is the user's checkout."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator.bench.__main__ import main
from orchestrator.bench.raw_datasets import (
    DATASETS,
    PHOTOGRAPHS_AS_JPEG,
    RawSource,
    create_files,
    photographs,
)
from orchestrator.bench.transforms import Compose, RandomCrop, ToPILImage, ToTensor

CHECKOUT = """
import os, random
import numpy as np
from PIL import Image
from torchvision.transforms import Compose, RandomCrop, ToPILImage, ToTensor
from utils.augmenting import random_augmentation

PAIRS = {3: ("Derain/rainy", "Derain/gt"), 4: ("Dehaze/synthetic", "Dehaze/original"),
         5: ("Deblur/blur", "Deblur/sharp"), 6: ("Enhance/low", "Enhance/gt")}
CLEAN = {3: lambda n: n.replace("rain-", "norain-"), 4: lambda n: n.split("_")[0] + ".jpg"}

class AnyIRTrainDataset:
    def __init__(self, args):
        self.size, self.tensor = args.patch_size, ToTensor()
        self.root = os.path.dirname(args.denoise_dir.rstrip("/"))
        self.crop_transform = Compose([ToPILImage(), RandomCrop(args.patch_size)])
        codes = {"derain": 3, "dehaze": 4, "deblur": 5, "enhance": 6}
        self.sample_ids = []
        if "denoise_15" in args.de_type:
            with open(args.data_file_dir + "noisy/denoise.txt") as listed:
                names = [line.strip() for line in listed]
            self.sample_ids += [{"clean_id": args.denoise_dir + name, "de_type": code}
                                for code in range(3) for name in names]
        for code in [codes[t] for t in args.de_type if t in codes]:
            folder = os.path.join(self.root, PAIRS[code][0])
            for name in os.listdir(folder):
                path = name if code > 4 else os.path.join(folder, name)
                self.sample_ids.append({"clean_id": path, "de_type": code})

    def image(self, path):
        image = np.array(Image.open(path).convert("RGB"))
        h, w = image.shape[0] % 16, image.shape[1] % 16
        return image[h // 2 : image.shape[0] - h + h // 2, w // 2 : image.shape[1] - w + w // 2]

    def __getitem__(self, index):
        code, name = self.sample_ids[index]["de_type"], os.path.basename(self.sample_ids[index]["clean_id"])
        if code < 3:
            patch = np.array(self.crop_transform(self.image(self.sample_ids[index]["clean_id"])))
            clean = random_augmentation(patch)[0]
            return [name, code], self.tensor(clean), self.tensor(clean)
        degraded, clean = PAIRS[code]
        pair = [self.image(os.path.join(self.root, degraded, name)),
                self.image(os.path.join(self.root, clean, CLEAN.get(code, lambda n: n)(name)))]
        top, left = (random.randint(0, side - self.size) for side in pair[0].shape[:2])
        pair = random_augmentation(*(p[top : top + self.size, left + SHIFT : left + SHIFT + self.size] for p in pair))
        return [name, code], self.tensor(pair[0]), self.tensor(pair[1])
"""

AUGMENTING = """
import random
import numpy as np

def random_augmentation(*images):
    mode = random.randint(1, 7)
    turned = [np.rot90(image, mode // 2) for image in images]
    return [(np.flipud(image) if mode % 2 else image).copy() for image in turned]
"""


def checkout(folder: Path, shift: int) -> Path:
    (folder / "utils").mkdir(parents=True)
    (folder / "utils" / "dataset_utils.py").write_text(textwrap.dedent(CHECKOUT).replace("SHIFT", str(shift)))
    (folder / "utils" / "augmenting.py").write_text(textwrap.dedent(AUGMENTING))
    return folder


@pytest.mark.slow
def test_crops_are_proved_equal_and_every_set_and_mixture_is_measured(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("orchestrator.bench.loader.PHOTOGRAPHS_AS_JPEG", PHOTOGRAPHS_AS_JPEG[:1])
    file = tmp_path / "figures.json"
    release = checkout(tmp_path / "release", shift=0)
    options = [
        "--images",
        "2",
        "--batches",
        "1",
        "--repeats",
        "1",
        "--work",
        str(tmp_path),
        "--json",
        str(file),
    ]
    assert main(["loader", "--release", str(release), *options]) == 0
    figures = json.loads(file.read_text())
    rows = figures["rows"]
    assert [row["name"] for row in rows] == [
        *(s.name for s in (*DATASETS, PHOTOGRAPHS_AS_JPEG[0])),
        "3-degradation mixture",
        "5-degradation mixture",
    ]
    for row in rows:
        assert row["bit_equal"] == 64
        has_jpeg = row["name"] in ("BSD400", "OTS", "720p") or "mixture" in row["name"]
        assert ("cut_ratio" in row) == has_jpeg
        assert row["ours_per_second"] > 0 < row["ours_s3_cold_per_second"]
    assert [each["name"] for each in figures["pipelines"]] == ["BSD400", "WED", "720p"]
    assert all(each["no pipeline"] > each["Real-ESRGAN, second order"] > 0 for each in figures["pipelines"])
    assert str(tmp_path) not in file.read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("mirage-bench")] == []
    assert "quartiles" in capsys.readouterr().out


def test_a_crop_that_differs_by_one_pixel_is_found_and_nothing_is_measured(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(
        "orchestrator.bench.loader.DATASETS", tuple(s for s in DATASETS if s.name == "Rain100L")
    )
    release = checkout(tmp_path / "release", shift=-1)
    options = ["--images", "3", "--no-s3", "--work", str(tmp_path)]
    assert main(["loader", "--release", str(release), *options]) == 2
    assert "differs from the release's. Nothing was measured." in capsys.readouterr().err


def test_a_folder_that_is_no_checkout_is_said(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(
        "orchestrator.bench.loader.DATASETS", tuple(s for s in DATASETS if s.name == "BSD400")
    )
    assert (
        main(["loader", "--release", str(tmp_path), "--images", "2", "--no-s3", "--work", str(tmp_path)]) == 2
    )
    assert "git clone https://github.com/Amazingren/MIRAGE" in capsys.readouterr().err


def test_the_stand_ins_do_what_torchvision_s_do() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    torch.manual_seed(3)
    cropped = np.asarray(Compose([ToPILImage(), RandomCrop(16)])(image))
    places = [
        (y, x) for y in range(25) for x in range(35) if (image[y : y + 16, x : x + 16] == cropped).all()
    ]
    assert len(places) == 1
    floats = ToTensor()(image)
    assert floats.shape == (3, 40, 50)
    assert torch.equal((floats * 255).round().to(torch.uint8), torch.from_numpy(image).permute(2, 0, 1))


def test_files_are_laid_out_in_the_sizes_and_formats_of_the_datasets(tmp_path: Path) -> None:
    raw = next(s for s in DATASETS if s.name == "Rain100L")
    create_files(tmp_path, raw, photographs(None), 2, seed=0)
    with (
        Image.open(tmp_path / "Derain/rainy/rain-1.png") as rainy,
        Image.open(tmp_path / "Derain/gt/norain-1.png") as gt,
    ):
        assert rainy.size == gt.size == (481, 321)
        assert np.asarray(rainy).mean() > np.asarray(gt).mean()
    assert [pair.id for pair in RawSource(tmp_path, (raw,), 2)] == [
        "Derain/rainy/rain-1.png",
        "Derain/rainy/rain-2.png",
    ]
