"""Importing this registers the model type with transformers, and does nothing else.

After ``import twinline.auto``, ``AutoModel.from_pretrained(path)`` and
``SentenceTransformer(path)`` load a folder that twinline saved.
"""

from transformers import AutoConfig, AutoModel

from .config import TwinlineConfig
from .model import TwinlineModel

AutoConfig.register(TwinlineConfig.model_type, TwinlineConfig, exist_ok=True)
AutoModel.register(TwinlineConfig, TwinlineModel, exist_ok=True)
