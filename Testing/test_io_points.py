"""Point files: .mrk.json, .fcsv and .csv keep positions and names, in LPS whatever the file says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.io import read_points, write_points
from DeepRegistrationLib.points import Points

KINDS = (".mrk.json", ".fcsv", ".csv")
coordinates = st.floats(-2000, 2000, allow_nan=False)
characters = st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp", "Zs"))
labels = st.text(characters, min_size=1, max_size=8).filter(lambda s: not s.startswith("#"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("points")


@given(rows=st.lists(st.tuples(coordinates, coordinates, coordinates), min_size=1, max_size=6), kind=st.sampled_from(KINDS), data=st.data())
def test_points_and_names_come_back(folder, rows, kind, data):
    names = tuple(data.draw(labels) for _ in rows)
    write_points(Points(torch.tensor([rows], dtype=torch.float64), names=names), folder / f"p{kind}")
    back = read_points(folder / f"p{kind}")
    assert torch.equal(back.positions, torch.tensor([rows], dtype=torch.float64)) and back.names == names


def test_points_in_2d_are_csv(tmp_path):
    points = Points(torch.tensor([[[1.5, 2.5], [3.0, -4.0]]], dtype=torch.float64))
    write_points(points, tmp_path / "p.csv")
    assert torch.equal(read_points(tmp_path / "p.csv").positions, points.positions)
    with pytest.raises(InputError, match="2D points were given, write them as .csv"):
        write_points(points, tmp_path / "p.mrk.json")
    assert [p.name for p in tmp_path.iterdir()] == ["p.csv"]


@pytest.mark.parametrize("system, expected", [
    ("LPS", [1, 2, 3]), ("RAS", [-1, -2, 3]), ("1", [1, 2, 3]), ("0", [-1, -2, 3]), (None, [-1, -2, 3])])
def test_fcsv_systems(tmp_path, system, expected):
    head = "# Markups fiducial file version = 4.11\n" + (f"# CoordinateSystem = {system}\n" if system else "")
    columns = "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
    (tmp_path / "p.fcsv").write_text(head + columns + '1,1.0,2.0,3.0,0,0,0,1,1,1,0,"tip, left",,\n')
    points = read_points(tmp_path / "p.fcsv")
    assert points.positions[0, 0].tolist() == expected and points.names == ("tip, left",)


@pytest.mark.parametrize("system, expected", [("LPS", [1, 2, 3]), ("RAS", [-1, -2, 3])])
@pytest.mark.parametrize("kind", ["Fiducial", "Curve", "Line"])
def test_markups_of_any_type(tmp_path, system, expected, kind):
    control = [{"label": "a", "position": [1, 2, 3]}, {"label": "", "position": [1, 2, 3], "positionStatus": "defined"}]
    markup = {"type": kind, "coordinateSystem": system, "coordinateUnits": "mm", "controlPoints": control}
    (tmp_path / "p.mrk.json").write_text(json.dumps({"markups": [markup]}))
    points = read_points(tmp_path / "p.mrk.json")
    assert points.positions[0].tolist() == [expected, expected] and points.names == ("a", "2")


@pytest.mark.parametrize("text, rows, names", [
    ("label,x,y,z\nA,1,2,3\nB,4,5,6\n", [[1, 2, 3], [4, 5, 6]], ("A", "B")),
    ("x,y,z\n1,2,3\n", [[1, 2, 3]], ("1",)),
    ("1,2,3\n4,5,6\n", [[1, 2, 3], [4, 5, 6]], ("1", "2")),
    ("1;2;3\n", [[1, 2, 3]], ("1",)),
    ("1 2 3\n4 5 6\n", [[1, 2, 3], [4, 5, 6]], ("1", "2")),
    ("tip,1,2,3\n", [[1, 2, 3]], ("tip",)),
    (",X,Y\n0,1,2\n1,3,4\n", [[1, 2], [3, 4]], ("0", "1")),
    ("label,x,y\na,1,2\n", [[1, 2]], ("a",)),
    ("1,2\n", [[1, 2]], ("1",)),
    ("\ufeffZ,Name,Y,X\n3,n,2,1\n", [[1, 2, 3]], ("n",)),
    ("# a comment\nx\ty\tz\n1e1\t-2\t+3\n", [[10, -2, 3]], ("1",)),
    ("Name;x;y;z\nKnöchel;1,5;-2;3,25\n", [[1.5, -2, 3.25]], ("Knöchel",)),
    ("P1;1,5;2,5;3\n", [[1.5, 2.5, 3]], ("P1",)),
    ("label,r,a,s,defined,selected,visible,locked,description\nF-1,1,2,3,1,1,1,0,\nF-2,-4,5,6,1,1,1,0,tip\n", [[-1, -2, 3], [4, -5, 6]], ("F-1", "F-2")),
    ("label,l,p,s,defined,selected,visible,locked,description\nF-1,1,2,3,1,1,1,0,\n", [[1, 2, 3]], ("F-1",)),
    ("x,y,z,t,label\n1,2,3,0,7\n", [[1, 2, 3]], ("7",)),
])
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_forms_of_csv(tmp_path, text, rows, names, encoding):
    (tmp_path / "p.csv").write_text(text.lstrip("\ufeff") if encoding == "cp1252" else text, encoding=encoding)
    points = read_points(tmp_path / "p.csv")
    assert points.positions[0].tolist() == rows and points.names == names


@pytest.mark.parametrize("name, content, sentence", [
    ("p.csv", "x,y,z\n1,two,3\n", "a coordinate is no number"),
    ("p.csv", "x,y,z\n1,2\n", "a coordinate is no number"),
    ("p.csv", "x,y,z\n1,nan,3\n", "NaN or infinite"),
    ("p.csv", "x,y,z\n", "holds no points"),
    ("p.csv", "a,b\nc,d\n", "expected the columns"),
    ("p.csv", "hello\n", "expected the columns"),
    ("p.fcsv", "# CoordinateSystem = 2\n1,1,2,3\n", "coordinate system"),
    ("p.mrk.json", "{", "not a markups file"),
    ("p.mrk.json", "[]", "not a markups file"),
    ("p.mrk.json", '{"markups": [{"coordinateSystem": "IJK", "controlPoints": []}]}', "coordinate system 'IJK'"),
    ("p.mrk.json", '{"markups": [{"coordinateUnits": "um", "controlPoints": []}]}', "coordinates in um"),
    ("p.mrk.json", '{"markups": [{"controlPoints": [{"label": "F", "position": [1, 2, 3], "positionStatus": "missing"}]}]}',
     "point 'F' .* has no position"),
    ("p.mrk.json", '{"markups": [{}, {}]}', "holds 2 markups"),
    ("p.csv", "label,l,p,s,defined\nF-1,1,2,3,1\nF-2,0,0,0,0\n", "point 'F-2' .* has no position"),
    ("p.vtk", "x", "type '.vtk'"),
    ("p.csv", "", "is empty"),
])
def test_sentences(tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=sentence) as error:
        read_points(tmp_path / name)
    assert "\n" not in str(error.value)


def test_binary_and_missing_files(tmp_path):
    (tmp_path / "p.csv").write_bytes(bytes([255, 254, 0, 200, 129]))
    with pytest.raises(InputError, match="not a text file"):
        read_points(tmp_path / "p.csv")
    with pytest.raises(InputError, match="does not exist"):
        read_points(tmp_path / "q.csv")


@pytest.mark.parametrize("kind, storage", [(".mrk.json", "vtkMRMLMarkupsJsonStorageNode"), (".fcsv", "vtkMRMLMarkupsFiducialStorageNode")])
def test_slicer_places_the_points_where_the_library_has_them(tmp_path, kind, storage):
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    positions = torch.tensor([[[1.0, 2.0, 3.0], [-40.0, 5.5, 60.25]]], dtype=torch.float64)
    write_points(Points(positions, names=("first", "second, left")), tmp_path / f"p{kind}")
    scene = slicer.vtkMRMLScene()
    node, store = slicer.vtkMRMLMarkupsFiducialNode(), getattr(slicer, storage)()
    scene.AddNode(node), scene.AddNode(store)
    store.SetFileName(str(tmp_path / f"p{kind}"))
    assert store.ReadData(node) and node.GetNumberOfControlPoints() == 2
    ras = np.array([node.GetNthControlPointPosition(k) for k in range(2)])
    assert np.allclose(ras * [-1, -1, 1], positions[0].numpy()) and node.GetNthControlPointLabel(1) == "second, left"
    store.SetFileName(str(tmp_path / f"q{kind}"))
    assert store.WriteData(node)
    back = read_points(tmp_path / f"q{kind}")
    assert torch.allclose(back.positions, positions, atol=1e-3) and back.names == ("first", "second, left")


def test_real_landmarks(data):
    assert read_points(data / "histology-pair" / "landmarks_fixed.csv").positions.shape == (1, 78, 2)
    lung = read_points(data / "lung-ct-left" / "points_fixed.csv")
    assert lung.dim == 3 and lung.names[0] == "1" and lung.positions[0, 0].tolist() == [-36.351, -36.974, -1204.5]
