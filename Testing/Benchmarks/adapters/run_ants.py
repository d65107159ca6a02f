"""ANTsPy (Avants et al., Med Image Anal 2008). Settings: 'quick' = antsRegistrationSyNQuick, 'syn' = ANTsPy's default SyN
(affine, then Mattes 40x20x0), 'cc' = antsRegistrationSyN (local correlation, 100x70x50x20)."""

from common import main


def register(request):
    import ants

    fixed, moving = ants.image_read(str(request.fixed)), ants.image_read(str(request.moving))
    options = {}
    if not request.deformable:
        kind = request.stage.capitalize()
    elif request.setting == "syn":
        kind = "SyN"
    else:
        name = {"quick": "antsRegistrationSyNQuick", "cc": "antsRegistrationSyN"}[request.setting]
        kind = f"{name}[{'so' if request.stage == 'none' else 's'}]"
        if request.stage == "none":
            options["initial_transform"] = "identity"
    result = ants.registration(fixed, moving, kind, outprefix=str(request.out / "ants_"), **options)
    return result["fwdtransforms"]


main(register, "antspyx")
