"""fusetune: which parameter-efficient method wins on my multimodal data, at what cost, and give me that adapter."""

__version__ = "0.1.0"
