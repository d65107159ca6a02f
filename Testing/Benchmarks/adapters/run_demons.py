"""SimpleITK: histogram matching and diffeomorphic demons (Vercauteren et al., NeuroImage 2009), shrink 4/2/1, 100/60/30
iterations, field smoothing of one voxel. The linear stage alone is SimpleITK's mutual information."""

from common import main, on_fixed_grid


def register(request):
    import SimpleITK as sitk

    if not request.deformable:
        return on_fixed_grid(request)[2]
    fixed, moving, files = on_fixed_grid(request)
    match = sitk.HistogramMatchingImageFilter()
    match.SetNumberOfHistogramLevels(256)
    match.SetNumberOfMatchPoints(15)
    match.ThresholdAtMeanIntensityOn()
    field, moving = None, match.Execute(moving, fixed)
    for shrink, iterations in zip((4, 2, 1), (100, 60, 30)):
        f, m = (coarse(x, shrink) for x in (fixed, moving))
        demons = sitk.DiffeomorphicDemonsRegistrationFilter()
        demons.SetNumberOfIterations(iterations)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(1.0)
        if field is None:
            field = sitk.Image(f.GetSize(), sitk.sitkVectorFloat64)
            field.CopyInformation(f)
        else:
            field = sitk.Resample(field, f)
        field = demons.Execute(f, sitk.Resample(m, f), field)
    path = request.out / "field.mha"
    sitk.WriteImage(sitk.Cast(field, sitk.sitkVectorFloat32), str(path))
    return [path, *files]


def coarse(image, shrink):
    """The image smoothed by half the new spacing and subsampled; thin axes keep their slices."""
    import SimpleITK as sitk

    if shrink == 1:
        return image
    smooth = sitk.SmoothingRecursiveGaussian(image, [0.5 * shrink * s for s in image.GetSpacing()])
    return sitk.Shrink(smooth, [shrink if n >= 8 * shrink else 1 for n in image.GetSize()])


main(register, "SimpleITK")
