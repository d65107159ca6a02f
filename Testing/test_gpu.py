"""Every method and the training loop on a GPU; where there is none, on one that is pretended (pretended.py): what is shown then is that tensors are
where they have to be and that the numbers come out, not speed, memory or the rounding of a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contract import asked, run_with_what_it_needs, smallest
from pretended import gpu, pretended_gpu
from trainings import OBJECTIVE, blobs, settings, small, view

from DeepRegistrationLib.method import registry
from DeepRegistrationLib.runtime import Runtime
from DeepRegistrationLib.train.loop import train

METHODS = registry()
SHORT = {"affine": "rigid", "convex-discrete": "semantic", "csngf": "search-only", "general": "quick", "icon-atlas": "network",
         "instance-optimisation": "fast", "qmri": "published"}
"""Methods of which another preset is faster or does more of what a GPU is for."""
FEWER = {"csngf": {"tried": (200, 60, 12)}, "gradicon": {"iterations": (6, 6, 3)}, "icon-atlas": {"steps": 8}, "rician-motion": {"rounds": 15},
         "spatiotemporal-atlas": {"steps": 20}}
"""Values with which a method is faster, and good enough for what is asked here."""


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_a_gpu(name):
    cls = METHODS[name]
    dim = min(cls.card.dims)
    method, truth = asked(cls, dim, SHORT.get(name, "default"), **FEWER.get(name, {})), smallest(cls, dim)
    with gpu():
        answer = truth.answer(run_with_what_it_needs(method, truth, "cuda"))
    before, after = truth.error(lambda x: x), truth.error(answer)
    assert after < 0.8 * before and answer.device.type == "cpu", f"{before:.2f} mm before, {after:.2f} mm after"


def test_training_on_a_gpu_has_the_costs_of_the_cpu(tmp_path):
    here = train(small(), view, OBJECTIVE, blobs, settings(5), tmp_path / "here", Runtime("cpu"))
    with gpu():
        network = small()
        there = train(network, view, OBJECTIVE, blobs, settings(5, half=False), tmp_path / "there", Runtime("cuda"))
        assert all(value.is_cuda for value in network.parameters())
    assert [row["cost"] for row in there] == pytest.approx([row["cost"] for row in here], rel=1e-3)


def test_a_pretended_gpu_refuses_what_a_gpu_refuses():
    with pretended_gpu():
        there, here = torch.rand(3, 4, device="cuda"), torch.rand(3, 4)
        for mixed in (lambda: there + here, lambda: torch.cat([here, there]), lambda: here @ there.T, lambda: here[torch.tensor([0], device="cuda")]):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(TypeError, match="Tensor.cpu"):
            np.asarray(there)
        assert torch.equal(here.to("cuda").cpu(), here) and (there + here.to(there)).is_cuda and not there.cpu().is_cuda
        assert there[torch.tensor([0, 2])].shape == (2, 4) and float((2 * there).sum()) == pytest.approx(2 * float(there.sum()))
        weight = here.clone().requires_grad_(True)
        (weight.to("cuda") * there).sum().backward()
        torch.testing.assert_close(weight.grad, there.cpu())
    assert not torch.cuda.is_available() or torch.cuda.get_device_name() != "pretended"
