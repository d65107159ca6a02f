"""Fused loops for float32 volumes on the CPU, compiled by numba; ``native.py`` decides when they are used.

Arrays are (C, z, y, x), 2D images have one slice; displacements are in voxels, components (x, y, z). Every kernel has a
plain torch counterpart that a test compares it with; nothing here is needed for a correct result, only for a fast one.
"""

import numba
import numpy as np

f4 = np.float32
_parallel = numba.njit(parallel=True, fastmath={"contract", "reassoc", "arcp", "nsz"}, cache=True, error_model="numpy", nogil=True)
_inline = numba.njit(fastmath={"contract", "reassoc", "arcp", "nsz"}, cache=True, error_model="numpy", inline="always")
_called = numba.njit(fastmath={"contract", "reassoc", "arcp", "nsz"}, cache=True, error_model="numpy")


@_inline
def _floor(position, last):
    """Lower neighbour, upper neighbour and fraction of a position clamped to [0, last]."""
    position = min(max(position, f4(0)), f4(last))
    low = int(position)
    return low, min(low + 1, last), position - f4(low)


@_inline
def _read(volume, x0, x1, fx, y0, y1, fy, z0, z1, fz):
    a = volume[z0, y0, x0] + fx * (volume[z0, y0, x1] - volume[z0, y0, x0])
    b = volume[z0, y1, x0] + fx * (volume[z0, y1, x1] - volume[z0, y1, x0])
    c = volume[z1, y0, x0] + fx * (volume[z1, y0, x1] - volume[z1, y0, x0])
    d = volume[z1, y1, x0] + fx * (volume[z1, y1, x1] - volume[z1, y1, x0])
    a += fy * (b - a)
    c += fy * (d - c)
    return a + fz * (c - a)


@_inline
def _fade(position, last):
    """1 inside [0, last], falling to 0 one voxel outside."""
    return max(f4(0), f4(1) - max(max(-position, position - f4(last)), f4(0)))


@_parallel
def linear(data, index, zeros, out):
    """data (C, z, y, x), index (N, 3) voxels -> out (C, N), clamped at the border or (``zeros``) falling to 0 within a voxel."""
    channels, depth, height, width = data.shape
    for n in numba.prange(index.shape[0]):
        x, y, z = index[n, 0], index[n, 1], index[n, 2]
        fade = _fade(x, width - 1) * _fade(y, height - 1) * _fade(z, depth - 1) if zeros else f4(1)
        x0, x1, fx = _floor(x, width - 1)
        y0, y1, fy = _floor(y, height - 1)
        z0, z1, fz = _floor(z, depth - 1)
        for c in range(channels):
            out[c, n] = fade * _read(data[c], x0, x1, fx, y0, y1, fy, z0, z1, fz)


@_called
def _mirrored(place, last):
    place = abs(place) % max(2 * last, 1)
    return min(place, 2 * last - place)


@_called
def _taps(position, last):
    """The four nearest coefficients of a position clamped to half a voxel outside [0, last], mirrored there, and their cubic weights."""
    position = min(max(position, f4(-0.5)), f4(last) + f4(0.5))
    low = int(np.floor(position))
    t = position - f4(low)
    s = f4(1) - t
    sixth, thirds = f4(1 / 6), f4(2 / 3)
    weights = (s * s * s * sixth, thirds - t * t + f4(0.5) * t * t * t, thirds - s * s + f4(0.5) * s * s * s, t * t * t * sixth)
    return (_mirrored(low - 1, last), _mirrored(low, last), _mirrored(low + 1, last), _mirrored(low + 2, last)), weights


@_parallel
def cubic(coefficients, index, out):
    """coefficients (C, z, y, x) of a cubic spline, index (N, 3) voxels -> out (C, N), mirrored at the border voxels."""
    channels, depth, height, width = coefficients.shape
    planes = 4 if depth > 1 else 1
    for n in numba.prange(index.shape[0]):
        xs, wx = _taps(index[n, 0], width - 1)
        ys, wy = _taps(index[n, 1], height - 1)
        zs, wz = _taps(index[n, 2], depth - 1)
        for c in range(channels):
            total = f4(0)
            for k in range(planes):
                weight = wz[k] if planes > 1 else f4(1)
                for j in range(4):
                    for i in range(4):
                        total += weight * wy[j] * wx[i] * coefficients[c, zs[k], ys[j], xs[i]]
            out[c, n] = total


