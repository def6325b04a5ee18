"""Networks, their weights, files that others wrote, and the classifier around a network."""

from models.backbones import NETWORKS, Backbone, NetworkConfig, backbone, build_network
from models.classifier import PromptedClassifier
from models.foreign import Foreign, read_authors
from models.label_map import MAPPINGS
from models.zoo import ZOO, fetch

__all__ = [
    "MAPPINGS",
    "NETWORKS",
    "ZOO",
    "Backbone",
    "Foreign",
    "NetworkConfig",
    "PromptedClassifier",
    "backbone",
    "build_network",
    "fetch",
    "read_authors",
]
