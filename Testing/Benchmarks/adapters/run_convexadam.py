"""convexAdam (Siebert et al., IEEE TMI 2024) with MIND features and all defaults, on the CPU; 3D only."""

from common import array, main, on_fixed_grid, write_voxel_field


def register(request):
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    torch.set_num_threads(request.threads)
    fixed, moving, files = on_fixed_grid(request)
    field = convex_adam_pt(torch.from_numpy(array(fixed)), torch.from_numpy(array(moving)), device=torch.device("cpu"), dtype=torch.float32)
    write_voxel_field(field, fixed, request.out / "field.mha")
    return [request.out / "field.mha", *files]


main(register, "convexAdam", "torch")
