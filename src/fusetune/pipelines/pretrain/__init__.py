"""The frozen base model: pretrained here, or named by a folder or a hub id."""
