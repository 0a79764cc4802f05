"""A layer with other deltas for every image gives what each image's changed layer gives, by the definition."""

import pytest
import torch
from deltas_models import CONVS, weight_deltas
from timm.layers import BatchNormAct2d, Conv2dSame, GroupNorm1, LayerNorm2d, RmsNorm
from torch import nn

from distill.deltas.activation import ActivationForm
from distill.deltas.attach import attach
from distill.deltas.base import DeltaError
from distill.deltas.dora import DoRA
from distill.deltas.low_rank import LowRank
from distill.export.delta.per_image import NoFormError, PerImageModel, change_of, forward_each

METHODS = weight_deltas()
LAYERS = {
    **CONVS,
    "timm_same": lambda: Conv2dSame(6, 8, 3, stride=2),
    "timm_same_depthwise": lambda: Conv2dSame(6, 6, 3, stride=2, groups=6),
    "grouped_pointwise": lambda: nn.Conv2d(12, 16, 1, groups=2),
}
NORMS = {
    "batch": lambda: nn.BatchNorm2d(6),
    "batch_act": lambda: BatchNormAct2d(6),
    "layer": lambda: nn.LayerNorm(6),
    "layer_of_map": lambda: LayerNorm2d(6),
    "group": lambda: nn.GroupNorm(2, 6),
    "group_one": lambda: GroupNorm1(6),
}
NO_FORM = {"branch", "dense", "sign", "sparse", "sparse_mask"}
"""Methods whose change of a large layer is no product of two small matrices."""


def changed_layer(layer, settings, seed):
    """The layer with random deltas, one of each of the settings, and these deltas."""
    model = nn.Sequential(layer).double().eval()
    sites = attach(model, settings)
    generator = torch.Generator().manual_seed(seed)
    for site in sites:
        site.delta.eval()
        for parameter in site.delta.parameters():
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model, [(None, site.delta) for site in sites]


def made(kind, settings_of_images, statistics=None):
    """A plain layer, the changes of images, and their changed layers."""

    def fresh():
        torch.manual_seed(0)
        layer = (LAYERS | NORMS)[kind]().double().eval()
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.copy_(torch.randn(6))
            layer.running_var.copy_(torch.rand(6) + 0.5)
        return layer

    plain, changes, references = fresh(), [], []
    for seed, settings in enumerate(settings_of_images):
        reference, deltas = changed_layer(fresh(), settings, seed) if settings else (nn.Sequential(fresh()), [])
        references.append(reference)
        changes.append(change_of(plain, deltas) if settings else None)
    return plain, changes, references


@torch.no_grad()
def compare(plain, changes, references):
    torch.manual_seed(1)
    of_tokens = type(plain) in (nn.Linear, nn.LayerNorm)
    shape = (7, 6) if of_tokens else (getattr(plain, "in_channels", 6), 11, 12)
    x = torch.randn(len(changes), *shape, dtype=torch.float64)
    expected = torch.cat([reference(image[None].clone()) for reference, image in zip(references, x)])
    for given in [x] if of_tokens else [x, x.contiguous(memory_format=torch.channels_last)]:
        torch.testing.assert_close(forward_each(plain, given, changes), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_with_each_delta(kind):
    for name, settings in METHODS.items():
        if "norm" in name:
            continue
        by_rank = [settings.model_copy(update={"rank": r}) if hasattr(settings, "rank") else settings for r in (2, 1)]
        images = [[by_rank[0]], [by_rank[1]], [], [by_rank[0]]]
        try:
            case = made(kind, images)
        except NoFormError:
            assert name in NO_FORM and "depthwise" not in kind, name
        except DeltaError as error:
            assert any(text in str(error) for text in ("no bias", "no conv", "would take")), (name, error)
        else:
            assert name not in NO_FORM or "depthwise" in kind, name
            compare(*case)


@pytest.mark.parametrize("kind", ["plain", "pointwise", "grouped", "linear", "depthwise"])
def test_several_deltas_on_a_layer_compose_in_their_order(kind):
    low, dora, halrp, rule = (METHODS[name] for name in ("low_rank", "dora", "halrp", "delta_rule"))
    columns = METHODS["ia3"].model_copy(update={"side": "input"})
    images = [[low, METHODS["scale_shift"], columns, low], [columns, dora], [halrp, dora, rule], [], [rule, halrp]]
    compare(*made(kind, images))


@pytest.mark.parametrize("kind", NORMS)
def test_norms(kind):
    compare(*made(kind, [[METHODS["norm_affine"]], [], [METHODS["scale_shift"], METHODS["bias"]]]))


def test_statistics_of_a_batch_norm():
    plain, _, (reference,) = made("batch_act", [[]])
    moved = {"running_mean": torch.ones(6).double(), "running_var": torch.full((6,), 2.0).double()}
    change = change_of(plain, [], moved)
    for name, tensor in moved.items():
        getattr(reference[0], name).copy_(tensor)
    compare(plain, [change], [reference])


def test_rows_of_a_fused_projection():
    layer, third = nn.Linear(6, 9).double(), nn.Linear(6, 3).double()
    q, whole = LowRank(LowRank.Settings(rank=2), third), LowRank(LowRank.Settings(rank=1), layer)
    v = DoRA(DoRA.Settings(rank=1), third)
    for delta in (q, whole, v):
        delta.B.data.normal_()
    change = change_of(layer, [((0, 3), q), (None, whole), ((6, 9), v)])
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    with torch.no_grad():
        weight = layer.weight.clone()
        weight[:3] = q(weight[:3])
        weight = whole(weight)
        weight[6:] = v(weight[6:])
        torch.testing.assert_close(forward_each(layer, x, [change, change]), x @ weight.T + layer.bias)
    assert ActivationForm(columns=x[0, 0]).with_rows(ActivationForm(columns=x[0, 1]), 0, 3, 9) is None


def test_a_layer_that_computes_in_a_way_of_its_own_is_refused():
    with pytest.raises(NoFormError, match="a change of RmsNorm"):
        change_of(RmsNorm(6), [])


class Mixing(nn.Module):
    """Its ``late`` sees positions outermost, ``early`` images."""

    def __init__(self):
        super().__init__()
        self.pretrained_cfg = {"input_size": (3, 4, 4)}
        self.early, self.late, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.late(self.early(x.flatten(2).mean(1).view(-1, 4, 4)).transpose(0, 1)).transpose(0, 1).mean(2)


def test_only_layers_that_see_image_after_image_are_changed():
    assert set(PerImageModel(Mixing().eval()).layers) == {"early"}
