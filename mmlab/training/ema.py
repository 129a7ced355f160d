"""The exponential moving average (EMA) of a network's weights; models with momentum use it too."""

from mmlab.nn.momentum import make_average, update_average

__all__ = ["make_average", "update_average"]
