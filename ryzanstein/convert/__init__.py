"""Any model that can be loaded, written in another format."""

from ryzanstein.convert.conversion import FORMATS, Conversion, convert_model
from ryzanstein.convert.report import TensorChange

__all__ = ["FORMATS", "Conversion", "TensorChange", "convert_model"]
