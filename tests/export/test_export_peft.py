"""Delta files as peft adapters and back: peft's logits are the student's, and both ways round are bit-equal."""

import json

import pytest
import torch
from delta_files import write_file
from export_students import LABELS, logits, make_backbone
from typer.testing import CliRunner

from distill.cli import app
from distill.deltas.adapter import Adapter as AdapterDelta
from distill.deltas.bias import Bias
from distill.deltas.dora import DoRA
from distill.deltas.ia3 import IA3
from distill.deltas.low_rank import LowRank
from distill.deltas.scale_shift import ScaleShift
from distill.export.checksummed import ExportError
from distill.export.delta.io import MANIFEST, TENSORS, load_delta, read_delta
from distill.export.delta.model import open_delta, save_delta_file
from distill.export.peft import files
from distill.export.peft.from_peft import from_peft
from distill.export.peft.to_peft import NeedsValues, to_peft
from distill.models.network import Network, as_network

VIT, CNN, GROUPED = "test_vit", "test_efficientnet", "regnetx_002"
CASES = {
    "low_rank": (
        VIT,
        [
            LowRank.Settings(rank=3, alpha=7, sites="blocks.*.attn.qkv[qv]"),
            LowRank.Settings(rank=2, sites="blocks.*.attn.qkv[k]"),
            LowRank.Settings(rank=4, sites="fc1"),
            Bias.Settings(sites=("fc1", "blocks.0.attn.qkv[v]")),
        ],
    ),
    "low_rank on convs": (
        CNN,
        [LowRank.Settings(rank=2, alpha=3, sites=("conv_stem", "*.conv_exp", "*.conv_pwl"))],
    ),
    "low_rank on grouped convs": (GROUPED, [LowRank.Settings(rank=2, alpha=3, sites="s1.*.conv*.conv")]),
    "dora": (VIT, [DoRA.Settings(rank=2, alpha=3, sites=("blocks.*.attn.qkv[kv]", "fc2"))]),
    "dora on convs": (CNN, [DoRA.Settings(rank=2, sites=("conv_stem", "*.conv_exp", "*.conv_pw"))]),
    "ia3": (
        VIT,
        [IA3.Settings(sites="blocks.*.attn.qkv[kv]"), IA3.Settings(sites="fc2", side="input")],
    ),
    "ia3 on convs": (CNN, [IA3.Settings(sites="*.conv_pw"), IA3.Settings(sites="*.conv_dw", side="input")]),
}


def network(architecture: str) -> Network:
    return as_network(make_backbone(architecture))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert (a - b).abs().max() <= 1e-6 * b.abs().max() + 1e-7, (a - b).abs().max() / b.abs().max()


def peft_logits(folder, architecture: str) -> torch.Tensor:
    from peft import PeftModel

    model = make_backbone(architecture)
    torch.nn.init.normal_(model.get_classifier().weight)  # the adapter brings the head
    return logits(PeftModel.from_pretrained(model, str(folder)))


@pytest.fixture(scope="module", params=CASES)
def exported(request, tmp_path_factory):
    """A delta file and the adapter made from it."""
    architecture, specs = CASES[request.param]
    root = tmp_path_factory.mktemp("peft")
    write_file(root / "delta", specs, architecture=architecture, head_seed=3)
    adapter = to_peft(open_delta(root / "delta"), make_backbone(architecture), knows_values=True, expand=True)
    files.write_adapter(root / "adapter", adapter, root / "delta")
    return root, architecture, adapter


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups > 1")
def test_peft_gives_the_students_logits(exported):
    root, architecture, _ = exported
    student = load_delta(root / "delta", make_backbone(architecture))
    close(peft_logits(root / "adapter", architecture), logits(student))


def test_the_way_back_gives_the_same_adapter_bit_by_bit(exported):
    root, architecture, adapter = exported
    manifest, same = files.exported_from(root / "adapter")
    assert same and manifest == read_delta(root / "delta")[0]
    back = from_peft(files.read_adapter(root / "adapter"), network(architecture))
    save_delta_file(root / "back", back, "test")
    student = load_delta(root / "back", make_backbone(architecture))
    close(logits(student), logits(load_delta(root / "delta", make_backbone(architecture))))
    again = to_peft(open_delta(root / "back"), make_backbone(architecture), knows_values=True, expand=True)
    assert {**again.config, "base_model_name_or_path": None} == adapter.config
    assert {name: tensor.shape for name, tensor in again.tensors.items()} == {
        name: tensor.shape for name, tensor in adapter.tensors.items()
    }
    for name, tensor in adapter.tensors.items():
        if not name.endswith("bias"):  # bias − backbone's bias is rounded
            assert torch.equal(again.tensors[name], tensor), name