@_parallel
def pull(moving, mask, matrix, u, fixed, fixed_mask, out):
    """Warped moving image on the fixed lattice; where nothing can be compared the fixed value is copied.

    moving (C, d, h, w); mask (d, h, w) uint8 or with no voxels; matrix (3, 4) fixed index -> moving index; u (dim, z, y, x).
    """
    channels, depth, height, width = moving.shape
    components = u.shape[0]
    has_mask, has_fixed_mask = mask.size > 0, fixed_mask.size > 0
    half = f4(0.5)
    for z in numba.prange(out.shape[1]):
        for y in range(out.shape[2]):
            for x in range(out.shape[3]):
                px, py, pz = f4(x) + u[0, z, y, x], f4(y) + u[1, z, y, x], f4(z)
                if components == 3:
                    pz += u[2, z, y, x]
                mx = matrix[0, 0] * px + matrix[0, 1] * py + matrix[0, 2] * pz + matrix[0, 3]
                my = matrix[1, 0] * px + matrix[1, 1] * py + matrix[1, 2] * pz + matrix[1, 3]
                mz = matrix[2, 0] * px + matrix[2, 1] * py + matrix[2, 2] * pz + matrix[2, 3]
                valid = -half <= mx <= width - half and -half <= my <= height - half and -half <= mz <= depth - half
                x0, x1, fx = _floor(mx, width - 1)
                y0, y1, fy = _floor(my, height - 1)
                z0, z1, fz = _floor(mz, depth - 1)
                if has_mask and valid:
                    valid = mask[int(min(max(mz + half, f4(0)), f4(depth - 1))), int(min(max(my + half, f4(0)), f4(height - 1))),
                                 int(min(max(mx + half, f4(0)), f4(width - 1)))] > 0
                if has_fixed_mask and valid:
                    valid = fixed_mask[z, y, x] > 0
                for c in range(channels):
                    out[c, z, y, x] = _read(moving[c], x0, x1, fx, y0, y1, fy, z0, z1, fz) if valid else fixed[c, z, y, x]


@_parallel
def forces(fixed, warped, spacing, limit, out):
    """d g in voxels and, in the last channel, |g|^2 + d^2 / k^2; returns the sum of squared differences. See ``ops/demons.py``."""
    channels, depth, height, width = fixed.shape
    components = out.shape[0] - 1
    inverse_limit = f4(1) / (limit * limit)
    sx, sy, sz = f4(0.25) / spacing[0], f4(0.25) / spacing[1], f4(0.25) / spacing[2]
    total = 0.0
    for z in numba.prange(depth):
        z0, z1 = max(z - 1, 0), min(z + 1, depth - 1)
        kz = sz * f4(2) if z1 - z0 == 1 else sz
        row = 0.0
        for y in range(height):
            y0, y1 = max(y - 1, 0), min(y + 1, height - 1)
            ky = sy * f4(2) if y1 - y0 == 1 else sy
            for x in range(width):
                x0, x1 = max(x - 1, 0), min(x + 1, width - 1)
                kx = sx * f4(2) if x1 - x0 == 1 else sx
                nx, ny, nz, gg, dd = f4(0), f4(0), f4(0), f4(0), f4(0)
                for c in range(channels):
                    f, w = fixed[c], warped[c]
                    d = f[z, y, x] - w[z, y, x]
                    gx = kx * (f[z, y, x1] - f[z, y, x0] + w[z, y, x1] - w[z, y, x0])
                    gy = ky * (f[z, y1, x] - f[z, y0, x] + w[z, y1, x] - w[z, y0, x])
                    gz = kz * (f[z1, y, x] - f[z0, y, x] + w[z1, y, x] - w[z0, y, x])
                    nx += d * gx
                    ny += d * gy
                    nz += d * gz
                    gg += gx * gx + gy * gy + gz * gz
                    dd += d * d
                out[0, z, y, x] = nx / spacing[0]
                out[1, z, y, x] = ny / spacing[1]
                if components == 3:
                    out[2, z, y, x] = nz / spacing[2]
                out[components, z, y, x] = gg + dd * inverse_limit
                row += dd
        total += row
    return total


