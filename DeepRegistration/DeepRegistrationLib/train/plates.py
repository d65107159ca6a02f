"""slice-identification: training of the embedding that recognizes plates, from slices cut from the atlas at random, and its card.

A slice is a plane of the atlas that is tilted, turned, scaled and sheared about the center of a plate, of another brightness, with
missing parts, pepper, shading and noise. With d the distances of slices (rows) to plates (columns) and m_ij = margin min(|i - j| / reach, 1):

    softmax      - sum_j t_ij log softmax_j(-5 d_ij^2 / margin), t_ij a normal density of |i - j| with the standard deviation reach / 4
    contrastive  1/2 d_ii^2 + mean_j 1/2 max(0, m_ij - d_ij)^2
    triplet      max(0, d_ii - d_ij + m_ij) over the j that are hard (d_ij < d_ii), semi-hard (d_ii < d_ij < d_ii + m_ij) or both

The last two are those of Antanavicius et al., WBIR 2022; the first learns the most from few slices and is the default. There a plate is as
wrong as any other; here the margin grows over the first ``reach`` plates, so that what
lies near in the brain lies near in the space. The loop is that of all trainings (``loop``), which takes a batch for a pair.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from ..engines.plate_agreement import frames_of
from ..engines.plate_information import in_plane
from ..engines.plates import Plates, centered, embedded, rank_of
from ..errors import InputError
from ..image import Image
from ..method import Card, Preset
from ..networks.embedding import PlateEmbedding, distances
from ..ops.filters import gaussian
from ..parameters import check, parameter
from ..runtime import Runtime
from . import loop
from .degrade import between, chance

LOSSES = ("softmax", "triplets", "semi-hard", "hard", "contrastive")


CARD = Card(
    title="Slice identification: which plate of an atlas a slice shows",
    summary="An embedding learned from the atlas alone ranks its plates for a 2D slice, and the oblique plane of the slice is fitted from the first.",
    task="Slice identification",
    problem=Image,
    dims=(2,),
    references=(
        """@inproceedings{Antanavicius2022,
  author = {Antanavicius, Justinas and Leiras, Roberto and Selvan, Raghavendra},
  title = {Identifying Partial Mouse Brain Microscopy Images from the {Allen} Reference Atlas Using a Contrastively Learned Semantic Space},
  booktitle = {Biomedical Image Registration (WBIR)}, series = {LNCS}, volume = {13386}, year = {2022}}""",
        """@inproceedings{He2016,
  author = {He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  title = {Deep Residual Learning for Image Recognition},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition}, pages = {770--778}, year = {2016}}""",
    ),
    assumptions=(
        "the slice is looked at from the usual side: superior (axial: anterior) up, within about 20 degrees, not mirrored",
        "the size of its pixels is known, in the file or by --pixel",
        "it is cut within about 10 degrees of the plates; parts of it may be missing",
    ),
    failure_modes=(
        "another stain or modality than the atlas, which the embedding has not seen; the answer says that it is doubtful",
        "a small piece of a slice, or one without structure: many planes of the atlas fit it",
    ),
    presets={"default": Preset("learns the plates of an atlas in one or two minutes, once; a query takes less than a second")},
)


@dataclass(frozen=True)
class PlateTraining:
    """How the embedding is trained."""

    steps: int = parameter(500, "Steps", "Updates of the network.", minimum=1)
    loss: str = parameter("softmax", "Loss", "Softmax, triplets (hard and semi-hard), semi-hard, hard, or contrastive.", choices=LOSSES)
    margin: float = parameter(0.5, "Margin", "Distance that other plates keep, of at most 2.", minimum=0.01, maximum=2.0)
    reach: float = parameter(8.0, "Reach", "Plates over which the margin grows to its full size.", minimum=1.0)
    batch: int = parameter(48, "Batch", "Slices, and as many plates, a step.", minimum=4)
    rate: float = parameter(2e-3, "Rate", "First step length of Adam.", minimum=1e-6)
    tilt: float = parameter(10.0, "Tilt", "Largest tilt about either axis of a plate.", unit="degrees", minimum=0.0, maximum=45.0)
    turn: float = parameter(15.0, "Turn", "Largest turn in the plane.", unit="degrees", minimum=0.0, maximum=180.0)
    scale: float = parameter(0.12, "Scale", "Largest log of the scale along an axis.", minimum=0.0, maximum=1.0)
    missing: float = parameter(0.45, "Missing", "Largest share of a slice's width that one cut takes away.", minimum=0.0, maximum=0.8)
    pepper: float = parameter(0.05, "Pepper", "Largest share of pixels that are black or white.", minimum=0.0, maximum=0.5)

    id: ClassVar[str] = "slice-identification"
    card: ClassVar[Card] = CARD
    command: ClassVar[str] = "atlas identify"

    def __post_init__(self):
        check(self)


@dataclass(frozen=True, eq=False)
class Batch:
    """Slices and their plates (B, 1, S, S), and the numbers of the plates (B,), under the names that ``loop`` moves to a device."""

    fixed: torch.Tensor
    moving: torch.Tensor
    fixed_labels: torch.Tensor
    moving_labels: None = None
    fixed_points: None = None
    moving_points: None = None


@dataclass(frozen=True)
class MetricLoss:
    """(distances (B, B) of slices to plates, numbers (B,) of the plates) -> (B,)."""

    kind: str
    margin: float
    reach: float

    def __call__(self, answer) -> torch.Tensor:
        apart, numbers = answer
        own = apart.diagonal()[:, None]
        if self.kind == "softmax":
            wanted = (-0.5 * ((numbers[:, None] - numbers) / (self.reach / 4)) ** 2).softmax(1)
            return -(wanted * (-apart**2 / (self.margin / 5)).log_softmax(1)).sum(1)
        margin = self.margin * ((numbers[:, None] - numbers).abs() / self.reach).clamp_max(1)
        others = margin > 0
        if self.kind == "contrastive":
            pushed = 0.5 * ((margin - apart).clamp_min(0) ** 2 * others).sum(1) / others.sum(1).clamp_min(1)
            return 0.5 * own[:, 0] ** 2 + pushed
        hard, semi = (apart < own) & others, (apart >= own) & (apart < own + margin) & others
        chosen = {"hard": hard, "semi-hard": semi, "triplets": hard | semi}[self.kind]
        return ((own - apart + margin) * chosen).sum(1) / chosen.sum(1).clamp_min(1)


def slices_of(plates: Plates, numbers: np.ndarray, settings: PlateTraining, generator: torch.Generator) -> torch.Tensor:
    """(N, 1, S, S) slices as they may come for the plates ``numbers`` (N,), centered as queries are."""
    count = len(numbers)
    drawn = 2 * torch.rand(count, 10, generator=generator).numpy().astype(float) - 1
    pose = np.zeros((count, 6))
    pose[:, 2], pose[:, 3:5] = 0.5 * plates.spacing * drawn[:, 0], settings.tilt * drawn[:, 1:3]
    flat = np.stack([3 * plates.pixel * drawn[:, 3], 3 * plates.pixel * drawn[:, 4], settings.turn * drawn[:, 5],
                     settings.scale * drawn[:, 6], settings.scale * drawn[:, 7], 0.06 * drawn[:, 8]], 1)
    lattice = plates.lattice().numpy()
    moved = np.concatenate([lattice, np.ones((len(lattice), 1))], 1) @ in_plane(flat).transpose(0, 2, 1)
    seen = plates.values(frames_of(plates.frames[numbers], pose), torch.as_tensor(moved[..., :2], dtype=torch.float32))
    pictures = seen.reshape(count, 1, plates.size, plates.size)
    return centered(torch.stack([spoiled(picture[0], settings, generator) for picture in pictures])[:, None])


def spoiled(picture: torch.Tensor, settings: PlateTraining, generator) -> torch.Tensor:
    """A picture (S, S) in another brightness, without parts of it, and with shading, pepper and noise."""
    size = picture.shape[-1]
    picture = picture ** (1.8 ** between(-1, 1, generator)) * between(0.7, 1.2, generator)
    if chance(0.5, generator):
        coarse = torch.randn(1, 1, 8, 8, generator=generator)
        shade = gaussian(torch.nn.functional.interpolate(coarse, size=(size, size), mode="nearest"), size / 8)[0, 0]
        picture = picture * (between(0, 1.5, generator) * shade).exp()
    if chance(0.3, generator):
        picture = gaussian(picture[None, None], between(0.3, 1.2, generator))[0, 0]
    picture = picture * kept(picture, settings.missing, generator)
    if chance(0.5, generator):
        places, values = torch.rand(size, size, generator=generator), torch.rand(size, size, generator=generator)
        picture = torch.where(places < between(0, settings.pepper, generator), (values > 0.5).float(), picture)
    noisy = picture + between(0, 0.06, generator) * torch.randn(size, size, generator=generator) * (picture > 0)
    return noisy.clamp(0, 1)


def kept(picture: torch.Tensor, missing: float, generator) -> torch.Tensor:
    """(S, S) 1 where tissue stays: with a half chance a cut along a line takes a side away, and up to three holes are torn."""
    size = picture.shape[-1]
    line = torch.arange(size, dtype=torch.float32)
    y, x = torch.meshgrid(line, line, indexing="ij")
    out = torch.ones_like(picture)
    shown = (picture > 0.08).nonzero().float()
    if len(shown) and chance(0.7, generator):
        angle = between(0, 2 * np.pi, generator)
        along = x * np.cos(angle) + y * np.sin(angle)
        extent = shown[:, 1] * np.cos(angle) + shown[:, 0] * np.sin(angle)
        limit = extent.max() - between(0, missing, generator) * (extent.max() - extent.min())
        out = out * (along < limit)
    for _ in range(int(between(0, 4, generator))):
        width, height, column, row = (between(a, b, generator) for a, b in ((0.03, 0.14), (0.03, 0.14), (0.1, 0.9), (0.1, 0.9)))
        out = out * ((((x - column * size) / (width * size)) ** 2 + ((y - row * size) / (height * size)) ** 2) > 1)
    return out


def train_plates(plates: Plates, settings: PlateTraining, runtime: Runtime, folder: Path | None = None) -> tuple[PlateEmbedding, list[dict]]:
    """(network in evaluation mode, with the places of the plates, and figures of every step), trained for one atlas; ``folder`` keeps the log and the
    checkpoints, from which it goes on. InputError for too few plates."""
    if plates.count < 8:
        raise InputError(f"{plates.volume.name} has {plates.count} {plates.axis} plates; at least 8 are needed to train on")
    torch.manual_seed(runtime.seed)
    network = PlateEmbedding(plates.size, plates.count)
    clean = centered(plates.pictures(plates.frames))
    count = min(settings.batch, plates.count)

    def draw(generator) -> Batch:
        numbers = torch.randperm(plates.count, generator=generator)[:count]
        return Batch(slices_of(plates, numbers.numpy(), settings, generator), clean[numbers], numbers)

    def view(model, batch):
        return [(1.0, (distances(model(batch.fixed), model(batch.moving)), batch.fixed_labels.float()))]

    steps = loop.TrainingSettings(steps=settings.steps, rate=settings.rate, checkpoint=settings.steps, warm_up=min(50, settings.steps // 8),
                                  half=False)
    loss = MetricLoss(settings.loss, settings.margin, settings.reach)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        rows = loop.train(network, view, loss, draw, steps, Path(folder or scratch), runtime)
    network.eval().requires_grad_(False)
    network.places.copy_(embedded(network, clean))
    network.usual.fill_(judged(network, plates, settings, runtime.seed + 1)["usual_distance"])
    return network, rows


def judged(network: PlateEmbedding, plates: Plates, settings: PlateTraining, seed: int, count: int = 64) -> dict:
    """How well slices drawn anew from the atlas are recognized: share within the first 5, mean rank error, and the distance to the own plate
    that 95 % of them keep."""
    generator = torch.Generator().manual_seed(seed)
    numbers = np.linspace(0, plates.count - 1, count).round().astype(int)
    apart = distances(embedded(network, slices_of(plates, numbers, settings, generator)),
                      embedded(network, centered(plates.pictures(plates.frames)))).numpy()
    ranks = np.array([rank_of(row, number) for row, number in zip(apart, numbers)])
    usual = float(np.quantile(apart[np.arange(count), numbers], 0.95))
    return {"top5": float((ranks < 5).mean()), "mean_rank_error": float(ranks.mean()), "usual_distance": usual, "slices": count}
