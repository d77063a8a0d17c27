"""The config's section on export: which runtimes to write, and what int8 may cost."""

from typing import Literal

from pydantic import Field

from xdray.config_data import Section


class ExportConfig(Section):
    """What `export` writes beside a student's weights."""

    formats: list[Literal["onnx", "onnx-int8", "bfloat16"]] = Field(
        default=["onnx", "onnx-int8", "bfloat16"], min_length=1
    )
    """onnx: float32. onnx-int8: dynamic quantisation. bfloat16: weights for PyTorch, half the
    bytes."""
    max_loss: float = Field(default=0.5, ge=0)
    """Points of `evaluation.metric` on dev that int8 may lose; a graph that loses more is not
    kept."""
    teacher: bool = False
    """Export the teacher too, into the run folder's export/teacher."""
