"""Long plans of experiments. They import torch, so an experiment imports its own only to plan a run."""
