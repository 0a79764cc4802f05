"""Our detectors → what other libraries call them, for the error of an unknown type."""

from __future__ import annotations

OTHER_NAMES = {
    "retinanet": "retinanet_resnet50_fpn retinanet_resnet50_fpn_v2 retina retina_net focal",
    "fcos": "fcos_resnet50_fpn",
    "faster_rcnn": "fasterrcnn fasterrcnn_resnet50_fpn fasterrcnn_resnet50_fpn_v2 rcnn frcnn faster-rcnn",
}
