"""A file of somebody's own model, as the command line takes it: FILE:make."""

MODEL_FILE = """
from torch import nn
import torch

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 8)).eval()
"""
