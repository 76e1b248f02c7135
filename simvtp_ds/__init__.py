"""SimVTP on DeepSpeed: masked video-text pre-training at scale."""

__version__ = "0.1.0"
