"""Our objectives → what papers and other libraries call them, for the error of an unknown type."""

from __future__ import annotations

LISTED_BY = "distill objectives"

OTHER_NAMES = {
    "ce": "crossentropy nll labels hardlabel supervised xent softmaxce bce bcewithlogits binarycrossentropy "
    "focal asymmetric labelsmoothing labelsmoothingcrossentropy polyloss arcface cosface center",
    "kd": "hinton vanilla vanillakd kl kldiv kldivergence distillkl soft softtarget softtargets softkd logit logits "
    "response klkd st logitstd logitstdkd lskd standardized distillation softdistillation softtargetcrossentropy js "
    "jsd jsdiv jensenshannon reversekl rkl forwardkl dml deepmutual mutual bornagain ban tfkd eskd wsld ctkd wkd takd",
    "dkd": "decoupled decoupledkd",
    "nkd": "normalizedkd uskd",
    "mlkd": "mlld multilevel multilevellogit multi_level_logit_distillation",
    "dist": "distkd distplus dist+ correlation pearson",
    "fitnets": "fitnet hint hints hintl2 regressor ft factor factortransfer ab norm semckd",
    "at": "attention attentiontransfer spatialattention atmap",
    "rkd": "relational relationalkd relation distance_angle distancewiserkd anglewiserkd darkrank",
    "cc": "cckd correlationcongruence",
    "sp": "spkd similarity similaritypreserving gram fsp",
    "pkt": "probabilistic probabilistic_transfer",
    "nst": "neuronselectivity",
    "vid": "variational variationalinformation mutualinformation",
    "vib": "ib informationbottleneck bottleneck",
    "crd": "contrastive contrastiverepresentation nce crdst",
    "icd": "infonce invariantcontrastive supcon triplet tripletmargin",
    "rrd": "relationalrepresentation rrdkd ressl seed compress",
    "simkd": "ktn knowledgetransfernetwork reusedclassifier reused_head srrl teacherclassifier",
    "reviewkd": "review knowledgereview hcl abf",
    "pooled": "mse l2 l1 smoothl1 huber cosine cosinesimilarity cosineembedding feature features feat "
    "embedding mimic penultimate",
    "dense": "cwd channelwise channelwisedivergence mgd fgd ofd overhaul featuremap maps spatial vitkd",
    "deit": "harddistillation hard token disttoken distillationtoken distilltoken",
    "adversarial": "gan discriminator adv afd wasserstein",
    "simclr": "ntxent nt_xent simclrv1 simclrv2",
    "byol": "bootstrap bootstrapyourownlatent simsiam dino ibot",
    "moco": "mocov2 mocov2plus mocov2+ moco_v2 mocov1 momentumcontrast",
    "barlow_twins": "barlow crosscorrelation redundancyreduction",
    "vicreg": "vic vibcreg",
    "cassle": "continualssl predictivedistillation kaizen",
    "podnet": "pod podflat podspatial poolednet",
    "er_ace": "ace asymmetricce",
    "self_training": "pseudolabel pseudo_label fixmatch mic meanteacher mean_teacher selfensemble",
    "information_max": "im infomax informationmaximization shot tent entropy",
    "mcc": "classconfusion minimumclassconfusion",
    "bnm": "nuclear nuclearnorm batchnuclearnorm",
    "mmd": "dan mkmmd maximummeandiscrepancy",
    "coral": "deepcoral covariance",
    "dann": "domainadversarial revgrad grl",
    "cdan": "cdane conditionaladversarial",
    "der": "der++ derpp darkexperience darkexperiencereplay",
}
