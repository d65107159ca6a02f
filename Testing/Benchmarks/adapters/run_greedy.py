"""greedy (Yushkevich et al., 2016) through picsl-greedy: WNCC 2x2x2, 100x50x10; NMI for its linear stage where the contrasts differ.

Intensities are divided by their maximum: a WNCC worker thread of 1.4.0.3 that meets a gradient above 1e4 prints, and then
waits for ever for the interpreter's lock."""

from common import main, read


def register(request):
    import numpy as np
    import picsl_greedy
    import SimpleITK as sitk

    paths, dim = {}, 3
    for name in ("fixed", "moving"):
        image = read(getattr(request, name))
        dim = image.GetDimension()
        high = float(np.abs(sitk.GetArrayViewFromImage(image)).max())
        paths[name] = request.out / f"{name}.nii"
        sitk.WriteImage(image / high, str(paths[name]))
    greedy = picsl_greedy.GreedyFloat3D() if dim == 3 else picsl_greedy.GreedyFloat2D()
    radius = "x".join("2" * dim)
    common = f"-i {paths['fixed']} {paths['moving']} -threads {request.threads}"
    files, start = [], ""
    if request.stage != "none":
        metric = f"NCC {radius}" if request.contrast == "same" else "NMI"
        freedom = 6 if request.stage == "rigid" else 12
        matrix = request.out / "affine.mat"
        greedy.execute(f"-a -dof {freedom} {common} -m {metric} -n 100x50x10 -ia-image-centers -o {matrix}")
        files, start = [in_lps(matrix, dim, request.out / "affine.tfm")], f"-it {matrix}"
    if request.deformable:
        warp = request.out / "warp.mha"
        greedy.execute(f"{common} -m WNCC {radius} -n 100x50x10 {start} -o {warp}")
        files = [warp, *files]
    return files


def in_lps(path, dim, target):
    """greedy's RAS matrix as an ITK transform."""
    import numpy as np
    import SimpleITK as sitk

    flip = np.diag([-1.0, -1.0, 1.0, 1.0][: dim + 1] if dim == 3 else [-1.0, -1.0, 1.0])
    matrix = flip @ np.loadtxt(path) @ flip
    transform = sitk.AffineTransform(matrix[:dim, :dim].ravel().tolist(), matrix[:dim, dim].tolist())
    sitk.WriteTransform(transform, str(target))
    return target


main(register, "picsl_greedy")
