"""Classes by their names: knowledge about names, text encoders, and embeddings of class texts.

Image features and logits belong to :mod:`distill.models` and :mod:`distill.transfer`, which read these embeddings.
"""
