"""elastix (Klein et al., IEEE TMI 2010) through itk-elastix with its default parameter maps; the B-spline of 10 mm.

``number_of_threads`` is not passed: 0.25.4 ends with a segmentation fault when it is. ITK's variable sets the threads."""

from common import main


def register(request):
    import itk

    fixed, moving = (itk.imread(str(p), itk.F) for p in (request.fixed, request.moving))
    parameters = itk.ParameterObject.New()
    maps = {"none": [], "rigid": ["rigid"], "affine": ["rigid", "affine"]}[request.stage]
    for name in maps + (["bspline"] if request.deformable else []):
        values = parameters.GetDefaultParameterMap(name)
        values["WriteResultImage"] = ["false"]
        values["ITKTransformOutputFileNameExtension"] = ["h5"]
        values["WriteITKCompositeTransform"] = ["true"]
        values["FixedImageDimension"] = values["MovingImageDimension"] = [str(fixed.GetImageDimension())]
        parameters.AddParameterMap(values)
    itk.elastix_registration_method(fixed, moving, parameter_object=parameters, output_directory=str(request.out), log_to_console=False)
    return [sorted(request.out.glob("*omposite*.h5"))[-1]]


main(register, "itk-elastix")
