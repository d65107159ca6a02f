"""Costs of an alignment: similarities, regularisers, landmarks, overlap, consistency."""

from .base import Alignment, Objective, Similarity, Term
from .consistency import GradientInverseConsistency, InverseConsistency
from .information import MutualInformation
from .local_correlation import LNCC
from .overlap import LabelMSE, SoftDice
from .points import LandmarkDistance
from .prior import VelocityPrior
from .regularity import Bending, Curvature, Diffusion, Folding, LogJacobian, Regularity
from .similarity import MINDSSC, MSE, NCC, NGF

SIMILARITIES: dict[str, type[Similarity]] = {"mse": MSE, "ncc": NCC, "lncc": LNCC, "mi": MutualInformation, "ngf": NGF, "mind": MINDSSC}
"""Short name -> class, for the parameters of methods."""

REGULARITIES: dict[str, type[Regularity]] = {"diffusion": Diffusion, "bending": Bending, "curvature": Curvature,
                                             "folding": Folding, "logjacobian": LogJacobian}
"""Short name -> class, for the parameters of methods."""

CONSISTENCIES: dict[str, type[Term]] = {"icon": InverseConsistency, "gradicon": GradientInverseConsistency}
"""The same for regularizers of a map and its reverse together."""

__all__ = ["Alignment", "Bending", "CONSISTENCIES", "Curvature", "Diffusion", "Folding", "GradientInverseConsistency", "InverseConsistency", "LNCC",
           "LabelMSE", "LandmarkDistance", "LogJacobian", "MINDSSC", "MSE", "MutualInformation", "NCC", "NGF", "Objective",
           "REGULARITIES", "Regularity", "SIMILARITIES", "Similarity", "SoftDice", "Term", "VelocityPrior"]
