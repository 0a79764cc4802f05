"""Which layers a pattern finds, and what is said when it finds none."""

import pytest
import timm
from deltas_models import build
from torch import nn

from distill.deltas.attach import attach
from distill.deltas.base import DeltaError, DeltaSettings
from distill.deltas.bias import Bias
from distill.deltas.dense import Dense
from distill.deltas.low_rank import LowRank
from distill.deltas.sites import classifier_names, layer_kind, matching


def test_qkv_of_an_unknown_layout_is_refused() -> None:
    model = timm.create_model("tiny_vit_5m_224", num_classes=2)
    with pytest.raises(DeltaError, match=r"the rows of q, k and v in timm.models.tiny_vit.Attention are not known"):
        attach(model, [LowRank.Settings(sites="*.attn.qkv[q]")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Dense.Settings(sites="blocks.*.conv_pv"), "pattern 'blocks.*.conv_pv' matches no layer"),
        (Dense.Settings(sites="conv_sten"), "did you mean 'conv_stem'"),
        (Dense.Settings(sites="bn1"), "matches no conv or depthwise or linear layer (it matches 'bn1', a norm)"),
        (Dense.Settings(sites="conv_stem", exclude="conv*"), "all are excluded"),
        (
            Dense.Settings(exclude="bloks.*"),
            "exclude pattern 'bloks.*' matches no layer; layers are named like 'conv_stem'",
        ),
        (LowRank.Settings(kinds="norm"), "cannot change layers of kind norm; it supports linear, conv, depthwise"),
        (LowRank.Settings(sites="*.conv_dw"), "has a weight of 4,608 bytes, and its delta would take 40,960"),
        (LowRank.Settings(rank=500, sites="conv_stem"), "make it smaller (rank, density), set oversized: dense"),
        (LowRank.Settings(oversized="error"), "would take"),
        (Bias.Settings(sites="conv_stem"), "bias: 'conv_stem' has no bias"),
        (Dense.Settings(sites="blocks.1.0.conv_pwl[q]"), "are not known"),
        (Dense.Settings(sites="classifie?"), "all are excluded"),
    ],
)
def test_errors_name_the_site(settings: DeltaSettings, message: str) -> None:
    with pytest.raises(DeltaError) as caught:
        attach(build("test_efficientnet"), [settings], "classifier")
    assert message in str(caught.value)


def test_head_only_when_named() -> None:
    model = build("test_vit")
    sites = attach(model, [Dense.Settings(), Bias.Settings(sites=("head", "blocks.0.norm?"))], "head")
    assert [s.name for s in sites if s.name == "head"] == ["head"]
    assert model.head.weight.requires_grad


def named(model: str, **settings: object) -> list[str]:
    return [site.name for site in attach(build(model), [Dense.Settings(**settings)], "head")]


def test_the_end_of_a_name_and_all_linear_select_layers_as_in_peft() -> None:
    blocks = [f"blocks.{n}" for n in range(len(build("test_vit").blocks))]
    assert named("test_vit", sites="fc1") == [f"{block}.mlp.fc1" for block in blocks]
    assert named("test_vit", sites=["mlp.fc1", "fc2"]) == [f"{b}.mlp.{fc}" for b in blocks for fc in ("fc1", "fc2")]
    assert named("test_vit", sites="qkv[q]") == [f"{block}.attn.qkv[q]" for block in blocks]
    assert named("test_vit", sites="blocks.0.mlp.fc1") == ["blocks.0.mlp.fc1"]
    with pytest.raises(DeltaError, match="pattern 'c1' matches no layer"):  # whole parts of a name only
        named("test_vit", sites="c1")
    linear = [f"{block}.{layer}" for block in blocks for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert named("test_vit", sites="all-linear") == linear
    assert named("test_vit", sites="all-linear", exclude=["fc1", "*.fc2", "qkv"]) == [f"{b}.attn.proj" for b in blocks]
    assert named("test_vit", sites=["all-linear", "head"])[-1] == "head", "the classifier only by its name"


def test_a_whole_name_is_that_layer_alone() -> None:
    names = [name for name, module in build("test_efficientnet").named_modules() if layer_kind(module)]
    assert matching("bn1", names) == ["bn1"] and len(matching("*bn1", names)) > 1
    assert matching("conv_pw", names) == [name for name in names if name.endswith(".conv_pw")] != []
    with pytest.raises(DeltaError, match="all-linear: there is no linear layer except the classifier"):
        attach(build("test_efficientnet"), [LowRank.Settings(sites="all-linear")], "classifier")
    with pytest.raises(DeltaError, match="all-linear selects linear layers, kinds are conv"):
        attach(build("test_efficientnet"), [LowRank.Settings(sites="all-linear", kinds="conv")], "classifier")


def test_classifier_names() -> None:
    assert classifier_names(timm.create_model("deit_tiny_distilled_patch16_224", depth=1)) == ("head", "head_dist")
    assert classifier_names(build("test_nfnet")) == ("head.fc",)
    assert classifier_names(timm.create_model("test_vit", num_classes=0)) == ()


def test_layer_kinds_of_timm_layers() -> None:
    from timm.layers import BatchNormAct2d, Conv2dSame, RmsNorm, ScaledStdConv2d, StdConv2d

    assert (
        layer_kind(Conv2dSame(4, 8, 3))
        == layer_kind(StdConv2d(4, 8, 3))
        == layer_kind(ScaledStdConv2d(4, 8, 3))
        == "conv"
    )
    assert (
        layer_kind(nn.Conv2d(4, 4, 3, groups=4)) == "depthwise" and layer_kind(nn.Conv2d(4, 4, 3, groups=2)) == "conv"
    )
    assert layer_kind(BatchNormAct2d(4)) == layer_kind(RmsNorm(4)) == layer_kind(nn.LayerNorm(4)) == "norm"
    assert layer_kind(nn.LayerNorm(4, elementwise_affine=False)) is None and layer_kind(nn.ReLU()) is None
