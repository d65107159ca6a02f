"""The algebra of transforms: call, compose with ``@``, invert, differentiate. See geometry for the conventions."""

from __future__ import annotations

import torch

from ..errors import ConvergenceError
from ..geometry import Grid
from ..ops import fields
from ..ops.sample import world_points


class Transform:
    """A map of points (B, N, dim) mm -> (B, N, dim) mm that pulls back: fixed points to moving points."""

    dim: int
    residual: float = 0.0

    def __call__(self, points: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def __matmul__(self, inner: "Transform") -> "Transform":
        """``(a @ b)(x) = a(b(x))``; kept lazy, identities vanish and affine neighbours merge."""
        return Composite.of(self, inner)

    def inverse(self) -> "Transform":
        """The inverse map; its ``residual`` (mm) says how exact it is where it is found by iteration."""
        raise NotImplementedError

    def parameters(self) -> tuple[torch.Tensor, ...]:
        """The tensors that define the transform."""
        return ()

    @property
    def device(self) -> torch.device:
        """Where its tensors are: the accelerator where any of them is on one."""
        return next((p.device for p in self.parameters() if p.device.type != "cpu"), torch.device("cpu"))

    def to(self, device=None, dtype=None) -> "Transform":
        """The transform with its tensors on another device or in another precision."""
        raise NotImplementedError

    def field(self, grid: Grid, dtype=torch.float32, device="cpu") -> torch.Tensor:
        """(B, dim, *S) displacement T(p) - p in mm at every voxel centre p of ``grid``."""
        points = world_points(grid, dtype, device)
        flat = points.reshape(1, -1, grid.dim)
        moved = (self(flat) - flat).to(dtype)
        return moved.reshape(moved.shape[0], *grid.shape, grid.dim).movedim(-1, 1)

    def jacobian(self, points: torch.Tensor, step: float = 1e-2) -> torch.Tensor:
        """points (B, N, dim) -> (B, N, dim, dim) dT_i/dx_j by central differences of ``step`` mm (closed form where there is one)."""
        # In float32 the rounding of a position 300 mm from the origin, divided by the step, would be an error of 0.003.
        exact = points if points.device.type == "mps" else points.double()
        columns = []
        for h in step * torch.eye(points.shape[-1], dtype=exact.dtype, device=exact.device):
            columns.append((self(exact + h) - self(exact - h)) / (2 * step))
        return torch.stack(columns, -1).to(points.dtype)

    def log_jacobian(self, grid: Grid, floor: float = 1e-6) -> torch.Tensor:
        """(B, 1, *S) log of the Jacobian determinant of the map on ``grid``; determinants below ``floor`` count as ``floor``."""
        return self.jacobian_determinant(grid).clamp_min(floor).log()

    def jacobian_determinant(self, grid: Grid) -> torch.Tensor:
        """(B, 1, *S) Jacobian determinant of the map on ``grid`` by central differences of its field."""
        return fields.jacobian_determinant(self.field(grid, device=self.device), grid)


class Identity(Transform):
    """T(x) = x."""

    def __init__(self, dim: int):
        self.dim = dim

    def __call__(self, points):
        return points

    def inverse(self):
        return self

    def to(self, device=None, dtype=None):
        return self


class Composite(Transform):
    """``items[0] o items[1] o ...``: the last item is applied first."""

    def __init__(self, items: tuple[Transform, ...]):
        self.items = tuple(items)
        self.dim = self.items[0].dim

    @property
    def residual(self) -> float:
        """Sum of the residuals of the parts, mm."""
        return sum(item.residual for item in self.items)

    @classmethod
    def of(cls, *transforms) -> Transform:
        """Composition with nested composites flattened, identities removed and neighbouring affines multiplied."""
        from .linear import Affine

        dims = {t.dim for t in transforms if getattr(t, "dim", None)}
        if len(dims) > 1:
            raise ValueError(f"transforms of {sorted(dims)} dimensions cannot be composed")
        flat: list[Transform] = []
        for t in transforms:
            for item in t.items if isinstance(t, Composite) else (t,):
                if isinstance(item, Identity):
                    continue
                if isinstance(item, Affine) and flat and isinstance(flat[-1], Affine):
                    flat[-1] = flat[-1].times(item)
                else:
                    flat.append(item)
        if not flat:
            return Identity(dims.pop())
        return flat[0] if len(flat) == 1 else cls(tuple(flat))

    def __call__(self, points):
        for item in reversed(self.items):
            points = item(points)
        return points

    def field(self, grid, dtype=torch.float32, device="cpu"):
        """As in the base; the innermost field on its own grid is read without sampling."""
        points = world_points(grid, dtype, device)
        moved = points.movedim(-1, 1) + self.items[-1].field(grid, dtype, device)
        batch = moved.shape[0]
        flat = moved.movedim(1, -1).reshape(batch, -1, grid.dim)
        for item in reversed(self.items[:-1]):
            flat = item(flat)
        return (flat.reshape(flat.shape[0], *grid.shape, grid.dim) - points).to(dtype).movedim(-1, 1)

    def inverse(self):
        return Composite.of(*[item.inverse() for item in reversed(self.items)])

    def parameters(self):
        return tuple(p for item in self.items for p in item.parameters())

    def to(self, device=None, dtype=None):
        return Composite(tuple(item.to(device, dtype) for item in self.items))


def linear_part(transform: Transform):
    """The product of the leading affine factors of ``transform`` (applied last), or the identity."""
    from .linear import Affine

    items = transform.items if isinstance(transform, Composite) else (transform,)
    total = Affine.identity(transform.dim).to(transform.device)
    for item in items:
        if isinstance(item, Identity):
            continue
        if not isinstance(item, Affine):
            break
        total = total.times(item)
    return total


def cache_key(tensor: torch.Tensor) -> tuple:
    """What has to stay equal for a value computed from ``tensor`` to be used again: no change in place (torch counts these),
    and gradients recorded or not; a value made for a preview has no graph to differentiate."""
    version = None if tensor.is_inference() else tensor._version
    return version, tensor.requires_grad and torch.is_grad_enabled()


def require_finite(transform: Transform) -> None:
    """Raise ConvergenceError where a parameter is NaN or infinite."""
    for p in transform.parameters():
        # NaN and infinity survive a sum, which is many times faster than a test of every value
        total = p.detach().sum(dtype=torch.promote_types(p.dtype, torch.float32))
        if not bool(torch.isfinite(total)):
            raise ConvergenceError("the registration diverged (a parameter is not finite); use a smaller step or more smoothing")
