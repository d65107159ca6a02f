"""ANTsPy's ``build_template`` (Avants et al., NeuroImage 2010) with its defaults, then one registration of its template to every subject.

    python build_ants_template.py --out DIR --threads N IMAGE ...

DIR gets template.nii.gz, NAME/ with the transforms template -> subject, and record.json: seconds of the building alone, and of each subject the
names of its transform files in the order in which a template point is carried. It knows nothing of the library under test.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import ants

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("images", type=Path, nargs="+")
a = parser.parse_args()
a.out.mkdir(parents=True, exist_ok=True)
images = [ants.image_read(str(path)) for path in a.images]
began, worked = time.perf_counter(), time.process_time()
template = ants.build_template(image_list=images)
seconds, cpu = time.perf_counter() - began, time.process_time() - worked
ants.image_write(template, str(a.out / "template.nii.gz"))
maps = {}
for path, image in zip(a.images, images):
    name = path.name.split(".")[0]
    (a.out / name).mkdir(exist_ok=True)
    result = ants.registration(template, image, "SyN", outprefix=str(a.out / name / "ants_"))
    maps[name] = [f"{name}/{Path(file).name}" for file in result["fwdtransforms"]]
record = {"seconds": seconds, "cpu_seconds": cpu, "transforms": maps, "versions": {"antspyx": version("antspyx")}}
(a.out / "record.json").write_text(json.dumps(record), "utf-8")
