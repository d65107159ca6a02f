"""Surfaces with values at their vertices as VTK XML files (.vtp, LPS mm), which 3D Slicer and ParaView read; written without VTK."""

from __future__ import annotations

import base64
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

TYPES = {"f": ("Float32", "<f4"), "i": ("Int32", "<i4")}


def write_surface(path: Path, vertices: np.ndarray, triangles: np.ndarray, values: dict[str, np.ndarray]) -> None:
    """``vertices`` (N, 3) mm, ``triangles`` (M, 3), ``values`` name -> (N,), NaN where there is none."""
    ends = 3 * np.arange(1, len(triangles) + 1)
    arrays = "\n".join(_array(data, name) for name, data in values.items())
    path.write_text(f"""<?xml version="1.0"?>
<VTKFile type="PolyData" version="1.0" byte_order="LittleEndian" header_type="UInt64">
<PolyData><Piece NumberOfPoints="{len(vertices)}" NumberOfVerts="0" NumberOfLines="0" NumberOfStrips="0" NumberOfPolys="{len(triangles)}">
<PointData Scalars={quoteattr(next(iter(values), ""))}>
{arrays}
</PointData>
<Points>
{_array(vertices, "Points")}
</Points>
<Polys>
{_array(triangles, "connectivity")}
{_array(ends, "offsets")}
</Polys>
</Piece></PolyData>
</VTKFile>
""", "utf-8")


def _array(data: np.ndarray, name: str) -> str:
    title, kind = TYPES[np.asarray(data).dtype.kind]
    raw = np.ascontiguousarray(data, kind).tobytes()
    components = data.shape[1] if np.ndim(data) == 2 and name == "Points" else 1
    text = base64.b64encode(np.uint64(len(raw)).tobytes() + raw).decode("ascii")
    return f'<DataArray type="{title}" Name={quoteattr(name)} NumberOfComponents="{components}" format="binary">{text}</DataArray>'