TRAINED = {
    "lora": (
        VIT,
        {"r": 4, "lora_alpha": 6, "target_modules": ["qkv", "fc1"], "rank_pattern": {"fc1": 2}, "use_rslora": True},
    ),
    "lora on convs": (
        CNN,
        {"r": 4, "target_modules": ["conv_exp", "conv_pwl", "conv_reduce"], "alpha_pattern": {"3.0.conv_pwl": 3}},
    ),
    "lora with biases": (VIT, {"r": 2, "target_modules": ["qkv"], "bias": "lora_only"}),
    "lora with all biases": (VIT, {"r": 2, "target_modules": ["fc1"], "bias": "all", "lora_bias": True}),
    "dora": (VIT, {"r": 2, "target_modules": ["qkv", "fc2"], "use_dora": True}),
    "dora on convs": (CNN, {"r": 2, "target_modules": ["conv_exp", "conv_pw"], "use_dora": True}),
    "ia3": (VIT, {"target_modules": ["qkv", "fc2"], "feedforward_modules": ["fc2"]}),
    "ia3 on convs": (CNN, {"target_modules": ["conv_pwl", "conv_dw"], "feedforward_modules": ["conv_dw"]}),
}


def trained_by_peft(architecture: str, settings: dict, folder) -> torch.Tensor:
    """An adapter that peft made and trained for a step, written to ``folder``; its logits."""
    import peft

    kind = peft.IA3Config if "feedforward_modules" in settings else peft.LoraConfig
    model = make_backbone(architecture)
    head = "head" if architecture == VIT else "classifier"
    torch.manual_seed(4)
    adapted = peft.get_peft_model(model, kind(**settings, modules_to_save=[head]))
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    images = torch.randn(2, 3, 160, 160)
    for _ in range(2):  # after the first step, A still has no gradient
        torch.nn.functional.cross_entropy(adapted(images), torch.tensor([1, 3])).backward()
        optimizer.step()
    adapted.save_pretrained(str(folder))
    return logits(adapted)


@pytest.mark.filterwarnings("ignore:Adapter 'default'.*lora_B.bias")  # peft doubts its own lora_bias when it saves
@pytest.mark.parametrize("case", TRAINED)
def test_an_adapter_of_peft_comes_in_and_gives_its_logits(tmp_path, case):
    architecture, settings = TRAINED[case]
    expected = trained_by_peft(architecture, settings, tmp_path / "adapter")
    adapter = files.read_adapter(tmp_path / "adapter")
    file = from_peft(adapter, network(architecture))
    save_delta_file(tmp_path / "delta", file, "test")
    close(logits(load_delta(tmp_path / "delta", make_backbone(architecture))), expected)
    if "bias" not in settings:
        again = to_peft(open_delta(tmp_path / "delta"), make_backbone(architecture), knows_values=True)
        assert again.tensors.keys() == adapter.tensors.keys()
        assert all(torch.equal(again.tensors[name], tensor) for name, tensor in adapter.tensors.items())


def test_what_peft_has_no_form_for_is_named(tmp_path):
    def export(specs, architecture=CNN, knows=False):
        write_file(tmp_path, specs, architecture=architecture)
        return to_peft(open_delta(tmp_path), make_backbone(architecture), knows_values=knows)

    with pytest.raises(
        ExportError, match=r"no form for 1 layers of this file:\n  s1.b1.conv2.conv has 3 groups; --expand"
    ):
        export([LowRank.Settings(rank=1, sites="s1.*.conv*.conv")], GROUPED)
    with pytest.raises(ExportError, match=r"s1.b1.conv2.conv has 3 groups, and peft's DoRA has no form for them"):
        export([DoRA.Settings(rank=1, sites="s1.*.conv2.conv")], GROUPED, knows=True)
    with pytest.raises(ExportError, match=r"stages.0.0.conv2 is a ScaledStdConv2d, which computes with another weight"):
        export([LowRank.Settings(rank=1, sites="stages.0.*.conv2")], "test_nfnet")
    with pytest.raises(ExportError, match=r"no form for scale_shift at conv_stem: it has one for low_rank, dora"):
        export([LowRank.Settings(rank=1, sites="*.conv_pw"), ScaleShift.Settings(sites="conv_stem")])
    with pytest.raises(ExportError, match=r"of one kind, and this file has low_rank at .*conv_pw.*; ia3 at conv_stem"):
        export([LowRank.Settings(rank=1, sites="*.conv_pw"), IA3.Settings(sites="conv_stem")])
    with pytest.raises(ExportError, match=r"qkv has several dora deltas on the same rows"):
        export([DoRA.Settings(rank=1, sites="*.qkv"), DoRA.Settings(rank=1, sites="*.qkv[q]")], VIT)
    with pytest.raises(NeedsValues, match="depend on the backbone's weights"):
        export([DoRA.Settings(rank=1, sites="*.conv_pw")])
    with pytest.raises(ExportError, match=r"adapter at blocks.0 is structural; .* peft adapter"):
        export([AdapterDelta.Settings(sites="blocks.0", hidden=2)])


