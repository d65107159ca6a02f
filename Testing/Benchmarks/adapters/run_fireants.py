"""FireANTs (Jena et al., 2024) greedy on the CPU: scales 4/2/1, 100/100/20 iterations, local correlation of 7 voxels, Adam 0.5,
gradient smoothing 1, warp smoothing 0.5 (its script for OASIS)."""

from common import main, on_fixed_grid, write_voxel_field


def register(request):
    import numpy as np
    import SimpleITK as sitk
    import torch
    from fireants.io.image import BatchedImages, Image
    from fireants.registration.greedy import GreedyRegistration

    torch.set_num_threads(request.threads)
    fixed, moving, files = on_fixed_grid(request)
    batches = []
    for name, image in (("fixed", fixed), ("moving", moving)):
        sitk.WriteImage(image, str(request.out / f"{name}.nii"))
        batches.append(BatchedImages([Image.load_file(str(request.out / f"{name}.nii"), device="cpu")]))
    method = GreedyRegistration([4, 2, 1], [100, 100, 20], *batches, optimizer="adam", deformation_type="compositive", cc_kernel_size=7,
                                optimizer_lr=0.5, smooth_grad_sigma=1, smooth_warp_sigma=0.5)
    method.optimize()
    grid = method.get_warped_coordinates(*batches)[0].detach().numpy()
    size = np.array(fixed.GetSize())
    index = (grid.transpose(*reversed(range(len(size))), len(size)) + 1) / 2 * (size - 1)
    start = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij"), -1)
    write_voxel_field(index - start, fixed, request.out / "field.mha")
    return [request.out / "field.mha", *files]


main(register, "fireants", "torch")