@_parallel
def quotient(forces, floor):
    """The channels of ``forces`` (dim + 1, z, y, x) over the last one plus ``floor``, in place."""
    channels, depth, height, width = forces.shape
    for z in numba.prange(depth):
        for y in range(height):
            for x in range(width):
                scale = f4(1) / (forces[channels - 1, z, y, x] + floor)
                for c in range(channels - 1):
                    forces[c, z, y, x] *= scale


@_parallel
def compose(u, v, out):
    """out = v + u o (id + v), all (dim, z, y, x) in voxels; u is clamped at the border."""
    components, depth, height, width = out.shape
    for z in numba.prange(depth):
        for y in range(height):
            for x in range(width):
                px, py, pz = f4(x) + v[0, z, y, x], f4(y) + v[1, z, y, x], f4(z)
                if components == 3:
                    pz += v[2, z, y, x]
                x0, x1, fx = _floor(px, width - 1)
                y0, y1, fy = _floor(py, height - 1)
                z0, z1, fz = _floor(pz, depth - 1)
                for c in range(components):
                    out[c, z, y, x] = v[c, z, y, x] + _read(u[c], x0, x1, fx, y0, y1, fy, z0, z1, fz)


@_parallel
def filter_lines(data, kernel, out):
    """Symmetric kernel (2 r + 1) along the last axis of (N, n); the border value is repeated outside."""
    lines, n = data.shape
    r = kernel.shape[0] // 2
    for line in numba.prange(lines):
        padded = np.empty(n + 2 * r, np.float32)
        for x in range(n):
            padded[x + r] = data[line, x]
        for k in range(r):
            padded[k] = data[line, 0]
            padded[n + r + k] = data[line, n - 1]
        for x in range(n):
            out[line, x] = kernel[r] * padded[x + r]
        for k in range(r):
            for x in range(n):
                out[line, x] += kernel[k] * (padded[x + k] + padded[x + 2 * r - k])


@_parallel
def filter_rows(data, kernel, out):
    """The same along the middle axis of (N, n, inner)."""
    outer, n, inner = data.shape
    r = kernel.shape[0] // 2
    for row in numba.prange(outer * n):
        o, i = row // n, row % n
        for x in range(inner):
            out[o, i, x] = kernel[r] * data[o, i, x]
        for k in range(1, r + 1):
            low, high = max(i - k, 0), min(i + k, n - 1)
            for x in range(inner):
                out[o, i, x] += kernel[r + k] * (data[o, low, x] + data[o, high, x])


def compile_all():
    """Compile every kernel for the types in use; the result is kept on disk, so that later processes start at once."""
    volume, field = np.zeros((1, 2, 2, 2), np.float32), np.zeros((3, 2, 2, 2), np.float32)
    none, spacing, width = np.zeros((0, 0, 0), np.uint8), np.ones(3, np.float32), np.full(3, 1 / 3, np.float32)
    linear(volume, np.zeros((1, 3), np.float32), True, np.zeros((1, 1), np.float32))
    cubic(volume, np.zeros((1, 3), np.float32), np.zeros((1, 1), np.float32))
    pull(volume, none, np.eye(4, dtype=np.float32)[:3].copy(), field, volume, none, volume.copy())
    both = np.zeros((4, 2, 2, 2), np.float32)
    forces(volume, volume.copy(), spacing, f4(1), both)
    quotient(both, f4(1))
    compose(field, field.copy(), np.empty_like(field))
    filter_lines(np.zeros((2, 2), np.float32), width, np.zeros((2, 2), np.float32))
    filter_rows(np.zeros((2, 2, 2), np.float32), width, np.zeros((2, 2, 2), np.float32))
