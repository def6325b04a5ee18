"""Networks, their weights, files that others wrote, and the classifier around a network."""

from models.backbones import NETWORKS, NetworkConfig, build_network
from models.classifier import PromptedClassifier
from models.deployed import load_pruned
from models.label_map import MAPPINGS

__all__ = ["MAPPINGS", "NETWORKS", "NetworkConfig", "PromptedClassifier", "build_network",
           "load_pruned"]  # fmt: skip
