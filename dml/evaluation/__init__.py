"""Evaluation: attack queries, check the attacks, compare with untrained controls, and say how sure the figures are."""

CONTROLS: dict[str, str] = {
    "pixels_8": "dml.evaluation.controls:Pixels8",
    "pixels_16": "dml.evaluation.controls:Pixels16",
    "pixels_linear": "dml.evaluation.linear_metric:RobustLinear",
    "colour_histogram": "dml.evaluation.controls:ColourHistogram",
    "soft_histogram": "dml.evaluation.controls:SoftHistogram",
}
