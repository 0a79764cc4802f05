"""Our deltas → what peft, other libraries and papers call them, for the error of an unknown type.

Where there is no delta of that kind, the nearest one is suggested: other factorizations of a low-rank change, say.
"""

from __future__ import annotations

LISTED_BY = 'python -c "import distill; print(distill.list_deltas())"'

OTHER_NAMES = {
    "low_rank": "lora conv_lora loraconv locon lokr loha vera pissa rslora loraplus lora+ lorafa qlora relora "
    "dylora delora randlora vblora xlora mora olora eva corda loftq lowrankadaptation lowrankadapter linearlora "
    "loraxs glora hira fourierft waveft c3a bone miss fact kadaptation polyhistor loraconv2d",
    "dora": "qdora weightdecomposedlora",
    "adalora": "adaptivelora svdlora autolora",
    "bias": "bitfit biasonly biastuning",
    "norm_affine": "lntuning layernorm layernormtuning bn norm norms batchnorm norm_tuning affine bnaffine bn_tuning",
    "scale_shift": "ssf film scaleandshift",
    "ia3": "infusedadapter l_ia3 scaling",
    "adapter": "adapters houlsby pfeiffer bottleneck bottleneckadapter adaptformer convadapter series_adapter "
    "compacter parallel_adapter residual_adapter convpass repadapter",
    "ladder": "lst side sidetuning ladder_side_tuning sidenetwork",
    "sign": "bitdelta onebit binary 1bit sign_delta",
    "sparse": "shira fish fishmask randommask gps sparse_adapter topk",
    "sparse_mask": "diffpruning l0 hardconcrete masking",
    "dense": "fulldelta full finetune fullfinetune taskvector full_rank diff",
    "branch": "branchtuning parallel_conv",
    "output": "outputdelta headdelta proxy residual_head logit_delta",
    "delta_rule": "deltanet householder hra rankone oft boft road",
    "no delta adds tokens to the input, since those do not merge into the network; low_rank, bias and norm_affine "
    "change the layers.": "prompt prompttuning softprompt prefix prefixtuning ptuning multitaskprompttuning vpt "
    "visualprompt "
    "visualprompttuning trainabletokens adaptionprompt",
    "the head is trained with any deltas, and alone with none.": "head linearprobe linearprobing probe classifier",
}