def test_what_a_delta_file_has_no_form_for_is_named(tmp_path):
    net = network(VIT)
    weight = torch.zeros(1, 3)

    def read(tensors=None, **config):
        own = {
            "blocks.0.mlp.fc1.lora_A.weight": torch.ones(1, 64),
            "blocks.0.mlp.fc1.lora_B.weight": torch.ones(192, 1),
        }
        return from_peft(files.PeftAdapter({"peft_type": "LORA", "r": 1, **config}, {**own, **(tensors or {})}), net)

    assert list(read().layers) == ["blocks.0.mlp.fc1"]
    for message, config in {
        "peft_type is LOHA; a delta file can hold LORA": {"peft_type": "LOHA"},
        "init_lora_weights is 'pissa', which changes the backbone": {"init_lora_weights": "pissa"},
        "has no form for: use_qalora: True": {"use_qalora": True},
        "lora_alpha -2, and alpha of a delta is positive": {"lora_alpha": -2},
        "lacks lora_magnitude_vector": {"use_dora": True},
    }.items():
        with pytest.raises(ExportError, match=message):
            read(**config)
    for message, tensors in {
        r"test_vit has no layers encoder.layer.0.*names than timm's, such as": {
            "encoder.layer.0.lora_A.weight": weight
        },
        r"1 tensors of the adapter: norm.weight \(modules_to_save: norm; the classifier is head\)": {
            "norm.weight": weight
        },
        r"classifier has head.weight \(1, 3\), and the network \(5, 64\)": {"head.weight": weight},
        r"fc1 has lora_A \(2, 64\) and lora_B \(192, 1\), expected": {
            "blocks.0.mlp.fc1.lora_A.weight": torch.ones(2, 64)
        },
    }.items():
        with pytest.raises(ExportError, match=message):
            read(tensors, modules_to_save=["norm"])
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ExportError, match=r"is a pickle, which can run code.*save_pretrained"):
        files.read_adapter(tmp_path)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["delta", *map(str, arguments)], env={"COLUMNS": "120"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_the_commands(tmp_path):
    delta, adapter, back = tmp_path / "delta", tmp_path / "adapter", tmp_path / "back"
    write_file(delta, [LowRank.Settings(rank=2, sites="*.conv_pw*")], head_seed=2)
    assert "LORA on 6 layers" in run("to-peft", delta, "-o", adapter)
    assert "bit by bit" in run("from-peft", adapter, "-o", back)
    assert all((back / name).read_bytes() == (delta / name).read_bytes() for name in (TENSORS, MANIFEST))

    config = json.loads((adapter / files.CONFIG).read_text())
    (adapter / files.CONFIG).write_text(json.dumps({**config, "lora_alpha": 5}))  # now another adapter
    with pytest.raises(ExportError, match=r"--backbone; without its weights' SHA-256 there is no delta file"):
        run("from-peft", adapter, "-o", tmp_path / "none")
    with pytest.raises(ExportError, match=r"exported from a delta of another backbone \(random, SHA-256"):
        run("from-peft", adapter, "-o", tmp_path / "none", "--backbone", CNN, "--random-weights", 1)
    assert not (tmp_path / "none").exists()
    output = run("from-peft", adapter, "-o", tmp_path / "changed", "--backbone", CNN, "--random-weights", 0)
    assert "6 layers of random" in output
    assert read_delta(tmp_path / "changed")[0].labels == LABELS
