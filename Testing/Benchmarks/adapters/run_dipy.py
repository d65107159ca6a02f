"""DIPY's symmetric diffeomorphic registration with local correlation (radius 4, the tutorial's 10/10/5 iterations)."""

from common import array, main, on_fixed_grid, write_field


def register(request):
    import numpy as np
    from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
    from dipy.align.metrics import CCMetric

    fixed, moving, files = on_fixed_grid(request)
    dim = fixed.GetDimension()
    world = np.eye(dim + 1)
    world[:dim, :dim] = np.array(fixed.GetDirection()).reshape(dim, dim) * np.array(fixed.GetSpacing())
    world[:dim, dim] = fixed.GetOrigin()
    method = SymmetricDiffeomorphicRegistration(CCMetric(dim), level_iters=[10, 10, 5])
    mapping = method.optimize(array(fixed), array(moving), static_grid2world=world, moving_grid2world=world)
    write_field(mapping.get_forward_field(), fixed, request.out / "field.mha")
    return [request.out / "field.mha", *files]


main(register, "dipy")
